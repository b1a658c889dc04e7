"""Methods whose result is low rank, linear, KnOTS and Core Space, against the same written out on dense matrices."""

import pytest
import torch

from plyfold.adapters.tensors import Factors
from plyfold.merge.factor_reader import ModuleStack
from plyfold.merge.methods.basis import joint_basis
from plyfold.merge.methods.result import deltas

from ...support.dense_merge import NAME, SHAPES, dense, merged, product, random_stack, relative, ties, weights_of

CLOSE = 1e-11
"""Float64 all the way; the svd of a joint basis loses S_1 / S_N, up to some hundreds here."""


def pairs(stack):
    return [(delta.B_OR, delta.A_RI) for delta in deltas(stack)]


def left_svd(matrices):
    """U, S and the parts of V of [D_1 | ..], without the directions that are rounding."""
    U, S, Vh = torch.linalg.svd(torch.cat(matrices, 1), full_matrices=False)
    kept = S.gt(1e-12 * S[0])
    return U[:, kept], S[kept], Vh[kept].split([matrix.shape[1] for matrix in matrices], 1)


def dense_knots(stack, density):
    U, S, V = left_svd(dense(stack))
    return (U * S) @ ties(V, weights_of(stack), density)


def dense_core(stack, density):
    U, _, _ = left_svd(dense(stack))
    W, _, _ = left_svd([delta.T for delta in dense(stack)])
    return U @ ties([U.T @ delta @ W for delta in dense(stack)], weights_of(stack), density) @ W.T


def dense_linear(stack, density):
    return sum(weight * delta for weight, delta in zip(weights_of(stack), dense(stack), strict=True))


DENSE = {"linear": dense_linear, "knots": dense_knots, "core": dense_core}


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 9, 2), (5,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", DENSE)
def test_at_full_rank_the_result_is_the_dense_one(method, shape, ranks, density):
    stack = random_stack(*SHAPES[shape], ranks=ranks, weights=(1.0, 0.7, -0.5)[: len(ranks)])
    found = merged(stack, method, density=density)
    assert relative(product(found), DENSE[method](stack, density)) < CLOSE
    assert found.residual < 1e-12 * found.norm


@pytest.mark.parametrize("rank", [1, 4, 7])
@pytest.mark.parametrize("method", DENSE)
def test_no_matrix_of_that_rank_is_nearer_and_the_loss_is_stated(method, rank):
    stack = random_stack(40, 24)
    target = DENSE[method](stack, 0.5)
    S = torch.linalg.svdvals(target)
    best = float(torch.linalg.vector_norm(S[rank:]))
    found = merged(stack, method, rank)
    assert float((target - product(found)).norm()) == pytest.approx(best, rel=1e-9)
    assert found.residual == pytest.approx(best, rel=1e-9)
    assert found.norm == pytest.approx(float(target.norm()), rel=1e-9)
    size = min(len(S), len(found.spectrum_N))
    torch.testing.assert_close(found.spectrum_N[:size], S[:size], rtol=0, atol=1e-11 * float(S[0]))


def test_linear_keeps_the_factors_where_the_rank_holds_them():
    stack = random_stack(40, 24, weights=(1, 2, -0.5))
    found = merged(stack, "linear", 12)
    assert torch.equal(found.A_KI, stack.A_RI)
    assert torch.equal(found.B_OK, stack.B_OR)
    assert found.residual == 0


def test_the_joint_basis_is_the_svd_of_the_deltas_side_by_side():
    stack = random_stack(40, 24)
    basis = joint_basis(pairs(stack))
    _, S, _ = left_svd(dense(stack))
    torch.testing.assert_close(basis.S_N, S, rtol=1e-12, atol=1e-12 * float(S[0]))
    for V_NI, delta in zip(basis.V_NI, dense(stack), strict=True):
        assert relative((basis.U_ON * basis.S_N) @ V_NI, delta) < CLOSE
    together = torch.cat(basis.V_NI, 1)
    torch.testing.assert_close(together @ together.T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)


def test_directions_the_deltas_share_are_counted_once():
    stack = random_stack(40, 24, ranks=(4,), weights=(1,))
    twice = ModuleStack(NAME, {0: stack.parts[0], 1: stack.parts[0]}, {0: 1.0, 1: 1.0})
    assert joint_basis(pairs(twice)).S_N.shape == (4,)


@pytest.mark.parametrize("method", ["knots", "core"])
def test_deltas_with_nothing_in_common_are_added_whole(method):
    """In a basis where each entry belongs to one delta, there is nothing to elect and nothing to average."""
    generator = torch.Generator().manual_seed(0)
    basis_OR = torch.linalg.qr(torch.randn(40, 8, generator=generator, dtype=torch.float64)).Q
    basis_IR = torch.linalg.qr(torch.randn(24, 8, generator=generator, dtype=torch.float64)).Q
    sizes = torch.tensor([8.0, 6.0, 4.0, 2.0], dtype=torch.float64)
    parts = {
        0: Factors(basis_IR[:, :4].T, basis_OR[:, :4] * sizes),
        1: Factors(basis_IR[:, 4:].T, basis_OR[:, 4:] * (sizes - 1)),
    }
    stack = ModuleStack(NAME, parts, {0: 1.0, 1: -0.5})
    assert relative(product(merged(stack, method, density=1.0)), dense_linear(stack, 1)) < CLOSE


def test_every_stage_has_its_own_weight():
    """The reference code of KnOTS gives all the first one's."""
    stack = random_stack(40, 24, weights=(1.0, 0.0, 0.0))
    others = [
        ModuleStack(NAME, stack.parts, dict(enumerate(weights))) for weights in ((1, 1, 1), (1, 3, 1), (0.5, 1, 1))
    ]
    results = [product(merged(one, "knots")) for one in others]
    assert relative(results[1], results[0]) > 0.1
    assert relative(results[2], results[0]) > 0.05
