"""Checkpoint folders: what lies where, by their headers, and any part of it read on demand.

Only headers are held in memory.

Shapes: O rows, I columns of a weight.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters.base import MAX_INDEX_BYTES, TWIN_NAME, content_revision, folder_identity, model_config
from ..adapters.header import Header, TensorEntry, read_header
from ..adapters.hub import is_local
from ..core.errors import IntegrityError, NotFoundError
from ..core.strict_json import read_object

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the dtypes a weight may be summed in."""
SAMPLED_RUNS, RUN_ROWS = 8, 4
"""How a weight is sampled: runs of rows, each from its own stretch of the weight."""
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5"}
OWN_FILES = {CONFIG_FILE, "README.md", "lineage.json", "composition.json", TWIN_NAME}
"""Files that speak of the base alone, or that the result has its own of."""


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

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(entry.stop - entry.start for header in self.shards.values() for entry in header.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a model folder's config and headers.

    Raises:
        NotFoundError: No folder, config or weights, or a file of the index is missing.
        IntegrityError: Pickled weights, an unsound header, or an index that does not fit its files.
    """
    if not folder.is_dir():
        raise NotFoundError("no such base folder", where=folder)
    config = model_config(folder)
    if (folder / SINGLE_FILE).is_file():
        stamps = _stamps(folder, [SINGLE_FILE])
        shards = {SINGLE_FILE: read_header(folder / SINGLE_FILE)}
        return Checkpoint(path=folder, config=config, shards=shards, index=None, stamps=stamps)
    if (folder / INDEX_FILE).is_file():
        index = _read_json(folder / INDEX_FILE)
        files = _files(folder, index)
        stamps = _stamps(folder, files)
        return Checkpoint(path=folder, config=config, shards=_shards(folder, index, files), index=index, stamps=stamps)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        raise IntegrityError(
            "the base is pickled; loading a pickle can run any code", where=pickles[0], expected=SINGLE_FILE
        )
    raise NotFoundError("no weights in the base folder", where=folder, expected=f"{SINGLE_FILE} or {INDEX_FILE}")


def other_identity(checkpoint: Checkpoint, repo: str, revision: str | None) -> str:
    """What a folder says itself that it is, where that is another base: a twin, or a snapshot in a Hub cache.

    Args:
        checkpoint: The folder.
        repo: What the adapters call their base; a local folder or nothing says nothing.
        revision: Commit they name, if any.

    Returns:
        `org/model@revision`; empty where the folder is that base or does not tell.
    """
    found = folder_identity(checkpoint.path)
    if found is None or is_local(repo) or not repo:
        return ""
    own_repo, own_revision = found
    other_revision = revision is not None and own_revision != revision and revision != "main"
    if own_repo != repo or (other_revision and content_revision(checkpoint.path) != revision):
        return f"{own_repo}@{own_revision}"
    return ""


def _stamps(folder: Path, files: Iterable[str]) -> dict[str, Stamp]:
    """Missing files are left to whoever reads their headers."""
    return {file: stamp(os.stat(folder / file)) for file in files if (folder / file).is_file()}


def _files(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The weight files an index names, and no others that may lie about."""
    where = folder / INDEX_FILE
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError("the index maps no tensors", where=where)
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise IntegrityError("the index names a file outside its folder", where=where, found=str(file)[:200])
    return sorted(set(weight_map.values()))


def _shards(folder: Path, index: Mapping[str, Any], files: Iterable[str]) -> dict[str, Header]:
    shards = {file: read_header(folder / file) for file in files}
    for name, file in index["weight_map"].items():
        if name not in shards[file].tensors:
            raise IntegrityError("a tensor is not in the file its index names", where=folder / file, found=name)
    names = [name for header in shards.values() for name in header.tensors]
    if len(names) != len(set(names)):
        raise IntegrityError("a tensor stands in two files of the checkpoint", where=folder / INDEX_FILE)
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"no {path.name} in the base folder", where=path.parent)
    return read_object(path, path.name, max_bytes=MAX_INDEX_BYTES)


class BaseReader:
    """Reads bytes of a checkpoint's files at their places; any number of threads may.

    Args:
        checkpoint: As `open_checkpoint` gave it; its files must not change from then on.

    Raises:
        IntegrityError: A file has changed since its header was read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files = {file: os.open(checkpoint.path / file, os.O_RDONLY) for file in checkpoint.shards}
        try:
            self.check_unchanged()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BaseReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def check_unchanged(self) -> None:
        """Make sure that the files are those whose headers were read, under their names too.

        Raises:
            IntegrityError: One is not.
        """
        for file, descriptor in self._files.items():
            path, expected = self._checkpoint.path / file, self._checkpoint.stamps[file]
            if not stamp(os.fstat(descriptor)) == expected == stamp(os.stat(path)):
                raise IntegrityError("the base changed while it was read", where=path, next_step="start again")

    def read_into(self, file: str, start: int, data: memoryview) -> None:
        """Fill `data` with the bytes of a file from `start`; read, not mapped, as a file cut short would kill a map.

        Raises:
            IntegrityError: The file has become shorter since its header was read.
        """
        done = 0
        while done < len(data):
            count = os.preadv(self._files[file], [data[done:]], start + done)
            if not count:
                raise IntegrityError("the file ended inside a tensor", where=self._checkpoint.path / file)
            done += count

    def rows(self, file: str, entry: TensorEntry, start: int, count: int) -> Tensor:
        """Rows [start, start + count) of a weight (O, I): (count, I) in its dtype."""
        dtype = FLOATS[entry.dtype]
        row_bytes = entry.shape[1] * dtype.itemsize
        data = bytearray(count * row_bytes)
        self.read_into(file, entry.start + start * row_bytes, memoryview(data))
        return torch.frombuffer(data, dtype=dtype).reshape(count, entry.shape[1])


def sample_rows(name: str, num_rows: int) -> list[tuple[int, int]]:
    """Runs of rows, (first, count), that stand for all of a weight: `SAMPLED_RUNS` of `RUN_ROWS`, spread evenly.

    Seeded by the name. Every row where the weight has no more than that.
    """
    if num_rows <= SAMPLED_RUNS * RUN_ROWS:
        return [(0, num_rows)]
    draw = random.Random(name)
    bounds = [num_rows * run // SAMPLED_RUNS for run in range(SAMPLED_RUNS + 1)]
    return [(draw.randint(start, stop - RUN_ROWS), RUN_ROWS) for start, stop in pairwise(bounds)]


def weight_norms(checkpoint: Checkpoint, modules: Iterable[str]) -> dict[str, float]:
    """|W|, Frobenius, of each module's weight that the checkpoint holds as a plain float matrix.

    Estimated from `sample_rows` for weights with more rows than that: to 1 % or so where rows do not differ much in
    length, from a hundredth of the reading.
    """
    norms = {}
    with BaseReader(checkpoint) as base:
        for name in modules:
            found = checkpoint.find(f"{name}.weight")
            if found is None or found[1].dtype not in FLOATS or len(found[1].shape) != 2:
                continue
            file, entry = found
            runs = sample_rows(name, entry.shape[0])
            squares = [float(base.rows(file, entry, *run).double().square().sum()) for run in runs]
            norms[name] = math.sqrt(sum(squares) * entry.shape[0] / max(1, sum(count for _, count in runs)))
    return norms


def copy_other_files(source: Path, target: Path) -> None:
    """Copy tokenizer, templates, generation config and what else is no weight, as bytes."""
    for path in sorted(source.iterdir()):
        weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in OWN_FILES and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, target / path.name)
