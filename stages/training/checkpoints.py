"""Checkpoints that a rerun may continue from: complete, unharmed, and of this very configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...core.console import warn
from ...core.disk.digest import sha256_file
from ...core.disk.files import write_json
from ...core.reading.strict_json import read_json

CHECKPOINTS = "checkpoints"
COMPLETE = "plyfold.json"
"""Written last into a checkpoint: without it the checkpoint is half-written and never resumed from."""


def seal_checkpoint(folder: Path, fingerprint: str) -> None:
    """Mark a checkpoint as complete, with the digest of each file: transformers goes on without one that is gone."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    write_json(folder / COMPLETE, {"schema": 1, "fingerprint": fingerprint, "files": files})


def last_checkpoint(run_dir: Path, fingerprint: str) -> Path | None:
    """The newest sound checkpoint of this very configuration.

    Half-written and foreign ones are passed over, damaged ones with a warning.
    """
    found = [(step_of(path), path) for path in (run_dir / CHECKPOINTS).glob("checkpoint-*") if step_of(path) >= 0]
    for _, path in sorted(found, reverse=True):
        try:
            note = read_json(path / COMPLETE)
            if note["fingerprint"] != fingerprint:
                continue
            damaged = [name for name, digest in note.get("files", {}).items() if not _is(path / name, digest)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if not damaged:
            return path
        warn(f"{path} is damaged and passed over: {', '.join(damaged)} is not as it was written")
    return None


def sweep_checkpoints(run_dir: Path, keep: Path | None) -> None:
    """Remove what a run does not go on from: half-written, damaged and later ones than the one it takes up.

    They would be counted among those that are kept, and the last sound one would go for them.
    """
    for path in (run_dir / CHECKPOINTS).glob("checkpoint-*"):
        if not (path / COMPLETE).is_file() or step_of(path) > (step_of(keep) if keep else -1):
            shutil.rmtree(path, ignore_errors=True)


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_file(file) == digest


def step_of(path: Path) -> int:
    """Optimiser steps made before a checkpoint; -1 where the folder is none."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
