"""Intervals and paired tests against textbook values and exact enumeration."""

import math
from itertools import product

import numpy as np
import pytest

from plyfold.core.errors import ConfigError
from plyfold.evaluation.statistics import (
    ALPHA,
    detectable,
    mcnemar,
    mcnemar_power,
    mean_ci95,
    paired,
    paired_ci95,
    wilson,
)


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


def _power_by_enumeration(n: int, discordant: float, difference: float) -> float:
    fixed_share, broken_share = (discordant + difference) / 2, (discordant - difference) / 2
    found = 0.0
    for fixed in range(n + 1):
        for broken in range(n + 1 - fixed):
            if mcnemar(fixed, broken) < ALPHA:
                ways = math.comb(n, fixed) * math.comb(n - fixed, broken)
                found += ways * fixed_share**fixed * broken_share**broken * (1 - discordant) ** (n - fixed - broken)
    return found


@pytest.mark.parametrize(
    ("n", "discordant", "difference"), [(10, 0.9, 0.8), (20, 0.5, 0.3), (30, 0.4, 0.4), (25, 1.0, 0.6), (15, 0.3, 0.0)]
)
def test_power_is_that_of_every_outcome(n: int, discordant: float, difference: float) -> None:
    expected = _power_by_enumeration(n, discordant, difference)
    assert mcnemar_power(n, discordant, difference) == pytest.approx(expected, abs=1e-9)


def test_power_agrees_with_connors_formula_where_there_are_many() -> None:
    n, discordant, difference = 1319, 0.16, 0.031
    z_power = (math.sqrt(n) * difference - 1.959964 * math.sqrt(discordant)) / math.sqrt(discordant - difference**2)
    expected = 0.5 * math.erfc(-z_power / math.sqrt(2))
    assert mcnemar_power(n, discordant, difference) == pytest.approx(expected, abs=0.03)  # the exact test is stricter


def test_what_is_detectable_is_found_as_often_as_said() -> None:
    random = np.random.default_rng(3)
    for n, discordant in ((500, 11), (500, 60), (200, 0), (1319, 200)):
        difference = detectable(n, discordant)
        assert difference is not None
        share = max(discordant / n, difference)
        drawn = random.multinomial(n, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=3000)
        found = np.mean([mcnemar(int(fixed), int(broken)) < ALPHA for fixed, broken, _ in drawn])
        assert found == pytest.approx(0.8, abs=0.03)


def test_few_problems_find_nothing() -> None:
    assert detectable(5, 3) is None
    assert detectable(6, 6) == pytest.approx(2 * 0.9635 - 1, abs=0.001)  # all six alike: q^6 = 0.8


@pytest.mark.parametrize("n", [5, 20, 50, 200, 1000])
@pytest.mark.parametrize(
    ("fixed", "broken"), [(0.02, 0.0), (0.0, 0.0), (0.05, 0.05), (0.2, 0.05), (0.5, 0.1), (0.9, 0.0)]
)
def test_the_interval_of_a_difference_covers_it(n: int, fixed: float, broken: float) -> None:
    drawn = np.random.default_rng(1).multinomial(n, [fixed, broken, 1 - fixed - broken], size=4000)
    intervals = {(a, b): paired_ci95(a, b, n) for a, b, _ in drawn.tolist()}
    covered = [intervals[a, b].low <= fixed - broken <= intervals[a, b].high for a, b, _ in drawn.tolist()]
    assert np.mean(covered) >= 0.935


def test_nothing_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="problem by problem"):
        paired([], [], [], [])
    with pytest.raises(ConfigError, match="1, 2 answers"):
        paired([True], [True, False], [1], [1, 2])
    with pytest.raises(ConfigError, match="nothing"):
        mean_ci95([])


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
