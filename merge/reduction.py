"""What each method makes of one module's stack: two factors at the result's rank, and what they leave out.

Shapes: O out_features, I in_features, R stacked rank, K rank of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .lowrank import Size, difference, singular_values, truncate
from .plan import ComposePlan
from .stacks import ModuleStack

if TYPE_CHECKING:
    from .methods.merged import Merged
    from .statistics import Statistics


@dataclass(frozen=True)
class Reduction:
    """One module of the result before rounding, float64."""

    B_OK: Tensor
    A_KI: Tensor
    left_out: Size
    """|D - B A|, Frobenius and a bound on the spectral norm."""
    output_error: float | None = None
    """Predicted relative error of the outputs, where the method goes by them."""


def reduce(stack: ModuleStack, plan: ComposePlan, statistics: Statistics | None) -> Reduction:
    """Carry out the plan's method, other than `exact`, on one module at the plan's rank."""
    B_OR, A_RI = stack.B_OR, stack.A_RI
    if plan.method == "svd":
        B_OK, A_KI, values_N = truncate(B_OR, A_RI, plan.rank)
        return Reduction(B_OK, A_KI, _tail(values_N, A_KI.shape[0]))
    if plan.method == "activation":
        B_OK, A_KI, values_N = _activation(stack, plan, statistics)
        total, tail = torch.linalg.vector_norm(values_N), torch.linalg.vector_norm(values_N[A_KI.shape[0] :])
        output_error = float(tail / total) if total else 0.0
        return Reduction(B_OK, A_KI, difference(B_OR, A_RI, B_OK, A_KI), output_error)
    merged = _merged(stack, plan)
    return Reduction(merged.B_OK, merged.A_KI, difference(B_OR, A_RI, merged.B_OK, merged.A_KI))


def spectrum(stack: ModuleStack, plan: ComposePlan, statistics: Statistics | None) -> list[float]:
    """Singular values, descending, of what the method cuts to a rank; their tails are what each rank would lose."""
    if plan.method == "svd":
        return [float(value) for value in singular_values(stack.B_OR, stack.A_RI)]
    if plan.method == "activation":
        return [float(value) for value in _activation(stack, plan, statistics)[2]]
    return [float(value) for value in _merged(stack, plan).spectrum_N]


def _tail(values_N: Tensor, kept: int) -> Size:
    dropped = values_N[kept:]
    return Size(float(torch.linalg.vector_norm(dropped)), float(dropped[0]) if len(dropped) else 0.0)


def _merged(stack: ModuleStack, plan: ComposePlan) -> Merged:
    from .methods.dispatch import reduce as merge_apart

    return merge_apart(stack, plan)


def _activation(stack: ModuleStack, plan: ComposePlan, statistics: Statistics | None) -> tuple[Tensor, Tensor, Tensor]:
    from .activation import activation

    return activation(stack, _moments(stack, statistics), plan.rank)


def _moments(stack: ModuleStack, statistics: Statistics | None) -> Tensor:
    if statistics is None or stack.name not in statistics.moments:
        raise ConfigError("the statistics lack a module", found=stack.name, next_step="collect them again from prompts")
    return statistics.moments[stack.name]
