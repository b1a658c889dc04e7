"""Output files of known size, filled in any order by any number of threads, past the page cache where that goes.

Direct writes take a quarter of the processor time of cached ones, leave nothing for a final flush to wait for, and
keep a large result from driving what other programs use out of memory. Whole pages go that way; what is left at the
edges of a block, and everything on a file system that knows no direct writes, goes through the cache.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

ALIGNMENT = 4096
"""Bytes: memory, place and length of a direct write are multiples of it; the page size."""


class OutputFile:
    """A file whose space is reserved before its first byte is written.

    On a file system that cannot reserve, the C library writes a zero into every block instead: slower, and as sure.

    Args:
        path: Made where it is missing; what an earlier run has written into it stays.
        num_bytes: Its final size.

    Raises:
        OSError: ENOSPC, EDQUOT or EFBIG where there is no room.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._cached = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._direct: int | None = None
        try:
            os.ftruncate(self._cached, min(num_bytes, os.fstat(self._cached).st_size))
            _reserve(self._cached, num_bytes)
            self._direct = _open_direct(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; `flush` first to have it on disk."""
        for descriptor in (self._cached, self._direct):
            if descriptor is not None:
                os.close(descriptor)

    def flush(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._cached)

    def write(self, position: int, data: bytes | memoryview, address: int | None = None) -> None:
        """Write `data` at `position`.

        Args:
            position: First byte, counted from the file's start.
            data: Bytes-like.
            address: Where `data` lies in memory; whole pages are written directly if it is as far from a page's start
                as `position` is.
        """
        view = memoryview(data).cast("B")
        head = -position % ALIGNMENT
        whole = (len(view) - head) // ALIGNMENT * ALIGNMENT
        if address is not None and (address - position) % ALIGNMENT == 0 and whole > 0 and self._direct is not None:
            try:
                _write(self._direct, view[head : head + whole], position + head)
            except OSError as error:
                if error.errno != errno.EINVAL:  # larger pages than ours: this file goes through the cache
                    raise
            else:
                _write(self._cached, view[:head], position)
                _write(self._cached, view[head + whole :], position + head + whole)
                return
        _write(self._cached, view, position)

    def read_into(self, position: int, data: memoryview) -> None:
        """Fill `data` with what has been written at `position`."""
        done = 0
        while done < len(data):
            count = os.preadv(self._cached, [data[done:]], position + done)
            assert count, "read beyond the reserved size"
            done += count


def _reserve(descriptor: int, num_bytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(descriptor, num_bytes)  # then a full disk shows only as it is written


def _open_direct(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _write(descriptor: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], position + done)
