"""pass@k against its definition, and what changes between two policies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest

from plyfold.stages.mining.pass_at_k import PassRates, measure_pass_rates, pass_at_k, pass_rate_difference


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int) -> None:
    for right in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([index < right for index in range(n)], k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
    assert pass_at_k(n, 1, 1) == pytest.approx(1 / n)


def test_every_problem_is_sampled_equally_often_in_batches() -> None:
    sizes, starts = [], set()

    def ask(indices: Sequence[int], label: str, start: int) -> list[str]:
        sizes.append(len(indices))
        starts.add((label, start))
        return ["right" if index == 1 else "truncated" for index in indices]

    rates = measure_pass_rates(3, 4, ask, "unaided", batch=5)
    assert rates == PassRates(samples=4, right=(0, 4, 0), outcomes={"right": 4, "truncated": 8})
    assert sizes == [5, 5, 2]
    assert starts == {("unaided", 0), ("unaided", 5), ("unaided", 10)}
    assert rates.ks == (1, 4)
    assert rates.to_json()["pass@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert rates.to_json()["outcomes"] == {"right": 4, "wrong": 0, "truncated": 8, "unanswered": 0}


def test_the_difference_is_paired() -> None:
    before = PassRates(samples=4, right=(0, 1, 2, 2, 1), outcomes={})
    after = PassRates(samples=4, right=(1, 2, 3, 4, 2), outcomes={})
    value, interval = pass_rate_difference(before, after, 1)
    assert value == pytest.approx((0.25 + 0.25 + 0.25 + 0.5 + 0.25) / 5)
    half = 2.776 * 0.05  # Student's t of four degrees of freedom, and the standard error
    assert interval == pytest.approx((value - half, value + half), abs=1e-3)
    assert pass_rate_difference(before, before, 4) == (0.0, None)  # no spread, no bound
    few = (PassRates(samples=4, right=rates.right[1:], outcomes={}) for rates in (before, after))
    assert pass_rate_difference(*few, 1) == (0.3125, None)
