"""Core Space: TIES on the small cores that the deltas have in shared bases.

Shapes: O out_features, I in_features, M and N directions of the outputs and the inputs that the deltas reach together.
"""

from __future__ import annotations

import torch

from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .basis import joint_basis
from .result import Merged, deltas, nothing, truncated
from .ties_election import average_agreeing, trim


def core_space(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Merge by TIES in a rotated basis, which is not TIES in weight space: its entries are not weights.

    D_k = U_OM C_k W_NI without loss, with U the left singular vectors of [D_1 | .. | D_n] and W the right ones of
    [D_1; ..; D_n]; T_OI = U TIES(C_1, .., C_n; w) W, cut to the plan's rank.

    Source: Core Space, arXiv:2509.17786, section 4. There U and W come from the svd of [B_1 | ..] and of [A_1; ..],
        and so change when a delta is written with other factors (B M, M^-1 A); here they are of the deltas themselves.
        Its code has one weight, on the result; here each part has its own. Signs and means are as in `election`;
        neither PEFT nor mergekit has it.
    Numerics: float64; equal to the dense computation; tests/merge/methods/test_lowrank.py.
    """
    parts = deltas(stack)
    if not parts:
        return nothing(stack)
    U_OM = joint_basis([(part.B_OR, part.A_RI) for part in parts]).U_ON
    W_IN = joint_basis([(part.A_RI.T, part.B_OR.T) for part in parts]).U_ON
    cores_MN = [(U_OM.T @ part.B_OR) @ (part.A_RI @ W_IN) for part in parts]
    # An entry that is rounding is no vote: it would halve the mean.
    noise = max(float(C_MN.abs().max()) for C_MN in cores_MN) * max(stack.shape) * torch.finfo(torch.float64).eps
    trimmed = [trim(torch.where(C_MN.abs() > noise, C_MN, 0), plan.density) for C_MN in cores_MN]
    T_MN = average_agreeing(trimmed, [part.weight for part in parts])
    return truncated(U_OM @ T_MN, W_IN.T, plan.rank)
