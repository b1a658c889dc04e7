"""The bytes of one adapter, from the Hub into the registry: hashed as they come, asked for twice at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ....core.errors import IntegrityError
from ...record import RECORD_FILE, FileEntry
from ..places import HubLocation, check_shareable
from ..references import PullContext
from ..remote_lineage import PullItem


def download_adapter(looked: PullContext, wanted: PullItem, check: Callable[[Path], None]) -> None:
    """Have an adapter in the registry, verified and without a name; one that is held is left as it is.

    Args:
        looked: The Hub and the registry.
        wanted: The adapter.
        check: Called with the folder of its files, record included, before they become part of the registry.

    Raises:
        IntegrityError: Not the bytes its record names; nothing of it is left.
        IncompatibleError: Its configuration names another base than its record.
    """
    if wanted.data is None:
        return
    with looked.store.scratch() as folder:
        (folder / RECORD_FILE).write_bytes(wanted.data)
        for entry in wanted.record.files:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            found = _fetch_file(looked, wanted.place, entry, folder / entry.path, fresh=False)
            if found != entry.sha256:  # perhaps on the way, perhaps in a cache on the way
                found = _fetch_file(looked, wanted.place, entry, folder / entry.path, fresh=True)
            if found != entry.sha256:
                raise IntegrityError(
                    f"the {wanted.record.label} adapter on the Hub does not match its record; nothing of it was kept",
                    where=f"{wanted.place.location}/{entry.path}",
                    expected=entry.sha256,
                    found=f"{found}, twice",
                    next_step="the copy on the Hub or the way to it is damaged: try another network, or ask its owner "
                    "to push it again",
                )
        check_shareable(folder, wanted.record)
        check(folder)
        looked.store.adopt(folder, wanted.digest)


def _fetch_file(looked: PullContext, place: HubLocation, entry: FileEntry, target: Path, *, fresh: bool) -> str:
    name = f"{place.folder}/{entry.path}" if place.folder else entry.path
    return looked.remote.client.fetch(place.repo, place.sha, name, target, max_bytes=entry.size, fresh=fresh)
