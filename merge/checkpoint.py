"""Checkpoint folders as streams: safetensors files read by rows and written front to back, one tensor at a time.

Only headers are held in memory. What is not changed is copied as bytes.

Shapes: O rows, I columns of a weight.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.base import TWIN_NAME, content_revision
from ..adapters.header import Header, TensorEntry, read_header
from ..core.digest import CHUNK_BYTES, PREFIX
from ..core.errors import BaseMismatchError, IntegrityError, NotFoundError
from .parts import is_local

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the dtypes a weight may be summed in."""
BLOCK_ELEMENTS = 4 << 20
"""Elements of a weight in memory at once: 16 MB in float32."""
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5"}
OWN_FILES = {CONFIG_FILE, "README.md", "lineage.json", "composition.json", TWIN_NAME}
"""Files that speak of the base alone, or that the result has its own of."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder whose headers have been read."""

    path: Path
    config: dict[str, Any]
    shards: dict[str, Header]
    """By file name, in order."""
    index: dict[str, Any] | None
    """`model.safetensors.index.json`; None for a single file."""

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
    config = _read_json(folder / CONFIG_FILE)
    if (folder / SINGLE_FILE).is_file():
        return Checkpoint(
            path=folder, config=config, shards={SINGLE_FILE: read_header(folder / SINGLE_FILE)}, index=None
        )
    if (folder / INDEX_FILE).is_file():
        index = _read_json(folder / INDEX_FILE)
        return Checkpoint(path=folder, config=config, shards=_shards(folder, index), index=index)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        raise IntegrityError(
            "the base is pickled; loading a pickle can run any code", where=pickles[0], expected=SINGLE_FILE
        )
    raise NotFoundError("no weights in the base folder", where=folder, expected=f"{SINGLE_FILE} or {INDEX_FILE}")


def check_identity(checkpoint: Checkpoint, repo: str, revision: str | None) -> None:
    """Refuse a folder that says itself that it is another base: a twin, or a snapshot in a Hub cache.

    Raises:
        BaseMismatchError: Another repository, or another revision of it.
    """
    found = _identity(checkpoint.path.resolve())
    if found is None or is_local(repo) or not repo:
        return
    own_repo, own_revision = found
    other_revision = revision is not None and own_revision != revision and revision != "main"
    if own_repo != repo or (other_revision and content_revision(checkpoint.path) != revision):
        raise BaseMismatchError(
            "the base folder is not the base the adapters were trained on",
            where=checkpoint.path,
            expected=f"{repo}@{revision}" if revision else repo,
            found=f"{own_repo}@{own_revision}",
        )


def _identity(folder: Path) -> tuple[str, str] | None:
    """(repo, revision) of a folder whose place or notes tell; None for a plain folder."""
    if (folder / TWIN_NAME).is_file():
        twin = _read_json(folder / TWIN_NAME)
        return str(twin.get("repo")), str(twin.get("revision"))
    snapshots, cached = folder.parent, folder.parent.parent
    if snapshots.name == "snapshots" and cached.name.startswith("models--"):
        return cached.name.removeprefix("models--").replace("--", "/"), folder.name
    return None


def _shards(folder: Path, index: Mapping[str, Any]) -> dict[str, Header]:
    where = folder / INDEX_FILE
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError("the index maps no tensors", where=where)
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise IntegrityError("the index names a file outside its folder", where=where, found=str(file)[:200])
    shards = {file: read_header(folder / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file].tensors:
            raise IntegrityError("a tensor is not in the file its index names", where=folder / file, found=name)
    names = [name for header in shards.values() for name in header.tensors]
    if len(names) != len(set(names)):
        raise IntegrityError("a tensor stands in two files of the checkpoint", where=where)
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"no {path.name} in the base folder", where=path.parent)
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError("the file is not JSON", where=path, found=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise IntegrityError("the file is not a JSON object", where=path, found=type(value).__name__)
    return value


def row_blocks(file: BufferedReader, entry: TensorEntry) -> Iterator[tuple[int, Tensor]]:
    """A weight's rows in blocks: (first row, block (n, I) in the stored dtype).

    Raises:
        IntegrityError: The file has become shorter since its header was read.
    """
    dtype = FLOATS[entry.dtype]
    num_rows, num_columns = entry.shape
    row_bytes = num_columns * dtype.itemsize
    step = max(1, BLOCK_ELEMENTS // num_columns)
    for start in range(0, num_rows, step):
        rows = min(step, num_rows - start)
        data = bytearray(rows * row_bytes)
        file.seek(entry.start + start * row_bytes)
        if file.readinto(data) != len(data):
            raise IntegrityError("the file ended inside a tensor", where=file.name)
        yield start, torch.frombuffer(data, dtype=dtype).reshape(rows, num_columns)


def weight_norms(checkpoint: Checkpoint, modules: Iterable[str]) -> dict[str, float]:
    """|W|, Frobenius, of each module's weight that the checkpoint holds as a plain float matrix."""
    norms = {}
    for name in modules:
        found = checkpoint.find(f"{name}.weight")
        if found is None or found[1].dtype not in FLOATS or len(found[1].shape) != 2:
            continue
        with (checkpoint.path / found[0]).open("rb") as file:
            squares = [
                float(block.float().square().sum(dtype=torch.float64)) for _, block in row_blocks(file, found[1])
            ]
        norms[name] = sum(squares) ** 0.5
    return norms


class ShardWriter:
    """Writes one safetensors file front to back and digests it on the way.

    Args:
        path: File to make.
        tensors: (name, safetensors dtype, shape, bytes) in the order they will be written.
        metadata: Header metadata; `format` is set to `pt`, without which loaders refuse the file.
    """

    def __init__(
        self, path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
    ) -> None:
        header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
        position = 0
        for name, dtype, shape, num_bytes in tensors:
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + num_bytes]}
            position += num_bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._digest = hashlib.sha256()
        self._expected_bytes = 8 + len(text) + position
        self._file = path.open("wb")
        self.write(len(text).to_bytes(8, "little") + text)

    def write(self, data: Any) -> None:
        """Append bytes-like data."""
        self._digest.update(data)
        self._file.write(data)

    def copy(self, source: BufferedReader, start: int, stop: int) -> None:
        """Append the bytes [start, stop) of another file."""
        source.seek(start)
        left = stop - start
        while left:
            chunk = source.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise IntegrityError("the file ended inside a tensor", where=source.name)
            self.write(chunk)
            left -= len(chunk)

    def close(self) -> str:
        """Finish the file; its digest."""
        assert self._file.tell() == self._expected_bytes, "the header promised other bytes than were written"
        self._file.close()
        return PREFIX + self._digest.hexdigest()

    def abandon(self) -> None:
        """Close the file where something failed."""
        self._file.close()


def copy_other_files(source: Path, target: Path) -> None:
    """Copy tokenizer, templates, generation config and what else is no weight, as bytes."""
    for path in sorted(source.iterdir()):
        weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in OWN_FILES and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, target / path.name)
