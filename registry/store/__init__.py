"""The registry's folder on this disk: immutable objects, names that move by compare-and-swap, an append-only log."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cached_store import Snapshot
    from .objects import Entry
    from .store import Store, find_store

_HOMES = {"Entry": "objects", "Snapshot": "cached_store", "Store": "store", "find_store": "store"}

__all__ = ["Entry", "Snapshot", "Store", "find_store"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
