"""Every numerical bound the tests use, with its reason. u is the unit roundoff of a dtype: 2^-p, p bits of significand.

Rounding one number: |fl(x) - x| <= u |x|. A dot product of R terms in any order: |fl(a.b) - a.b| <= g_R |a|.|b| with
g_R = R u / (1 - R u) (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5).

Shapes: O out_features, I in_features, R rank.
"""

from __future__ import annotations

from torch import Tensor

U64, U32, U16, UBF16 = 2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8
UNIT = {"fp32": U32, "fp16": U16, "bf16": UBF16}


def gamma(terms: int, u: float) -> float:
    """g_R: relative growth of rounding over `terms` operations."""
    return terms * u / (1 - terms * u)


def composed_OI(B_OR: Tensor, A_RI: Tensor, u: float) -> Tensor:
    """Element bound on stacked factors that were rounded once to u: only B carries a scale, but A may round too.

    |(B + dB)(A + dA) - B A| <= (2 u + u^2) |B| |A|; the last term allows for the float64 of the comparison itself.
    """
    return (2 * u + u * u + gamma(4 * B_OR.shape[1], U64)) * (B_OR.abs() @ A_RI.abs())


def scaled_B_OI(B_OR: Tensor, A_RI: Tensor) -> Tensor:
    """Element bound where A is kept bit for bit and B = w s B_k is rounded once to float32: u |B| |A|."""
    return (U32 + gamma(4 * B_OR.shape[1], U64)) * (B_OR.abs() @ A_RI.abs())


def folded_OI(W_OI: Tensor, B_OR: Tensor, A_RI: Tensor, u_out: float) -> Tensor:
    """Element bound on round(W + B A), summed in float32.

    B rounds once to float32, the product has R terms and the sum adds two operations: g_(R + 3) of |W| + |B| |A|.
    The output rounds that once more: u_out of the result.
    """
    sum_OI = W_OI + B_OR @ A_RI
    float32_OI = gamma(B_OR.shape[1] + 3, U32) * (W_OI.abs() + B_OR.abs() @ A_RI.abs())
    return u_out * sum_OI.abs() + (1 + u_out) * float32_OI


def singular_values(O: int, I: int, R: int, largest: float) -> float:  # noqa: E741
    """Absolute bound on a float64 singular value through QR of both stacks and the SVD of the core.

    Each of the three factorisations is backward stable with an error of a small constant times sqrt(size) R u of the
    norm of what it factors; 16 covers the constants of LAPACK's Householder QR and SVD.
    """
    return 16 * ((O + I) ** 0.5 * R) * U64 * largest


LOGITS_FLOAT64 = 1e-12
"""Relative, on logits of two float64 models whose deltas are equal in exact arithmetic.

Each of 2 layers has about 10 reductions of at most 128 terms: 20 * 128 * 2^-53 = 3e-13 of the largest activation.
"""


def cut(noise: float, spectrum_N: Tensor, rank: int) -> float:
    """Frobenius distance of the cuts to `rank` that two float64 computations make of one matrix.

    Wedin: a perturbation E turns each of the leading singular subspaces by at most sqrt(2) |E| / gap, so that the cut
    moves by |E| (1 + 2 sqrt(2) S_1 / gap). Each computation has an |E| of `noise`, a bound per singular value, times
    the root of their number. Without a gap the best cut is not one matrix: then any two optima are allowed, which
    differ by no more than the singular values that are nearly equal.
    """
    values = [*spectrum_N.tolist(), 0.0]
    if rank >= len(values) - 1 or values[0] == 0:
        return 8 * noise * len(values) ** 0.5
    moved = 2 * noise * len(values) ** 0.5
    gap = values[rank - 1] - values[rank]
    if gap <= 4 * moved:
        return 4 * (values[rank - 1] + moved) * len(values) ** 0.5
    return moved * (1 + 2 * 2**0.5 * values[0] / gap) * 2
