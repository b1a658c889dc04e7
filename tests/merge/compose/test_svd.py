"""Rank-limited composition against the dense float64 SVD of the sum."""

import pytest
import torch

from plyfold.merge.compose.write import compose
from plyfold.merge.inputs import Part
from plyfold.merge.lowrank import difference, size, truncate
from plyfold.merge.plan import plan_compose

from ...support import bounds
from ...support.peft_folders import SHAPES, read_result, write_adapter_folder

SIZES = [(24, 20, 12), (6, 20, 12), (20, 40, 48), (5, 7, 1)]
"""(O, I, R): tall, R above O, R above both, rank one."""


def random_stack(num_out, num_in, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    B_OR = torch.randn(num_out, rank, generator=generator, dtype=torch.float64)
    A_RI = torch.randn(rank, num_in, generator=generator, dtype=torch.float64)
    return B_OR, A_RI


@pytest.mark.parametrize("shape", SIZES)
def test_the_spectrum_is_that_of_the_dense_product(shape):
    B_OR, A_RI = random_stack(*shape)
    expected = torch.linalg.svdvals(B_OR @ A_RI)[: min(shape)]
    found = truncate(B_OR, A_RI, shape[2]).spectrum[: min(shape)]
    assert (found - expected).abs().max() <= bounds.singular_values(*shape, float(expected[0]))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_rank_k_matrix_is_nearer(shape, rank):
    B_OR, A_RI = random_stack(*shape)
    truth_OI = B_OR @ A_RI
    U, S, Vh = torch.linalg.svd(truth_OI, full_matrices=False)
    best = float((truth_OI - (U[:, :rank] * S[:rank]) @ Vh[:rank]).norm())
    cut = truncate(B_OR, A_RI, rank)
    noise = bounds.singular_values(*shape, float(S[0]))
    assert float((truth_OI - cut.B_OK @ cut.A_KI).norm()) == pytest.approx(best, abs=noise * len(S))
    assert float(torch.linalg.vector_norm(cut.spectrum[rank:])) == pytest.approx(best, abs=noise * len(S))


def test_directions_that_are_only_rounding_are_dropped():
    B_OR, A_RI = random_stack(24, 20, 4)
    cut = truncate(torch.cat([B_OR, B_OR], 1), torch.cat([A_RI, 2 * A_RI], 0), 8)
    assert cut.A_KI.shape[0] == 4
    torch.testing.assert_close(cut.B_OK @ cut.A_KI, 3 * B_OR @ A_RI, rtol=1e-12, atol=1e-12)


def test_a_zero_product_has_rank_zero():
    cut = truncate(torch.zeros(6, 3, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64), 2)
    assert cut.B_OK.shape == (6, 0)


def test_norms_from_gram_matrices_are_the_dense_ones():
    for shape in SIZES:
        B_OR, A_RI = random_stack(*shape)
        found = size(B_OR, A_RI)
        assert found.frobenius == pytest.approx(float((B_OR @ A_RI).norm()), rel=1e-13)
        assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(B_OR @ A_RI, 2)), rel=1e-13)


def test_the_spectral_norm_of_a_rounding_keeps_its_digits():
    for seed in range(20):
        torch.manual_seed(seed)
        B_OR, A_RI = torch.randn(6, 12, dtype=torch.float64), torch.randn(12, 20, dtype=torch.float64)
        B_OK, A_KI, _ = truncate(B_OR, A_RI, 6)
        rounded_B_OK, rounded_A_KI = B_OK.float().double(), A_KI.float().double()
        dense = (B_OK - rounded_B_OK) @ A_KI + rounded_B_OK @ (A_KI - rounded_A_KI)
        found = difference(B_OK, A_KI, rounded_B_OK, rounded_A_KI)
        assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-10)


def test_a_tiny_difference_keeps_its_digits():
    B_OR, A_RI = random_stack(24, 20, 4)
    rounded = B_OR.float().double(), A_RI.float().double()
    found = difference(B_OR, A_RI, *rounded)
    # The dense difference of two nearly equal products has an error of some U64; the difference is near U32.
    expected = float((B_OR @ A_RI - rounded[0] @ rounded[1]).norm())
    assert found.frobenius == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("rank", [1, 6, 10, 12])
def test_a_composed_svd_is_the_optimum_and_says_its_error(tmp_path, rank):
    written = [write_adapter_folder(tmp_path / f"a{i}", seed=i, alpha=7) for i in range(3)]
    weights = [1.0, 0.7, -0.5]
    parts = [Part(one.path, weight) for one, weight in zip(written, weights, strict=True)]
    done = compose(plan_compose(parts, method="svd", rank=rank), tmp_path / "out")
    assert done.r == rank
    tails = norms = 0.0
    for name, (A_RI, B_OR) in read_result(tmp_path / "out").items():
        truth_OI = sum(weight * one.delta(name) for one, weight in zip(written, weights, strict=True))
        S = torch.linalg.svdvals(truth_OI)
        tail = float(torch.linalg.vector_norm(S[rank:]))
        stated = done.certificate.modules[name]
        # float32 factors add at most their rounding to the optimum.
        slack = float(bounds.composed_OI(B_OR, A_RI, bounds.U32).norm())
        error = float((B_OR @ A_RI - truth_OI).norm())
        assert stated.truncation == pytest.approx(tail, rel=1e-9, abs=bounds.singular_values(24, 40, 12, float(S[0])))
        assert error <= tail + slack
        assert stated.error == pytest.approx(error, rel=1e-5, abs=slack * 1e-3)
        spectral = float(torch.linalg.matrix_norm(B_OR @ A_RI - truth_OI, 2))
        assert spectral <= stated.spectral * (1 + 1e-9) + bounds.singular_values(*SHAPES[name], 12, float(S[0]))
        tails, norms = tails + tail**2, norms + float(S.square().sum())
    assert done.certificate.energy_kept == pytest.approx(1 - tails / norms, rel=1e-9)


def test_the_error_falls_with_the_rank(tmp_path):
    written = [write_adapter_folder(tmp_path / f"a{i}", seed=i) for i in range(3)]
    parts = [Part(one.path) for one in written]
    errors = [
        compose(plan_compose(parts, method="svd", rank=rank), tmp_path / f"r{rank}").certificate.relative
        for rank in (1, 2, 4, 8, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5
    assert errors[-1] < 1e-6
