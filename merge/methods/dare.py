"""DARE: entries dropped at random, the rest scaled up, streamed.

Shapes: O out_features, I in_features, T rows of a block.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .range_finder import compress
from .result import Merged, deltas, nothing
from .rows import DeltaRows, MergedRows, Thin
from .ties import input_directions

WORDS_PER_COUNT = 8
"""32-bit words that Philox-4x64 makes of one value of its counter."""


def dare_linear(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Drop entries of every delta at random and sum what is left, T_OI = sum_k w_k mask_k * D_k / density.

    T is full rank although its mean, over seeds, is the plain sum: `residual` is mostly the noise of the masks, which a
    low rank cannot hold and so removes again.

    Source: DARE, arXiv:2311.03099. Every entry is kept with probability `density` and divided by it, as PEFT does;
        mergekit rescales by the ratio of L1 norms instead where asked to. T equals PEFT's
        `dare_linear([D_1, ..], weights, density)` on dense deltas with the same masks.
    Numerics: masks depend on seed, module, index of the part and position alone: not on block size or threads;
        tests/merge/methods/test_dare.py.
    """
    return _dare(stack, plan, elect=False)


def dare_ties(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Drop entries of every delta at random, then elect signs and average as TIES does, without its trimming.

    Source: DARE, arXiv:2311.03099, with TIES' signs and means as PEFT's `dare_ties`: see `election`.
    Numerics: as `dare_linear`.
    """
    return _dare(stack, plan, elect=True)


def _dare(stack: ModuleStack, plan: ComposePlan, *, elect: bool) -> Merged:
    parts = deltas(stack)
    if not parts:
        return nothing(stack)
    target = MergedRows(
        [DeltaRows(delta, 1 / plan.density) for delta in parts],
        [delta.weight for delta in parts],
        [drop_thin(plan.seed, stack.name, delta.part, plan.density) for delta in parts],
        elect=elect,
    )
    return compress(target, plan.rank, input_directions(parts))


def stable_key(seed: int, module: str, index: int) -> int:
    """128 bits that name one part of one module under one seed, the same in every process and version."""
    return int.from_bytes(hashlib.sha256(f"plyfold/dare/1\0{seed}\0{module}\0{index}".encode()).digest()[:16], "little")


def drop_thin(seed: int, module: str, index: int, density: float) -> Thin | None:
    """What zeroes entries of one part at random; None where all stay.

    Entry (o, i) is kept if word (o, i) of a Philox-4x64 stream is below density * 2^32; a row starts at a counter of
    its own, so any block of rows can be made by itself.
    """
    if density >= 1:
        return None
    from numpy import int32
    from numpy.random import Philox

    key = stable_key(seed, module, index)
    limit = min(round(density * 2**32), 2**32 - 1) - 2**31  # words are read as signed

    def thin(rows: slice, block_TI: Tensor) -> Tensor:
        height, num_in = block_TI.shape
        counts = -(-num_in // WORDS_PER_COUNT)
        raw = Philox(key=key, counter=rows.start * counts).random_raw(height * counts * WORDS_PER_COUNT // 2)
        words_TI = torch.from_numpy(raw.view(int32)).view(height, -1)[:, :num_in]
        return block_TI.masked_fill_(words_TI >= limit, 0)

    return thin
