"""Streamed TIES against TIES written out on dense matrices."""

import pytest
import torch

from plyfold.adapters.tensors import Factors
from plyfold.merge.factor_reader import ModuleStack
from plyfold.merge.methods import rows
from plyfold.merge.methods.range_finder import compress
from plyfold.merge.methods.result import deltas
from plyfold.merge.methods.rows import DeltaRows, MergedRows, kth_magnitude
from plyfold.merge.methods.ties import input_directions, trim_thin
from plyfold.merge.methods.ties_election import average_agreeing, trim

from ...support import bounds
from ...support.dense_merge import NAME, SHAPES, dense, merged, product, random_stack, relative, ties, weights_of

STREAMED = ["ties", "dare_linear", "dare_ties"]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Blocks of a few rows, so that small matrices go by in several, the last one shorter."""
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", 7 * 24)


def ties_target(stack, density):
    parts = deltas(stack)
    streams = [DeltaRows(part) for part in parts]
    weights = [part.weight for part in parts]
    return MergedRows(streams, weights, [trim_thin(stream, density) for stream in streams], elect=True)


def gathered(target):
    return torch.cat([block.clone() for _, block in target])


@pytest.mark.parametrize("weights", [(1, 1, 1), (1.0, 0.7, -0.5), (-1, -1, -2)], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_streamed_matrix_is_the_dense_one(shape, density, weights):
    stack = random_stack(*SHAPES[shape], weights=weights)
    expected = ties(dense(stack, torch.float32), weights, density)
    found = gathered(ties_target(stack, density))
    assert torch.equal(found == 0, expected == 0)
    # Both sum at most 3 float32 terms, divide once, and started from products of 4 terms.
    assert relative(found, expected) < bounds.gamma(4 + 3 + 1, bounds.U32)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rank", [2, 4, 12])
def test_what_the_rank_holds_is_near_the_optimum_and_what_it_loses_is_stated(rank, density):
    stack = random_stack(150, 90, weights=(1, 1, 1))
    target = ties(dense(stack), weights_of(stack), density)
    S = torch.linalg.svdvals(target)
    best = float(torch.linalg.vector_norm(S[rank:]))
    found = merged(stack, "ties", rank, density=density)
    error = float((target - product(found)).norm())
    assert found.A_KI.shape[0] == rank
    assert best * (1 - 1e-6) <= error < 1.01 * best
    assert found.residual == pytest.approx(error, rel=1e-5)
    assert found.norm == pytest.approx(float(target.norm()), rel=1e-5)
    assert (found.spectrum_N[:rank] <= S[:rank] * (1 + 1e-5)).all()
    torch.testing.assert_close(found.spectrum_N[:rank], S[:rank], rtol=0.02, atol=0)


@pytest.mark.slow
def test_without_power_passes_the_search_is_visibly_worse(monkeypatch):
    stack = random_stack(150, 90, weights=(1, 1, 1))
    parts, target = deltas(stack), ties_target(stack, 0.3)
    searched = compress(target, 12, input_directions(parts)).residual
    monkeypatch.setattr("plyfold.merge.methods.range_finder.POWER_PASSES", 0)
    assert compress(target, 12, input_directions(parts)).residual > 1.01 * searched


@pytest.mark.parametrize("rank", [0, 1, 5, 12, 20])
def test_a_smaller_cut_is_a_slice_whose_loss_is_known(rank):
    stack = random_stack(60, 50)
    target = ties(dense(stack), weights_of(stack), 0.5)
    found = merged(stack, "ties", 12)
    smaller = found.B_OK[:, :rank] @ found.A_KI[:rank]
    assert found.lost_at(rank) == pytest.approx(float((target - smaller).norm()), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_full_rank_nothing_is_lost(shape):
    stack = random_stack(*SHAPES[shape])
    found = merged(stack, "ties")
    expected = ties(dense(stack), weights_of(stack), 0.5)
    assert relative(product(found), expected) < 1e-6
    assert found.residual < 1e-6 * found.norm


@pytest.mark.parametrize("k", [1, 2, 499, 500, 777, 999, 1000])
def test_the_kth_magnitude_is_exact(k):
    stack = random_stack(40, 25, ranks=(3,), weights=(1,))
    (delta,) = deltas(stack)
    stream = DeltaRows(delta)
    magnitudes = torch.cat([block.clone() for block in stream.blocks()]).abs().flatten()
    assert kth_magnitude(stream, k) == float(magnitudes.sort(descending=True).values[k - 1])


def test_equal_magnitudes_and_zeros_are_ordered_too():
    values = torch.tensor([[3.0, -3.0, 0.0, 1.0], [2.0, -2.0, 2.0, 0.0]])
    stack = ModuleStack(NAME, {0: Factors(values, torch.eye(2), 1.0)}, {0: 1.0})
    stream = DeltaRows(deltas(stack)[0])
    assert [kth_magnitude(stream, k) for k in range(1, 9)] == [3, 3, 2, 2, 2, 1, 0, 0]
    # The third largest is a 2, of which there are three: all stay.
    kept = gathered(MergedRows([stream], [1.0], [trim_thin(stream, 3 / 8)], elect=True))
    assert torch.equal(kept, values * (values.abs() >= 2))
    assert torch.equal(trim(values, 3 / 8), values * (values.abs() >= 2))


def test_a_density_below_one_entry_keeps_nothing():
    found = merged(random_stack(6, 5), "ties", density=0.03)
    assert found.norm == 0
    assert not product(found).any()


def test_a_sum_of_zero_elects_plus_as_PEFT_does():
    values = [torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[-2.0, 0.0, -3.0]])]
    assert average_agreeing(values, [1.0, 10.0]).tolist() == [[2.0, 0.0, -15.5]]


@pytest.mark.parametrize("method", ["linear", *STREAMED, "knots", "core"])
@pytest.mark.parametrize("silent", ["zero B", "zero A", "weight 0"])
def test_a_part_that_says_nothing_changes_nothing(method, silent):
    stack = random_stack(40, 24, ranks=(4, 4, 3), weights=(1, 0.7, 0.0 if silent == "weight 0" else 1))
    last = stack.parts[2]
    if silent != "weight 0":
        last = Factors(last.A_RI * (silent != "zero A"), last.B_OR * (silent != "zero B"), last.scale)
    with_it = ModuleStack(NAME, {**stack.parts, 2: last}, stack.weights)
    without = ModuleStack(NAME, {0: stack.parts[0], 1: stack.parts[1]}, {0: 1.0, 1: 0.7})
    for mine, other in zip(merged(with_it, method, 4), merged(without, method, 4), strict=True):
        assert torch.equal(torch.as_tensor(mine), torch.as_tensor(other))


@pytest.mark.parametrize("method", ["linear", *STREAMED, "knots", "core"])
def test_parts_that_are_all_zero_give_rank_zero(method):
    stack = random_stack(40, 24, weights=(0, 0, 0))
    found = merged(stack, method, 4)
    assert found.B_OK.shape == (40, 0)
    assert found.A_KI.shape == (0, 24)
    assert found.norm == found.residual == 0


@pytest.mark.parametrize("method", ["linear", *STREAMED, "knots", "core"])
def test_one_part_at_density_one_is_itself(method):
    stack = random_stack(40, 24, ranks=(5,), weights=(-0.7,))
    assert relative(product(merged(stack, method, 5, density=1.0)), -0.7 * dense(stack)[0]) < 1e-6


@pytest.mark.parametrize("method", ["linear", *STREAMED, "knots", "core"])
def test_every_factor_is_float64_within_the_rank(method):
    found = merged(random_stack(40, 24, ranks=(1, 8, 3)), method, 5)
    assert found.B_OK.dtype == found.A_KI.dtype == found.spectrum_N.dtype == torch.float64
    assert found.B_OK.shape == (40, 5)
    assert found.A_KI.shape == (5, 24)
    assert (found.spectrum_N.diff() <= 0).all()
    assert 0 < found.residual < found.norm
