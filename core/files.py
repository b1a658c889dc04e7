"""Files that are either complete or absent: write beside, flush to disk, rename.

A rename inside one file system is atomic, so a kill at any moment leaves the old state or the new one. What a kill
leaves behind under a temporary name is never read and is swept by the next run that owns the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConflictError, DiskFullError, NotAllowedError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def fsync_path(path: Path) -> None:
    """Flush a file's, or a folder's entries', bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(where: Path, need_bytes: int = 0) -> Iterator[None]:
    """Turn a full disk into one clear error that names the folder and, where known, the space needed."""
    try:
        yield
    except Exception as error:
        if _errno(error) not in DISK_FULL:
            raise
        raise disk_full(where, need_bytes) from error


def disk_full(where: Path, need_bytes: int = 0) -> DiskFullError:
    """The error for a file system without room, with what is free there now."""
    return DiskFullError(
        "no space left on the disk; nothing was left half-written",
        where=where,
        expected=f"{need_bytes:,} bytes free" if need_bytes else "",
        found=f"{shutil.disk_usage(_existing(where)).free:,} bytes free",
        next_step="free some space and run the same command again; it continues from what is complete",
    )


def not_allowed(where: Path, what: str = "this user may not read or write here") -> NotAllowedError:
    """The error for a file or folder whose permissions, or whose file system, say no."""
    return NotAllowedError(
        what,
        where=where,
        expected="permission to read, and to write what is to change",
        next_step="change its permissions, or name another place: --runs or -o, and for a registry --registry or "
        "PLYFOLD_REGISTRY",
    )


def require_space(where: Path, need_bytes: int) -> None:
    """Refuse before the first byte when `where`'s file system lacks `need_bytes`.

    Raises:
        DiskFullError: Less is free than needed.
    """
    if shutil.disk_usage(_existing(where)).free < need_bytes:
        raise disk_full(where, need_bytes)


def refuse_existing(out: Path, *, replace: bool = False) -> None:
    """Refuse an output folder that exists, before work is spent on it.

    Raises:
        ConflictError: `out` exists and `replace` is false.
    """
    if out.exists() and not replace:
        raise ConflictError(
            "the output folder exists already", where=out, next_step="choose another folder, or remove this one"
        )


def read_capped(path: Path, max_bytes: int) -> bytes:
    """A plain file's bytes, never more than the cap plus one; a pipe or device is not waited for.

    Raises:
        OSError: There is no such file, it may not be read, or it is no plain file.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        return file.read(max_bytes + 1)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically; the folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path.parent, len(data)):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_path(path.parent)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write indented, key-sorted JSON atomically, with a final newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a file or folder, which need not exist yet, for this process; the system lets go when the process dies.

    Args:
        path: What is held; its parent is made if missing.
        what: Is said if another process holds it.

    Raises:
        ConflictError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConflictError(what, where=path, next_step="wait until it has ended, then run this again") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `target` that becomes `target` only if the block succeeds.

    Args:
        target: The folder to make; its parent is made if missing.
        replace: Move an existing `target` aside and delete it, instead of refusing it.

    Raises:
        ConflictError: `target` exists and `replace` is false.
        DiskFullError: The file system filled up; the temporary folder is gone.
    """
    refuse_existing(target, replace=replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(target.parent):
        sweep_staged(target)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
        owner = os.open(temporary, os.O_RDONLY)
        try:
            # The system drops the lock when its holder dies: that tells a leftover from work in progress.
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield temporary
            publish_folder(temporary, target, replace=replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(owner)


def sweep_staged(target: Path) -> None:
    """Remove what killed runs have left of `target` under temporary names; a living run's folder stays."""
    for leftover in target.parent.iterdir():
        if not leftover.name.startswith(f".{target.name}.tmp-") or not leftover.is_dir():
            continue
        try:
            descriptor = os.open(leftover, os.O_RDONLY)
        except FileNotFoundError:
            continue  # just published or removed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner is alive
        finally:
            os.close(descriptor)


def publish_folder(temporary: Path, target: Path, *, replace: bool = False) -> None:
    """Flush every file of `temporary` and rename the folder to `target` (same file system)."""
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            fsync_path(path)
    fsync_path(temporary)
    os.chmod(temporary, 0o755)
    if replace and target.exists():
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
        os.replace(target, aside / target.name)
        os.rename(temporary, target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(temporary, target)
    fsync_path(target.parent)


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors writes from Rust and tells the number only in its text.
    number = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(number[1]) if number else None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
