"""Intervals and paired tests against textbook values and exact enumeration."""

import math
from itertools import product

import numpy as np
import pytest

from plyfold.evaluation.statistics import mcnemar, mean_ci95, paired, separable, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (856, 1319, 0.6228, 0.6743),
        (1005, 1319, 0.7382, 0.7841),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_equals_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers_95_percent_of_the_time() -> None:
    random = np.random.default_rng(0)
    shares = random.random(4000)
    intervals = [wilson(int(random.binomial(60, share)), 60) for share in shares]
    covered = [low <= share <= high for share, (low, high) in zip(shares, intervals, strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # on average over shares; one share alone wobbles


def test_mcnemar_is_the_exact_sign_test() -> None:
    for fixed, broken in product(range(13), range(13)):
        n, k = fixed + broken, min(fixed, broken)
        exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
        assert mcnemar(fixed, broken) == pytest.approx(exact, rel=1e-12)
    assert 0 < mcnemar(0, 900) < 1e-200


@pytest.mark.parametrize(("share", "points"), [(0.08, 1.7), (0.12, 2.0), (0.16, 2.4), (0.20, 2.6), (0.25, 2.9)])
def test_separable_on_the_gsm8k_test_set(share: float, points: float) -> None:
    found = separable(1319, round(1319 * share))
    assert found is not None
    assert 100 * found == pytest.approx(points, abs=0.1)


def test_too_few_discordant_answers_separate_nothing() -> None:
    assert separable(100, 5) is None
    assert separable(100, 0) is None
    assert separable(100, 6) == 0.06


def test_paired_counts_flips_and_lengths() -> None:
    baseline, variant = [True, True, False, False, True], [True, False, True, True, True]
    found = paired(baseline, variant, [10, 10, 10, 10, 20], [8, 12, 30, 5, 14])
    assert (found.fixed, found.broken, found.both_right) == (2, 1, 2)
    assert found.accuracy == pytest.approx(0.2)
    assert found.tokens == pytest.approx(9 / 5)
    assert found.tokens_both_right == pytest.approx(-4)
    assert found.accuracy_ci95.low <= 0.2 <= found.accuracy_ci95.high
    assert found == paired(baseline, variant, [10, 10, 10, 10, 20], [8, 12, 30, 5, 14])  # seeded


def test_paired_without_a_common_right_answer() -> None:
    found = paired([False], [True], [3], [4])
    assert found.tokens_both_right is None
    assert found.p_value == 1.0


def test_bootstrap_agrees_with_the_analytic_interval() -> None:
    random = np.random.default_rng(1)
    baseline, variant = random.random(1000) < 0.6, random.random(1000) < 0.7
    short, long = random.integers(50, 150, 1000), random.integers(80, 180, 1000)
    found = paired(baseline.tolist(), variant.tolist(), long.tolist(), short.tolist())
    difference_N = variant.astype(float) - baseline.astype(float)
    assert found.accuracy_ci95 == pytest.approx(mean_ci95(difference_N.tolist()), abs=0.003)
    assert found.tokens_ci95 == pytest.approx(mean_ci95((short - long).tolist()), abs=0.3)
