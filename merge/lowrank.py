"""Low-rank algebra on stacked factors: nothing of size O x I is ever formed.

Shapes: O out_features, I in_features, R stacked rank, K kept rank, Q min(O, R), P min(I, R). All float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters.delta import norm
from ..adapters.tensors import Factors

CANCELLED = 1e-4
"""Share of a Gram sum's terms below which it is not trusted: 12 of float64's 16 digits are left above it."""


class Truncation(NamedTuple):
    """The best rank-K approximation B_OK @ A_KI of a product, and what it leaves out."""

    B_OK: Tensor
    A_KI: Tensor
    spectrum: Tensor
    """All singular values of the product, descending."""


class Size(NamedTuple):
    """Norms of a product of factors."""

    frobenius: float
    spectral: float


def truncate(B_OR: Tensor, A_RI: Tensor, rank: int) -> Truncation:
    """Cut dW_OI = B_OR @ A_RI to `rank`, optimally in the Frobenius and the spectral norm.

    B = Q_b R_b, A^T = Q_a R_a; svd of the core R_b R_a^T = U S V^T; the kept part is
    (Q_b U_K sqrt(S_K)) (sqrt(S_K) V_K^T Q_a^T), whose split keeps both factors in the same range.

    Args:
        B_OR: Scaled factors side by side, float64.
        A_RI: Factors below each other, float64.
        rank: Largest K; fewer are kept where the product has fewer directions above rounding.

    Returns:
        K <= rank; what is lost is sqrt(sum spectrum[K:]^2) in the Frobenius norm.

    Source: Eckart & Young 1936, Mirsky 1960; the core SVD as in arXiv:2509.17786, which keeps it for merging.
    Numerics: dense float64 SVD to 1e-12 of the largest singular value; tests/merge/compose/test_svd.py.
    """
    Q_OQ, R_QR = torch.linalg.qr(B_OR)
    Q_IP, R_PR = torch.linalg.qr(A_RI.T)
    U_QN, S_N, Vh_NP = torch.linalg.svd(R_QR @ R_PR.T, full_matrices=False)
    noise = float(S_N[0]) * max(B_OR.shape[0], A_RI.shape[1]) * torch.finfo(S_N.dtype).eps if len(S_N) else 0.0
    kept = min(rank, int(S_N.gt(noise).sum()))
    root_K = S_N[:kept].sqrt()
    return Truncation((Q_OQ @ U_QN[:, :kept]) * root_K, root_K[:, None] * (Vh_NP[:kept] @ Q_IP.T), S_N)


def singular_values(B_OR: Tensor, A_RI: Tensor) -> Tensor:
    """All singular values of B_OR @ A_RI that can be other than zero, descending; the core of `truncate` alone."""
    R_QR = torch.linalg.qr(B_OR, mode="r").R
    R_PR = torch.linalg.qr(A_RI.T, mode="r").R
    values_N: Tensor = torch.linalg.svdvals(R_QR @ R_PR.T)
    return values_N


def size(B_OR: Tensor, A_RI: Tensor) -> Size:
    """Frobenius and spectral norm of B_OR @ A_RI from its two R x R Gram matrices.

    Both norms keep nearly all digits this way, since they are sums of squares and a largest eigenvalue; only small
    singular values would lose theirs.
    """
    G_RR, H_RR = B_OR.T @ B_OR, A_RI @ A_RI.T
    frobenius = float((G_RR * H_RR).sum().clamp_min(0).sqrt())
    if frobenius == 0:
        return Size(0.0, 0.0)
    # Each column of B and its row of A as long as one another: beside a row of length 1 the eigenvalues of one of 1e-7
    # drown, whose column may be as long as it is short.
    b_R, a_R = G_RR.diagonal(), H_RR.diagonal()
    scale_R = torch.where((b_R > 0) & (a_R > 0), (a_R / b_R) ** 0.25, 1.0)
    w_R, V_RR = torch.linalg.eigh(H_RR / torch.outer(scale_R, scale_R))
    K_RR = scale_R[:, None] * (V_RR * w_R.clamp_min(0).sqrt())
    largest = torch.linalg.eigvalsh(K_RR.T @ G_RR @ K_RR)[-1]
    return Size(frobenius, min(frobenius, float(largest.clamp_min(0).sqrt())))


class BlockProducts:
    """Inner products of the blocks of a stack, all from its two R x R Gram matrices.

    Args:
        B_OR: Scaled factors side by side, float64.
        A_RI: Factors below each other, float64.
        ranks: R of each block, in order.
    """

    def __init__(self, B_OR: Tensor, A_RI: Tensor, ranks: Sequence[int]) -> None:
        self._B_OR, self._A_RI = B_OR, A_RI
        self._product_RR = (B_OR.T @ B_OR) * (A_RI @ A_RI.T)
        stops = list(accumulate(ranks))
        self._blocks = [slice(stop - rank, stop) for stop, rank in zip(stops, ranks, strict=True)]

    def inner(self, first: int, second: int) -> float:
        """<D_i, D_j> of two blocks."""
        return float(self._product_RR[self._blocks[first], self._blocks[second]].sum())

    def norm(self, block: int | None = None) -> float:
        """|D_i| of a block, or of the whole sum, Frobenius.

        Where most of a Gram sum cancels its digits are gone, and QR, slower, keeps them.
        """
        rows = slice(None) if block is None else self._blocks[block]
        terms = self._product_RR[rows, rows]
        square = float(terms.sum())
        if square > CANCELLED * float(terms.abs().sum()):
            return math.sqrt(square)
        return norm(Factors(self._A_RI[rows], self._B_OR[:, rows]))


def difference(B_OR: Tensor, A_RI: Tensor, rounded_B_OR: Tensor, rounded_A_RI: Tensor) -> Size:
    """Norms of B @ A - rounded_B @ rounded_A, without cancellation: (B - rB) A + rB (A - rA)."""
    dB_OR, dA_RI = B_OR - rounded_B_OR, A_RI - rounded_A_RI
    if not dA_RI.any():
        return size(dB_OR, A_RI) if dB_OR.any() else Size(0.0, 0.0)
    return size(torch.cat([dB_OR, rounded_B_OR], 1), torch.cat([A_RI, dA_RI], 0))


def distance(B_OR: Tensor, A_RI: Tensor, other_B_OK: Tensor, other_A_KI: Tensor) -> Size:
    """Norms of B @ A - other_B @ other_A for products of any ranks, by the core of their stack."""
    values_N = singular_values(torch.cat([B_OR, -other_B_OK], 1), torch.cat([A_RI, other_A_KI], 0))
    return Size(float(torch.linalg.vector_norm(values_N)), float(values_N[0]) if len(values_N) else 0.0)
