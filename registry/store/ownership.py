"""Whose a registry is that was found rather than named.

What is found by walking up may have been laid there by somebody else, and would be read, trusted and written to. As
with git's `safe.directory`, one that is not surely this user's is named and refused; naming it says that it is meant.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from ...core.errors import IntegrityError


def refuse_foreign(registry: Path, start: Path) -> None:
    """Refuse a registry that was found, or would be made unnamed, where another user may have laid or changed it.

    Args:
        registry: The folder that was found; it need not exist.
        start: Where the walk upward began.

    Raises:
        IntegrityError: It, a folder of it, or a link in its place belongs to another user, other than root; every user
            may write to one of them or to the folder it lies in; or it lies above the home folder and not where the
            walk began.
    """
    why = _foreign(registry, start)
    if why:
        typed = shlex.quote(str(registry))
        raise IntegrityError(
            "a registry that nobody named is not surely yours; nothing in it was read or written",
            where=registry,
            expected="your own, where no other user can put or change one",
            found=why,
            next_step=f"if it is the one you mean, name it: --registry {typed} or PLYFOLD_REGISTRY={typed}; else "
            "name another",
        )


def _foreign(registry: Path, start: Path) -> str:
    """Why it may be another's; empty where it is this user's."""
    if registry.parent != start and registry.parent in _home().parents:
        return f"it lies above your home folder {_home()}"
    if _open_to_all(registry.parent):
        return f"every user may write to {registry.parent}"
    owners = {os.geteuid(), 0}  # root needs no planted registry to do harm
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        owners.add(int(os.environ["SUDO_UID"]))
    folders = (registry, *(registry / name for name in SPECIAL))
    for folder in folders:
        for look in (os.lstat, os.stat):
            with suppress(FileNotFoundError):
                if (owner := look(folder).st_uid) not in owners:
                    whose = "it" if folder == registry else str(folder)
                    return f"{whose} belongs to {_name(owner)}, and you are {_name(os.geteuid())}"
    for folder in folders:
        if _open_to_all(folder):
            return f"every user may write to {folder}"
    return ""


SPECIAL = ("objects", "objects/sha256", "refs", "attest", "tmp", "locks", "cache")
"""Folders of a registry."""


def _open_to_all(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _home() -> Path:
    """The home folder; the root where the system knows none, which nothing lies above."""
    try:
        return Path(os.path.realpath(Path.home()))
    except RuntimeError:
        return Path("/")


def _name(user: int) -> str:
    try:
        return f"{pwd.getpwuid(user).pw_name} ({user})"
    except KeyError:
        return f"user {user}"
