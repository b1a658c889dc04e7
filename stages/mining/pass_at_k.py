"""How often a policy solves problems from their bare prompt: pass@1 and pass@k of fresh samples, before and after.

The samples that picked a problem as a failure say nothing about its pass rate: all of them are wrong by selection, and
others would not be (regression to the mean). So both sides here are drawn anew, with the same random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from ...core.console import progress
from ...evaluation.statistics import Z95, Interval, mean_ci95
from .mining import OUTCOMES, Ask

FEWEST = 5
"""Problems whose spread says how sure their mean is."""


@dataclass(frozen=True, kw_only=True)
class PassRates:
    """How a policy did on some problems, each sampled equally often."""

    samples: int
    """n, of each problem."""
    right: tuple[int, ...]
    """Right ones, of each problem."""
    outcomes: dict[str, int]
    """How the samples of all problems ended."""

    def each(self, k: int) -> list[float]:
        """pass@k of each problem."""
        return [pass_at_k(self.samples, count, k) for count in self.right]

    def pass_at(self, k: int) -> float:
        """Their mean."""
        return sum(self.each(k)) / len(self.right)

    @property
    def ks(self) -> tuple[int, ...]:
        """The k that are reported: 1 and all."""
        return tuple(sorted({1, self.samples}))

    def to_json(self) -> dict[str, Any]:
        """pass@k as fractions, and how the samples ended."""
        rates = {f"pass@{k}": round(self.pass_at(k), 6) for k in self.ks}
        return {**rates, "outcomes": {name: self.outcomes.get(name, 0) for name in OUTCOMES}}


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right, unbiased, from n samples of which `right` are.

    1 - C(n - right, k) / C(n, k), with k <= n.

    Source: Chen et al., arXiv:2107.03374, eq. 1; in exact integers here.
    """
    return 1.0 - comb(n - right, k) / comb(n, k)


def measure_pass_rates(count: int, samples: int, ask: Ask, label: str, batch: int) -> PassRates:
    """Sample problems 0 to `count` - 1 equally often.

    Args:
        count: Number of problems, at least one.
        samples: Of each problem.
        ask: Draws and judges.
        label: Of the draws; equal labels share their random numbers.
        batch: Samples asked for at once.
    """
    indices = [index for index in range(count) for _ in range(samples)]
    right, outcomes = [0] * count, Counter[str]()
    with progress(label, len(indices)) as task:
        for start in range(0, len(indices), batch):
            asked = indices[start : start + batch]
            for index, outcome in zip(asked, ask(asked, label, start), strict=True):
                right[index] += outcome == "right"
                outcomes[outcome] += 1
            task.advance(len(asked))
    return PassRates(samples=samples, right=tuple(right), outcomes=dict(outcomes))


def pass_rate_difference(before: PassRates, after: PassRates, k: int) -> tuple[float, Interval | None]:
    """pass@k after minus before, and its 95 % interval over the problems, paired.

    The interval is None for fewer than `FEWEST` problems, and where all changed alike: no spread bounds nothing.
    """
    pairs: Sequence[float] = [new - old for old, new in zip(before.each(k), after.each(k), strict=True)]
    mean = sum(pairs) / len(pairs)
    if len(pairs) < FEWEST or max(pairs) == min(pairs):
        return mean, None
    half = (mean_ci95(pairs).high - mean) / Z95 * _students_t(len(pairs) - 1)
    return mean, Interval(mean - half, mean + half)


def _students_t(freedom: int) -> float:
    """Student's two-sided 95 % quantile, to half a per cent from four degrees of freedom on.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    z, n = Z95, freedom
    terms = (z, (z**3 + z) / (4 * n), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2))
    return sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
