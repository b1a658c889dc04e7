"""What a fold will write: every tensor of the result, where it comes from and where it goes.

Shapes: O out_features, I in_features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ...adapters.base.checkpoint import CONFIG_FILE, INDEX_FILE, Checkpoint, open_checkpoint
from ...adapters.base.model_config import TEXT_CONFIG
from ...adapters.base.quantised import asked_quantisation, quant_method, refuse_packed, without_quantisation
from ...adapters.base.resolve import accompanying
from ...adapters.header import TensorEntry
from ...adapters.placement import HEADS, ModulePlacement, Placement
from ...core.disk.digest import digest_json, sha256_bytes
from ...core.disk.files import write_bytes, write_json
from ...core.errors import BaseMismatchError, IncompatibleError
from ..plan import ComposePlan, check_dtype
from .checkpoint import FLOATS, other_identity
from .direct import ALIGNMENT

EMBEDDING_AS_HEAD = ("gemma2", "gemma3n", "gemma3n_text", "cohere", "cohere2")
"""Model types whose logits vLLM 0.32 computes with the embedding, whatever the checkpoint has beside it."""
STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


class OutTensor(NamedTuple):
    """One tensor of the result."""

    name: str
    dtype: str
    source_file: str
    source: TensorEntry
    module: str | None
    """Module whose delta is added; None for a tensor that is only passed on."""

    @property
    def num_bytes(self) -> int:
        """Size in the result."""
        size = self.source.stop - self.source.start
        if self.dtype == self.source.dtype:
            return size
        return size // FLOATS[self.source.dtype].itemsize * FLOATS[self.dtype].itemsize


class ShardLayout(NamedTuple):
    """One file of the result, known before a byte of it is computed."""

    header: bytes
    positions: dict[str, int]
    """First byte of each tensor, counted from the file's start."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """A fold that can be carried out."""

    compose: ComposePlan
    base: Checkpoint
    dtype: str | None
    """`fp32`, `bf16`, `fp16`; None keeps each tensor's own."""
    shards: dict[str, tuple[OutTensor, ...]]
    """By output file name."""
    untied: bool
    """Whether an adapter on a tied lm_head makes the result carry its own lm_head.weight."""
    served: bool
    """Whether vLLM computes what the result holds."""
    left_out: tuple[str, ...]
    """Files of the base's folder that are no part of a checkpoint, and not copied."""
    warnings: tuple[str, ...]

    @property
    def tensors(self) -> list[OutTensor]:
        """Every tensor of the result."""
        return [tensor for tensors in self.shards.values() for tensor in tensors]

    @property
    def bytes_out(self) -> int:
        """Size of all tensors of the result."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def targets(self) -> dict[str, OutTensor]:
        """The tensor each module's delta is added to."""
        return {tensor.module: tensor for tensor in self.tensors if tensor.module is not None}

    def layouts(self) -> dict[str, ShardLayout]:
        """Header and places of every file."""
        return {file: _lay_out(tensors, self.base.shards[file].metadata) for file, tensors in self.shards.items()}

    def key(self, composition: str) -> str:
        """Digest of what decides the result's bytes.

        Args:
            composition: `Prepared.key`.
        """
        return digest_json(
            {
                "composition": composition,
                "base": {file: list(header.stamp) for file, header in self.base.shards.items()},
                "sources": [
                    [tensor.source_file, tensor.source.dtype, tensor.source.start, tensor.module]
                    for tensor in self.tensors
                ],
                "headers": {file: sha256_bytes(layout.header) for file, layout in self.layouts().items()},
                "config": json.dumps(self.base.config, sort_keys=True),
                "tool": version("plyfold"),
            }
        )


def plan_fold(compose: ComposePlan, base_dir: Path, *, dtype: str | None = None) -> FoldPlan:
    """Check that every module of a composition has its weight in the base, and lay out the result.

    Args:
        compose: What to add; `fp32`, or its own rounding comes before the fold's.
        base_dir: Checkpoint in 16 or 32 bit: the twin for the model that was trained, or the original base.
        dtype: `fp32`, `bf16`, `fp16`; None keeps each tensor's own.

    Raises:
        ConfigError: Unknown dtype.
        NotFoundError, IntegrityError: As `open_checkpoint`.
        BaseMismatchError: A folder that says it is another base.
        UnsupportedAdapterError: A base whose code stores its weights transposed.
        IncompatibleError: A quantised base, one in float64, or a module that the base does not have.
        ShapeMismatchError: A module of another size.
    """
    if dtype is not None:
        check_dtype(dtype)
    base = open_checkpoint(base_dir)
    asked = asked_quantisation(base.config)
    method = next(map(quant_method, asked.values()), "")
    refuse_packed(base.shards.values(), compose.base_repo, setting="--base", method=method)
    warnings = _check_identity(base, compose)
    if asked:
        warnings.append("the base's config asks for quantisation of unquantised weights; the result's does not")
    placement = Placement(base)
    places = {name: placement.check(name, shape[:2]) for name, shape in compose.modules.items()}
    for place in places.values():
        if place.entry.dtype not in FLOATS:
            raise IncompatibleError(
                "a weight of the base is in a dtype that nothing is added to here",
                where=f"{base.path / place.file} {place.tensor}",
                expected=", ".join(FLOATS),
                found=place.entry.dtype,
                next_step="save the base again in float32: from_pretrained(..., dtype=torch.float32), save_pretrained",
            )
    heads = [name for name in places if name.rpartition(".")[2] in HEADS]
    untied = any(places[name].tied for name in heads) or (bool(heads) and placement.config.tied is True)
    if untied:
        warnings.append("an adapter changes the tied lm_head: the result has its own lm_head.weight and is not tied")
    served = not (untied and placement.config.model_type in EMBEDDING_AS_HEAD)
    if not served:
        warnings.append(
            f"vLLM 0.32 has no head of its own for {placement.config.model_type}: it would leave the result's out; "
            "use transformers, or an adapter without lm_head"
        )
    return FoldPlan(
        compose=compose,
        base=base,
        dtype=dtype,
        shards=_shards(base, places, dtype),
        untied=untied,
        served=served,
        left_out=tuple(accompanying(base.path)[1]),
        warnings=tuple(warnings),
    )


def _check_identity(base: Checkpoint, compose: ComposePlan) -> list[str]:
    """Refuse a folder that says itself that it is another base; a warning where the user named it."""
    found = other_identity(base, compose.base_repo, compose.base_revision)
    if not found:
        return []
    revision = f"@{compose.base_revision}" if compose.base_revision else ""
    if compose.base_word is not None:
        return [f"{base.path} is {found} by its own notes or place: it is taken to be {compose.base_repo}{revision}"]
    raise BaseMismatchError(
        "the base folder is not the base the adapters were trained on",
        where=base.path,
        expected=f"{compose.base_repo}{revision}",
        found=found,
        next_step=f"if it is, say so with --base {base.path}",
    )


def _shards(
    base: Checkpoint, places: dict[str, ModulePlacement], dtype: str | None
) -> dict[str, tuple[OutTensor, ...]]:
    modules: dict[str, str] = {}
    for module, place in places.items():
        name = f"{place.module}.weight" if place.tied else place.tensor
        other = modules.setdefault(name, module)
        if other != module:
            raise IncompatibleError(
                "two modules of the adapters are one in the base",
                where=f"{base.path} {name}",
                found=f"{other} and {module}",
                next_step="merge with --base DIR, so that they are read as one",
            )
    shards: dict[str, list[OutTensor]] = {}
    for file, header in base.shards.items():
        shards[file] = []
        for name, entry in header.tensors.items():
            stored = STORED[dtype] if dtype and entry.dtype in FLOATS else entry.dtype
            shards[file].append(OutTensor(name, stored, file, entry, modules.pop(name, None)))
    last = shards[list(shards)[-1]]
    for name, module in modules.items():  # an lm_head that was tied has no tensor of its own yet
        place = places[module]
        last.append(OutTensor(name, STORED[dtype] if dtype else place.entry.dtype, place.file, place.entry, module))
    return {file: tuple(tensors) for file, tensors in shards.items()}


def _lay_out(tensors: tuple[OutTensor, ...], metadata: dict[str, str]) -> ShardLayout:
    """The header in safetensors' form, padded so that the data begins on a page.

    Its metadata says `format: pt`, without which loaders refuse the file.
    """
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    offsets, position = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = position
        stop = position + tensor.num_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.source.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    data_start = 8 + len(text)
    return ShardLayout(
        header=len(text).to_bytes(8, "little") + text,
        positions={name: data_start + offset for name, offset in offsets.items()},
        num_bytes=data_start + position,
    )


def write_model_config(plan: FoldPlan, folder: Path) -> None:
    """The base's config, and its index, with only what the fold has changed."""
    config = without_quantisation(plan.base.config)
    if plan.untied:
        config["tie_word_embeddings"] = False
        text = config.get(TEXT_CONFIG)
        if isinstance(text, dict) and text.get("tie_word_embeddings"):
            config[TEXT_CONFIG] = {**text, "tie_word_embeddings": False}
    if plan.dtype:
        name = str(FLOATS[STORED[plan.dtype]]).removeprefix("torch.")
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config |= dict.fromkeys(keys, name)
    if config == plan.base.config:
        write_bytes(folder / CONFIG_FILE, (plan.base.path / CONFIG_FILE).read_bytes())
    else:
        write_bytes(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
    if plan.base.index is not None:
        metadata = {**(plan.base.index.get("metadata") or {}), "total_size": plan.bytes_out}
        weight_map = {tensor.name: file for file, tensors in plan.shards.items() for tensor in tensors}
        write_json(folder / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
