"""Score variants on the same problems: ask, read, compare, and watch for adapters that do nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ..core.console import warn
from ..core.disk.digest import digest_json
from ..core.errors import ConfigError
from ..data.answers.reader import extract, same_answer
from ..data.problems import Problem
from ..engines.protocol import BASE, Engine, Generation
from .grader import grader
from .protocols import Protocol
from .statistics import Interval, Paired, mean_ci95, paired, wilson

PROBES = 3
"""Problems on which every adapter is checked to have an effect."""
STAGES = re.compile(r"(?:[^:/]+:)?\d{1,3}(?:\*[^+]+(?:e\+\d+)?)?(?:\+\d{1,3}(?:\*[^+]+(?:e\+\d+)?)?)*")
"""Names of variants that are stages: `1+2*0.5`, `gsm8k:1+2`."""


@dataclass(frozen=True, kw_only=True)
class ScoredCompletion:
    """What one variant made of one problem."""

    id: str
    question: str
    gold: str
    text: str
    answer: str | None
    """Number read from the text, in canonical spelling; None where what it states is not one number."""
    method: str
    """Where that was decided: answer-line, boxed, answer-is, last-number, none."""
    correct: bool
    num_tokens: int
    """Output tokens, the end token included."""
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class VariantScore:
    """One variant's row of the table."""

    variant: str
    n: int
    correct: int
    accuracy: float
    """Fraction."""
    accuracy_ci95: Interval
    """Wilson."""
    mean_tokens: float
    tokens_ci95: Interval
    """Normal."""
    truncated_share: float
    """Fraction of answers cut at max_new_tokens."""
    no_answer_share: float
    """Fraction without an answer that is one number."""
    methods: dict[str, int]
    """How many answers each extraction layer read."""


@dataclass(frozen=True, kw_only=True)
class StageGain:
    """What a stage adds to those before it."""

    against: str
    """The variant without it."""
    paired: Paired


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All variants on one set of problems."""

    protocol: Protocol
    engine: dict[str, Any]
    created: str
    """UTC."""
    problems_digest: str
    """Digest of ids, questions and golds in order: equal digests asked the same."""
    scores: list[VariantScore]
    comparisons: dict[str, Paired]
    """Every later variant against the first."""
    steps: dict[str, StageGain]
    """Every variant against the one that lacks its last stage, where that is another than the first: `1+2` -> `1`."""
    inert: list[str]
    """Variants whose adapter changes nothing."""
    outcomes: dict[str, list[ScoredCompletion]]

    @property
    def baseline(self) -> str:
        """The variant the others are compared with: the first."""
        return self.scores[0].variant

    @property
    def n(self) -> int:
        """Number of problems."""
        return self.scores[0].n

    def to_json(self) -> dict[str, Any]:
        """All but the outcomes, as plain JSON values."""
        return {
            "protocol": {**asdict(self.protocol), "digest": self.protocol.digest()},
            "grader": grader(),
            "engine": self.engine,
            "created": self.created,
            "problems": {"n": self.n, "digest": self.problems_digest},
            "variants": [asdict(score) for score in self.scores],
            "baseline": self.baseline,
            "comparisons": {name: asdict(comparison) for name, comparison in self.comparisons.items()},
            "steps": {name: {"against": step.against, **asdict(step.paired)} for name, step in self.steps.items()},
            "inert": self.inert,
        }


def evaluate(
    problems: Sequence[Problem],
    engine: Engine,
    variants: Sequence[str],
    protocol: Protocol,
    *,
    checkpoints: Collection[str] = (),
) -> Evaluation:
    """Ask every variant every problem and compare each with the first variant.

    Args:
        problems: At least one; ids unique.
        engine: Holds all `variants`.
        variants: Names, the baseline first.
        protocol: How to ask.
        checkpoints: Those of the variants that are models of their own, and no adapters that might have no effect.

    Raises:
        ConfigError: Nothing to ask, nobody to ask, or a name or id twice.
    """
    if not problems or not variants:
        raise ConfigError("nothing to score", expected="at least one problem and one variant")
    for what, names in (("variant", list(variants)), ("problem id", [problem.id for problem in problems])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(f"a {what} is given twice", found=", ".join(twice[:5]))
    prompts = [protocol.prompt(problem.question) for problem in problems]
    inert = _inert(engine, [name for name in variants if name not in checkpoints], prompts[:PROBES])
    generations = engine.generate_all(variants, prompts)
    outcomes = {
        variant: [outcome(problem, made) for problem, made in zip(problems, generations[variant], strict=True)]
        for variant in variants
    }
    return Evaluation(
        protocol=protocol,
        engine=engine.describe(),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        problems_digest=problems_digest(problems),
        scores=[score(variant, outcomes[variant]) for variant in variants],
        comparisons={variant: compare(outcomes[variants[0]], outcomes[variant]) for variant in variants[1:]},
        steps={
            variant: StageGain(against=below, paired=compare(outcomes[below], outcomes[variant]))
            for variant in variants[1:]
            if (below := step_below(variant, variants)) not in (None, variants[0])
        },
        inert=inert,
        outcomes=outcomes,
    )


def step_below(variant: str, variants: Sequence[str]) -> str | None:
    """Of some variants, the one that lacks only the last stage of another: `1` of `1+2`, the base of `1`."""
    if not STAGES.fullmatch(variant):
        return None
    rest = variant.rpartition("+")[0]
    alone = BASE if variant.rpartition(":")[2].isdecimal() else None
    return next((name for name in variants if name == (rest or alone)), None)


def problems_digest(problems: Sequence[Problem]) -> str:
    """Digest of what is asked: ids, questions and gold answers, in order."""
    return digest_json([[problem.id, problem.question, problem.gold] for problem in problems])


def outcome(problem: Problem, generation: Generation) -> ScoredCompletion:
    """Read and judge one completion."""
    found = extract(generation.text)
    return ScoredCompletion(
        id=problem.id,
        question=problem.question,
        gold=problem.gold,
        text=generation.text,
        answer=found.value,
        method=found.method,
        correct=same_answer(found.value, problem.gold),
        num_tokens=generation.num_tokens,
        finish_reason=generation.finish_reason,
    )


def score(variant: str, outcomes: Sequence[ScoredCompletion]) -> VariantScore:
    """Sum one variant's outcomes up.

    Raises:
        ConfigError: There are none.
    """
    if not outcomes:
        raise ConfigError("nothing to score", where=variant, expected="at least one answer")
    n, correct = len(outcomes), sum(item.correct for item in outcomes)
    tokens = [item.num_tokens for item in outcomes]
    return VariantScore(
        variant=variant,
        n=n,
        correct=correct,
        accuracy=correct / n,
        accuracy_ci95=wilson(correct, n),
        mean_tokens=sum(tokens) / n,
        tokens_ci95=mean_ci95(tokens),
        truncated_share=sum(item.finish_reason == "length" for item in outcomes) / n,
        no_answer_share=sum(item.answer is None for item in outcomes) / n,
        methods=dict(sorted(Counter(item.method for item in outcomes).items())),
    )


def compare(baseline: Sequence[ScoredCompletion], variant: Sequence[ScoredCompletion]) -> Paired:
    """Difference of two variants that answered the same problems in the same order.

    Raises:
        ConfigError: They did not, or there are none.
    """
    ids = [[item.id for item in outcomes] for outcomes in (baseline, variant)]
    if ids[0] != ids[1]:
        raise ConfigError(
            "two variants answered other problems, or in another order",
            found=f"{len(ids[0])} and {len(ids[1])} answers",
            expected="the same problem ids in the same order",
        )
    return paired(
        [item.correct for item in baseline],
        [item.correct for item in variant],
        [item.num_tokens for item in baseline],
        [item.num_tokens for item in variant],
    )


def _inert(engine: Engine, variants: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Variants that answer exactly like the base: a freshly initialised adapter, or one that was not applied."""
    adapted = [variant for variant in variants if variant != BASE]
    if not adapted:
        return []
    base = engine.probe(BASE, prompts)
    inert = [variant for variant in adapted if engine.probe(variant, prompts) == base]
    for variant in inert:
        warn(
            f"the adapter of variant {variant} has no effect: its first-token log probabilities equal the base's on "
            f"{len(prompts)} problems; it is untrained, or it was not applied"
        )
    return inert
