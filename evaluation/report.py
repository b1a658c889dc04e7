"""Show an evaluation: tables for the console, files for everything else."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from ..core.console import print_table, show
from ..core.files import staged_folder, write_bytes, write_json
from .runner import Evaluation, Score
from .statistics import Interval, separable


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
        columns = [f"against {evaluation.baseline}", "accuracy", "accuracy 95 %", "p", "fixed", "broken"]
        columns += ["tokens", "tokens 95 %"]
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
            for name, paired in evaluation.comparisons.items()
        ]
        print_table(columns, rows, right=columns[1:])
    show(resolution(evaluation))


def resolution(evaluation: Evaluation) -> str:
    """What difference this many problems can tell from chance, in one sentence."""
    n = evaluation.n
    widest = max(evaluation.scores, key=lambda score: score.accuracy_ci95.high - score.accuracy_ci95.low)
    half = 50 * (widest.accuracy_ci95.high - widest.accuracy_ci95.low)
    text = f"{n} problems place one accuracy within about ±{half:.1f} points"
    if not evaluation.comparisons:
        return text + "."
    discordant = max(paired.fixed + paired.broken for paired in evaluation.comparisons.values())
    smallest = separable(n, discordant)
    if smallest is None:
        return f"{text}; with only {discordant} answers that differ they cannot tell two variants apart."
    return (
        f"{text}; paired, they cannot tell variants apart that differ by less than {100 * smallest:.1f} points "
        f"(exact McNemar, {discordant} answers differ)."
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write `results.json` and one `<variant>.jsonl` of every answer; the folder appears complete or not at all.

    Raises:
        ConflictError: `folder` exists.
        DiskFullError: No room; nothing is left.
    """
    with staged_folder(folder) as staged:
        write_json(staged / "results.json", {"schema": 1, **evaluation.to_json()})
        for variant, outcomes in evaluation.outcomes.items():
            lines = [json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes]
            write_bytes(staged / f"{_file_name(variant)}.jsonl", "".join(lines).encode())
    return folder


def _score_row(score: Score) -> list[object]:
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


def _file_name(variant: str) -> str:
    """The variant's name, fit for every file system: `gsm8k:1+2*0.5` becomes `gsm8k-1+2x0.5`."""
    return re.sub(r"[^\w+.-]", "-", variant.replace("*", "x"))
