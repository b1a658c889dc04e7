"""Show an evaluation: tables for the console, files for everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path

from ..core.console import print_table, show
from ..core.disk.files import staged_folder, write_bytes, write_json
from .runner import Evaluation, VariantScore
from .statistics import ALPHA, POWER, Interval, Paired


def print_evaluation(evaluation: Evaluation, title: str = "") -> None:
    """Scores, differences to the first variant, and what the number of problems can tell apart; on stdout."""
    heading = f"{evaluation.protocol.name} · {evaluation.engine['engine']} · {evaluation.n} problems"
    if temperature := evaluation.engine.get("temperature"):
        heading += f" · sampled at temperature {temperature:g}"
    columns = ["variant", "accuracy", "accuracy 95 %", "tokens", "truncated", "no answer"]
    print_table(
        columns,
        [_score_row(score) for score in evaluation.scores],
        title=f"{title} · {heading}" if title else heading,
        right=columns[1:],
    )
    if evaluation.comparisons:
        _print_pairs(f"against {evaluation.baseline}", evaluation.comparisons)
    if evaluation.steps:
        steps = {f"{name} against {step.against}": step.paired for name, step in evaluation.steps.items()}
        _print_pairs("step by step", steps)
    for line in resolution(evaluation):
        show(line)


def _print_pairs(heading: str, pairs: Mapping[str, Paired]) -> None:
    columns = [heading, "accuracy", "accuracy 95 %", "p", "fixed", "broken", "tokens", "tokens 95 %"]
    rows = [
        [
            name,
            f"{100 * paired.accuracy:+.1f}",
            _interval(paired.accuracy_ci95, 100, "+.1f"),
            "<0.001" if paired.p_value < 0.001 else f"{paired.p_value:.3f}",
            paired.fixed,
            paired.broken,
            f"{paired.tokens:+.1f}",
            _interval(paired.tokens_ci95, 1, "+.1f"),
        ]
        for name, paired in pairs.items()
    ]
    print_table(columns, rows, right=columns[1:])


def resolution(evaluation: Evaluation) -> list[str]:
    """What this many problems can tell from chance: of one accuracy, and of the pair that differs least."""
    n = evaluation.n
    widest = max(evaluation.scores, key=lambda score: score.accuracy_ci95.high - score.accuracy_ci95.low)
    half = 50 * (widest.accuracy_ci95.high - widest.accuracy_ci95.low)
    lines = [f"{n} problems place one accuracy within about ±{half:.1f} points."]
    pairs = [(name, evaluation.baseline, paired) for name, paired in evaluation.comparisons.items()]
    pairs += [(name, step.against, step.paired) for name, step in evaluation.steps.items()]
    if pairs:
        name, against, paired = min(pairs, key=lambda pair: abs(pair[2].accuracy))
        measured = f"{100 * paired.accuracy:+.1f} points {_interval(paired.accuracy_ci95, 100, '+.1f')}"
        p_value = "p < 0.001" if paired.p_value < 0.001 else f"p = {paired.p_value:.3f}"
        if paired.detectable is None:
            finds = f"{n} problems are too few to find any difference with {100 * POWER:.0f} % power"
        else:
            finds = (
                f"on {n} problems a difference of {100 * paired.detectable:.1f} points is found with "
                f"{100 * POWER:.0f} % power"
            )
        test = f"exact McNemar at {100 * ALPHA:.0f} %, this pair alone"
        lines.append(
            f"{name} against {against}: {measured}, {p_value}; {finds} "
            f"({test}, answers that differ: {paired.fixed + paired.broken})."
        )
    return lines


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write `results.json` and one `<variant>.jsonl` of every answer; the folder appears complete or not at all.

    Raises:
        ConflictError: `folder` exists.
        DiskFullError: No room; nothing is left.
    """
    with staged_folder(folder) as staged:
        write_json(staged / "results.json", {"schema": 1, **evaluation.to_json()})
        names = file_names(evaluation.outcomes)
        for variant, outcomes in evaluation.outcomes.items():
            lines = [json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes]
            write_bytes(staged / f"{names[variant]}.jsonl", "".join(lines).encode())
    return folder


def _score_row(score: VariantScore) -> list[object]:
    return [
        score.variant,
        f"{100 * score.accuracy:.1f} %",
        _interval(score.accuracy_ci95, 100, ".1f"),
        f"{score.mean_tokens:.1f}",
        f"{100 * score.truncated_share:.1f} %",
        f"{100 * score.no_answer_share:.1f} %",
    ]


def _interval(interval: Interval, factor: float, form: str) -> str:
    return f"[{factor * interval.low:{form}}, {factor * interval.high:{form}}]"


def file_names(variants: Iterable[str]) -> dict[str, str]:
    """The variants' names, fit for every file system, each once: `gsm8k:1+2*0.5` becomes `gsm8k-1+2x0.5`."""
    found: dict[str, str] = {}
    for variant in variants:
        stem = re.sub(r"[^\w+.-]", "-", variant.replace("*", "x")).lstrip(".-")[-100:] or "variant"
        taken = {name.casefold() for name in found.values()}
        numbered = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        found[variant] = next(name for name in numbered if name.casefold() not in taken)
    return found
