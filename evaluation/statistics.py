"""Intervals and paired tests for accuracies and lengths of variants that answered the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
ALPHA = 0.05
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


def separable(n: int, discordant: int) -> float | None:
    """Smallest paired accuracy difference that McNemar calls significant, as a fraction.

    Args:
        n: Problems both variants answered.
        discordant: How many of them exactly one of the two solves.

    Returns:
        None where no split of so few discordant problems is significant (fewer than 6).
    """
    for difference in range(discordant % 2, discordant + 1, 2):
        if mcnemar((discordant + difference) // 2, (discordant - difference) // 2) < ALPHA:
            return difference / n
    return None


def paired(
    baseline_right: Sequence[bool],
    variant_right: Sequence[bool],
    baseline_tokens: Sequence[int],
    variant_tokens: Sequence[int],
    *,
    seed: int = 0,
) -> Paired:
    """Compare two variants problem by problem; all four sequences are in the order of the problems.

    Intervals are percentiles of BOOTSTRAP_DRAWS paired bootstrap draws, seeded. The accuracy difference takes three
    values a problem, so drawing problems is drawing one multinomial; lengths are drawn problem by problem.
    """
    right_N, other_N = np.asarray(variant_right, dtype=bool), np.asarray(baseline_right, dtype=bool)
    longer_N = np.asarray(variant_tokens, dtype=np.float64) - np.asarray(baseline_tokens, dtype=np.float64)
    n = right_N.size
    fixed, broken = int((right_N & ~other_N).sum()), int((other_N & ~right_N).sum())
    random = np.random.default_rng(seed)
    counts = random.multinomial(n, [fixed / n, broken / n, (n - fixed - broken) / n], size=BOOTSTRAP_DRAWS)
    both_N = right_N & other_N
    return Paired(
        fixed=fixed,
        broken=broken,
        accuracy=(fixed - broken) / n,
        accuracy_ci95=_percentiles((counts[:, 0] - counts[:, 1]) / n),
        p_value=mcnemar(fixed, broken),
        tokens=float(longer_N.mean()),
        tokens_ci95=_percentiles(_bootstrap_means(longer_N, random)),
        both_right=int(both_N.sum()),
        tokens_both_right=float(longer_N[both_N].mean()) if both_N.any() else None,
    )


def mean_ci95(values: Sequence[float]) -> Interval:
    """Normal 95 % interval of a mean; the value itself where there is only one."""
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
