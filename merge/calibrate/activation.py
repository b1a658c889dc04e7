"""The best low rank for what comes out: truncation by the outputs on given prompts, at the cost of R x R algebra.

Shapes: O out_features, I in_features, R stacked rank, K kept rank, Q min(O, R), N number of singular values.
All float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import IncompatibleError, ShapeMismatchError
from ..factor_reader import ModuleStack
from ..lowrank import Truncation, truncate

UNEXCITED = 1e-12
"""Share of the largest variance below which a direction counts as never excited: its amplitude, a millionth, is below
the float32 rounding of the z that statistics are made of."""
OUTSIDE = 1e-4
"""Share of a result's rows outside the span of A_c from which outputs cannot be told from statistics."""


def activation(stack: ModuleStack, G_RR: Tensor, rank: int) -> Truncation:
    """Cut dW_OI = B_OR @ A_RI to the rank-K product X that minimises E|(dW - X) x|^2 over the statistics' tokens.

    With z = A x, G = E[z z^T] = L L^T and B = Q_b R_b: svd of R_b L = U S V^T, X = (Q_b U_K) (U_K^T R_b A).
    Nothing of size I x I is needed: the input covariance C enters only through A C A^T.

    Directions of z that no token excites (few prompts; R > I) carry no output error. Within the kept directions X does
    on them what dW does. Rank that the outputs leave over goes to the rest of dW as plain SVD would spend it, so that
    the result turns into dW itself as the rank grows, whatever the prompts were.

    Args:
        stack: One module's parts.
        G_RR: `Statistics.of(stack.name)`, raw A below each other in the order of `stack.parts`.
        rank: Largest K; fewer are kept where dW has fewer directions above rounding.

    Returns:
        K <= rank, factors balanced; the spectrum S in units of outputs: what is lost is sqrt(sum S[K:]^2) =
        sqrt(E|(dW - X) x|^2), and sqrt(sum S^2) is sqrt(E|dW x|^2).

    Raises:
        ShapeMismatchError: Statistics of another stacked rank.

    Source: the closed form of activation-aware SVD (arXiv:2403.07378 and others, whose C^(1/2) is I x I) brought to
        the rows of A.
    Numerics: the dense optimum with the full input covariance to 1e-6 of sqrt(E|dW x|^2), which is what leaving out
        `UNEXCITED` directions may cost; tests/merge/calibrate/test_activation.py.
    """
    B_OR, A_RI = stack.B_OR, stack.A_RI
    _check_size(stack.name, G_RR, A_RI)
    L_RR = _root(G_RR)
    Q_OQ, R_QR = torch.linalg.qr(B_OR)
    U_QN, S_N, _ = torch.linalg.svd(R_QR @ L_RR, full_matrices=False)
    size = max(B_OR.shape[0], A_RI.shape[1]) * torch.finfo(S_N.dtype).eps
    excited = int(S_N.gt(float(S_N[0]) * size).sum())
    kept = min(rank, excited)
    U_QK = U_QN[:, :kept]
    B_OK, A_KI = _balanced(Q_OQ @ U_QK, U_QK.T @ R_QR @ A_RI)
    if rank > kept:
        rest_QR = R_QR - U_QK @ (U_QK.T @ R_QR)
        rest = truncate(Q_OQ @ rest_QR, A_RI, rank - kept)
        # Where every direction is taken already, the rest is rounding, and of full numerical rank as rounding is.
        noise = size * float(torch.linalg.matrix_norm(R_QR) * torch.linalg.matrix_norm(A_RI))
        real = min(int(rest.spectrum.gt(noise).sum()), rest.A_KI.shape[0])
        B_OK, A_KI = torch.cat([B_OK, rest.B_OK[:, :real]], 1), torch.cat([A_KI, rest.A_KI[:real]], 0)
    return Truncation(B_OK, A_KI, S_N)


def output_error(stack: ModuleStack, G_RR: Tensor, B_OK: Tensor, A_KI: Tensor) -> float:
    """sqrt(E|(dW - X) x|^2) over the statistics' tokens, of any result X = B_OK @ A_KI of a merge of these parts.

    A_KI = T_KR A_RI where its rows are sums of the parts' rows, as those of `exact`, `svd`, `linear` and `activation`
    are; then (dW - X) x = (B - B_K T) z.

    Raises:
        ShapeMismatchError: Statistics of another stacked rank.
        IncompatibleError: A_KI has other rows (as entrywise methods make them), whose outputs z does not tell.

    Numerics: float64; an error below 1e-7 of sqrt(E|dW x|^2) is rounding.
    """
    B_OR, A_RI = stack.B_OR, stack.A_RI
    _check_size(stack.name, G_RR, A_RI)
    A_KI = A_KI.double()
    T_RK = torch.linalg.lstsq(A_RI.T, A_KI.T, driver="gelsd").solution
    if torch.linalg.matrix_norm(T_RK.T @ A_RI - A_KI) > OUTSIDE * torch.linalg.matrix_norm(A_KI):
        raise IncompatibleError("the result is no combination of the parts' rows", where=stack.name)
    return float(torch.linalg.matrix_norm((B_OR - B_OK.double() @ T_RK.T) @ _root(G_RR)))


def _check_size(name: str, G_RR: Tensor, A_RI: Tensor) -> None:
    if G_RR.shape != (len(A_RI), len(A_RI)):
        raise ShapeMismatchError(
            "the activation statistics are of another rank than the parts",
            where=name,
            expected=f"({len(A_RI)}, {len(A_RI)})",
            found=tuple(G_RR.shape),
            next_step="collect them again with the adapters that are merged",
        )


def _root(G_RR: Tensor) -> Tensor:
    """L with L L^T = G.

    Each z is brought to variance 1 first: parts may hold the same delta with a small A and a large B, and the smaller
    would pass for unexcited.
    """
    G_RR = G_RR.double()
    scale_R = G_RR.diagonal().clamp_min(0).sqrt()
    unit_R = torch.where(scale_R > 0, scale_R, 1.0)
    w_R, V_RR = torch.linalg.eigh(G_RR / unit_R[:, None] / unit_R)
    w_R = torch.where(w_R > UNEXCITED * w_R[-1].clamp_min(0), w_R, 0.0)
    L_RR: Tensor = scale_R[:, None] * (V_RR * w_R.sqrt())
    return L_RR


def _balanced(B_OK: Tensor, A_KI: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with column k of B and row k of A of one norm: neither leaves the range of a narrow dtype."""
    ratio_K = torch.linalg.vector_norm(A_KI, dim=1) / torch.linalg.vector_norm(B_OK, dim=0)
    root_K = ratio_K.sqrt()
    return B_OK * root_K, A_KI / root_K[:, None]
