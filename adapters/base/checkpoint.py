"""Checkpoint folders: what lies where, by their headers. No torch, and no tensor data.

Weights are where `config.json` and the index say they are, and nowhere else that a folder may have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import IntegrityError, NotFoundError
from ...core.reading.strict_json import read_object
from ..header import Header, TensorEntry, read_header, reading, shown
from .model_config import model_config

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32_000_000
"""Longest index accepted; that of a trillion parameters in 140,000 tensors is some 16 MB."""
OTHER_WEIGHTS = ("*.safetensors", "*.gguf", "*.h5", "*.msgpack", "*.pth", "*.pt", "*.npz", "*.onnx")
"""Weights that a folder may hold instead, in another form or under another name."""


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
        IntegrityError: Pickled weights, an unsound header, or an index that does not fit its files.
    """
    if not folder.is_dir():
        raise NotFoundError("no such base folder", where=folder)
    config = model_config(folder)
    index, files = None, [SINGLE_FILE]
    if _has(folder, INDEX_FILE):
        index = read_object(folder / INDEX_FILE, INDEX_FILE, max_bytes=MAX_INDEX_BYTES)
        files = _files(folder, index)
    elif not _has(folder, SINGLE_FILE):
        raise _no_weights(folder)
    _refuse_two_models(folder, config, files)
    return Checkpoint(path=folder, config=config, shards=_shards(folder, files, index), index=index)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _refuse_two_models(folder: Path, config: Mapping[str, Any], files: list[str]) -> None:
    """Refuse a folder of which programs load different weights: which of them is the base, nothing says."""
    if _has(folder, SINGLE_FILE) and files != [SINGLE_FILE]:
        raise IntegrityError(
            "the base folder holds two sets of weights: transformers loads the one file, vLLM what the index names",
            where=folder,
            expected=f"{SINGLE_FILE}, or {INDEX_FILE} and what it names",
            found=f"{SINGLE_FILE} beside an index of {', '.join(files[:3])}{' …' if len(files) > 3 else ''}",
            next_step="keep one; of a repository, in a folder of your own that base.path or --base names",
        )
    named = config.get("transformers_weights")
    if named is not None and named not in (SINGLE_FILE, INDEX_FILE):
        raise IntegrityError(
            "the config names a weights file of its own, which transformers loads and vLLM does not",
            where=folder / CONFIG_FILE,
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            found=f"transformers_weights {shown(named)}",
            next_step=f"rename that file to {SINGLE_FILE}, and take transformers_weights out of the config",
        )


def _no_weights(folder: Path) -> IntegrityError | NotFoundError:
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        return IntegrityError(
            "the base is pickled; loading a pickle can run any code",
            where=pickles[0],
            expected=SINGLE_FILE,
            next_step="take the base as safetensors; where this file is trusted, transformers' from_pretrained and "
            "save_pretrained write it so",
        )
    found = sorted(file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern))
    shards = any(name.startswith("model-") and name.endswith(".safetensors") for name in found)
    return NotFoundError(
        "no weights in the base folder",
        where=folder,
        expected=f"{SINGLE_FILE} or {INDEX_FILE}",
        found=", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else ""),
        next_step=f"fetch {INDEX_FILE} too, which says what is in them"
        if shards
        else "take the base as its Hub page has it for transformers: config.json and safetensors",
    )


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


def _shards(folder: Path, files: Iterable[str], index: Mapping[str, Any] | None) -> dict[str, Header]:
    for file in files:
        if not _has(folder, file):
            raise NotFoundError(
                "the base lacks a weights file", where=folder / file, next_step="fetch what is missing of the base"
            )
    shards = {file: read_header(folder / file) for file in files}
    for name, file in index["weight_map"].items() if index else ():
        if name not in shards[file].tensors:
            raise IntegrityError("a tensor is not in the file its index names", where=folder / file, found=name)
    names = [name for header in shards.values() for name in header.tensors]
    if len(names) != len(set(names)):
        raise IntegrityError("a tensor stands in two files of the checkpoint", where=folder / INDEX_FILE)
    return shards
