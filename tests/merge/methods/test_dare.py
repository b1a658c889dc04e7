"""DARE's masks: which entries stay is decided by seed, module, part and position, and by nothing else."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from plyfold.merge.factor_reader import ModuleStack
from plyfold.merge.methods import rows
from plyfold.merge.methods.dare import drop_thin

from ...support.dense_merge import NAME, SHAPES, dense, elect, merged, product, random_stack, relative, weights_of

DARE = ["dare_linear", "dare_ties"]


def mask(num_out, num_in, index, *, seed=0, module=NAME, density=0.5, height=None):
    thin = drop_thin(seed, module, index, density)
    height = height or num_out
    return torch.cat(
        [
            thin(slice(start, min(start + height, num_out)), torch.ones(min(height, num_out - start), num_in))
            for start in range(0, num_out, height)
        ]
    )


@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("method", DARE)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_streamed_merge_is_the_dense_one_with_the_same_masks(shape, method, density, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", 7 * 24)
    stack = random_stack(*SHAPES[shape])
    kept = [
        delta if density == 1 else delta * mask(*stack.shape, index, density=density) / density
        for index, delta in enumerate(dense(stack))
    ]
    if method == "dare_ties":
        expected = elect(kept, weights_of(stack))
    else:
        expected = sum(weight * delta for weight, delta in zip(weights_of(stack), kept, strict=True))
    assert relative(product(merged(stack, method, density=density)), expected) < 1e-6


@pytest.mark.parametrize("num_in", [8, 13, 24])
def test_a_mask_does_not_depend_on_the_blocks_it_is_made_in(num_in):
    whole = mask(30, num_in, 0)
    for height in (1, 7, 16):
        assert torch.equal(mask(30, num_in, 0, height=height), whole)


def test_a_mask_is_the_same_in_every_version():
    assert mask(2, 10, 1, seed=7).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 1, 0, 0, 0]]


def test_seed_module_and_part_each_give_another_mask():
    masks = [
        mask(20, 20, 0),
        mask(20, 20, 0, seed=1),
        mask(20, 20, 1),
        mask(20, 20, 0, module="model.layers.1.mlp.up_proj"),
    ]
    for one in range(4):
        for other in range(one):
            agreement = float((masks[one] == masks[other]).double().mean())
            assert abs(agreement - 0.5) < 4 * 0.5 / 20  # 400 coin flips, four sigmas


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99])
def test_the_share_kept_is_the_density(density):
    share = float(mask(400, 500, 0, density=density).mean())
    assert abs(share - density) < 4 * (density * (1 - density) / 200_000) ** 0.5


@pytest.mark.parametrize("method", DARE)
def test_the_same_seed_gives_the_same_bytes_on_any_thread_and_another_seed_others(method):
    stack = random_stack(50, 40)
    first = merged(stack, method, 6, seed=3)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: merged(stack, method, 6, seed=3), range(8)))
    assert all(torch.equal(one.B_OK, first.B_OK) and torch.equal(one.A_KI, first.A_KI) for one in again)
    assert relative(product(merged(stack, method, 6, seed=4)), product(first)) > 0.1


def test_a_part_keeps_its_mask_where_others_lack_the_module():
    stack = random_stack(20, 16)
    alone = ModuleStack(NAME, {2: stack.parts[2]}, {2: -0.5})
    expected = -0.5 * dense(stack)[2] * mask(20, 16, 2) / 0.5
    assert relative(product(merged(alone, "dare_linear")), expected) < 1e-6


@pytest.mark.slow
def test_over_many_seeds_the_mean_is_the_plain_sum():
    stack = random_stack(12, 10)
    truth = product(merged(stack, "linear"))
    mean = sum(product(merged(stack, "dare_linear", seed=seed)) for seed in range(400)) / 400
    spread = sum((weight * delta).square() for weight, delta in zip(weights_of(stack), dense(stack), strict=True)) / 400
    assert float(((mean - truth).abs() / spread.sqrt()).max()) < 5  # at density 1/2 an entry's deviation is itself
