"""TIES in weight space, streamed.

Shapes: O out_features, I in_features, N directions of the inputs that the deltas reach together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .basis import joint_basis
from .range_finder import compress
from .result import Delta, Merged, deltas, nothing
from .rows import DeltaRows, MergedRows, Thin, kth_magnitude
from .ties_election import kept_count


def ties(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Trim every delta to its largest entries, elect a sign per entry, average what agrees; then cut to the rank.

    T_OI = TIES(D_1, .., D_n; w) of the whole O x I deltas, which is full rank: `residual` says how much of it the
    plan's rank cannot hold, and is large by nature where deltas disagree or density is small.

    Source: TIES-Merging, arXiv:2306.01708; signs and means as in PEFT, see `election`. T equals PEFT's
        `ties([D_1, ..], weights, density)` on dense float32 deltas, which `combination_type="ties_svd"` uses; PEFT's
        plain `"ties"` acts on A and B apart. The paper trims over the whole model, PEFT, mergekit and this per module.
    Numerics: thresholds exact over the float32 deltas; low-rank step as `range_finder.compress`;
        tests/merge/methods/test_ties.py.
    """
    parts = deltas(stack)
    if not parts:
        return nothing(stack)
    rows = [DeltaRows(part) for part in parts]
    trims = [trim_thin(delta, plan.density) for delta in rows]
    target = MergedRows(rows, [part.weight for part in parts], trims, elect=True)
    return compress(target, plan.rank, input_directions(parts))


def trim_thin(delta: DeltaRows, density: float) -> Thin | None:
    """What zeroes all but the largest entries of one delta; None where all stay."""
    numel = math.prod(delta.shape)
    kept = kept_count(density, numel)
    if kept == numel:
        return None
    smallest = torch.tensor(kth_magnitude(delta, kept) if kept else math.inf)
    # hardshrink zeroes |x| <= limit; nothing lies between the limit and the smallest magnitude that is kept.
    limit = float(torch.nextafter(smallest, torch.tensor(0.0))) if kept else math.inf

    def thin(_: slice, block_TI: Tensor) -> Tensor:
        return torch.ops.aten.hardshrink.out(block_TI, limit, out=block_TI)  # type: ignore[no-any-return]

    return thin


def input_directions(parts: Sequence[Delta]) -> Tensor:
    """Right singular vectors of the deltas below each other, (I, N): where an entry-wise merge has its weight."""
    return joint_basis([(part.A_RI.T, part.B_OR.T) for part in parts]).U_ON
