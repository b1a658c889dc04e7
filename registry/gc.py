"""What a registry no longer needs: objects nothing leads to, and what killed runs have left.

Kept is whatever a ref, a lock file, a pin or the lease of a running process names, and everything it came from, through
parents and requirements. The rest goes once nobody has touched it for the time of grace. The whole decision is made
again under the store's lock, and an object leaves by one rename, so that a publish or a move of a ref beside it either
keeps the object or finds it gone, never half of it. Neither the Hub nor its cache is ever touched.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..core.digest import PREFIX, short
from ..core.errors import IntegrityError, NotFoundError
from . import ledger
from .lock import read_lock
from .objects import TMP_MAX_AGE_S, sweep, sweep_partial_files
from .store import Store

GRACE_S = 14 * 86400.0
"""Objects published, named or unnamed within this time are never taken."""
PIN = "pin"
"""Kind of the attestations that keep an object, whatever refs say."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that would go."""

    kind: str
    """`object` or `leftover`."""
    name: str
    """Digest, or name in `tmp/`."""
    label: str
    path: Path
    size_bytes: int
    age_s: float
    """Seconds since it was published or last named."""

    def to_json(self) -> dict[str, Any]:
        value = {"kind": self.kind, "name": self.name, "label": self.label}
        return {**value, "size_bytes": self.size_bytes, "age_s": round(self.age_s)}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What goes, and what stays."""

    garbage: list[Garbage]
    num_kept: int
    """Objects that something leads to."""
    num_young: int
    """Objects nothing leads to, within the time of grace."""

    @property
    def size_bytes(self) -> int:
        """Bytes that go."""
        return sum(item.size_bytes for item in self.garbage)


def plan_sweep(store: Store, *, lock_files: Iterable[Path] = (), grace_s: float = GRACE_S) -> Sweep:
    """Decide what nothing leads to. Nothing is changed.

    Args:
        store: The registry.
        lock_files: `curriculum.lock.json` of projects that use the store.
        grace_s: Seconds for which an object stays after it was published, or a ref came to or left it.

    Raises:
        IntegrityError: A ref, a lock file, or the record of an object that is needed cannot be read, so that what it
            leads to is not known.
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
        size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        garbage.append(
            Garbage(kind="object", name=digest, label=_label(store, digest), path=path, size_bytes=size, age_s=age_s)
        )
    return Sweep(garbage=[*garbage, *_leftovers(store)], num_kept=len(kept & {*store.digests()}), num_young=young)


def delete(store: Store, *, lock_files: Iterable[Path] = (), grace_s: float = GRACE_S) -> Sweep:
    """Decide again under the store's lock, and remove what goes.

    Raises:
        As `plan_sweep`, and ConflictError: another process holds the store's lock.
    """
    with store._locked():
        plan = plan_sweep(store, lock_files=lock_files, grace_s=grace_s)
        moved, gone = [], []
        for item in plan.garbage:
            if item.kind == "object":
                aside = store.root / "tmp" / f"gc-{short(item.name)}-{uuid.uuid4().hex[:8]}"
                item.path.rename(aside)
                if _age_s(aside, 0.0) <= grace_s:  # published again between the look and the rename
                    aside.rename(item.path)
                    continue
                ledger.append_log(store.root / "log.jsonl", "gc", digest=item.name)
                moved.append(aside)
            gone.append(item)
    for aside in moved:  # out of the lock: nobody can find these any more, and a kill leaves them to the next sweep
        shutil.rmtree(aside, ignore_errors=True)
    sweep(store.root / "tmp")
    sweep_partial_files(store.root / "refs", store.root / "attest")
    return Sweep(garbage=gone, num_kept=plan.num_kept, num_young=plan.num_young + len(plan.garbage) - len(gone))


@contextmanager
def lease(store: Store, digests: Iterable[str]) -> Iterator[None]:
    """Keep objects while this block runs, whatever happens to their refs; the system ends it with the process."""
    folder = store.root / "locks" / "leases"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.json"
    draft = path.with_suffix(".draft")  # a lease appears only once it is held: an unheld one is a dead one
    with draft.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"schema": 1, "digests": sorted(digests)}, file)
        file.flush()
        draft.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def roots(store: Store, lock_files: Iterable[Path] = ()) -> set[str]:
    """Digests named by refs of every alias, by lock files, by pins and by leases of living processes."""
    found = set()
    for path in (store.root / "refs").glob("*/*/[!.]*"):
        named = ledger.read_ref(path)
        if named:  # else removed since it was listed
            found.add(named)
    for lock_file in lock_files:
        found |= {stage.digest for stage in read_lock(lock_file).stages.values()}
    for folder in (store.root / "attest").iterdir():
        digest = PREFIX + folder.name
        if any(item.kind == PIN for item in ledger.read_attestations(folder.parent, digest)):
            found.add(digest)
    return found | _leased(store)


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
            record = store.peek(digest).record
        except NotFoundError:
            continue  # an ancestor that was never fetched
        queue += [*(parent.digest for parent in record.parents), *record.requires]
    return seen


def _leased(store: Store) -> set[str]:
    found: set[str] = set()
    for path in (store.root / "locks").glob("leases/*.json"):
        try:
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)  # its holder is dead
        except FileNotFoundError:
            continue
        except BlockingIOError:
            found |= set(ledger.read_json(path)["digests"])
    return found


def _touched(store: Store) -> dict[str, float]:
    """Digest -> time of the last event of the log that published it, or brought a ref to or away from it."""
    found: dict[str, float] = {}
    for row in store.log():
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


def _leftovers(store: Store) -> list[Garbage]:
    """What killed runs have left in `tmp/`, judged by its youngest file."""
    found = []
    for path in sorted((store.root / "tmp").iterdir()):
        try:
            files = [each.lstat() for each in (path, *path.rglob("*"))]
        except OSError:
            continue  # its owner is at work
        age_s = time.time() - max(status.st_mtime for status in files)
        if age_s > TMP_MAX_AGE_S:
            size = sum(status.st_size for status in files[1:])
            found.append(Garbage(kind="leftover", name=path.name, label="tmp", path=path, size_bytes=size, age_s=age_s))
    return found


def _label(store: Store, digest: str) -> str:
    try:
        record = store.peek(digest).record
    except IntegrityError:
        return "(unreadable record)"
    return f"{record.curriculum} {record.label}"
