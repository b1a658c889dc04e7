"""What each method makes of one module's stack: two factors at the result's rank, and what they leave out.

Shapes: O out_features, I in_features, R stacked rank, K rank of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..factor_reader import ModuleStack
from ..lowrank import Size, distance, singular_values, truncate
from ..plan import ComposePlan
from .certificate import Losses, OwnResult

if TYPE_CHECKING:
    from ..calibrate.moments import Statistics
    from ..methods.result import Merged


@dataclass(frozen=True)
class Reduction:
    """One module of the result before rounding, float64."""

    B_OK: Tensor
    A_KI: Tensor
    left_out: Size
    """|D - B A|, Frobenius and a bound on the spectral norm."""
    output_error: float | None = None
    """Predicted relative error of the outputs, where there are statistics of the inputs."""
    own: OwnResult | None = None
    """Where the method means another model than the sum."""


def reduce(stack: ModuleStack, plan: ComposePlan, statistics: Statistics | None) -> Reduction:
    """Carry out a plan that does not keep all of the sum, on one module at the plan's rank."""
    B_OR, A_RI = stack.B_OR, stack.A_RI
    if _is_svd(plan):
        B_OK, A_KI, values_N = truncate(B_OR, A_RI, plan.rank)
        predicted = _predicted(stack, statistics, B_OK, A_KI) if statistics else None
        return Reduction(B_OK, A_KI, _tail(values_N, A_KI.shape[0]), predicted)
    if plan.method == "activation":
        B_OK, A_KI, values_N = _activation(stack, plan, statistics)
        total = _norm(values_N)
        output_error = _norm(values_N[A_KI.shape[0] :]) / total if total else 0.0
        return Reduction(B_OK, A_KI, distance(B_OR, A_RI, B_OK, A_KI), output_error)
    merged = _merged(stack, plan)
    left_out = distance(B_OR, A_RI, merged.B_OK, merged.A_KI)
    return Reduction(merged.B_OK, merged.A_KI, left_out, own=OwnResult(merged.norm, merged.residual))


def losses(stack: ModuleStack, plan: ComposePlan, statistics: Statistics | None, ranks: Sequence[int]) -> Losses:
    """What each rank could not hold of one module: of the sum, of its outputs, or of the method's own result."""
    if _is_svd(plan):
        values_N = singular_values(stack.B_OR, stack.A_RI)
    elif plan.method == "activation":
        values_N = _activation(stack, plan, statistics)[2]
    else:
        merged = _merged(stack, plan)
        return Losses(merged.norm, tuple(merged.lost_at(rank) for rank in ranks))
    return Losses(_norm(values_N), tuple(_norm(values_N[rank:]) for rank in ranks))


def _is_svd(plan: ComposePlan) -> bool:
    return plan.method == "svd" or (plan.method == "linear" and plan.numerics == "sum")


def _predicted(stack: ModuleStack, statistics: Statistics, B_OK: Tensor, A_KI: Tensor) -> float:
    """Relative error of the outputs on the prompts."""
    from ..calibrate.activation import output_error

    G_RR = statistics.of(stack.name)
    B_OR = stack.B_OR
    total = output_error(stack, G_RR, torch.zeros_like(B_OR), stack.A_RI)
    return output_error(stack, G_RR, B_OK, A_KI) / total if total else 0.0


def _tail(values_N: Tensor, kept: int) -> Size:
    dropped = values_N[kept:]
    return Size(_norm(dropped), float(dropped[0]) if len(dropped) else 0.0)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def _merged(stack: ModuleStack, plan: ComposePlan) -> Merged:
    from ..methods.dispatch import apply_method

    return apply_method(stack, plan)


def _activation(stack: ModuleStack, plan: ComposePlan, statistics: Statistics | None) -> tuple[Tensor, Tensor, Tensor]:
    from ..calibrate.activation import activation

    if statistics is None:
        raise ConfigError("activation needs prompts to go by", next_step="add --prompts FILE")
    return activation(stack, statistics.of(stack.name), plan.rank)
