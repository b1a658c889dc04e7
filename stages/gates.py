"""What a stage has to reach on held-out rows before the next one may train: `accuracy >= 0.6`.

A gate is one condition or several joined by `and`, each a metric, a comparison and a bar; the bar is a number, or
`previous` (what the stages before it score together, the base for the first stage) with a number added or taken away.
A gate decides no weights. What it measures is attested as `plyfold eval` does, and taken from there the next time.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import EvalConfig
from ..core.errors import ConfigError, GateError
from ..evaluation.protocols import protocol

if TYPE_CHECKING:
    from ..data.problems import Problem
    from ..registry.record import DataRef, Metric
    from ..registry.store import Store

METRICS = {"accuracy": 1.0, "tokens": None, "truncated": 1.0, "no_answer": 1.0}
"""Metric -> its largest value: shares are fractions, `tokens` is the mean number of output tokens."""
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_PREVIOUS = "previous"
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CONDITION = re.compile(rf"\s*(\w+)\s*(>=|<=|>|<)\s*(?:(previous)\s*(?:([+-])\s*({_NUMBER}))?|({_NUMBER}))\s*")
_FORM = "METRIC >= NUMBER or METRIC >= previous - NUMBER, joined by `and`, for example accuracy >= 0.6"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison of a gate."""

    metric: str
    comparison: str
    bar: float
    """In the metric's unit; added to what the stages before score, where `relative`."""
    relative: bool = False

    def __str__(self) -> str:
        offset = f" {'-' if self.bar < 0 else '+'} {abs(self.bar):g}" if self.bar else ""
        return f"{self.metric} {self.comparison} {f'{_PREVIOUS}{offset}' if self.relative else f'{self.bar:g}'}"


@dataclass(frozen=True, kw_only=True)
class GateMeasurement:
    """One condition, held against what was measured."""

    condition: Condition
    value: float
    ci95: tuple[float, float] | None
    n: int
    """Problems it was measured on."""
    bar: float
    """The value asked for; `previous` put in."""

    @property
    def passed(self) -> bool:
        return _COMPARISONS[self.condition.comparison](round(self.value, 9), round(self.bar, 9))  # 0.6 + 0.05 is 0.65

    def __str__(self) -> str:
        within = f" [{self.ci95[0]:.3g}, {self.ci95[1]:.3g}]" if self.ci95 else ""
        bar = f" (that is {self.bar:.3g})" if self.condition.relative else ""
        return f"{self.condition}{bar}: {self.value:.3g}{within}, n {self.n}"

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain values."""
        return {
            "condition": str(self.condition),
            "value": self.value,
            "ci95": list(self.ci95) if self.ci95 else None,
            "n": self.n,
            "bar": self.bar,
            "passed": self.passed,
        }


def parse_gate(text: str, where: str) -> tuple[Condition, ...]:
    """The conditions of a gate, all of which have to hold.

    Raises:
        ConfigError: Not a condition, an unknown metric, or a bar that no value could miss or reach.
    """
    return tuple(_parse(part, where) for part in re.split(r"\s+and\s+", text.strip()))


def _parse(text: str, where: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    metric, comparison, previous, sign, offset, number = match.groups() if match else (None,) * 6
    if metric is None or comparison is None:
        raise ConfigError("not a gate", where=where, found=text or "nothing", expected=_FORM)
    if metric not in METRICS:
        raise ConfigError("a gate on no known metric", where=where, found=metric, expected=", ".join(METRICS))
    bar = float(number or f"{sign or ''}{offset or 0}")
    largest = METRICS[metric]
    if largest is not None and abs(bar) > largest:
        raise ConfigError(
            "a gate's bar is out of range",
            where=where,
            found=text,
            expected=f"{metric} is a fraction, from 0 to 1",
            next_step=f"write {bar / 100:g} for {bar:g} %" if bar <= 100 else "",
        )
    condition = Condition(metric=metric, comparison=comparison, bar=bar, relative=previous is not None)
    if decided := _decided(condition):
        low, high = _range(condition)
        raise ConfigError(
            f"a gate that {decided} holds",
            where=where,
            found=text,
            expected=f"a bar that a value from {low:g} to {high:g} can miss and reach"
            + (f", counted from {_PREVIOUS}" if condition.relative else ""),
        )
    return condition


def _range(condition: Condition) -> tuple[float, float]:
    """Smallest and largest value of a metric; less what the stages before score, where the bar is relative."""
    largest = METRICS[condition.metric] or math.inf
    return (-largest if condition.relative else 0.0), largest


def _decided(condition: Condition) -> str:
    """`always` or `never` where no value decides whether it holds; else empty."""
    low, high = _range(condition)
    if math.isinf(condition.bar):
        return "always" if condition.comparison.startswith("<") == (condition.bar > 0) else "never"
    holds = _COMPARISONS[condition.comparison]
    if holds(low, condition.bar) and holds(high, condition.bar):
        return "always"
    return "" if holds(low, condition.bar) or holds(high, condition.bar) else "never"


def check_gate(
    gate: Sequence[Condition],
    store: Store,
    curriculum: str,
    stages: Sequence[int],
    config: EvalConfig,
    problems: Sequence[Problem],
    data: DataRef,
    runs: Path,
    where: str,
) -> list[GateMeasurement]:
    """Hold a stage, on top of the stages before it, against its gate; what is on record is not measured again.

    Args:
        gate: Conditions that all have to hold.
        store: Registry that holds the stages; scores are attested there.
        curriculum: Its name.
        stages: Numbers of the stages up to the gated one.
        config: Protocol, engine and limits of the evaluation.
        problems: Held-out problems.
        data: The rows these are.
        runs: Folder for the answers, as `score_variants` takes it.
        where: Names the stage.

    Raises:
        GateError: A condition does not hold.
        As `score_variants`, where something has to be measured.
    """
    from ..evaluation.scores import score_variants
    from ..variants import Variant

    wanted = [tuple(stages), *([tuple(stages[:-1])] if any(item.relative for item in gate) else [])]
    found = {numbers: _on_record(store, curriculum, numbers, config, problems) for numbers in wanted}
    missing = [Variant(curriculum=curriculum, stages=numbers) for numbers in reversed(wanted) if not found[numbers]]
    if missing:
        score_variants(store, missing, problems, config, data=data, runs=runs)
        found = {numbers: _on_record(store, curriculum, numbers, config, problems) for numbers in wanted}
    measured = [_hold(item, found[wanted[0]], found[wanted[-1]]) for item in gate]
    failed = [item for item in measured if not item.passed]
    if failed:
        raise GateError(
            "a stage does not reach its gate; it stays registered, and nothing is trained on top of it",
            where=where,
            expected=" and ".join(str(item.condition) for item in failed),
            found="; ".join(map(str, failed)),
            next_step="train it longer or on more rows (its trainer, epochs or data), or change the bar: "
            f"{where}.gate='...' (null for none)",
        )
    return measured


def _hold(condition: Condition, own: Mapping[str, Metric], previous: Mapping[str, Metric]) -> GateMeasurement:
    metric = own[condition.metric]
    bar = condition.bar + (previous[condition.metric].value if condition.relative else 0)
    return GateMeasurement(condition=condition, value=metric.value, ci95=metric.ci95, n=metric.n or 0, bar=bar)


def _on_record(
    store: Store, curriculum: str, stages: tuple[int, ...], config: EvalConfig, problems: Sequence[Problem]
) -> dict[str, Metric]:
    """The newest score that was measured here of exactly these adapters on exactly these terms; else empty."""
    from ..evaluation.grader import grader
    from ..evaluation.runner import problems_digest
    from ..registry.lineage.scores import EVAL, limits, read_score

    numbers = stages or (min(store.stages(curriculum)),)
    inputs = {str(number): store.ref(curriculum, number) for number in stages}
    asked = {
        "protocol": protocol(config.protocol).digest(),
        "digest": problems_digest(problems),
        "engine": config.engine,
        "limits": limits(config.max_new_tokens),
        "grader": grader(),
    }
    found: dict[str, Metric] = {}
    for statement in store.attestations(store.ref(curriculum, max(numbers)), EVAL):
        score = read_score(statement)
        fits = score is not None and not score.heard and score.inputs == inputs
        if score is not None and fits and asked.items() <= score.terms.to_json().items():
            found = {metric.name: metric for metric in score.metrics}
    return found
