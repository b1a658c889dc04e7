"""What a registry no longer needs: objects nothing leads to, unused parts of its cache, and what killed runs have left.

Kept is whatever a ref, a lock file, a pin or the lease of a running process names, and everything it came from, through
parents and requirements. The rest goes once nobody has touched it for the time of grace. The whole decision is made
again under the store's lock, and an object leaves by one rename, so that a publish or a move of a ref beside it either
keeps the object or finds it gone, never half of it. Entries of the cache are judged by their last use, and stay while a
running server has them on its lease. Neither the Hub nor its cache is ever touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from ...core.disk.digest import PREFIX, short
from ...core.disk.links import is_folder, open_own
from ...core.disk.locks import take_lock
from ...core.errors import IntegrityError, NotFoundError
from ..lineage.lockfile import read_lock
from ..lineage.shared_scores import EVALUATIONS
from ..store import Store, attestations
from ..store.ancestor_records import known_record
from ..store.objects import sweep_partial_files
from ..trust.shared_statements import compact
from ..trust.statements import STATEMENTS
from .garbage import Garbage, leftovers, size_of, take_cached, unused_cache
from .pins import PIN as PIN
from .pins import Pin, pins

GRACE_S = 14 * 86400.0
"""What was published, named, unnamed or used within this time is never taken."""

_LEASE = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What goes, and what stays."""

    garbage: list[Garbage]
    num_kept: int
    """Objects that something leads to."""
    num_young: int
    """Objects nothing leads to, within the time of grace."""
    pins: list[Pin]
    """What stays because it was pinned."""

    @property
    def size_bytes(self) -> int:
        """Bytes that go."""
        return sum(item.size_bytes for item in self.garbage)


def plan_sweep(store: Store, *, lock_files: Iterable[Path] = (), grace_s: float = GRACE_S) -> Sweep:
    """Decide what nothing leads to. Nothing is changed.

    Args:
        store: The registry.
        lock_files: `curriculum.lock.json` of projects that use the store.
        grace_s: Seconds for which an object stays after it was published, or a ref or pin came to or left it, and an
            entry of the cache after it was used.

    Raises:
        IntegrityError: A ref, a lock file, or the record of an object that is needed cannot be read, so that what it
            leads to is not known; or the log is too large.
        NotFoundError: No such lock file.
    """
    kept = reachable(store, roots(store, lock_files))
    touched = _touched(store)
    garbage, young = [], 0
    for digest in store.digests():
        if digest in kept:
            continue
        path = store.objects / digest.removeprefix(PREFIX)
        age_s = _age_s(path, touched.get(digest, 0.0))
        if age_s <= grace_s:
            young += 1
            continue
        label, size = _label(store, digest), size_of(path)
        garbage.append(Garbage(kind="object", name=digest, label=label, path=path, size_bytes=size, age_s=age_s))
    cached = unused_cache(store, grace_s, {name for held in _leases(store) for name in held.get("cache", [])})
    return Sweep(
        garbage=[*garbage, *_statements(store), *cached, *leftovers(store)],
        num_kept=len(kept & {*store.digests()}),
        num_young=young,
        pins=pins(store),
    )


def delete(store: Store, *, lock_files: Iterable[Path] = (), grace_s: float = GRACE_S) -> Sweep:
    """Decide again under the store's lock, and remove what goes.

    Raises:
        As `plan_sweep`, and ConflictError: another process holds the store's lock.
    """
    with store.locked():
        plan = plan_sweep(store, lock_files=lock_files, grace_s=grace_s)
        moved, gone = [], []
        for item in plan.garbage:
            if item.kind == "object":
                aside = store.layout.tmp / f"gc-{short(item.name)}-{uuid.uuid4().hex[:8]}"
                item.path.rename(aside)
                if _age_s(aside, 0.0) <= grace_s:  # published again between the look and the rename
                    aside.rename(item.path)
                    continue
                attestations.append_log(store.layout.log, "gc", digest=item.name)
                moved.append(aside)
            elif item.kind == "statements":
                gone.append(item)
                continue
            elif item.kind == "cache":
                taken = take_cached(store, item, grace_s)
                if taken is None:
                    continue
                moved.append(taken)
            else:
                moved.append(item.path)
            gone.append(item)
    for aside in moved:  # out of the lock: nobody can find these any more, and a kill leaves them to the next sweep
        if is_folder(aside):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
    for item in gone:
        if item.kind == "statements":
            compact(store, item.name, STATEMENTS, EVALUATIONS)
    sweep_partial_files(store.layout.refs, store.layout.attest)
    stayed = {item.name for item in plan.garbage if item.kind == "object"} - {item.name for item in gone}
    return replace(plan, garbage=gone, num_young=plan.num_young + len(stayed))


@contextmanager
def lease(store: Store, digests: Iterable[str], cached: Iterable[Path] = ()) -> Iterator[None]:
    """Keep objects and parts of the cache while this block runs; the system ends it with the process.

    Args:
        store: The registry.
        digests: Objects, kept whatever happens to their refs.
        cached: Paths in the store's cache, kept however old they are; they need not be made yet.

    Raises:
        NotAllowedError: This user may not write to the registry.
    """
    store.require_writable()
    names = sorted(path.relative_to(store.cache).as_posix() for path in cached)
    folder = store.layout.leases
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.json"
    draft = path.with_suffix(".draft")  # a lease appears only once it is held: an unheld one is a dead one
    with os.fdopen(open_own(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        take_lock(file.fileno(), draft)
        json.dump({"schema": 1, "digests": sorted(digests), "cache": names}, file)
        file.flush()
        draft.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def roots(store: Store, lock_files: Iterable[Path] = ()) -> set[str]:
    """Digests named by refs of every alias, by lock files, by pins and by leases of living processes."""
    found = set()
    for path in store.layout.refs.glob("*/*/[!.]*"):
        named = attestations.read_ref(path)
        if named:  # else removed since it was listed
            found.add(named)
    for lock_file in lock_files:
        found |= {stage.digest for stage in read_lock(lock_file).stages.values()}
    found |= {each.digest for each in pins(store)}
    return found | {digest for held in _leases(store) for digest in held["digests"]}


def reachable(store: Store, names: Iterable[str]) -> set[str]:
    """`names` and all they came from, held or not.

    Raises:
        IntegrityError: The record of one of them cannot be read, so that what it came from is not known.
    """
    seen: set[str] = set()
    queue = list(names)
    while queue:
        digest = queue.pop()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            record = store.read_record(digest).record
        except NotFoundError:  # an ancestor that was never fetched, of which at least the record may have come
            known = known_record(store, digest)
            if known is None:
                continue
            record = known
        queue += record.above
    return seen


def _statements(store: Store) -> Iterator[Garbage]:
    """Adapters of which an older registry has a file for every statement: one file takes their place, bounded."""
    attested = store.layout.attest
    for name in sorted(os.listdir(attested)) if attested.is_dir() else ():
        digest = PREFIX + name
        if files := attestations.travelling_alone(attested, digest):
            try:
                sizes = [path.lstat() for path in files]
            except OSError:
                continue  # somebody else is at it
            age_s = time.time() - max(status.st_mtime for status in sizes)
            label, size = f"{len(files):,} statements, kept in one file", sum(status.st_size for status in sizes)
            path = attested / name
            yield Garbage(kind="statements", name=digest, label=label, path=path, size_bytes=size, age_s=age_s)


def _leases(store: Store) -> list[dict[str, list[str]]]:
    """What living processes hold."""
    found = []
    for path in store.layout.leases.glob("*.json"):
        if not _LEASE.fullmatch(path.name):
            continue
        try:
            descriptor = open_own(path)
        except (OSError, IntegrityError):
            continue  # gone meanwhile; a folder, a socket: nobody's lease
        try:
            dead = take_lock(descriptor, path)
        finally:
            os.close(descriptor)
        if dead:
            with suppress(PermissionError):
                path.unlink(missing_ok=True)
        else:
            found.append(_lease(path))
    return found


def _lease(path: Path) -> dict[str, list[str]]:
    value = attestations.read_store_json(path)
    held = {key: value.get(key, []) for key in ("digests", "cache")}
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in held.values()):
        raise IntegrityError(
            "the lease of a running process is not readable, so what it uses is not known",
            where=path,
            next_step="let that process end, or remove the file",
        )
    return held


def _touched(store: Store) -> dict[str, float]:
    """Digest -> time of the last event of the log that published it, or brought a ref to or away from it."""
    found: dict[str, float] = {}
    for row in attestations.read_log(store.layout.log):
        try:
            when = datetime.fromisoformat(str(row["time"])).timestamp()
        except (KeyError, ValueError):
            continue
        for digest in (row.get("digest"), row.get("previous")):
            if isinstance(digest, str):
                found[digest] = max(when, found.get(digest, 0.0))
    return found


def _age_s(path: Path, touched: float) -> float:
    return time.time() - max(path.lstat().st_mtime, touched)


def _label(store: Store, digest: str) -> str:
    try:
        record = store.read_record(digest).record
    except IntegrityError:
        return "(unreadable record)"
    return f"{record.curriculum} {record.label}"
