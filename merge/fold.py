"""Adapters and a base to a standalone checkpoint: W + sum_k w_k s_k B_k A_k, rounded once.

The sum is formed in float32 in blocks of rows and rounded to the output dtype at the end, all adapters together:
folding one after another, or into a 4-bit base, rounds each time and loses part of every delta.

Shapes: O out_features, I in_features, R stacked rank, N rows of a block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters.header import TensorEntry
from ..core.digest import digest_json
from ..core.errors import FailedError, IncompatibleError, ShapeMismatchError
from ..core.files import require_space, staged_folder, write_bytes, write_json
from .checkpoint import (
    CONFIG_FILE,
    FLOATS,
    INDEX_FILE,
    Checkpoint,
    ShardWriter,
    check_identity,
    copy_other_files,
    open_checkpoint,
    row_blocks,
)
from .compose import COMPOSITION_FILE, HEADER_ALLOWANCE_BYTES, refuse_existing
from .parts import Part
from .plan import ComposePlan, check_dtype, plan_compose
from .prepare import Prepared, prepare

LM_HEAD = "lm_head"
EMBEDDING_SUFFIX = "embed_tokens.weight"
STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
LOSS_WARNING = 0.2
"""Rounding loss, as a share of |dW|, from which a fold says so."""


class _Out(NamedTuple):
    """One tensor of the result."""

    name: str
    dtype: str
    source_file: str
    source: TensorEntry
    module: str | None
    """Module whose delta is added; None for a tensor that is only passed on."""

    @property
    def num_bytes(self) -> int:
        size = self.source.stop - self.source.start
        if self.dtype == self.source.dtype:
            return size
        return size // FLOATS[self.source.dtype].itemsize * FLOATS[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """A fold that can be carried out."""

    compose: ComposePlan
    base: Checkpoint
    dtype: str | None
    """`fp32`, `bf16`, `fp16`; None keeps each tensor's own."""
    shards: dict[str, tuple[_Out, ...]]
    """By output file name."""
    untied: bool
    """Whether an adapter on a tied lm_head makes the result carry its own lm_head.weight."""
    warnings: tuple[str, ...]

    @property
    def bytes_out(self) -> int:
        """Size of all tensors of the result."""
        return sum(tensor.num_bytes for tensors in self.shards.values() for tensor in tensors)


@dataclass(frozen=True, kw_only=True)
class ModuleFold:
    """What one rounding did to one module."""

    delta_norm: float
    """|dW|, Frobenius."""
    loss: float
    """|result - (W + dW)|, Frobenius."""
    changed_share: float
    """Share of elements that differ from the base's."""

    @property
    def relative_loss(self) -> float:
        """Rounding loss as a share of |dW|."""
        return self.loss / self.delta_norm if self.delta_norm else 0.0


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """A folded checkpoint on disk."""

    path: Path
    dtype: str
    modules: dict[str, ModuleFold]
    num_untouched: int
    """Tensors that were passed on."""
    bytes_read: int
    bytes_written: int
    digest: str
    """Over the digests of the weight files."""
    files: dict[str, str]
    """Weight file -> digest."""
    warnings: tuple[str, ...]

    @property
    def relative_loss(self) -> float:
        """Rounding loss over all modules, as a share of |sum dW|."""
        norm = math.hypot(*(module.delta_norm for module in self.modules.values()))
        return math.hypot(*(module.loss for module in self.modules.values())) / norm if norm else 0.0

    @property
    def worst(self) -> tuple[str, float]:
        """Module that loses most to rounding, and the share."""
        name = max(self.modules, key=lambda key: self.modules[key].relative_loss)
        return name, self.modules[name].relative_loss

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        worst, worst_loss = self.worst
        return {
            "path": str(self.path),
            "dtype": self.dtype,
            "modules_changed": len(self.modules),
            "tensors_untouched": self.num_untouched,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "digest": self.digest,
            "files": self.files,
            "rounding_loss": self.relative_loss,
            "worst_module": {"name": worst, "rounding_loss": worst_loss},
            "warnings": list(self.warnings),
        }


def fold(
    parts: Sequence[Part],
    base_dir: Path,
    out: Path,
    *,
    dtype: str | None = None,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> FoldReport:
    """Plan, sum and write in one call; see `plan_fold` and `write_fold`."""
    plan = plan_fold(plan_compose(parts), base_dir, dtype=dtype)
    refuse_existing(out)
    return write_fold(plan, prepare(plan.compose), out, advance=advance)


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
        IncompatibleError: A quantised base, or a module that the base does not have.
        ShapeMismatchError: A module of another size.
    """
    if dtype is not None:
        check_dtype(dtype)
    base = open_checkpoint(base_dir)
    check_identity(base, compose.base_repo, compose.base_revision)
    _refuse_quantised(base)
    warnings = []
    if base.config.get("quantization_config"):
        warnings.append("the base's config asks for quantisation of unquantised weights; the result's does not")
    tied = bool(base.config.get("tie_word_embeddings"))
    untied = tied and LM_HEAD in compose.modules
    if untied:
        warnings.append("an adapter changes the tied lm_head: the result has its own lm_head.weight and is not tied")
    sources = {name: _source(base, name, tied_head=untied and name == LM_HEAD) for name in compose.modules}
    for name, (_, _, entry) in sources.items():
        shape = compose.modules[name]
        if entry.shape != shape[:2]:
            raise ShapeMismatchError(
                "a module has another size in the base",
                where=f"{base.path} {name}.weight",
                expected=f"(O, I) = {shape[:2]}, as the adapters have it",
                found=tuple(entry.shape),
            )
    return FoldPlan(
        compose=compose,
        base=base,
        dtype=dtype,
        shards=_layout(base, sources, dtype),
        untied=untied,
        warnings=tuple(warnings),
    )


def _refuse_quantised(base: Checkpoint) -> None:
    for file, header in base.shards.items():
        for name, entry in header.tensors.items():
            scaled = any(f"{name}{suffix}" in header.tensors for suffix in (".absmax", ".quant_map", "_scale_inv"))
            packed = entry.dtype not in FLOATS and (name.endswith((".weight", ".qweight")) or scaled)
            if packed:
                method = (base.config.get("quantization_config") or {}).get("quant_method", "quantised")
                raise IncompatibleError(
                    "the base's weights are quantised; adding a delta to them would round it away",
                    where=f"{base.path / file} {name}",
                    found=f"{entry.dtype}, {method}",
                    expected=f"weights in {', '.join(FLOATS)}",
                    next_step="fold into the 16-bit base, or into the twin (--base-view trained)",
                )


def _source(base: Checkpoint, module: str, *, tied_head: bool) -> tuple[str, str, TensorEntry]:
    """(name in the result, file, place) of the weight a module's delta is added to."""
    name = f"{module}.weight"
    if tied_head:
        names = [key for header in base.shards.values() for key in header.tensors if key.endswith(EMBEDDING_SUFFIX)]
        found = base.find(names[0]) if len(names) == 1 else None
    else:
        found = base.find(name)
    if found is None:
        raise IncompatibleError(
            "the adapters change a module that the base does not have",
            where=base.path,
            found=name,
            next_step="fold into the base the adapters were trained on",
        )
    return name, *found


def _layout(
    base: Checkpoint, sources: dict[str, tuple[str, str, TensorEntry]], dtype: str | None
) -> dict[str, tuple[_Out, ...]]:
    modules = {name: module for module, (name, _, _) in sources.items()}
    shards: dict[str, list[_Out]] = {}
    for file, header in base.shards.items():
        shards[file] = []
        for name, entry in header.tensors.items():
            stored = STORED[dtype] if dtype and entry.dtype in FLOATS else entry.dtype
            module = modules.pop(name, None)
            source_file, source = (file, entry) if module is None else sources[module][1:]
            shards[file].append(_Out(name, stored, source_file, source, module))
    last = shards[list(shards)[-1]]
    for name, module in modules.items():  # an lm_head that was tied has no tensor of its own yet
        _, source_file, source = sources[module]
        last.append(_Out(name, STORED[dtype] if dtype else source.dtype, source_file, source, module))
    return {file: tuple(tensors) for file, tensors in shards.items()}


def write_fold(
    plan: FoldPlan, prepared: Prepared, out: Path, *, advance: Callable[[int], None] = lambda num_bytes: None
) -> FoldReport:
    """Stream the base through, adding each module's delta once; the folder is whole or absent.

    result_OI = round(W_OI + B_OR @ A_RI), summed in float32, one rounding to the output dtype.

    Args:
        plan: From `plan_fold`.
        prepared: The composition to add, in float32.
        out: Folder to make.
        advance: Called with the bytes written since the last call.

    Raises:
        ConflictError: `out` exists.
        DiskFullError: No room; refused before the first byte where that can be known.
        FailedError: A sum leaves the range of the output dtype.

    Numerics: within half a unit of the output dtype, plus (R + 2) float32 roundings, of the float64 sum;
        tests/numerics/test_fold.py.
    """
    refuse_existing(out)
    require_space(out, plan.bytes_out + HEADER_ALLOWANCE_BYTES)
    modules: dict[str, ModuleFold] = {}
    files: dict[str, str] = {}
    with staged_folder(out) as folder:
        for file, tensors in plan.shards.items():
            entries = [(tensor.name, tensor.dtype, tensor.source.shape, tensor.num_bytes) for tensor in tensors]
            writer = ShardWriter(folder / file, entries, plan.base.shards[file].metadata)
            try:
                for tensor in tensors:
                    done = _write_tensor(plan, prepared, tensor, writer)
                    if done:
                        assert tensor.module is not None
                        modules[tensor.module] = done
                    advance(tensor.num_bytes)
                files[file] = writer.close()
            finally:
                writer.abandon()
        if set(modules) != set(plan.compose.modules):
            raise FailedError("a module of the adapters was not used", found=set(plan.compose.modules) ^ set(modules))
        _write_config(plan, folder)
        copy_other_files(plan.base.path, folder)
        write_json(folder / COMPOSITION_FILE, {**prepared.to_json(), "into": "model", "weight_files": files})
    report = FoldReport(
        path=out,
        dtype=plan.dtype or "as the base",
        modules=modules,
        num_untouched=sum(tensor.module is None for tensors in plan.shards.values() for tensor in tensors),
        bytes_read=sum(tensor.source.stop - tensor.source.start for ts in plan.shards.values() for tensor in ts),
        bytes_written=plan.bytes_out,
        digest=digest_json(files),
        files=files,
        warnings=plan.warnings,
    )
    return _with_loss_warning(report)


def _write_tensor(plan: FoldPlan, prepared: Prepared, tensor: _Out, writer: ShardWriter) -> ModuleFold | None:
    with (plan.base.path / tensor.source_file).open("rb") as source:
        if tensor.module is None and tensor.dtype == tensor.source.dtype:
            writer.copy(source, tensor.source.start, tensor.source.stop)
            return None
        dtype = FLOATS[tensor.dtype]
        if tensor.module is None:
            flat = TensorEntry(
                dtype=tensor.source.dtype,
                shape=(math.prod(tensor.source.shape), 1),
                start=tensor.source.start,
                stop=tensor.source.stop,
            )
            for _, block in row_blocks(source, flat):
                writer.write(_bytes(_finite(block.to(dtype), tensor)))
            return None
        factors = prepared.factors(tensor.module)
        B_OR, A_RI = factors.B_OR.float(), factors.A_RI.float()
        lost = changed = 0.0
        for start, W_NI in row_blocks(source, tensor.source):
            sum_NI = torch.addmm(W_NI.float(), B_OR[start : start + len(W_NI)], A_RI)
            rounded_NI = _finite(sum_NI.to(dtype), tensor)
            writer.write(_bytes(rounded_NI))
            lost += float((rounded_NI.float() - sum_NI).square().sum(dtype=torch.float64))
            changed += int((rounded_NI != W_NI).sum())
    return ModuleFold(
        delta_norm=prepared.certificate.modules[tensor.module].norm,
        loss=math.sqrt(lost),
        changed_share=changed / math.prod(tensor.source.shape),
    )


def _finite(block: Tensor, tensor: _Out) -> Tensor:
    if not torch.isfinite(block).all():
        raise FailedError(
            "a weight of the result is not finite",
            where=tensor.name,
            found=f"beyond {torch.finfo(block.dtype).max:g}, or NaN in the base",
            next_step="fold with --dtype bf16 or fp32, whose range is wider" if tensor.dtype == "F16" else "",
        )
    return block


def _bytes(block: Tensor) -> Any:
    return block.contiguous().view(torch.uint8).numpy().data


def _write_config(plan: FoldPlan, folder: Path) -> None:
    """The base's config, and its index, with only what the fold has changed."""
    config = dict(plan.base.config)
    config.pop("quantization_config", None)
    if plan.untied:
        config["tie_word_embeddings"] = False
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


def _with_loss_warning(report: FoldReport) -> FoldReport:
    worst, loss = report.worst
    warnings = list(report.warnings)
    if loss > LOSS_WARNING:
        warnings.append(
            f"rounding to {report.dtype} costs {worst} {loss:.0%} of its delta; --dtype fp16 or fp32 keeps more"
        )
    unchanged = [name for name, module in report.modules.items() if module.delta_norm and not module.changed_share]
    if unchanged:
        warnings.append(f"{len(unchanged)} module(s) are as in the base: their deltas are below its rounding")
    return replace(report, warnings=tuple(warnings))
