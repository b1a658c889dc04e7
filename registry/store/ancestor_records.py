"""Records of adapters that are not held: what the ancestors of pulled adapters came from in turn.

A record is bound by the digest its child names, so it says where a revocation reaches without the adapter's bytes.
"""

from __future__ import annotations

from pathlib import Path

from ...core.disk.digest import PREFIX, sha256_bytes
from ...core.disk.files import disk_errors, write_bytes
from ...core.errors import IntegrityError
from ..record import Record, parse_record, read_record_bytes
from .store import Store

KNOWN_RECORD = "lineage.known"
"""In the folder of what is attested about an adapter: the bytes of its record."""


def keep_record(store: Store, digest: str, data: bytes) -> None:
    """Keep the record of an adapter that is not held.

    Raises:
        IntegrityError: Not the record of that digest.
    """
    path = _path(store, digest)
    if sha256_bytes(data) != digest:
        raise IntegrityError("not the record it was named as", where=path, expected=digest, found=sha256_bytes(data))
    if not path.is_file():
        with disk_errors(path.parent):
            write_bytes(path, data)


def known_record(store: Store, digest: str) -> Record | None:
    """The record that was kept of an adapter that is not held.

    Raises:
        IntegrityError: What is kept is damaged.
    """
    path = _path(store, digest)
    if not path.is_file():
        return None
    data = read_record_bytes(path)
    if sha256_bytes(data) != digest:
        raise IntegrityError(
            "the record of an ancestor is damaged, so what it came from is not known",
            where=path,
            expected=digest,
            found=sha256_bytes(data),
            next_step="remove that file, then pull the adapter that came from it again",
        )
    return parse_record(data, path)


def _path(store: Store, digest: str) -> Path:
    return store.layout.attest / digest.removeprefix(PREFIX) / KNOWN_RECORD
