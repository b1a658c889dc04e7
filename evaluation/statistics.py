"""Intervals and paired tests for accuracies and lengths of variants that answered the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.errors import ConfigError

Z95 = 1.959963984540054
ALPHA = 0.05
POWER = 0.8
BOOTSTRAP_DRAWS = 10_000
_CHUNK = 1 << 22
"""Indices drawn at once; bounds memory to tens of MB."""


class Interval(NamedTuple):
    """A 95 % interval; JSON holds it as [low, high]."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How two variants differ on the same problems."""

    fixed: int
    """Problems wrong in the baseline and right in the variant."""
    broken: int
    """Problems right in the baseline and wrong in the variant."""
    accuracy: float
    """Difference of accuracies, variant minus baseline, as a fraction."""
    accuracy_ci95: Interval
    p_value: float
    """Exact McNemar, two-sided, not corrected for several variants."""
    detectable: float | None
    """Smallest true difference that this test finds with a power of POWER on as many problems, where as large a share
    of the answers differs; None where there is none."""
    tokens: float
    """Difference of mean output tokens, variant minus baseline."""
    tokens_ci95: Interval
    both_right: int
    """Problems right in both."""
    tokens_both_right: float | None
    """The token difference on those: not short because wrong."""


def wilson(successes: int, n: int) -> Interval:
    """Wilson score interval of a proportion, 95 %.

    Source: Wilson, JASA 1927. Without continuity correction; stays inside [0, 1] and is not empty at 0 or n.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p value that `fixed` and `broken` come from a fair coin.

    Source: McNemar, Psychometrika 1947, in its exact binomial form: 2 * P(X <= min), X ~ B(fixed + broken, 1/2).
    """
    n, k = fixed + broken, min(fixed, broken)
    if n == 0 or fixed == broken:
        return 1.0
    log_half = -n * math.log(2.0)
    log_n = math.lgamma(n + 1)
    tail = sum(math.exp(log_n - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half) for i in range(k + 1))
    return min(1.0, 2.0 * tail)


def paired_ci95(fixed: int, broken: int, n: int) -> Interval:
    """95 % interval of the difference of two accuracies on the same problems.

    With one problem added to each of `fixed` and `broken`, p = (count + 1) / (n + 2), d = p_fixed - p_broken:
    d +- z * sqrt((p_fixed + p_broken - d^2) / (n + 2)), within [-1, 1].

    Source: Bonett and Price, J. Educ. Behav. Stat. 37, 2012, eq. 4. Covers 94 % or more where a bootstrap of few
    differing answers does not (one that is always right or always wrong has no width);
    tests/evaluation/test_statistics.py.
    """
    p_fixed, p_broken = (fixed + 1) / (n + 2), (broken + 1) / (n + 2)
    difference = p_fixed - p_broken
    half = Z95 * math.sqrt((p_fixed + p_broken - difference**2) / (n + 2))
    return Interval(max(-1.0, difference - half), min(1.0, difference + half))


def mcnemar_power(n: int, discordant: float, difference: float) -> float:
    """Probability that the exact McNemar test finds a difference, at ALPHA, two-sided.

    The number of differing answers is binomial (n, discordant), and how many of them are fixed is binomial again, with
    probability (discordant + difference) / (2 * discordant); summed over both, not approximated.

    Args:
        n: Problems both variants answer.
        discordant: Probability that exactly one of the two is right, in (0, 1].
        difference: True difference of the accuracies, at most `discordant`.

    Source: the sampling of Connor, Biometrics 43, 1987, whose formula for n approximates this sum.
    """
    log_factorial_N = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_half = math.log(0.5)

    def log_pmf_K(k_K: np.ndarray, total: int, share: float) -> np.ndarray:
        ways_K = log_factorial_N[total] - log_factorial_N[k_K] - log_factorial_N[total - k_K]
        with np.errstate(divide="ignore", invalid="ignore"):
            hits_K = np.where(k_K == 0, 0.0, k_K * np.log(share)) if share else np.where(k_K == 0, 0.0, -np.inf)
            misses_K = (
                np.where(k_K == total, 0.0, (total - k_K) * np.log1p(-share))
                if share < 1
                else np.where(k_K == total, 0.0, -np.inf)
            )
        return np.asarray(ways_K + hits_K + misses_K)

    spread = 8 * math.sqrt(n * discordant * (1 - discordant)) + 10
    low, high = max(0, math.floor(n * discordant - spread)), min(n, math.ceil(n * discordant + spread))
    totals_T = np.arange(low, high + 1)
    chances_T = np.exp(log_pmf_K(totals_T, n, discordant))
    fixed_share = min(1.0, max(0.0, (discordant + difference) / (2 * discordant)))
    found = 0.0
    for total, chance in zip(totals_T.tolist(), chances_T.tolist(), strict=True):
        k_K = np.arange(total // 2 + 1)
        tail_K = np.cumsum(np.exp(log_factorial_N[total] - log_factorial_N[k_K] - log_factorial_N[total - k_K]
                                  + total * log_half))  # fmt: skip
        rejected_K = k_K[2 * tail_K < ALPHA]
        if rejected_K.size:
            both = (np.exp(log_pmf_K(rejected_K, total, share)).sum() for share in (fixed_share, 1 - fixed_share))
            found += chance * float(sum(both))
    return min(1.0, found)


def detectable(n: int, discordant: int, power: float = POWER) -> float | None:
    """Smallest true difference that the exact McNemar test finds with a power, as a fraction.

    Args:
        n: Problems both variants answered.
        discordant: How many of them exactly one of the two solves; taken for their share among all problems. A larger
            difference than that share has as many differing answers as it takes.
        power: Probability of finding it.

    Returns:
        None where no difference is found so often on so few problems.
    """
    share = discordant / n

    def finds(difference: float) -> bool:
        return mcnemar_power(n, max(share, difference), difference) >= power

    if not finds(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def paired(
    baseline_right: Sequence[bool],
    variant_right: Sequence[bool],
    baseline_tokens: Sequence[int],
    variant_tokens: Sequence[int],
    *,
    seed: int = 0,
) -> Paired:
    """Compare two variants problem by problem; all four sequences are in the order of the problems.

    The interval of the lengths is one of percentiles of BOOTSTRAP_DRAWS paired bootstrap draws, seeded.

    Raises:
        ConfigError: Nothing to compare, or sequences of different lengths.
    """
    lengths = {len(baseline_right), len(variant_right), len(baseline_tokens), len(variant_tokens)}
    if len(lengths) != 1 or lengths == {0}:
        raise ConfigError(
            "two variants cannot be compared problem by problem",
            found=", ".join(str(length) for length in sorted(lengths)) + " answers",
            expected="answers of both to the same problems, at least one",
        )
    right_N, other_N = np.asarray(variant_right, dtype=bool), np.asarray(baseline_right, dtype=bool)
    longer_N = np.asarray(variant_tokens, dtype=np.float64) - np.asarray(baseline_tokens, dtype=np.float64)
    n = right_N.size
    fixed, broken = int((right_N & ~other_N).sum()), int((other_N & ~right_N).sum())
    random = np.random.default_rng(seed)
    both_N = right_N & other_N
    return Paired(
        fixed=fixed,
        broken=broken,
        accuracy=(fixed - broken) / n,
        accuracy_ci95=paired_ci95(fixed, broken, n),
        p_value=mcnemar(fixed, broken),
        detectable=detectable(n, fixed + broken),
        tokens=float(longer_N.mean()),
        tokens_ci95=_percentiles(_bootstrap_means(longer_N, random)),
        both_right=int(both_N.sum()),
        tokens_both_right=float(longer_N[both_N].mean()) if both_N.any() else None,
    )


def mean_ci95(values: Sequence[float]) -> Interval:
    """Normal 95 % interval of a mean; the value itself where there is only one.

    Raises:
        ConfigError: No value.
    """
    if not len(values):
        raise ConfigError("a mean of nothing has no interval", expected="at least one value")
    values_N = np.asarray(values, dtype=np.float64)
    half = Z95 * float(values_N.std(ddof=1)) / math.sqrt(values_N.size) if values_N.size > 1 else 0.0
    centre = float(values_N.mean())
    return Interval(centre - half, centre + half)


def _bootstrap_means(values_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rows = max(1, _CHUNK // values_N.size)
    means = [
        values_N[random.integers(0, values_N.size, (min(rows, BOOTSTRAP_DRAWS - start), values_N.size))].mean(axis=1)
        for start in range(0, BOOTSTRAP_DRAWS, rows)
    ]
    return np.concatenate(means)


def _percentiles(draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return Interval(float(low), float(high))
