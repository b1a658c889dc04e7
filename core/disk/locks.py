"""Locks that the system drops when their holder dies, on files of plyfold's own."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConflictError, FailedError
from .links import open_own

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
POLL_S = 0.05


def take_lock(descriptor: int, where: Path) -> bool:
    """Lock an open file or folder for this process, at once or not; the system lets go when its last holder dies.

    Args:
        descriptor: Of the file or folder.
        where: Its path, for the error.

    Returns:
        Whether it is locked now; False where another process holds it.

    Raises:
        FailedError: The file system knows no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise no_locks(where) from error
        raise
    return True


@contextmanager
def locked(
    path: Path, timeout_s: float | None = None, what: str = "another process holds this", *, where: Path | None = None
) -> Iterator[None]:
    """Hold a lock file, made where it is missing; others wait for it. The system lets go when the process dies.

    Args:
        path: The lock file; its folder is made if missing. Its bytes, if it has any, stay.
        timeout_s: How long to wait for another holder; None: until it lets go.
        what: Is said if another process held it all the while.
        where: What it is the lock of, for that error; None: the lock file.

    Raises:
        ConflictError: Another process held it all the while.
        IntegrityError: A link, folder, pipe or device in its place.
        FailedError: The file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not take_lock(descriptor, path):
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise ConflictError(
                    what,
                    where=where or path,
                    expected=f"the lock within {timeout_s:.0f} s" if timeout_s else "",
                    next_step="let it finish, then run the same command again",
                )
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def lock_of(path: Path) -> Path:
    """The lock file beside a file or folder, which need not exist yet."""
    return path.parent / f".{path.name}.lock"


@contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a file or folder, which need not exist yet, for this process; its parent is made if missing.

    Raises:
        ConflictError: Another process holds it; `what` is said.
        As `locked`.
    """
    with locked(lock_of(path), 0.0, what, where=path):
        yield


def no_locks(where: Path) -> FailedError:
    """The error for a file system that knows no locks, without which two processes would destroy each other's work."""
    return FailedError(
        "this file system has no file locks (flock)",
        where=where,
        expected="a file system that locks, as local ones do",
        next_step="name a place on another one: --registry or PLYFOLD_REGISTRY for a registry, --runs or -o for "
        "outputs",
    )
