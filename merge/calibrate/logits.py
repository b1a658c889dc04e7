"""Whether a folded checkpoint computes what was trained: its logits beside those of the base with all parts active.

Models are loaded one after another. What is kept between them is the logits of the prompts' tokens, on disk.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...adapters.base.checkpoint import Checkpoint, open_checkpoint
from ...adapters.base.load import load_tokenizer, load_twin
from ...adapters.base.model_config import ModelConfig
from ...core.console import print_table
from ..inputs import PartSet
from .hooked_model import Batch, active, batched, cast, fold_in_place, logits
from .kl import Agreement, LogitFile, Meter, rows
from .prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEDIAN_FACTOR, MEAN_FACTOR = 4.0, 10.0
"""Times the KL of arithmetic noise that a fold's own rounding may reach. Stacked and folded each round on their own,
and rounding the weights adds about as much again: some 3 at most, 0.5 to 1.9 where measured; one wrong adapter of 3
at 3 % of |W| makes 16. The mean hangs on few tokens, and is there for damage that few tokens meet."""
ROUNDING_KL = 1e-14
"""KL that float64 itself makes of equal logits."""
VERIFY_PASSES = 4
"""Times that `verify_logits` runs every prompt; one less without the noise floor."""
COMPARE_PASSES = 5
"""Times that `compare_base_views` does."""
COLUMNS = ("comparison", "KL per token (nats)", "median", "largest", "largest |dlogit|", "top-1")


@dataclass(frozen=True, kw_only=True)
class LogitReport:
    """A folded checkpoint against the model it stands for."""

    folded: Agreement
    """The checkpoint; reference: the base with all parts active, unmerged."""
    noise: Agreement | None
    """That same stacked model in other arithmetic: what rounding in the coarser dtype of both alone does."""
    base: Agreement
    """The checkpoint; reference: the base without parts."""
    num_tokens: int
    num_prompts: int
    prompts_digest: str
    dtype: str
    """Of the checkpoint's computation."""
    noise_dtype: str
    """Whose rounding `noise` is."""

    @property
    def equals_base(self) -> bool:
        """Whether the checkpoint cannot be told from the base without parts."""
        if self.base.max_dlogit == 0 or self.noise is None:
            return self.base.max_dlogit == 0
        return self.base.median_kl <= max(self.noise.median_kl, ROUNDING_KL)

    @property
    def noise_ratios(self) -> tuple[float, float] | None:
        """Median and mean KL of the checkpoint in units of the noise's; None where that was not measured."""
        if self.noise is None:
            return None
        return (
            self.folded.median_kl / max(self.noise.median_kl, ROUNDING_KL),
            self.folded.kl / max(self.noise.kl, ROUNDING_KL),
        )

    @property
    def faithful(self) -> bool | None:
        """Whether it is the stacked model as near as its dtype allows; None where the noise was not measured."""
        ratios = self.noise_ratios
        return None if ratios is None else ratios[0] <= MEDIAN_FACTOR and ratios[1] <= MEAN_FACTOR

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, in words."""
        found = []
        if self.equals_base:
            found.append("the folded model computes what the base computes: no delta shows in its logits")
        if self.faithful is False and self.noise_ratios is not None:
            median, mean = self.noise_ratios
            found.append(
                f"the folded model is not the stacked one: KL {self.folded.kl:.3g} per token, {mean:.1f} times the "
                f"noise of {self.noise_dtype} ({median:.1f} times at the median token)"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folded": self.folded.to_json(),
            "noise": self.noise.to_json() if self.noise else None,
            "base": self.base.to_json(),
            "faithful": self.faithful,
            "equals_base": self.equals_base,
            "dtype": self.dtype,
            "noise_dtype": self.noise_dtype,
            "num_tokens": self.num_tokens,
            "num_prompts": self.num_prompts,
            "prompts_digest": self.prompts_digest,
            "warnings": list(self.warnings),
        }


def verify_logits(
    checkpoint: Path,
    base: Path,
    parts: PartSet,
    prompts: Prompts,
    *,
    noise: bool = True,
    device: str | None = None,
    scratch: Path | None = None,
    advance: Callable[[int], None] = lambda num_prompts: None,
) -> LogitReport:
    """Compare a folded checkpoint with the base it was folded into and all parts active, on every token of the prompts.

    Args:
        checkpoint: What `merge.fold` wrote.
        base: The view it was folded into: the twin, or the original base.
        parts: What was folded, with its weights.
        prompts: Any text that the model should handle.
        noise: Whether to measure the floor too, which takes the stacked model in a wider dtype: twice a 16-bit base's
            memory.
        device: `cpu` or `cuda:N`; null takes CUDA where there is some.
        scratch: Folder for two models' logits, V numbers a token each; null takes the system's temporary one.
        advance: Called with the prompts done since the last call, `VERIFY_PASSES` times all of them.

    Raises:
        ConfigError: A prompt that does not fit the model.
        IncompatibleError, ShapeMismatchError: The base lacks a module of the parts, or the vocabularies differ.
        NotFoundError, IntegrityError: A checkpoint that is not one.
        FailedError: Logits that are not finite.
        DiskFullError: No room for the logits.
    """
    saved = open_checkpoint(checkpoint)
    tokenizer = load_tokenizer(base)
    model = load_twin(base, device)
    batches = batched(prompts, tokenizer, model)
    num_tokens = _num_tokens(batches)
    with LogitFile(num_tokens, scratch) as stacked, LogitFile(num_tokens, scratch) as plain:
        with active(model, parts):
            _keep(model, batches, stacked, advance)
        _keep(model, batches, plain, advance)
        own = model.dtype
        coarser = max(own, _dtype(saved, own), key=lambda dtype: torch.finfo(dtype).eps)
        floor = None
        if noise:
            cast(model, _wider(own) if coarser == own else coarser)
            floor = _compare(model, batches, {"noise": stacked}, advance, parts)["noise"]
        del model
        _free()
        model = load_twin(checkpoint, device)
        found = _compare(model, batches, {"folded": stacked, "base": plain}, advance)
    return LogitReport(
        folded=found["folded"],
        noise=floor,
        base=found["base"],
        num_tokens=num_tokens,
        num_prompts=len(prompts.texts),
        prompts_digest=prompts.digest,
        dtype=_name(model.dtype),
        noise_dtype=_name(coarser),
    )


@dataclass(frozen=True, kw_only=True)
class BaseViewReport:
    """What was trained against both bases it can be folded into; reference of all: the twin with all parts active."""

    trained: Agreement
    """Folded into the twin: the dequantised weights that the adapters were trained on."""
    original: Agreement
    """Folded into the original base."""
    noise: Agreement
    """The reference itself in wider arithmetic."""
    without: Agreement
    """The twin without parts: how much there is to lose."""
    num_tokens: int
    num_prompts: int
    prompts_digest: str
    dtype: str

    @property
    def nearer(self) -> str:
        """The view whose fold is nearer to what was trained: `trained` or `original`."""
        return "trained" if self.trained.kl <= self.original.kl else "original"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "trained": self.trained.to_json(),
            "original": self.original.to_json(),
            "noise": self.noise.to_json(),
            "without": self.without.to_json(),
            "nearer": self.nearer,
            "dtype": self.dtype,
            "num_tokens": self.num_tokens,
            "num_prompts": self.num_prompts,
            "prompts_digest": self.prompts_digest,
        }


def compare_base_views(
    twin: Path,
    original: Path,
    parts: PartSet,
    prompts: Prompts,
    *,
    device: str | None = None,
    scratch: Path | None = None,
    advance: Callable[[int], None] = lambda num_prompts: None,
) -> BaseViewReport:
    """Measure which base to fold into: the dequantised one that was trained on, or the original that was quantised.

    Advice on merging QLoRA adapters goes both ways; this settles it for one model. Both folds are made in memory with
    the arithmetic of `merge.fold`, both in the twin's dtype so that only the weights differ, and nothing is written.

    Args:
        twin: From `adapters.base.ensure_twin`.
        original: The base it was made from.
        parts: What was trained, with weights.
        prompts: Any text that the model should handle.
        device: `cpu` or `cuda:N`; null takes CUDA where there is some.
        scratch: Folder for one model's logits, V numbers a token; null takes the system's temporary one.
        advance: Called with the prompts done since the last call, `COMPARE_PASSES` times all of them.

    Raises:
        As `verify_logits`.
    """
    tokenizer = load_tokenizer(twin)
    model = load_twin(twin, device)
    batches = batched(prompts, tokenizer, model)
    num_tokens = _num_tokens(batches)
    with LogitFile(num_tokens, scratch) as stacked:
        own = model.dtype
        with active(model, parts):
            _keep(model, batches, stacked, advance)
        without = _compare(model, batches, {"twin without adapters": stacked}, advance)
        cast(model, _wider(own))
        noise = _compare(model, batches, {"noise": stacked}, advance, parts)
        cast(model, own)  # exact: these numbers were of this dtype
        fold_in_place(model, parts)
        trained = _compare(model, batches, {"folded into the twin": stacked}, advance)
        del model
        _free()
        model = load_twin(original, device)
        cast(model, own)
        fold_in_place(model, parts)
        into_original = _compare(model, batches, {"folded into the original": stacked}, advance)
    return BaseViewReport(
        trained=trained["folded into the twin"],
        original=into_original["folded into the original"],
        noise=noise["noise"],
        without=without["twin without adapters"],
        num_tokens=num_tokens,
        num_prompts=len(prompts.texts),
        prompts_digest=prompts.digest,
        dtype=_name(own),
    )


def print_logits(report: LogitReport) -> None:
    """A small table on stdout."""
    named = {
        "folded against stacked": report.folded,
        f"noise of {report.noise_dtype}": report.noise,
        "folded against the plain base": report.base,
    }
    print_table(COLUMNS, rows(named), right=COLUMNS[1:], title=_title(report))


def print_base_views(report: BaseViewReport) -> None:
    """A small table on stdout."""
    named: dict[str, Agreement | None] = {
        "folded into the trained view (twin)": report.trained,
        "folded into the original base": report.original,
        f"noise of {report.dtype}": report.noise,
        "without adapters": report.without,
    }
    print_table(COLUMNS, rows(named), right=COLUMNS[1:], title=f"{_title(report)}; against what was trained")


def _title(report: LogitReport | BaseViewReport) -> str:
    return f"logits on {report.num_tokens:,} tokens of {report.num_prompts:,} prompts"


def _num_tokens(batches: Sequence[Batch]) -> int:
    return sum(int(batch.mask.sum()) for batch in batches)


def _keep(model: PreTrainedModel, batches: Sequence[Batch], file: LogitFile, advance: Callable[[int], None]) -> None:
    for batch in batches:
        file.put(logits(model, batch))
        advance(len(batch.ids))


def _compare(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    references: dict[str, LogitFile],
    advance: Callable[[int], None],
    parts: PartSet | None = None,
) -> dict[str, Agreement]:
    """Agreement with each reference, with the parts active if given."""
    meters = {name: Meter(name) for name in references}
    with active(model, parts) if parts is not None else nullcontext():
        for index, batch in enumerate(batches):
            scores_NV = logits(model, batch)
            for name, file in references.items():
                meters[name].add(file.get(index).to(scores_NV.device), scores_NV)
            advance(len(batch.ids))
    return {name: meter.result() for name, meter in meters.items()}


def _wider(dtype: torch.dtype) -> torch.dtype:
    """The arithmetic beside which a dtype's rounding shows."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def _dtype(checkpoint: Checkpoint, default: torch.dtype) -> torch.dtype:
    """The dtype a checkpoint's config names, which it is loaded in."""
    found = getattr(torch, ModelConfig(checkpoint.config).dtype or "", default)
    return found if isinstance(found, torch.dtype) else default


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
