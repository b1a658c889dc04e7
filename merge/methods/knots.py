"""KnOTS: TIES in the singular basis that the deltas share.

Shapes: O out_features, I in_features, N directions the deltas have together.
"""

from __future__ import annotations

from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .basis import joint_basis
from .result import Merged, deltas, nothing, truncated
from .ties_election import average_agreeing, trim


def knots(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Align the deltas by a joint svd, merge the aligned V_k by TIES, and put the shared U and S back.

    [D_1 | .. | D_n] = U S [V_1 | .. | V_n]; T_OI = U S TIES(V_1, .., V_n; w). T has rank N by construction, at most the
    stacked rank, and is cut to the plan's.

    Source: KnOTS, arXiv:2410.19735, eq. 4-6. Its code multiplies every task by `weights[0]`; here each has its own
        weight. It trims over all modules at once, and in the published settings trims S V_k (`s_on_V`) rather than the
        paper's V_k; here V_k is trimmed, per module. Signs and means are as in `election`; neither PEFT nor mergekit
        has KnOTS.
    Numerics: float64; equal to the dense computation; tests/merge/methods/test_lowrank.py.
    """
    parts = deltas(stack)
    if not parts:
        return nothing(stack)
    basis = joint_basis([(part.B_OR, part.A_RI) for part in parts])
    trimmed = [trim(V_NI, plan.density) for V_NI in basis.V_NI]
    V_NI = average_agreeing(trimmed, [part.weight for part in parts])
    return truncated(basis.U_ON * basis.S_N, V_NI, plan.rank)
