"""The header of a safetensors file, read and checked without touching tensor data.

A safetensors file is an 8-byte little-endian length N, N bytes of JSON (name -> dtype, shape, byte range) and one
buffer. Everything a file can lie about is checked against its size first, so a hostile or damaged one costs a bounded
read and ends in one clear error.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..core.disk.files import NO_PATH, no_path
from ..core.errors import FailedError, IntegrityError, NotFoundError, PlyfoldError
from ..core.reading.strict_json import MalformedJSONError, parse_json

MAX_HEADER_BYTES = 16_000_000
"""Longest header accepted, some 100,000 tensors; the library's own 100 MB of brackets would take 2.5 GB to parse."""
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16,
    "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as the header states it."""

    dtype: str
    """safetensors' name: F32, BF16, …"""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the file's start."""
    stop: int
    """One past the last byte, counted from the file's start."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A checked header; entries in the order of their bytes."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    stamp: tuple[int, int, int]
    """`file_stamp` of the file this was read from."""

    def read(self, file: BufferedReader, name: str) -> bytearray:
        """The raw little-endian bytes of one tensor, from the opened `path`.

        Raises:
            IntegrityError: The file has become shorter since its header was read.
        """
        entry = self.tensors[name]
        data = bytearray(entry.stop - entry.start)
        file.seek(entry.start)
        if file.readinto(data) != len(data):
            raise IntegrityError("the file ended inside a tensor", where=f"{self.path} {name}")
        return data


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        NotFoundError: No such file.
        IntegrityError: Truncated, not safetensors, a length beyond the file or 16 MB, a name twice, or byte ranges
            that overlap, leave holes or contradict dtype and shape.
        FailedError: The system does not let it be read.
    """
    with reading(path):
        return _read(path)


def file_stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is replaced, cut or written: inode, size in bytes, time of the last write in ns."""
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system has against reading `path` into one clear error.

    Raises:
        FailedError: No permission, a failing disk.
        ConfigError: No path of a file: a name too long, a circle of links.
    """
    try:
        yield
    except PlyfoldError:
        raise
    except OSError as error:
        if error.errno in NO_PATH:
            raise no_path(error.filename or path, error.errno) from error
        raise FailedError(
            "a file cannot be read", where=error.filename or path, found=error.strerror or str(error)
        ) from error


def shown(value: object) -> str:
    """A value of a file as an error shows it: short however long or deep it is, control characters escaped."""
    return _SHORT.repr(value)[:300]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def _read(path: Path) -> Header:
    if not path.is_file():
        raise NotFoundError("no such file", where=path)
    with path.open("rb") as file:
        stamp = file_stamp(os.fstat(file.fileno()))
        _, size, _ = stamp
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _broken(path, "the file is truncated", found=f"{size} bytes", expected="at least 8")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise _broken(path, "the header length is not credible", found=f"{length:,} bytes")
        if 8 + length > size:
            raise _broken(path, "the file is truncated", found=f"{size:,} bytes", expected=f"over {8 + length:,}")
        text = file.read(length)
    return _parse(path, text, data_start=8 + length, stamp=stamp)


def _parse(path: Path, text: bytes, *, data_start: int, stamp: tuple[int, int, int]) -> Header:
    _, size, _ = stamp
    try:
        raw = parse_json(text)
    except MalformedJSONError as error:
        raise _broken(path, "the header is not sound JSON", found=error) from error
    if not isinstance(raw, dict):
        raise _broken(path, "the header is not a JSON object", found=type(raw).__name__)
    metadata = raw.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "the header's metadata is not text", found=shown(metadata))
    entries = {name: _entry(path, name, value, data_start) for name, value in raw.items()}
    ordered = sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop, item[0]))
    position = data_start
    for name, entry in ordered:
        if entry.start != position:
            problem = "overlap" if entry.start < position else "leave a hole"
            raise _broken(path, f"byte ranges {problem}", where=name, found=entry.start, expected=position)
        position = entry.stop
    if position != size:
        problem = "the file is truncated" if position > size else "bytes follow the last tensor"
        raise _broken(path, problem, found=f"{size:,} bytes", expected=f"{position:,} by its header")
    return Header(path=path, tensors=dict(ordered), metadata=metadata, stamp=stamp)


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, "a tensor's entry is malformed", where=name, found=shown(value))
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _broken(path, "unknown dtype", where=name, found=shown(dtype), expected=", ".join(DTYPE_BITS))
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, "a tensor's entry is malformed", where=name, found=shown(value))
    for side in shape:
        bits *= side
        if bits > 1 << 63:
            raise _broken(path, "a tensor's shape is not credible", where=name, found=shown(shape))
    start, stop = offsets
    if 8 * (stop - start) != bits:
        raise _broken(
            path, "a tensor's byte range contradicts its shape", where=name, found=stop - start, expected=bits / 8
        )
    return TensorEntry(dtype=dtype, shape=tuple(shape), start=data_start + start, stop=data_start + stop)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _broken(path: Path, what: str, *, where: str = "", found: object = "", expected: object = "") -> IntegrityError:
    return IntegrityError(
        what,
        where=f"{path} {where[:200]!r}" if where else path,
        found=found,
        expected=expected,
        next_step="fetch or train the file again",
    )
