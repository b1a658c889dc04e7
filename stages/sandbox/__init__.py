"""The embedded default: a tiny base model and a generator of word problems, for runs of minutes on two cores."""

import hashlib
from pathlib import Path

BASE_REPO = "plyfold/sandbox-base"
"""Name under which records and adapter configs know the sandbox base."""

_HASHED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def base_path() -> Path:
    """Folder of the committed base model."""
    return Path(__file__).parent / "base"


def base_revision() -> str:
    """Content revision of the committed base: 40 hex digits of the SHA-256 over its files' names and bytes."""
    digest = hashlib.sha256()
    for name in _HASHED:
        content = (base_path() / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:40]
