"""What every merge method returns, and the weighted deltas all of them start from.

Shapes: O out_features, I in_features, R rank of one part, K rank kept, N number of singular values known. Float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..factor_reader import ModuleStack
from ..lowrank import truncate


class Merged(NamedTuple):
    """One module as a method merges it: B_OK @ A_KI stands for the method's own result, its target T_OI."""

    B_OK: Tensor
    A_KI: Tensor
    """In order of the singular values, so that B[:, :k] @ A[:k] is the cut to k; as stacked where nothing was cut."""
    spectrum_N: Tensor  # noqa: N815
    """Singular values of T, descending, before the cut to K: all of them where T is low rank, else the leading ones,
    estimated from below."""
    norm: float
    """|T|, Frobenius."""
    residual: float
    """|T - B A|, Frobenius: the method's result that the rank cannot hold."""

    def lost_at(self, rank: int) -> float:
        """|T - B A cut to `rank`|, Frobenius; unlike the spectrum's tail, right also where T is not low rank."""
        return math.hypot(self.residual, float(torch.linalg.vector_norm(self.spectrum_N[rank : self.A_KI.shape[0]])))


class Delta(NamedTuple):
    """One part of a module: D_OI = B_OR @ A_RI, scale folded in, weight not."""

    part: int
    """Index in the plan, whichever parts have this module."""
    weight: float
    B_OR: Tensor
    A_RI: Tensor


def deltas(stack: ModuleStack) -> list[Delta]:
    """The parts that say something: those of weight 0 or with a zero delta neither vote nor enlarge a basis.

    PEFT differs: there a part of weight 0 votes on signs and counts in means.
    """
    return [
        Delta(index, stack.weights[index], part.B_OR.double() * part.scale, part.A_RI.double())
        for index, part in stack.parts.items()
        if stack.weights[index] and part.scale and part.B_OR.any() and part.A_RI.any()
    ]


def truncated(B_OR: Tensor, A_RI: Tensor, rank: int) -> Merged:
    """The best approximation of B_OR @ A_RI at `rank`, as `lowrank.truncate`."""
    B_OK, A_KI, spectrum_N = truncate(B_OR, A_RI, rank)
    lost = torch.linalg.vector_norm(spectrum_N[A_KI.shape[0] :])
    return Merged(B_OK, A_KI, spectrum_N, float(torch.linalg.vector_norm(spectrum_N)), float(lost))


def nothing(stack: ModuleStack) -> Merged:
    """The merge of parts that are all zero: rank 0."""
    num_out, num_in = stack.shape
    empty = torch.zeros(0, dtype=torch.float64)
    return Merged(empty.reshape(num_out, 0), empty.reshape(0, num_in), empty, 0.0, 0.0)
