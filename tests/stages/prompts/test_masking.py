"""Which steps are hidden: counts, the last step, the chance, and orders that are never the identity."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plyfold.core.config import MaskingConfig
from plyfold.core.errors import ConfigError
from plyfold.stages.prompts.masking import check_masking, draw_mask, draw_order

ONE = MaskingConfig(mode="one", probability=0.7)
SCATTERED = MaskingConfig(mode="scattered")


@settings(deadline=None)
@given(st.integers(2, 30), st.integers())
def test_scattered_hides_half_at_least_three_at_most_all_but_one(num_steps: int, seed: int) -> None:
    mask = draw_mask(num_steps, SCATTERED, random.Random(seed))
    assert len(mask) == min(max(3, num_steps // 2), num_steps - 1)
    assert num_steps - 1 in mask  # the step that states the result
    assert mask <= set(range(num_steps))


def test_scattered_reaches_every_step() -> None:
    rng = random.Random(0)
    hidden = {index for _ in range(200) for index in draw_mask(8, SCATTERED, rng)}
    assert hidden == set(range(8))


@settings(deadline=None)
@given(st.integers(2, 30), st.integers())
def test_consecutive_hides_a_run_of_steps(num_steps: int, seed: int) -> None:
    mask = draw_mask(num_steps, MaskingConfig(mode="consecutive"), random.Random(seed))
    assert len(mask) == min(max(3, num_steps // 2), num_steps - 1)
    assert sorted(mask) == list(range(min(mask), max(mask) + 1))
    assert mask <= set(range(num_steps))


@settings(deadline=None)
@given(st.integers(2, 30), st.integers())
def test_keep_ends_hides_only_what_is_between(num_steps: int, seed: int) -> None:
    mask = draw_mask(num_steps, MaskingConfig(mode="keep-ends"), random.Random(seed))
    assert len(mask) == min(max(3, num_steps // 2), num_steps - 2)
    assert mask <= set(range(1, num_steps - 1))


@pytest.mark.parametrize(("mode", "reached"), [("consecutive", range(8)), ("keep-ends", range(1, 7))])
def test_every_step_that_may_be_hidden_is_at_times(mode: str, reached: range) -> None:
    rng = random.Random(0)
    hidden = {index for _ in range(200) for index in draw_mask(8, MaskingConfig(mode=mode), rng)}
    assert hidden == set(reached)


def test_one_hides_a_single_step_seven_times_in_ten() -> None:
    rng = random.Random(0)
    masks = [draw_mask(5, ONE, rng) for _ in range(4000)]
    assert {len(mask) for mask in masks} == {0, 1}
    assert sum(map(len, masks)) / len(masks) == pytest.approx(0.7, abs=0.03)
    assert {index for mask in masks for index in mask} == set(range(5))


@settings(deadline=None)
@given(st.integers(2, 20), st.integers())
def test_the_order_is_a_permutation_and_never_the_identity(num_steps: int, seed: int) -> None:
    order = draw_order(num_steps, random.Random(seed))
    assert sorted(order) == list(range(num_steps))
    assert order != sorted(order)


def test_a_single_step_has_one_order() -> None:
    assert draw_order(1, random.Random(0)) == [0]


@pytest.mark.parametrize(
    "config",
    [
        MaskingConfig(mode="some"),
        MaskingConfig(hide="letters"),
        MaskingConfig(probability=1.5),
        MaskingConfig(share=-0.1),
        MaskingConfig(minimum=0),
    ],
)
def test_meaningless_masking_is_refused(config: MaskingConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        check_masking(config, "stages.x")
    assert caught.value.exit_code == 2
