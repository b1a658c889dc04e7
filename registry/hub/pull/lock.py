"""Pulling exactly what a lock file names, and finding the lock files that a pull by name is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ....core.errors import NotFoundError
from ...lineage.lockfile import LOCK_FILE, Lock, read_lock
from ...record import check_file_name
from ...store import Store
from ..client import HubClient
from ..places import HubLocation, parse_location
from .pull import Options, Pulled, look_from, pull_items


def locks_in(folders: Iterable[Path]) -> list[Lock]:
    """The `curriculum.lock.json` of each folder that has one.

    Raises:
        IntegrityError: One of them is not a lock file this version understands.
    """
    paths = {path.resolve(): None for folder in folders if (path := folder / LOCK_FILE).is_file()}
    return [read_lock(path) for path in paths]


def pull_locked(
    store: Store,
    path: Path,
    *,
    stages: Sequence[int] | None = None,
    client: HubClient | None = None,
    options: Options | None = None,
) -> list[Pulled]:
    """Have exactly the adapters a lock file names in the registry, and point their stages' `latest` at them.

    Each is fetched from the location the file gives, at its commit, and has to have the digest the file gives. What is
    held already is verified and asks for nothing.

    Args:
        store: The registry.
        path: The lock file.
        stages: Which of its stages; all by default.
        client: How to reach the Hub.
        options: How to go about it.

    Raises:
        NotFoundError: No such file, or stage in it; or a stage that is not held and for which it has no location.
        ConfigError: A location that leaves its repository.
        IntegrityError: Not a lock file; or another adapter, or other bytes, lie there.
        And as `hub_pull.pull`.
    """
    lock = read_lock(path)
    lacking = [number for number in stages or () if number not in lock.stages]
    if lacking or not lock.stages:
        raise NotFoundError(
            f"no stage {lacking[0]} in the lock file" if lacking else "the lock file names no stage",
            where=path,
            expected=f"one of {', '.join(map(str, lock.stages))}" if lock.stages else "",
            next_step=f"plyfold lock --curriculum {lock.curriculum} writes what the registry holds",
        )
    here = set(store.digests())
    wanted = {number: stage for number, stage in lock.stages.items() if stages is None or number in stages}
    unplaced = [number for number, stage in wanted.items() if stage.location is None and stage.digest not in here]
    if unplaced:
        first = wanted[unplaced[0]]
        more = f" (and stages {', '.join(map(str, unplaced[1:]))})" if unplaced[1:] else ""
        raise NotFoundError(
            f"the lock file does not say where {lock.curriculum} stage {unplaced[0]} lies, and it is not here" + more,
            where=path,
            expected=first.digest,
            next_step="where it was made: plyfold push, then plyfold lock; or pull it from where you know it lies",
        )
    places = []
    for number, stage in wanted.items():
        promised = lock.curriculum, number
        if stage.location:
            places.append(parse_location(stage.location, stage=promised, digest=stage.digest))
            if places[-1].folder:
                check_file_name(places[-1].folder)
        else:
            places.append(HubLocation(repo="", sha="", stage=promised, digest=stage.digest, pinned=True))
    return pull_items(look_from(store, client), places, options or Options())
