"""A folder in the making that outlives a kill: locked while it is worked on, with a journal of what is finished.

The folder's name holds a key of everything that decides its content, so a rerun of the same work finds it again and a
run of other work never does. The system drops the lock when its holder dies: that tells a leftover from work in
progress.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.disk.digest import short
from ...core.disk.files import disk_errors, publish_folder, refuse_existing, sweep_staged
from ...core.disk.links import is_folder, open_folder, open_own, refuse_links_in
from ...core.disk.locks import take_lock
from ...core.errors import ConflictError, IntegrityError
from ...core.reading.strict_json import MalformedJSONError, parse_json

JOURNAL_FILE = ".journal"


class Journal:
    """What has been finished, one JSON line each, appended in one write; a line cut short by a kill is ignored.

    Nothing is flushed here: whoever resumes compares each entry's digest with the bytes before believing it, which
    covers a power cut as well.

    Args:
        path: The file; made where it is missing, emptied where it is another key's.
        key: Of the work.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.finished: dict[str, dict[str, Any]] = {}
        """Entries of earlier runs, by name."""
        lines, sound_bytes = _sound_lines(path)
        resumed = bool(lines) and lines[0] == {"key": key}
        self._descriptor = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._descriptor, sound_bytes if resumed else 0)
        if resumed:
            self.finished = {line["name"]: line for line in lines[1:] if "name" in line}
        else:
            self._append({"key": key})

    def record(self, entry: dict[str, Any]) -> None:
        """Note one finished thing; `entry` has a `name`."""
        self._append(entry)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _append(self, value: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(value).encode() + b"\n")


class Staging:
    """The folder and its journal, while the block of `resumable_folder` runs."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self.journal = journal


@contextmanager
def resumable_folder(target: Path, key: str, *, keep: Sequence[str], need_bytes: int = 0) -> Iterator[Staging]:
    """Give a folder beside `target` that becomes `target` if the block succeeds, and survives a kill of the process.

    An exception removes it; after a kill the same key finds it again, with its journal and the files in `keep`.
    Folders that dead runs have left for other keys of the same target are swept.

    Args:
        target: The folder to make; its parent is made if missing.
        key: Digest of all that decides the content.
        keep: File names that an earlier run's journal speaks of; anything else it left is removed.
        need_bytes: Space the whole needs, for the message of a full disk.

    Raises:
        ConflictError: `target` exists, or another process is making it with the same key.
        DiskFullError: The file system filled up; the folder is gone.
        IntegrityError: The folder in the making is a link, holds one, or is another user's.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.fold-{short(key)}"
    with disk_errors(target.parent, need_bytes):
        owner = _own(folder)
        try:
            _sweep(target, folder)
            for path in folder.iterdir():
                if path.name not in {*keep, JOURNAL_FILE}:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            journal = Journal(folder / JOURNAL_FILE, key)
            try:
                yield Staging(folder, journal)
            finally:
                journal.close()
            (folder / JOURNAL_FILE).unlink()
            _publish(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(owner)


def staged_bytes(target: Path) -> int:
    """Disk space held by unfinished folders of `target`: it is used or freed by the next run."""
    folders = [path for path in target.parent.glob(f".{target.name}.fold-*") if _is_staging(path, target)]
    files = [path for folder in folders for path in folder.iterdir()]
    return sum(512 * path.stat().st_blocks for path in files)


def _own(folder: Path) -> int:
    """Make or find the folder and lock it; the descriptor that holds the lock."""
    while True:
        try:
            refuse_links_in(folder)  # its name can be foretold, and what stands in it is written on
            folder.mkdir(exist_ok=True)
            owner = open_folder(folder)
        except FileNotFoundError:
            continue  # its last owner removed or published it in between
        try:
            if os.fstat(owner).st_uid != os.geteuid():
                raise IntegrityError(
                    "another user has laid a half-made folder where this one is to be made",
                    where=folder,
                    next_step="choose another output with -o",
                )
            if not take_lock(owner, folder):
                raise ConflictError(
                    "another process is making this folder", where=folder, next_step="wait for it, or stop it"
                )
            if os.stat(folder).st_ino == os.fstat(owner).st_ino:
                return owner
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(owner)
            raise
        os.close(owner)


def _sweep(target: Path, own: Path) -> None:
    sweep_staged(target)
    for leftover in target.parent.iterdir():
        if leftover == own or not _is_staging(leftover, target):
            continue
        try:
            descriptor = open_folder(leftover)
        except FileNotFoundError:
            continue
        try:
            if take_lock(descriptor, leftover):  # else its owner is alive
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(descriptor)


def _is_staging(path: Path, target: Path) -> bool:
    return bool(re.fullmatch(rf"\.{re.escape(target.name)}\.fold-[0-9a-f]{{12}}", path.name)) and is_folder(path)


def _publish(folder: Path, target: Path) -> None:
    refuse_existing(target)
    try:
        publish_folder(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            refuse_existing(target)
        raise


def _sound_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The leading lines that are whole JSON objects, and their length in bytes."""
    lines: list[dict[str, Any]] = []
    num_bytes = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            value = parse_json(line) if line.endswith(b"\n") else None
        except MalformedJSONError:
            value = None
        if not isinstance(value, dict):
            break
        lines.append(value)
        num_bytes += len(line)
    return lines, num_bytes
