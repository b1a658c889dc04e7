"""Immutable objects: adapter folders named by the digest of their record.

An object appears by one rename and is never changed afterwards. Whatever a kill leaves behind lies in `tmp/`, is never
read, and is swept once it is surely nobody's any more.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.disk.digest import sha256_bytes, sha256_file
from ...core.disk.files import disk_errors, fsync_path, is_beside, require_space
from ...core.disk.links import is_folder, refuse_link
from ...core.errors import ConfigError, FailedError, IntegrityError, NotFoundError, PlyfoldError
from ..record import MAX_RECORD_BYTES, RECORD_FILE, FileEntry, Record, check_file_name, parse_record, read_record_bytes

PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
"""Files that run code when they are loaded."""

TMP_MAX_AGE_S = 3600.0
"""Leftovers younger than this may belong to a running publish and are never touched."""

MEND = "remove that folder, then train, publish or fetch the adapter again"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An object and what it says about itself."""

    digest: str
    path: Path
    """Plain PEFT folder; read-only."""
    record: Record


@dataclass(frozen=True, kw_only=True)
class FileProblem:
    """One way in which an object differs from its record."""

    path: str
    """File inside the object."""
    fault: str
    """`missing`, `extra`, `size`, `digest`, `record` (the two contradict each other), `unsound` or `unreadable`."""
    expected: str = ""
    found: str = ""

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "fault": self.fault, "expected": self.expected, "found": self.found}

    def __str__(self) -> str:
        said = {"missing": "is missing", "extra": "is not in the record", "record": "is not what the record says"}
        said |= {"unsound": "is unsound", "unreadable": "cannot be read"}
        fault = said.get(self.fault, f"has another {self.fault}")
        return f"{self.path} {fault}" + (f" (expected {self.expected}, found {self.found})" if self.found else "")


def write_object(folder: Path, record: Record, tmp: Path, objects: Path) -> str:
    """Copy `folder` into the store as one immutable object and return its record's digest.

    Args:
        folder: Plain files and folders; an old `lineage.json` in it is not copied.
        record: What to say about it; its `files` are replaced by what was copied.
        tmp: Scratch folder on the file system of `objects`.
        objects: Folder whose entries are named by 64 hex digits.

    Raises:
        NotFoundError: `folder` is missing or holds no file.
        ConfigError: A link, device or unfit name in `folder`, or a record over the size cap.
        IntegrityError: The same object exists already and its bytes are damaged.
        DiskFullError: No room; nothing of it is left.
    """
    sizes = _payload(folder)
    require_space(tmp, sum(sizes.values()) + MAX_RECORD_BYTES)
    with disk_errors(tmp, sum(sizes.values())):
        staged = Path(tempfile.mkdtemp(dir=tmp, prefix="publish-"))
        try:
            files = [_copy(folder, staged, name) for name in sizes]
            data = record.model_copy(update={"files": files}).to_bytes()
            if len(data) > MAX_RECORD_BYTES:
                raise ConfigError(
                    "the record is too large",
                    expected=f"at most {MAX_RECORD_BYTES:,} bytes",
                    found=f"{len(data):,} bytes",
                    next_step="keep less in its recipe",
                )
            parse_record(data, where=folder / RECORD_FILE)  # what is stored can be read back
            _write_flushed(staged / RECORD_FILE, data)
            _seal(staged)
            digest = sha256_bytes(data)
            _move_in(staged, objects / digest.removeprefix("sha256:"))
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return digest


@contextmanager
def scratch_folder(tmp: Path) -> Iterator[Path]:
    """An empty folder in `tmp`, gone afterwards with what is left in it; old leftovers are swept first."""
    sweep(tmp)
    with disk_errors(tmp):
        folder = Path(tempfile.mkdtemp(dir=tmp, prefix="scratch-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def adopt_object(staged: Path, digest: str, objects: Path) -> Record:
    """Make a finished folder, its record among its files, one immutable object; return the record it was under.

    Args:
        staged: Folder on the file system of `objects`; gone afterwards, unless the object was there already.
        digest: What its record has to be.
        objects: Folder whose entries are named by 64 hex digits.

    Raises:
        IntegrityError: Another record, or files that are not what it says; or the same object exists, damaged.
    """
    data = _record_bytes(staged / RECORD_FILE)
    found = sha256_bytes(data)
    if found != digest:
        raise IntegrityError("not the record that was asked for", where=staged, expected=digest, found=found)
    record = parse_record(data, staged / RECORD_FILE)
    raise_problems(staged, record, find_problems(staged, record))
    with disk_errors(objects):
        for name in (RECORD_FILE, *(entry.path for entry in record.files)):
            fsync_path(staged / name)
        _seal(staged)
        _move_in(staged, objects / digest.removeprefix("sha256:"))
    return record


def read_record(path: Path) -> Record:
    """Read an object's record and check it against the object's name; payload files are not opened.

    Raises:
        NotFoundError: No such object.
        IntegrityError: The record is missing, malformed, or not the one the folder is named after.
    """
    where = path / RECORD_FILE
    refuse_link(path)
    if not path.is_dir():
        raise NotFoundError("no such object in the store", where=path)
    data = _record_bytes(where)
    expected, found = f"sha256:{path.name}", sha256_bytes(data)
    if len(data) <= MAX_RECORD_BYTES and found != expected:
        raise IntegrityError(
            "the record is not the one its folder is named after; nothing was loaded",
            where=where,
            expected=expected,
            found=found,
            next_step=MEND,
        )
    return parse_record(data, where)


def _record_bytes(where: Path) -> bytes:
    try:
        if where.is_symlink():  # an object holds its own bytes
            raise OSError(errno.EINVAL, "a link")
        return read_record_bytes(where)
    except OSError as error:
        raise IntegrityError(
            "the record cannot be read; nothing was loaded",
            where=where,
            found=error.strerror or str(error),
            next_step=MEND,
        ) from error


def find_problems(path: Path, record: Record, *, hashes: bool = True) -> list[FileProblem]:
    """Compare an object's files with its record.

    Args:
        path: The object's folder.
        record: Its record, already checked.
        hashes: Read and hash every file; otherwise only names and sizes are compared.
    """
    problems = []
    declared = {entry.path: entry for entry in record.files}
    for name, entry in declared.items():
        file = path / name
        try:
            status = file.lstat()
        except OSError:
            problems.append(FileProblem(path=name, fault="missing"))
            continue
        if not stat.S_ISREG(status.st_mode):
            problems.append(FileProblem(path=name, fault="missing", expected="a plain file", found="a link or folder"))
        elif status.st_size != entry.size:
            sizes = f"{entry.size:,} bytes", f"{status.st_size:,} bytes"
            problems.append(FileProblem(path=name, fault="size", expected=sizes[0], found=sizes[1]))
        elif hashes and (found := sha256_file(file)) != entry.sha256:
            problems.append(FileProblem(path=name, fault="digest", expected=entry.sha256, found=found))
    try:
        found_files = sorted(path.rglob("*"))
    except FileNotFoundError:  # a sweep beside this takes the object
        found_files = []
        problems.append(FileProblem(path=RECORD_FILE, fault="missing"))
    for file in found_files:
        name = file.relative_to(path).as_posix()
        if name not in declared and name != RECORD_FILE and (file.is_symlink() or not file.is_dir()):
            problems.append(FileProblem(path=name, fault="extra"))
    return problems


def raise_problems(path: Path, record: Record, problems: list[FileProblem]) -> None:
    """Refuse a damaged object, naming its first fault in full and counting the rest.

    Raises:
        IntegrityError: `problems` is not empty.
    """
    if not problems:
        return
    first, more = problems[0], len(problems) - 1
    raise IntegrityError(
        f"the {record.label} adapter of {record.curriculum} does not match its record; nothing was loaded",
        where=path / first.path,
        expected=first.expected or ("no such file" if first.fault == "extra" else "the file its record names"),
        found=(first.found or f"{first.fault} file") + (f", and {more} more" if more else ""),
        next_step=f"`plyfold verify` lists every fault; {MEND}",
    )


def sweep(tmp: Path, max_age_s: float = TMP_MAX_AGE_S) -> None:
    """Remove what killed publishes left in `tmp`, judged by the newest file inside; never anything younger."""
    for leftover in tmp.iterdir():
        if is_scratch(leftover) and _age_s(leftover, "*") > max_age_s:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def sweep_partial_files(*folders: Path, max_age_s: float = TMP_MAX_AGE_S) -> None:
    """Remove half-written refs and attestations (dot files) that a kill left; never anything younger."""
    for folder in folders:
        for leftover in folder.rglob(".*"):
            if is_beside(leftover.name, "part") and _age_s(leftover) > max_age_s and not is_folder(leftover):
                leftover.unlink(missing_ok=True)


def is_scratch(path: Path) -> bool:
    """Is it what a publish, a scratch folder or a sweep makes in `tmp`, by its name and kind?"""
    if re.fullmatch(r"(publish|scratch)-[a-z0-9_]{8}", path.name):
        return is_folder(path)
    return bool(re.fullmatch(r"gc-.+-[0-9a-f]{8}", path.name)) and not path.is_symlink()


def _age_s(path: Path, inside: str = "") -> float:
    """Seconds since a path, or the youngest `inside` it, changed; 0 where its owner, or another sweep, removes it."""
    try:
        paths = [path, *path.rglob(inside)] if inside else [path]
        return time.time() - max(each.lstat().st_mtime for each in paths)
    except OSError:
        return 0.0


def _payload(folder: Path) -> dict[str, int]:
    """Relative name -> bytes of every file to publish, in sorted order."""
    if not folder.is_dir():
        raise NotFoundError("no folder to publish", where=folder)
    sizes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) or name == RECORD_FILE:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("only plain files can be published", where=path, found="a link or device")
        check_file_name(name)
        sizes[name] = status.st_size
    if not sizes:
        raise NotFoundError("the folder to publish holds no file", where=folder)
    return sizes


def _copy(folder: Path, staged: Path, name: str) -> FileEntry:
    target = staged / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / name, target)
    fsync_path(target)
    # Hash the copy: the record then speaks of the bytes in the store, whatever happens to the source meanwhile.
    return FileEntry(path=name, size=target.stat().st_size, sha256=sha256_file(target))


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _seal(staged: Path) -> None:
    """Make every file read-only and flush every folder's entries."""
    for path in staged.rglob("*"):
        if path.is_dir():
            fsync_path(path)
        else:
            path.chmod(0o444)
    staged.chmod(0o755)
    fsync_path(staged)


def _move_in(staged: Path, target: Path) -> None:
    """Rename a finished object into place, or find it there already."""
    for tries_left in reversed(range(3)):
        try:
            staged.rename(target)
        except FileNotFoundError as error:
            raise FailedError(
                "the files being published were removed meanwhile",
                where=staged,
                next_step="run the same command again",
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            fsync_path(target.parent)
            return
        try:
            _check_existing(target)
            return
        except IntegrityError:
            if not tries_left:
                raise  # else it may be that a sweep has taken it in the middle of the look: there is room now


def _check_existing(target: Path) -> None:
    """The object is there already: keep it if it is sound, else say so rather than repair it silently."""
    with suppress(FileNotFoundError):
        os.utime(target, follow_symlinks=False)  # young again: a sweep beside this keeps it
    try:
        record = read_record(target)
        raise_problems(target, record, find_problems(target, record))
    except PlyfoldError as error:
        raise IntegrityError(
            "this adapter is in the store already, but damaged",
            where=error.where or target,
            expected=error.expected,
            found=error.found,
            next_step=f"remove {target} and publish again",
        ) from error
