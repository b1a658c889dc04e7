"""What lies in a registry and may go: what killed runs have left, and what can be made again and nobody has used.

    tmp/<name>                          half-made objects
    cache/twins/<name>/                 dequantised bases
    cache/variants/<name>/, <name>.json composed adapters, each with the digest noted when it was made
    cache/serve/<port>.log              what servers said

Using an entry of the cache makes it young again: whoever takes one sets its time.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.disk.files import is_beside
from ...core.disk.links import is_folder, open_folder
from ...core.disk.locks import file_lock, take_lock
from ...core.errors import ConflictError, IntegrityError
from ..store import Store
from ..store.objects import TMP_MAX_AGE_S, is_scratch

CACHED = {"twins": "dequantised base", "variants": "composed adapter"}
"""Folders of the cache whose entries are folders -> what one is."""
LOGS = "serve"
_CACHED_NAME = re.compile(r"[^.].*-[0-9a-f]{12,16}")
_LOG_NAME = re.compile(r"[0-9]{1,5}(-[a-z0-9]+)*\.log")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that would go."""

    kind: str
    """`object`, `statements`, `cache` or `leftover`."""
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
    aside = store.layout.tmp / f"gc-{item.path.name}-{uuid.uuid4().hex[:8]}"
    try:
        # Who makes a folder holds it meanwhile.
        with file_lock(item.path, "it is being made") if is_folder(item.path) else nullcontext():
            if time.time() - item.path.lstat().st_mtime <= grace_s:
                return None
            _move(item.path, aside)
            item.path.with_name(f"{item.path.name}.json").unlink(missing_ok=True)
    except (ConflictError, FileNotFoundError):
        return None
    return aside


def leftovers(store: Store) -> list[Garbage]:
    """What killed runs have left in `tmp/` and `cache/`, judged by its youngest file."""
    found = []
    paths = [(path, path.name) for path in _children(store.layout.tmp) if is_scratch(path)]
    for folder in CACHED:
        for path in _children(store.cache / folder):
            if is_beside(path.name, "tmp|old") and is_folder(path) and not _owned(path):
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
    files = path.rglob("*") if is_folder(path) else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _cached(cache: Path) -> Iterator[tuple[Path, str]]:
    for folder, label in CACHED.items():
        for path in _children(cache / folder):
            if _CACHED_NAME.fullmatch(path.name) and is_folder(path):
                yield path, label
    for path in _children(cache / LOGS):
        if _LOG_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
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
        descriptor = open_folder(path)
    except (OSError, IntegrityError):
        return False
    try:
        return not take_lock(descriptor, path)
    finally:
        os.close(descriptor)
