"""Adapters and a base to a standalone checkpoint: W + sum_k w_k s_k B_k A_k, rounded once.

The sum is formed in float32 in blocks of rows and rounded to the output dtype at the end, all adapters together:
folding one after another, or into a 4-bit base, rounds each time and loses part of every delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.spec import COMPOSITION_FILE
from ...core.disk.digest import digest_json
from ...core.disk.files import refuse_existing, require_space, write_json
from ..compose.prepare import Prepared, prepare
from ..inputs import Part
from ..plan import HEADER_ALLOWANCE_BYTES, plan_compose
from .check import Checked, check_fold
from .checkpoint import BaseReader, copy_other_files
from .journal import resumable_folder, staged_bytes
from .loss import LOSS_WARNING, ModuleFold, estimate_loss, loss_warnings, relative_loss
from .plan import FoldPlan, plan_fold, write_model_config
from .write import WrittenTensor, write_tensors

__all__ = [
    "LOSS_WARNING",
    "FoldPlan",
    "FoldReport",
    "ModuleFold",
    "estimate_loss",
    "fold",
    "loss_warnings",
    "plan_fold",
    "relative_loss",
    "space_needed",
    "write_fold",
]


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """A folded checkpoint on disk."""

    path: Path
    dtype: str
    modules: dict[str, ModuleFold]
    """Rounding, measured on a sample of each module's rows."""
    num_untouched: int
    """Tensors that were passed on."""
    num_resumed: int
    """Tensors that an earlier, killed run had finished."""
    bytes_read: int
    bytes_written: int
    digest: str
    """sha256 over the checksums of the tensors: equal for equal bytes, no proof against a forger."""
    tensors: dict[str, str]
    """Tensor -> XXH3 of its bytes."""
    checked: Checked
    left_out: tuple[str, ...]
    """Files of the base's folder that were not copied, being no part of a checkpoint."""
    warnings: tuple[str, ...]

    @property
    def relative_loss(self) -> float:
        """Rounding loss over all modules, as a share of |sum dW|."""
        return relative_loss(self.modules)

    @property
    def worst(self) -> tuple[str, float]:
        """Module that loses most to rounding, and the share."""
        name = max(self.modules, key=lambda key: self.modules[key].relative_loss)
        return name, self.modules[name].relative_loss

    @property
    def loss_warnings(self) -> list[str]:
        """What to know about the rounding; `loss_warnings` of an estimate says the same before anything is written."""
        return loss_warnings(self.modules, self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        worst, worst_loss = self.worst
        return {
            "path": str(self.path),
            "dtype": self.dtype,
            "modules_changed": len(self.modules),
            "tensors_untouched": self.num_untouched,
            "tensors_resumed": self.num_resumed,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "digest": self.digest,
            "rounding_loss": self.relative_loss,
            "rounding_rows_measured": min(module.measured_share for module in self.modules.values()),
            "worst_module": {"name": worst, "rounding_loss": worst_loss},
            "checked": self.checked.to_json(),
            "left_out": list(self.left_out),
            "warnings": [*self.warnings, *self.loss_warnings],
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


def write_fold(
    plan: FoldPlan, prepared: Prepared, out: Path, *, advance: Callable[[int], None] = lambda num_bytes: None
) -> FoldReport:
    """Stream the base through, adding each module's delta once; the folder is whole, and read back, or absent.

    result_OI = round(W_OI + B_OR @ A_RI), summed in float32, one rounding to the output dtype. A run that was killed
    is continued by the next one with the same base, adapters and options.

    Args:
        plan: From `plan_fold`.
        prepared: The composition to add, in float32.
        out: Folder to make.
        advance: Called with the bytes finished since the last call, once a tensor.

    Raises:
        ConflictError: `out` exists, or another process is folding the same into it.
        DiskFullError: No room; refused before the first byte where that can be known.
        FailedError: A sum leaves the range of the output dtype, the result equals the base though the sum is not
            zero, or what was read back is not what was to be written.
        IntegrityError: The base or an adapter changed meanwhile.

    Numerics: within half a unit of the output dtype, plus (R + 2) float32 roundings, of the float64 sum;
        tests/merge/fold/test_fold.py.
    """
    refuse_existing(out)
    require_space(out, space_needed(plan, out))
    key = plan.key(prepared.key)
    with (
        BaseReader(plan.base) as base,
        resumable_folder(
            out, key, keep=list(plan.shards), need_bytes=plan.bytes_out + HEADER_ALLOWANCE_BYTES
        ) as staging,
    ):
        written = write_tensors(plan, prepared, base, staging, advance=advance)
        tensors = {one.tensor.name: one.digest for one in sorted(written, key=lambda one: one.tensor.name)}
        folds = [(one.tensor.module, one.fold) for one in written if one.tensor.module and one.fold]
        write_model_config(plan, staging.folder)
        copy_other_files(plan.base.path, staging.folder)
        composition = {**prepared.to_json(), "into": "model", "tensors": tensors, "digest": digest_json(tensors)}
        write_json(staging.folder / COMPOSITION_FILE, composition)
        checked = check_fold(plan, prepared, staging.folder, folds, seed=key)
        base.check_unchanged()
    return _report(plan, out, written, tensors, checked)


def space_needed(plan: FoldPlan, out: Path) -> int:
    """Bytes that must be free for a fold into `out`, less what killed runs hold of it: that is used again or freed."""
    return plan.bytes_out + HEADER_ALLOWANCE_BYTES - staged_bytes(out)


def _report(
    plan: FoldPlan, out: Path, written: Sequence[WrittenTensor], tensors: dict[str, str], checked: Checked
) -> FoldReport:
    modules = {one.tensor.module: one.fold for one in written if one.tensor.module and one.fold}
    warnings = list(plan.warnings)
    if checked.is_base:
        warnings.append("the adapters add up to nothing: the result is the base")
    return FoldReport(
        path=out,
        dtype=plan.dtype or "as the base",
        modules=dict(sorted(modules.items())),
        num_untouched=sum(one.tensor.module is None for one in written),
        num_resumed=sum(one.resumed for one in written),
        bytes_read=sum(one.tensor.source.stop - one.tensor.source.start for one in written),
        bytes_written=plan.bytes_out,
        digest=digest_json(tensors),
        tensors=tensors,
        checked=checked,
        left_out=plan.left_out,
        warnings=tuple(warnings),
    )
