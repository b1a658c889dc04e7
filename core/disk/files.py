"""Files and folders that are either complete or absent: write beside, flush to disk, rename.

A rename inside one file system is atomic, and so is the exchange of two folders, so a kill at any moment leaves the old
state or the new one. What a kill leaves behind under a temporary name is never read and is swept by the next run that
owns the folder; a name that plyfold does not make is never swept.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import ConfigError, ConflictError, DiskFullError, IntegrityError, NotAllowedError
from .links import is_folder, open_folder, open_own
from .locks import take_lock

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_PATH = {
    errno.ENAMETOOLONG: "a path, or a name in it, is longer than the file system takes",
    errno.ELOOP: "a path runs in a circle of links",
    errno.ENOTDIR: "a file stands in a path where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.EEXIST: "a file, or a link to nowhere, stands where a folder is needed",
}
"""Numbers of errors that say a path itself cannot be meant -> what each says."""

NAME_MAX = 255
"""Bytes of a name on the common file systems of Linux and macOS."""
BESIDE_BYTES = 20
"""By which names that plyfold puts beside an output are longer than the output's (`temporary_beside`, locks, folds)."""


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


def no_path(where: object, number: int) -> ConfigError:
    """The error for a path that no file system takes, or that runs through something else (`NO_PATH`)."""
    text = str(where)
    return ConfigError(
        NO_PATH[number],
        where=text if len(text) <= 200 else f"{text[:80]} … {text[-80:]} ({len(text):,} characters)",
        next_step="name another path",
    )


def require_space(where: Path, need_bytes: int) -> None:
    """Refuse before the first byte when `where`'s file system lacks `need_bytes`.

    Raises:
        DiskFullError: Less is free than needed.
    """
    if shutil.disk_usage(_existing(where)).free < need_bytes:
        raise disk_full(where, need_bytes)


def refuse_existing(out: Path, *, replace: bool = False) -> None:
    """Refuse an output folder that exists or cannot be made, before work is spent on it.

    Args:
        out: Folder to be made.
        replace: Whether a folder that is there may be replaced; a file or a link may not.

    Raises:
        ConflictError: `out` exists and `replace` is false, or is no folder.
        ConfigError: A name that is too long, or a parent that is no folder.
    """
    if os.path.lexists(out) and not (replace and is_folder(out)):
        raise ConflictError(
            "the output folder exists already" if out.is_dir() else "something else lies where the output is to go",
            where=out,
            next_step="choose another folder, or remove this one",
        )
    refuse_no_folder(out.absolute().parent)
    _refuse_long_name(out)


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` spelt out.

    Raises:
        ConfigError: There is no such user, or none whose home folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "nobody's home folder", where=path, next_step="write the whole path, or ./ before it"
        ) from error


def refuse_no_folder(path: Path) -> None:
    """Refuse a path in whose place no folder is or can be made, before work is spent on it.

    Raises:
        ConfigError: It is no folder, or runs through what is none, in a circle of links, or is too long.
    """
    for place in (path, *path.absolute().parents):
        try:
            if stat.S_ISDIR(os.stat(place).st_mode):
                return
        except FileNotFoundError:
            if os.path.islink(place):  # to nowhere
                raise no_path(place, errno.EEXIST) from None
            continue
        except OSError as error:
            if error.errno in NO_PATH:
                raise no_path(place, error.errno) from error
            return
        raise no_path(place, errno.ENOTDIR)


def refuse_no_file(path: Path) -> None:
    """Refuse a path in whose place no file is or can be written, before work is spent on it.

    A rename would put a plain file in the place of a device or a pipe, for everybody.

    Raises:
        ConfigError: It is something else than a file; it runs through what is no folder, or is too long.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise no_path(path, errno.EISDIR)
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise ConfigError(
                "a pipe or device stands where a file is to be written", where=path, next_step="name another path"
            )
    except FileNotFoundError:
        refuse_no_folder(path.absolute().parent)
    except OSError as error:
        if error.errno in NO_PATH:
            raise no_path(path, error.errno) from error
    _refuse_long_name(path)


def _refuse_long_name(path: Path) -> None:
    if len(os.fsencode(path.name)) + BESIDE_BYTES > NAME_MAX:
        raise no_path(path, errno.ENAMETOOLONG)


def read_capped(path: Path, max_bytes: int) -> bytes:
    """A plain file's bytes, never more than the cap plus one; a pipe or device is not waited for.

    Raises:
        OSError: There is no such file, it may not be read, or it is no plain file.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        # Room is taken for all that is asked for; a file of the system's own says that it is empty.
        return file.read(min(status.st_size or max_bytes, max_bytes) + 1)


def temporary_beside(target: Path, kind: str) -> Path:
    """A new temporary name beside `target`: in the making (`tmp`), moved aside (`old`), half a file (`part`)."""
    return target.parent / f".{target.name}.{kind}-{token_hex(6)}"


def is_beside(name: str, kinds: str, target: str = r".+") -> bool:
    """Is it a name that `temporary_beside` makes?

    Args:
        name: The last part of a path.
        kinds: One of its kinds, or several with `|` between.
        target: Regular expression of the target's name.
    """
    return bool(re.fullmatch(rf"\.(?:{target})\.(?:{kinds})-[0-9a-f]{{12}}", name, re.DOTALL))


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` atomically; the folder is made if missing.

    Raises:
        ConfigError: Something else than a file stands there, or no file can.
        DiskFullError: No room; what was there is there still.
    """
    refuse_no_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path.parent, len(data)):
        temporary = temporary_beside(path, "part")
        descriptor = open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_path(path.parent)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any], *, mode: int = 0o644) -> None:
    """Write indented, key-sorted JSON atomically, with a final newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n", mode=mode)


@contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `target` that becomes `target` only if the block succeeds.

    Args:
        target: The folder to make; its parent is made if missing.
        replace: Exchange an existing `target` for the new one, instead of refusing it.

    Raises:
        ConflictError: `target` exists and `replace` is false, or is no folder.
        ConfigError: No path of a folder.
        DiskFullError: The file system filled up; the temporary folder is gone.
        FailedError: The file system knows no locks.
    """
    refuse_existing(target, replace=replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(target.parent):
        sweep_staged(target)
        temporary = temporary_beside(target, "tmp")
        temporary.mkdir(mode=0o700)
        owner = open_folder(temporary)
        try:
            # The system drops the lock when its holder dies: that tells a leftover from work in progress.
            take_lock(owner, temporary)
            yield temporary
            publish_folder(temporary, target, replace=replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(owner)


def sweep_staged(target: Path) -> None:
    """Mend what killed runs have left of `target` under temporary names; a living run's folders stay.

    A folder in the making goes. One moved aside goes too, or is `target` again where a kill came before the new one.
    """
    names = os.listdir(target.parent) if target.parent.is_dir() else []
    for name in sorted(names):
        if not is_beside(name, "tmp|old", re.escape(target.name)):
            continue
        leftover = target.parent / name
        try:
            descriptor = open_folder(leftover)
        except (OSError, IntegrityError):
            continue  # just published or removed, or nothing that plyfold makes
        try:
            if not take_lock(descriptor, leftover):
                continue  # its owner is alive
            if is_beside(name, "old") and not os.path.lexists(target):
                with suppress(FileNotFoundError):
                    os.rename(leftover, target)
            else:
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(descriptor)


def publish_folder(temporary: Path, target: Path, *, replace: bool = False) -> None:
    """Flush every file of `temporary` and make it `target` (same file system), which is there whole at any moment.

    Where the file system cannot exchange two folders, `target` is missing between two renames; a kill just then leaves
    it under a name that `sweep_staged` finds again.
    """
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            fsync_path(path)
    fsync_path(temporary)
    os.chmod(temporary, 0o755)
    if not (replace and is_folder(target)):
        os.rename(temporary, target)
        fsync_path(target.parent)
        return
    old = temporary
    if not _exchange(temporary, target):
        old = temporary_beside(target, "old")
        owner = open_folder(target)
        try:
            take_lock(owner, target)
            os.rename(target, old)
            os.rename(temporary, target)
        finally:
            os.close(owner)
    fsync_path(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    import ctypes

    at_fdcwd, rename_exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    if not renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), ctypes.c_uint(rename_exchange)):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors writes from Rust and tells the number only in its text.
    number = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(number[1]) if number else None


def _existing(path: Path) -> Path:
    while not os.path.exists(path):  # False too for a name that no file system takes
        path = path.parent
    return path
