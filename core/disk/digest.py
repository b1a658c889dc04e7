"""Content identities: sha256 of bytes and files, and the canonical JSON they are taken of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
PREFIX = "sha256:"


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`, with the `sha256:` prefix every digest in plyfold carries."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks, with the `sha256:` prefix."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return PREFIX + digest.hexdigest()


def canonical_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        ValueError: A NaN or an infinity, which JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Digest of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value))


def short(digest: str, length: int = 12) -> str:
    """The first hex digits of a digest, as shown to people."""
    return digest.removeprefix(PREFIX)[:length]
