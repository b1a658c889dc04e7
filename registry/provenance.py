"""Which program, on which libraries, made an adapter: what a record needs beside its recipe and its rows."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from .record import Code

ROOMS = (
    "adapters", "cli", "configs", "core", "data", "engines", "evaluation", "merge", "registry", "sandbox", "serving",
    "src", "stages", "variants",
)  # fmt: skip
"""Folders of a checkout whose changes can change an adapter."""
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")


def describe_code() -> Code:
    """Version of plyfold; where it runs from a checkout of itself, its commit and whether the code differs from it."""
    version = metadata.version("plyfold")
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return Code(version=version)
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *ROOMS)
    return Code(version=version, git=commit or None, dirty=None if changes is None else bool(changes))


def describe_environment(device: str) -> dict[str, str]:
    """Versions of Python and the libraries that decide numbers, and the kind of device."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "device": device, "machine": platform.machine(), **versions}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
