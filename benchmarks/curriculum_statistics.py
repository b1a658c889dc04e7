"""Intervals over seeds and problems at once, for rows that answered the same problems under the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plyfold.evaluation.statistics import ALPHA, BOOTSTRAP_DRAWS, Interval

_CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one row made of the problems, a line per seed."""

    seeds: tuple[int, ...]
    right_SP: np.ndarray  # noqa: N815
    """(seeds, problems), 0 or 1."""
    tokens_SP: np.ndarray  # noqa: N815
    """(seeds, problems), output tokens."""

    def of(self, seeds: Sequence[int]) -> Answers:
        """The lines of some seeds."""
        lines = [self.seeds.index(seed) for seed in seeds]
        return Answers(seeds=tuple(seeds), right_SP=self.right_SP[lines], tokens_SP=self.tokens_SP[lines])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    ci95: Interval

    def to_json(self) -> dict[str, object]:
        """The estimate as plain values."""
        return {"value": self.value, "ci95": list(self.ci95)}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a row differs from another, problem by problem and seed by seed."""

    accuracy: Estimate
    """Fraction."""
    tokens: Estimate
    """Mean output tokens."""
    length: Estimate
    """Relative change of mean output tokens: -0.3 is 30 % shorter."""
    seeds: int

    def to_json(self) -> dict[str, object]:
        """The difference as plain values."""
        return {"accuracy": self.accuracy.to_json(), "tokens": self.tokens.to_json(),
                "length": self.length.to_json(), "seeds": self.seeds}  # fmt: skip


def estimate(answers: Answers) -> tuple[Estimate, Estimate]:
    """Accuracy (fraction) and mean tokens of one row."""
    right_D, tokens_D = _draw([answers.right_SP, answers.tokens_SP])
    return (
        Estimate(value=float(answers.right_SP.mean()), ci95=_percentiles(right_D)),
        Estimate(value=float(answers.tokens_SP.mean()), ci95=_percentiles(tokens_D)),
    )


def compare(variant: Answers, baseline: Answers) -> Difference:
    """Variant minus baseline, over the seeds that both have.

    Numerics: percentiles of BOOTSTRAP_DRAWS draws in which seeds and problems are each drawn with replacement and the
    same draw serves both rows. Drawing both factors of a crossed design is conservative (Owen, arXiv:0711.2157); three
    seeds say little about the spread between seeds, which is why each seed's accuracy stands in the table as well.
    """
    shared = [seed for seed in variant.seeds if seed in baseline.seeds]
    if not shared:
        raise ValueError("two rows without a common seed cannot be compared")
    ours, theirs = variant.of(shared), baseline.of(shared)
    right_SP, tokens_SP = ours.right_SP - theirs.right_SP, ours.tokens_SP - theirs.tokens_SP
    right_D, tokens_D, base_D = _draw([right_SP, tokens_SP, theirs.tokens_SP])
    return Difference(
        accuracy=Estimate(value=float(right_SP.mean()), ci95=_percentiles(right_D)),
        tokens=Estimate(value=float(tokens_SP.mean()), ci95=_percentiles(tokens_D)),
        length=Estimate(value=float(tokens_SP.mean() / theirs.tokens_SP.mean()), ci95=_percentiles(tokens_D / base_D)),
        seeds=len(shared),
    )


def verdict(difference: Estimate) -> str:
    """`more`, `less` or `even`: whether the interval leaves out zero."""
    return "more" if difference.ci95.low > 0 else "less" if difference.ci95.high < 0 else "even"


def _draw(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Means of bootstrap draws of seeds and problems; every array under the same draws. Each (draws,)."""
    num_seeds, num_problems = arrays[0].shape
    random = np.random.default_rng(0)
    means: list[list[np.ndarray]] = [[] for _ in arrays]
    for start in range(0, BOOTSTRAP_DRAWS, _CHUNK):
        size = min(_CHUNK, BOOTSTRAP_DRAWS - start)
        weights_DS = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size) / num_seeds
        weights_DP = random.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=size) / num_problems
        for place, values_SP in enumerate(arrays):
            means[place].append(np.einsum("dp,dp->d", weights_DS @ values_SP, weights_DP))
    return [np.concatenate(parts) for parts in means]


def _percentiles(draws_D: np.ndarray) -> Interval:
    low, high = np.percentile(draws_D, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return Interval(float(low), float(high))
