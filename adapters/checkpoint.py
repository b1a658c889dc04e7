"""Checkpoint folders: what lies where, by their headers. No torch, and no tensor data.

Weights are where `config.json` and the index say they are, and nowhere else that a folder may have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import IntegrityError, NotFoundError
from .base import INDEX_NAME, SINGLE_NAME, model_config, weight_names
from .header import Header, TensorEntry, read_header, reading

CONFIG_FILE = "config.json"


class Stamp(NamedTuple):
    """What changes when a file is written to or replaced."""

    inode: int
    num_bytes: int
    mtime_ns: int


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder whose headers have been read."""

    path: Path
    config: dict[str, Any]
    shards: dict[str, Header]
    """By file name, in order."""
    index: dict[str, Any] | None
    """`model.safetensors.index.json`; None for a single file."""
    stamps: dict[str, Stamp]
    """By file name, taken before its header was read."""

    def find(self, name: str) -> tuple[str, TensorEntry] | None:
        """File and place of a tensor."""
        for file, header in self.shards.items():
            if name in header.tensors:
                return file, header.tensors[name]
        return None

    def read(self, file: str, entry: TensorEntry) -> bytearray:
        """The raw little-endian bytes of one tensor.

        Raises:
            IntegrityError: The file has become shorter since its header was read.
        """
        data = bytearray(entry.stop - entry.start)
        with reading(self.path / file), (self.path / file).open("rb") as handle:
            handle.seek(entry.start)
            if handle.readinto(data) != len(data):
                raise IntegrityError("the file ended inside a tensor", where=self.path / file)
        return data

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(entry.stop - entry.start for header in self.shards.values() for entry in header.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a model folder's config and headers.

    Raises:
        NotFoundError: No folder, config or weights, or a file of the index is missing.
        IntegrityError: Pickled weights, two sets of them, an unsound header, or an index that does not fit its files.
    """
    if not folder.is_dir():
        raise NotFoundError("no such base folder", where=folder)
    config = model_config(folder)
    try:
        files, index = weight_names(folder)
    except NotFoundError:
        if pickles := sorted(folder.glob("pytorch_model*.bin")):
            raise IntegrityError(
                "the base is pickled; loading a pickle can run any code",
                where=pickles[0],
                expected=SINGLE_NAME,
                next_step="take the base as safetensors; where this file is trusted, transformers' from_pretrained and "
                "save_pretrained write it so",
            ) from None
        raise
    stamps = _stamps(folder, files)
    shards = {file: read_header(folder / file) for file in files}
    if index:
        _check_index(folder, index, shards)
    return Checkpoint(path=folder, config=config, shards=shards, index=index, stamps=stamps)


def _stamps(folder: Path, files: Iterable[str]) -> dict[str, Stamp]:
    """Missing files are left to whoever reads their headers."""
    return {file: stamp(os.stat(folder / file)) for file in files if (folder / file).is_file()}


def _check_index(folder: Path, index: Mapping[str, Any], shards: Mapping[str, Header]) -> None:
    for name, file in index["weight_map"].items():
        if name not in shards[file].tensors:
            raise IntegrityError("a tensor is not in the file its index names", where=folder / file, found=name)
    names = [name for header in shards.values() for name in header.tensors]
    if len(names) != len(set(names)):
        raise IntegrityError("a tensor stands in two files of the checkpoint", where=folder / INDEX_NAME)
