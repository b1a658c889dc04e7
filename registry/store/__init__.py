"""The registry's folder on this disk: immutable objects, names that move by compare-and-swap, an append-only log."""

from typing import TYPE_CHECKING

from ...core.faces import lazy_exports

if TYPE_CHECKING:
    from .cached_store import Snapshot
    from .objects import Entry
    from .store import Store, find_store

_HOMES = {"Entry": "objects", "Snapshot": "cached_store", "Store": "store", "find_store": "store"}

__all__ = ["Entry", "Snapshot", "Store", "find_store"]

__getattr__ = lazy_exports(__name__, _HOMES)
