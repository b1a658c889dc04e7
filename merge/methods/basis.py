"""Bases that the deltas of a module share, found in factor space.

Shapes: O out_features, I in_features, R stacked rank, N directions that the deltas have together, P rank of one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class JointBasis(NamedTuple):
    """The svd of deltas side by side, [D_1 | .. | D_n] = U_ON diag(S_N) [V_1 | .. | V_n]: D_k = U diag(S) V_k."""

    U_ON: Tensor
    S_N: Tensor
    V_NI: list[Tensor]
    """One per delta."""


def joint_basis(factors: Sequence[tuple[Tensor, Tensor]]) -> JointBasis:
    """Factor deltas D_k = B_OP @ A_PI jointly, without forming any.

    [B_1 | ..] = Q R and A_k = L_k Q_k^T; svd of R blockdiag(L_1, ..) = U S Z^T; then U_ON = Q U and V_k = Z_k^T Q_k^T.
    It depends on the deltas alone: not on how each is split between B and A, nor, up to rounding and common signs of
    rows, on their order.

    Directions of no more than rounding are left out, and entries of V_k that are no more than it are exactly zero: what
    a delta does not have must not count as its vote.

    Args:
        factors: (B_OP, A_PI) per delta, scales folded in, float64; at least one.

    Source: KnOTS, arXiv:2410.19735, eq. 4, whose code takes the svd of the dense O x nI matrix.
    Numerics: equal to that svd to 1e-12 of S_1; tests/merge/methods/test_lowrank.py.
    """
    Q_OR, R_RR = torch.linalg.qr(torch.cat([B_OP for B_OP, _ in factors], 1))
    halves = [torch.linalg.qr(A_PI.T) for _, A_PI in factors]
    core_RR = R_RR @ torch.block_diag(*(R_PP.T for _, R_PP in halves))  # type: ignore[no-untyped-call]
    U_RN, S_N, Zh_NR = torch.linalg.svd(core_RR, full_matrices=False)
    noise = float(S_N[0]) * max(Q_OR.shape[0], factors[0][1].shape[1]) * torch.finfo(S_N.dtype).eps
    kept = S_N.gt(noise)
    S_N = S_N[kept]
    V_NI = [
        _without_noise(Z_NP @ Q_IP.T, noise / S_N[:, None])
        for Z_NP, (Q_IP, _) in zip(Zh_NR[kept].split([Q_IP.shape[1] for Q_IP, _ in halves], 1), halves, strict=True)
    ]
    return JointBasis(Q_OR @ U_RN[:, kept], S_N, V_NI)


def _without_noise(values: Tensor, noise: Tensor) -> Tensor:
    return torch.where(values.abs() > noise, values, 0)
