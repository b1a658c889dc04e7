"""TIES on tensors at hand: trim by magnitude, elect signs, average what agrees.

Semantics are those of PEFT 0.21's `peft.utils.merge_utils.ties` with `majority_sign_method="total"`, entry by entry:
the sign of the sum of the trimmed, UNWEIGHTED values is elected, + where the sum is 0; the values of that sign are
summed with their weights and divided by how many they are. So a negative weight subtracts what its delta would have
added, and the result is linear in the weights.

mergekit elects on weighted values and divides by the sum of the agreeing weights; the paper has no weights.

Source: TIES-Merging, arXiv:2306.01708, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def kept_count(density: float, numel: int) -> int:
    """How many entries trimming to a density keeps."""
    return numel if density >= 1 else int(density * numel)


def trim(values: Tensor, density: float) -> Tensor:
    """Zero all but the largest `density` share of the entries by magnitude.

    All entries as large as the smallest that is kept are kept too; PEFT drops some of them, which ones is not defined.
    """
    kept = kept_count(density, values.numel())
    if kept == values.numel():
        return values
    if kept == 0:
        return torch.zeros_like(values)
    magnitudes = values.abs()
    smallest = magnitudes.flatten().kthvalue(values.numel() - kept + 1).values
    return torch.where(magnitudes >= smallest, values, 0)


def average_agreeing(
    values: Sequence[Tensor], weights: Sequence[float], room: tuple[Tensor, Tensor, Tensor] | None = None
) -> Tensor:
    """Elect a sign per entry and average the values of that sign.

    Args:
        values: Trimmed, unweighted, of one shape; they are overwritten.
        weights: One per tensor.
        room: Three buffers of that shape; the result is the first.
    """
    total, sign, count = room or (torch.empty_like(values[0]), torch.empty_like(values[0]), torch.empty_like(values[0]))
    if len(values) == 1:
        return torch.mul(values[0], weights[0], out=total)
    torch.add(values[0], values[1], out=sign)
    for value in values[2:]:
        sign.add_(value)
    sign.ge_(0).mul_(2).sub_(1)
    total.zero_()
    count.zero_()
    for value, weight in zip(values, weights, strict=True):
        value.mul_(sign).clamp_min_(0)  # the agreeing ones, as magnitudes
        total.add_(value, alpha=weight)
        count.add_(value.sign_())
    return total.div_(count.clamp_min_(1)).mul_(sign)
