"""What plyfold made itself, opened without following a link in its place.

A registry or a run folder may come from a stranger, arranged so that a link leads what is written, read or swept in it
to somewhere else. A link *to* such a folder is its owner's choice; one inside it is refused by name.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

from ..errors import IntegrityError


def is_folder(path: Path) -> bool:
    """Is it a folder itself, not by a link?"""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def refuse_link(path: Path) -> None:
    """Refuse a link in the place of a file or folder of plyfold's own; nothing there is no link.

    Raises:
        IntegrityError: `path` is a symbolic link.
    """
    if os.path.islink(path):
        raise IntegrityError(
            "a link stands where plyfold keeps what is its own; nothing was read, written or removed through it",
            where=path,
            expected="a file or folder",
            found=f"a link to {os.readlink(path)}",
            next_step="remove that link; to keep a whole registry or run folder elsewhere, move all of it there and "
            "name it with --registry or --runs",
        )


def refuse_links_in(folder: Path, *, depth: int | None = None) -> None:
    """Refuse links at any depth of a folder of plyfold's own, and in its place; what may not be listed is passed over.

    Args:
        folder: Need not exist.
        depth: Levels of folders that are looked into; None: all.

    Raises:
        IntegrityError: One is a symbolic link.
    """
    refuse_link(folder)
    queue = [(os.fspath(folder), 1)]
    while queue:
        path, level = queue.pop()
        try:
            with os.scandir(path) as entries:
                found = list(entries)
        except OSError:  # nothing there, a file, or gone meanwhile
            continue
        for entry in found:
            if entry.is_symlink():
                refuse_link(Path(entry.path))
            elif level != depth and entry.is_dir(follow_symlinks=False):
                queue.append((entry.path, level + 1))


def open_own(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a plain file of plyfold's own: never through a link in its place, never waiting for a pipe.

    Args:
        path: The file; a link above it is followed (`refuse_links_in` looks at a whole folder).
        flags: As `os.open`.
        mode: Of a file that is made, less the umask.

    Returns:
        The descriptor, not inherited by child processes.

    Raises:
        IntegrityError: A link, folder, pipe or device in its place.
        OSError: As `os.open`.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_link(path)
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_plain(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path)
    return descriptor


def open_log(path: Path) -> IO[bytes]:
    """A new file for what a process says, in the place of an older one; its folder is made if missing.

    The older one's bytes are not touched, so a hard link to a file elsewhere does no harm either.

    Raises:
        IntegrityError: A link, folder, pipe or device in its place, or a link in the place of its folder.
    """
    refuse_link(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        os.close(open_own(path))
        path.unlink(missing_ok=True)
    return os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def _not_plain(path: Path) -> IntegrityError:
    return IntegrityError(
        "not a plain file, where plyfold keeps one of its own",
        where=path,
        found="a folder, pipe or device",
        next_step="remove it",
    )


def open_folder(path: Path) -> int:
    """Open a folder of plyfold's own, never through a link in its place.

    Raises:
        IntegrityError: A link in its place.
        OSError: As `os.open`.
    """
    refuse_link(path)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
