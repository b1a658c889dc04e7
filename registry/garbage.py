"""What lies in a registry and may go: what killed runs have left, and what can be made again and nobody has used.

    tmp/<name>                          half-made objects
    cache/twins/<name>/                 dequantised bases
    cache/variants/<name>/, <name>.json composed adapters, each with the digest noted when it was made
    cache/serve/<port>.log              what servers said

Using an entry of the cache makes it young again: whoever takes one sets its time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .objects import TMP_MAX_AGE_S
from .store import Store

CACHED = {"twins": "dequantised base", "variants": "composed adapter"}
"""Folders of the cache whose entries are folders -> what one is."""
LOGS = "serve"


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that would go."""

    kind: str
    """`object`, `cache` or `leftover`."""
    name: str
    """Digest, name in `cache/`, or name in `tmp/` or `cache/`."""
    label: str
    path: Path
    size_bytes: int
    age_s: float
    """Seconds since it was published, last named or last used."""

    def to_json(self) -> dict[str, Any]:
        value = {"kind": self.kind, "name": self.name, "label": self.label}
        return {**value, "size_bytes": self.size_bytes, "age_s": round(self.age_s)}


def unused_cache(store: Store, grace_s: float, leased: Collection[str]) -> list[Garbage]:
    """Entries of the cache that nobody has used for `grace_s`.

    Args:
        store: The registry.
        grace_s: Seconds for which an entry stays after it was last used.
        leased: Names in `cache/` that running processes use.
    """
    found = []
    for path, label in _cached(store.cache):
        name = path.relative_to(store.cache).as_posix()
        try:
            age_s = time.time() - path.lstat().st_mtime
            size = size_of(path)
        except OSError:
            continue  # it is being removed
        if age_s > grace_s and name not in leased:
            found.append(Garbage(kind="cache", name=name, label=label, path=path, size_bytes=size, age_s=age_s))
    return found


def take_cached(store: Store, item: Garbage, grace_s: float) -> Path | None:
    """Remove an entry from the cache unless somebody makes or has used it meanwhile.

    Returns:
        Where it lies, if it still does, until it is deleted; None where it stays.
    """
    from filelock import FileLock, Timeout

    aside = store.root / "tmp" / f"gc-{item.path.name}-{uuid.uuid4().hex[:8]}"
    makers = FileLock(item.path.parent / f".{item.path.name}.lock", timeout=0)  # they hold this while they make it
    try:
        with makers if item.path.is_dir() else nullcontext():
            if time.time() - item.path.lstat().st_mtime <= grace_s:
                return None
            _move(item.path, aside)
            item.path.with_name(f"{item.path.name}.json").unlink(missing_ok=True)
    except (Timeout, FileNotFoundError):
        return None
    return aside


def leftovers(store: Store) -> list[Garbage]:
    """What killed runs have left in `tmp/` and `cache/`, judged by its youngest file."""
    found = []
    paths = [(path, path.name) for path in _children(store.root / "tmp")]
    for folder in CACHED:
        for path in _children(store.cache / folder):
            if path.name.startswith(".") and (".tmp-" in path.name or ".old-" in path.name) and not _owned(path):
                paths.append((path, path.relative_to(store.cache).as_posix()))
    for path, name in paths:
        try:
            files = [each.lstat() for each in (path, *path.rglob("*"))]
        except OSError:
            continue  # its owner is at work
        age_s = time.time() - max(status.st_mtime for status in files)
        if age_s > TMP_MAX_AGE_S:
            label = path.parent.name if name == path.name else "cache"
            size = sum(status.st_size for status in files[1:])
            found.append(Garbage(kind="leftover", name=name, label=label, path=path, size_bytes=size, age_s=age_s))
    return found


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _cached(cache: Path) -> Iterator[tuple[Path, str]]:
    for folder, label in CACHED.items():
        for path in _children(cache / folder):
            if path.is_dir() and not path.name.startswith("."):
                yield path, label
    for path in _children(cache / LOGS):
        if path.suffix == ".log":
            yield path, "log of a server"


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _move(path: Path, aside: Path) -> None:
    try:
        path.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if path.is_dir():  # the cache lies on another disk
            shutil.rmtree(path)
        else:
            path.unlink()


def _owned(path: Path) -> bool:
    """Does a living process hold a staged folder?"""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
