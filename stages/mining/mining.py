"""Persistent failures: train problems that a policy gets wrong in every one of k samples of the bare prompt.

Every problem is sampled until it is solved, `samples` times at most. What is unsolved then is sampled on, up to
`confirm` times in all, and is a failure only if none of these is right: one whose pass rate is 1 - 0.05 ** (1 / k) or
more is taken for a failure with a chance of 5 % at most. Wrong answers, cut-off ones and missing ones are kept apart:
only the first are hard, the others are a matter of form. Knows neither models nor files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from ...core.config import MiningConfig
from ...core.console import progress
from ...core.errors import ConfigError
from ...data.answers.reader import extract, same_answer
from ...data.rationale.parse import Rationale
from ..rollouts.sampling import Sample

OUTCOMES = ("right", "wrong", "truncated", "unanswered")
"""How a sample can end."""
VERDICTS = ("solved", "wrong", "truncated", "unanswered")
"""What a problem can be: solved once, a persistent failure, or unsolved for its form."""
MEASURING = ("unaided_samples", "unaided_problems")
"""Fields of the config that leave the failures alone."""
_APART = ("minimum", "rehearsal_share", *MEASURING)
DECIDING = tuple(field.name for field in fields(MiningConfig) if field.name not in _APART)
"""Those that decide what is found: not what is enough of it, nor what it is mixed with."""
CONFIDENCE = 0.95

Ask = Callable[[Sequence[int], str, int], list[str]]
"""Outcomes of one sample of each problem (by index), in their order, given the label of the round they belong to and
the place of the first of them in it."""


@dataclass(frozen=True, kw_only=True)
class MiningResult:
    """How a policy did on a pool of problems."""

    outcomes: tuple[Mapping[str, int], ...]
    """Of each problem tried, how often its samples ended how."""
    verdicts: tuple[str, ...]
    """Of each problem tried."""
    samples: int
    """Samples of a problem at first."""
    k: int
    """Samples of a failure."""

    @classmethod
    def of(cls, outcomes: Sequence[Mapping[str, int]], config: MiningConfig) -> MiningResult:
        """What outcomes come to, in the order of the problems."""
        return cls(
            outcomes=tuple(dict(found) for found in outcomes),
            verdicts=tuple(verdict(found, config.wrong_share) for found in outcomes),
            samples=config.samples,
            k=config.confirm or config.samples,
        )

    @property
    def failures(self) -> tuple[int, ...]:
        """Indices of the persistent failures, ascending."""
        return tuple(index for index, verdict in enumerate(self.verdicts) if verdict == "wrong")

    @property
    def solved(self) -> tuple[int, ...]:
        """Indices of the problems solved at least once, ascending."""
        return tuple(index for index, verdict in enumerate(self.verdicts) if verdict == "solved")

    @property
    def drawn(self) -> int:
        """Samples in all."""
        return sum(sum(outcome.values()) for outcome in self.outcomes)

    def pool_rates(self) -> dict[int, float]:
        """pass@1 and pass@`samples` of the whole pool: the shares solved by the first sample, and by any of them.

        No problem was picked by these samples, so the shares are not biased.
        """
        tried = len(self.outcomes)
        first = sum(outcome == {"right": 1} for outcome in self.outcomes)
        unsolved = sum(not outcome.get("right") or sum(outcome.values()) > self.samples for outcome in self.outcomes)
        return {1: first / tried, self.samples: 1 - unsolved / tried}


def check_mining(config: MiningConfig, where: str) -> None:
    """Refuse values that cannot be mined with.

    Raises:
        ConfigError: Nothing to sample, fewer samples to confirm than at first, or a share that is none.
    """
    for name in ("samples", "max_new_tokens", "minimum", "temperature", "problems", "unaided_problems"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"mining.{name} has to be positive", where=where, found=value)
    if config.confirm is not None and config.confirm < config.samples:
        raise ConfigError(
            "mining.confirm counts all samples of a problem, the first ones too",
            where=where,
            found=config.confirm,
            expected=f"mining.samples, which is {config.samples}, or more",
        )
    if config.unaided_samples < 0:
        raise ConfigError("mining.unaided_samples is 0 or more", where=where, found=config.unaided_samples)
    if not 0 <= config.wrong_share <= 1:
        raise ConfigError("mining.wrong_share is a share", where=where, found=config.wrong_share, expected="0 to 1")
    for name in ("held_out_share", "rehearsal_share"):
        if not 0 <= (share := getattr(config, name)) < 1:
            raise ConfigError(
                f"mining.{name} leaves no failures to train on",
                where=where,
                found=share,
                expected="0, or more and below 1",
            )


def mining_cost(rows: int, config: MiningConfig) -> dict[str, int]:
    """Samples that a stage's mining and measuring take at most: {problems, samples, k, mining, unaided}."""
    problems, k = min(rows, config.problems or rows), config.confirm or config.samples
    sets = 2 if config.held_out_share else 1
    measured = min(problems, sets * config.unaided_problems)
    return {
        "problems": problems,
        "samples": config.samples,
        "k": k,
        "mining": problems * k,
        "unaided": 2 * measured * config.unaided_samples,
    }


def pass_rate_bound(k: int) -> float:
    """The pass rate from which on a problem has all of its k samples wrong with a chance of 5 % at most.

    (1 - p) ** k > 0.05 for all smaller p. It says how good the net is and not what is in it: of many problems with that
    pass rate one in twenty is caught.
    """
    return 1.0 - float((1.0 - CONFIDENCE) ** (1.0 / k))


def judge(sample: Sample, gold: str) -> str:
    """How a sample ended; right wherever evaluation would call it right."""
    found = extract(sample.text)
    if found.value is not None and same_answer(found.value, gold):
        return "right"
    if found.method not in ("last-number", "none"):
        return "wrong"  # it stated an answer, whatever it wrote after that
    if not sample.complete:
        return "truncated"
    return "unanswered" if found.value is None else "wrong"


def verdict(outcomes: Mapping[str, int], wrong_share: float) -> str:
    """What a problem is, given how its samples ended."""
    if outcomes.get("right"):
        return "solved"
    if outcomes.get("wrong", 0) >= wrong_share * sum(outcomes.values()):
        return "wrong"
    return "truncated" if outcomes.get("truncated", 0) >= outcomes.get("unanswered", 0) else "unanswered"


def mine(rationales: Sequence[Rationale], config: MiningConfig, ask: Ask, batch: int) -> MiningResult:
    """Find the problems that a policy never solves.

    Args:
        rationales: Problems; the first `config.problems` are tried.
        config: Numbers of samples.
        ask: Draws samples and judges them; a label names its samples, so the same ones may be drawn again.
        batch: Samples asked for at once.
    """
    tried = list(range(len(rationales)))[: config.problems]
    k = config.confirm or config.samples
    outcomes: list[Counter[str]] = [Counter() for _ in tried]
    unsolved = tried

    with progress("mining failures", len(tried) * config.samples) as task:

        def draw(indices: Sequence[int], label: str) -> list[int]:
            """Those of a round whose sample is not right."""
            failed: list[int] = []
            for start in range(0, len(indices), batch):
                asked = indices[start : start + batch]
                for index, outcome in zip(asked, ask(asked, label, start), strict=True):
                    outcomes[index][outcome] += 1
                    if outcome != "right":
                        failed.append(index)
                task.advance(len(asked), f"{sum(bool(found['right']) for found in outcomes)} solved")
            return failed

        done = 0
        for number in range(config.samples):
            done += len(unsolved)
            unsolved = draw(unsolved, f"round {number}")
            rounds_left = config.samples - 1 - number
            task.total(done + len(unsolved) * (rounds_left or k - config.samples))
        draw([index for index in unsolved for _ in range(k - config.samples)], "confirm")
    return MiningResult.of(outcomes, config)
