"""What a base is: a digest of its weights, tensor by tensor, taken once for as long as its files stay what they are.

A Hub id and a commit are what somebody calls a base. The digest does not depend on how the weights are cut into
files, nor on metadata, so the same numbers have the same digest wherever they lie.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...core.disk.digest import CHUNK_BYTES, PREFIX, canonical_json, digest_json
from ...core.disk.files import write_json
from ...core.errors import IntegrityError
from ...core.reading.strict_json import MalformedJSONError, read_json
from ..header import Header, read_header, reading
from .resolve import check_weights

NOTES_NAME = "base-digests.json"
"""Digests that were taken, in a registry's cache: local knowledge, for files that have not changed since."""
MAX_NOTES = 200
"""Folders whose digests are kept; the oldest go."""


def base_digest(
    folder: Path, cache: Path | None = None, *, advance: Callable[[int], object] = lambda num_bytes: None
) -> str:
    """Digest of a model folder's weights: sha256 over name, dtype, shape and sha256 of every tensor, by name.

    Args:
        folder: Model folder with safetensors.
        cache: A registry's cache, in which the digest is noted for files of this inode, size and times of change; where
            it may not be written the digest is taken again each time. None notes nothing.
        advance: Called with the number of bytes of each tensor that was read.

    Raises:
        NotFoundError, IntegrityError: As `check_weights`, or the files change while they are read.
    """
    files = check_weights(folder)
    stamps = _stamps(files)
    noted = _read_notes(cache)
    key = digest_json(str(folder.resolve()))  # where it lies may be what the environment alone says
    known = noted.get(key)
    if isinstance(known, dict) and known.get("stamps") == stamps and isinstance(known.get("digest"), str):
        return str(known["digest"])
    headers = [read_header(file) for file in files]
    tensors = sorted((name, header) for header in headers for name in header.tensors)

    def one(item: tuple[str, Header]) -> list[object]:
        name, header = item
        entry = header.tensors[name]
        digest = _bytes_digest(header, name)
        advance(entry.stop - entry.start)
        return [name, entry.dtype, list(entry.shape), digest]

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        whole = hashlib.sha256()
        for described in pool.map(one, tensors):
            whole.update(canonical_json(described) + b"\n")
    if _stamps(files) != stamps:
        raise IntegrityError("the base changed while it was read", where=folder, next_step="start again")
    digest = PREFIX + whole.hexdigest()
    if cache is not None and os.access(cache if cache.exists() else cache.parent, os.W_OK):
        noted.pop(key, None)
        kept = dict(list(noted.items())[-(MAX_NOTES - 1) :])
        write_json(cache / NOTES_NAME, {**kept, key: {"stamps": stamps, "digest": digest}})
    return digest


def base_bytes(folder: Path) -> int:
    """Bytes that a digest reads: of all tensors."""
    headers = [read_header(file) for file in check_weights(folder)]
    return sum(entry.stop - entry.start for header in headers for entry in header.tensors.values())


def _bytes_digest(header: Header, name: str) -> str:
    entry, digest = header.tensors[name], hashlib.sha256()
    with reading(header.path), header.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        left = entry.stop - entry.start
        while left:
            data = file.read(min(left, CHUNK_BYTES))
            if not data:
                raise IntegrityError("the file ended inside a tensor", where=f"{header.path} {name}")
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def _stamps(files: list[Path]) -> dict[str, str]:
    """By file name, what changes when a file is written to or replaced; the time of change cannot be set back."""
    found = {}
    for file in files:
        status = file.stat()
        parts = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        found[file.name] = digest_json(parts)
    return found


def _read_notes(cache: Path | None) -> dict[str, object]:
    if cache is None:
        return {}
    try:
        value = read_json(cache / NOTES_NAME)
    except (OSError, MalformedJSONError):
        return {}  # none yet, or damaged: taken again
    return value if isinstance(value, dict) else {}
