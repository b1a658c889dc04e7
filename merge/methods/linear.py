"""Task arithmetic: the weighted sum, cut to a rank.

Shapes: O out_features, I in_features, R stacked rank.
"""

from __future__ import annotations

import torch

from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .result import Merged, deltas, nothing, truncated


def linear(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Sum the deltas, T_OI = sum_k w_k D_k, and keep the best approximation at the plan's rank.

    Where the rank holds the whole stack the factors stay as they are, which is the exact sum.

    Source: task arithmetic, arXiv:2212.04089. mergekit's `task_arithmetic` is the same sum at full size. PEFT's
        `combination_type="linear"` sums A and B apart instead: see `peft_numerics`.
    Numerics: as `lowrank.truncate`; tests/merge/methods/test_lowrank.py.
    """
    parts = deltas(stack)
    if not parts:
        return nothing(stack)
    B_OR = torch.cat([part.weight * part.B_OR for part in parts], 1)
    A_RI = torch.cat([part.A_RI for part in parts], 0)
    merged = truncated(B_OR, A_RI, plan.rank)
    if A_RI.shape[0] <= plan.rank:
        return merged._replace(B_OK=B_OR, A_KI=A_RI, residual=0.0)
    return merged
