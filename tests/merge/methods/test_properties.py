"""What holds of the methods for every module: order, factorisation, copies, signs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plyfold.adapters.tensors import Factors
from plyfold.merge.factor_reader import ModuleStack

from ...support.dense_merge import NAME, merged, product, random_stack, relative

FEW = settings(max_examples=12, deadline=None, derandomize=True)
ALL = ["linear", "ties", "dare_linear", "dare_ties", "knots", "core"]
ELECTING = ["ties", "knots", "core"]
STREAMED_CLOSE, FACTOR_CLOSE = 2e-6, 1e-9
"""Relative; float32 blocks, and float64 through a joint svd."""
TOLERANCE = {name: STREAMED_CLOSE if "dare" in name or name == "ties" else FACTOR_CLOSE for name in ALL}

weights = st.sampled_from([1.0, 0.7, -0.5, 2.0, -1.0])


@st.composite
def stacks(draw, smallest=1, largest=4):
    ranks = draw(st.lists(st.integers(1, 5), min_size=smallest, max_size=largest))
    chosen = draw(st.lists(weights, min_size=len(ranks), max_size=len(ranks)))
    return random_stack(
        draw(st.integers(2, 16)), draw(st.integers(2, 16)), ranks=ranks, weights=chosen, seed=draw(st.integers(0, 99))
    )


def reweighted(stack, factor):
    return ModuleStack(NAME, stack.parts, {index: factor * weight for index, weight in stack.weights.items()})


def distance(found, expected, scale):
    return float((found - expected).norm()) / scale if scale else float((found - expected).norm())


def size(stack):
    """Sum of the weighted deltas' norms, for relative distances between results that may cancel."""
    return float(sum((stack.scaled_B(index) @ part.A_RI.double()).norm() for index, part in stack.parts.items()))


# DARE keys masks by the index of the part: another order is another draw, whose mean is the same.
@pytest.mark.parametrize("method", ["linear", *ELECTING])
@given(stack=stacks(smallest=2), data=st.data())
@FEW
def test_the_order_of_parts_does_not_matter(method, stack, data):
    order = data.draw(st.permutations(list(stack.parts)))
    moved = ModuleStack(
        NAME,
        {new: stack.parts[old] for new, old in enumerate(order)},
        {new: stack.weights[old] for new, old in enumerate(order)},
    )
    one, other = product(merged(stack, method)), product(merged(moved, method))
    assert distance(other, one, size(stack)) < TOLERANCE[method]


@pytest.mark.parametrize("method", ALL)
@given(stack=stacks(), seed=st.integers(0, 99))
@FEW
def test_only_the_deltas_matter_not_how_they_are_factored(method, stack, seed):
    generator = torch.Generator().manual_seed(seed)
    rewritten = {}
    for index, part in stack.parts.items():
        rank = part.A_RI.shape[0]
        rotation = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
        M_RR = rotation * torch.logspace(-1, 1, rank, dtype=torch.float64)
        A_RI = torch.linalg.solve(M_RR, part.A_RI.double())
        rewritten[index] = Factors(A_RI, part.B_OR.double() @ M_RR * part.scale, 1.0)
    other = ModuleStack(NAME, rewritten, stack.weights)
    found, expected = product(merged(other, method)), product(merged(stack, method))
    assert distance(found, expected, size(stack)) < TOLERANCE[method]


@pytest.mark.parametrize("method", ELECTING)
@given(stack=stacks(largest=1), copies=st.lists(weights, min_size=2, max_size=3))
@FEW
def test_copies_average_to_the_copy(method, stack, copies):
    several = ModuleStack(NAME, dict.fromkeys(range(len(copies)), stack.parts[0]), dict(enumerate(copies)))
    alone = ModuleStack(NAME, stack.parts, {0: sum(copies) / len(copies)})
    found = product(merged(several, method))
    assert distance(found, product(merged(alone, method)), size(several)) < TOLERANCE[method]
    at_one = ModuleStack(NAME, several.parts, dict.fromkeys(several.parts, 1.0))
    plain = ModuleStack(NAME, stack.parts, {0: 1.0})
    truth = product(merged(plain, "linear"))
    assert relative(product(merged(at_one, method, density=1.0)), truth) < TOLERANCE[method]


@pytest.mark.parametrize("method", ALL)
@given(stack=stacks(), factor=st.sampled_from([-1.0, 0.5, 3.0]))
@FEW
def test_the_result_is_linear_in_the_weights(method, stack, factor):
    """Signs are elected on unweighted deltas, so this holds of TIES too; factor -1 is D(w) + D(-w) = 0."""
    scaled = product(merged(reweighted(stack, factor), method))
    assert distance(scaled, factor * product(merged(stack, method)), size(stack)) < TOLERANCE[method]


@pytest.mark.parametrize("method", ALL)
@given(stack=stacks(), rank=st.integers(1, 6))
@FEW
def test_what_is_kept_and_what_is_lost_make_up_the_whole(method, stack, rank):
    found = merged(stack, method, rank)
    kept = float(product(found).norm())
    assert found.A_KI.shape[0] <= rank
    assert (kept**2 + found.residual**2) ** 0.5 == pytest.approx(found.norm, rel=1e-5)
    assert found.residual <= merged(stack, method, max(1, rank - 1)).residual * (1 + 1e-5) + 1e-6 * found.norm


@pytest.mark.parametrize("method", ["linear", "dare_linear"])
@given(stack=stacks())
@FEW
def test_a_density_of_one_is_the_plain_sum(method, stack):
    truth = stack.B_OR @ stack.A_RI
    assert distance(product(merged(stack, method, density=1.0)), truth, size(stack)) < TOLERANCE[method]
