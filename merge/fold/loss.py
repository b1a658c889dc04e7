"""What one rounding does to the deltas of a fold: estimated from rows before writing, measured on rows while writing.

Shapes: N rows of a block, O out_features, I in_features, R stacked rank.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compose.prepare import Prepared
from ..module_pool import ordered
from .checkpoint import FLOATS, BaseReader, sample_rows
from .plan import FoldPlan

LOSS_WARNING = 0.2
"""Rounding loss, as a share of |dW|, from which a fold says so."""
MEASURED_BLOCKS, MEASURED_ROWS = 4, 16
"""One block in 4 is measured, and of that one row in 16: 4 % of a fold's work; every row would double its time."""
SMALL_BLOCK = 1 << 15
"""Elements up to which every row of a block is measured."""


@dataclass(frozen=True, kw_only=True)
class ModuleFold:
    """What one rounding did to one module, measured on a sample of its rows and scaled up to all."""

    delta_norm: float
    """|dW|, Frobenius, of all rows."""
    loss: float
    """|result - (W + dW)|, Frobenius."""
    changed_share: float
    """Share of elements that differ from the base's, rounded to the result's dtype."""
    loss_fp16: float
    """What `loss` would be in fp16; infinite where a sum leaves its range."""
    largest: float
    """Largest |W + dW|."""
    measured_share: float
    """Share of rows that were measured; 1 for all."""

    @property
    def relative_loss(self) -> float:
        """Rounding loss as a share of |dW|."""
        return self.loss / self.delta_norm if self.delta_norm else 0.0


class LossMeter:
    """Adds up the rounding of one module over blocks of its rows.

    Args:
        name: Of the module; seeds which rows are taken of a block.
        every_row: Measure all rows given, as where they are a sample already.
    """

    def __init__(self, name: str, *, every_row: bool = False) -> None:
        self._draw = random.Random(name)
        self._every_row = every_row
        self._num_blocks = self._num_rows = self._num_elements = 0
        self._lost = self._lost_fp16 = self._largest = 0.0
        self._changed = 0

    def add(self, sum_NI: Tensor, rounded_NI: Tensor, W_NI: Tensor) -> None:
        """Take note of a block: the float32 sum, what it was rounded to, and the base's weight."""
        self._num_blocks += 1
        if not self._every_row and sum_NI.numel() > SMALL_BLOCK:
            if self._num_blocks % MEASURED_BLOCKS != 1:
                return
            count = -(-len(sum_NI) // MEASURED_ROWS)
            start = self._draw.randint(0, len(sum_NI) - count)
            sum_NI, rounded_NI, W_NI = (block[start : start + count] for block in (sum_NI, rounded_NI, W_NI))
        self._num_rows += len(sum_NI)
        self._num_elements += sum_NI.numel()
        self._lost += _squares(torch.sub(rounded_NI, sum_NI))
        self._lost_fp16 += _squares(torch.sub(sum_NI.half(), sum_NI))
        self._changed += int(torch.count_nonzero(rounded_NI != W_NI.to(rounded_NI.dtype)))
        self._largest = max(self._largest, *(abs(float(end)) for end in torch.aminmax(sum_NI)))

    def result(self, *, delta_norm: float, num_rows: int) -> ModuleFold:
        """What was measured, scaled up to `num_rows`."""
        scale = num_rows / self._num_rows if self._num_rows else 0.0
        return ModuleFold(
            delta_norm=delta_norm,
            loss=math.sqrt(self._lost * scale),
            changed_share=self._changed / max(1, self._num_elements),
            loss_fp16=math.sqrt(self._lost_fp16 * scale),
            largest=self._largest,
            measured_share=min(1.0, 1 / scale) if scale else 1.0,
        )


def estimate_loss(plan: FoldPlan, prepared: Prepared) -> dict[str, ModuleFold]:
    """What rounding will cost each module, from a sample of rows; nothing is written.

    Raises:
        IntegrityError: The base or an adapter has changed since it was planned.

    Numerics: the loss of a module within a few per cent of the whole's; tests/merge/fold/test_fold.py.
    """
    targets = plan.targets

    def measure(name: str) -> ModuleFold:
        tensor, factors = targets[name], prepared.factors(name)
        B_OR, A_RI = factors.B_OR.float(), factors.A_RI.float()
        meter = LossMeter(name, every_row=True)
        for start, count in sample_rows(name, tensor.source.shape[0]):
            W_NI = base.rows(tensor.source_file, tensor.source, start, count)
            sum_NI = torch.addmm(W_NI.float(), B_OR[start : start + count], A_RI)
            meter.add(sum_NI, sum_NI.to(FLOATS[tensor.dtype]), W_NI)
        return meter.result(delta_norm=prepared.certificate.modules[name].norm, num_rows=tensor.source.shape[0])

    names = list(targets)
    with BaseReader(plan.base) as base:
        return dict(zip(names, ordered(measure, names), strict=True))


def relative_loss(modules: Mapping[str, ModuleFold]) -> float:
    """Rounding loss over all modules, as a share of |sum dW|."""
    norm = math.hypot(*(module.delta_norm for module in modules.values()))
    return math.hypot(*(module.loss for module in modules.values())) / norm if norm else 0.0


def loss_warnings(modules: Mapping[str, ModuleFold], dtype: str) -> list[str]:
    """What a user should know about the rounding, with what another dtype would lose instead.

    Args:
        modules: Estimated or measured.
        dtype: Of the result, as shown.
    """
    warnings = []
    worst = max(modules, key=lambda name: modules[name].relative_loss)
    if modules[worst].relative_loss > LOSS_WARNING:
        fp16 = modules[worst].loss_fp16 / modules[worst].delta_norm
        largest = max(module.largest for module in modules.values())
        instead = f"fp16 would lose {fp16:.0%} (largest value seen {largest:.3g} of its 65504)"
        if not math.isfinite(fp16) or largest > torch.finfo(torch.float16).max:
            instead = f"fp16 cannot hold it (largest value seen {largest:.3g}, its end 65504)"
        warnings.append(
            f"rounding to {dtype} costs {worst} {modules[worst].relative_loss:.0%} of its delta; "
            f"--dtype {instead}, --dtype fp32 nothing"
        )
    unchanged = [name for name, module in modules.items() if module.delta_norm and not module.changed_share]
    if unchanged:
        warnings.append(f"{len(unchanged)} module(s) are as in the base: their deltas are below its rounding")
    return warnings


def _squares(block: Tensor) -> float:
    return float(block.square_().sum(dtype=torch.float64))
