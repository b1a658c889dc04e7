"""Norms and inner products of deltas without forming them: everything in R×R matrices, float64.

Shapes: R rank (P, Q for two adapters), I in_features, O out_features. dW_OI = scale * B_OR @ A_RI.
"""

from __future__ import annotations

import torch

from .tensors import Factors


def norm(factors: Factors) -> float:
    """Frobenius norm of dW.

    With B = Q_b R_b and A^T = Q_a R_a, |B A| = |R_b R_a^T|: orthogonal factors do not change a norm.

    Numerics: float64 QR, relative error of a few R * eps of |B| |A|, also where B @ A nearly cancels (a Gram matrix
    would square the condition number).
    """
    R_b = torch.linalg.qr(factors.B_OR.double(), mode="r").R
    R_a = torch.linalg.qr(factors.A_RI.double().mT, mode="r").R
    return float(abs(factors.scale) * torch.linalg.matrix_norm(R_b @ R_a.mT))


def inner(first: Factors, second: Factors) -> float:
    """Frobenius inner product <dW1, dW2> = s1 s2 sum((B1^T B2) * (A1 A2^T)), shapes (P, Q).

    Divided by both norms it is the cosine between two deltas.

    Numerics: float64; absolute error of a few R * eps * |dW1| |dW2| for factors that do not cancel.
    """
    BB_PQ = first.B_OR.double().mT @ second.B_OR.double()
    AA_PQ = first.A_RI.double() @ second.A_RI.double().mT
    return float(first.scale * second.scale * (BB_PQ * AA_PQ).sum())
