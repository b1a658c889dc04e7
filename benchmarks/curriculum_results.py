"""The results of curriculum.py, collected from its folder and judged against the goals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from curriculum_bench import Bench
from curriculum_jobs import read_json
from curriculum_report import interval, render
from curriculum_rows import BASELINES, SUPERVISED, Row, completions_a_step
from curriculum_statistics import Answers, Difference, compare, estimate, verdict

from plyfold.core.disk.files import write_bytes, write_json
from plyfold.stages.runtime.metrics import read_metrics

GOAL_ACCURACY = 0.1129
GOAL_LENGTH = -0.274
"""What arXiv:2602.17686 reports for its own models: +11.29 points, outputs 27.4 % shorter."""


def collect(bench: Bench) -> dict[str, Any]:
    """Everything that was measured, as plain values; rows without any answers are left out."""
    from plyfold.registry.provenance import describe_code, describe_environment

    found = {mode: _all_answers(bench, mode) for mode in ("greedy", "sampled")}
    greedy, sampled = found["greedy"], found["sampled"]
    base, final = "base", next(row.key for row in bench.rows if row.stages == bench.full().stages)
    rows = []
    for row in _shown(bench):
        if row.key not in greedy:
            continue
        rows.append({
            "key": row.key,
            "label": row.label,
            "table": row.table,
            "stages": list(row.stages),
            "trained_as": row.training.name,
            "learning_rate": row.training.rate,
            "seeds": list(greedy[row.key].seeds),
            "greedy": _summary(bench, row, greedy[row.key], "greedy"),
            "sampled": _summary(bench, row, sampled[row.key], "sampled") if row.key in sampled else None,
            "against_base": _compared(found, row.key, base),
            "final_against": _compared(found, final, row.key),
            "compute": _compute(bench, row, greedy[row.key].seeds),
        })  # fmt: skip
    by_key = {row["key"]: row for row in rows}
    settings = {key: bench.settings[key] for key in ("config", "overrides", "seeds", "problems", "sweep", "more",
                                                     "rows", "added", "jobs", "threads", "code")}  # fmt: skip
    settings["config"] = Path(settings["config"]).name
    results: dict[str, Any] = {
        "schema": 1,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": bench.settings["command"],
        "settings": settings,
        "code": describe_code().model_dump(mode="json"),
        "environment": describe_environment(_device(bench)),
        "cores": os.cpu_count() or 1,
        **_asked(bench),
        "n": bench.problems,
        "seeds": bench.seeds,
        "failed": bench.settings.get("failed", {}),
        "rows": rows,
        "recipes": _recipes(bench),
        "cost": _costs(bench),
    }
    for name, key in (("base", base), ("final", final)):
        if key in by_key:
            results[name] = {"variant": key, **by_key[key]["greedy"], "sampled": by_key[key]["sampled"]}
    results["goals"] = _goals(found, by_key, base, final)
    results["choices"] = _choices(bench, by_key, found, final)
    return results


def write(results: dict[str, Any], folder: Path, notes: list[str], hardware: str | None) -> tuple[Path, Path]:
    """Write `<date>-curriculum-<hardware>.json` and `.md`; the JSON has `base` and `final` as the design page says.

    Raises:
        SystemExit: The base or the whole curriculum is not scored.
    """
    results = results | {"notes": notes}
    if "base" not in results or "final" not in results:
        raise SystemExit("the base and the whole curriculum have to be scored first: `run` again")
    device = results["environment"]["device"]
    hardware = hardware or f"{results['cores']}-core-{device}"
    stem = folder / f"{results['date']}-curriculum-{hardware}"
    paths = (stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.md"))
    write_json(paths[0], results | {"hardware": hardware})
    write_bytes(paths[1], (render(results, notes) + "\n").encode())
    return paths


def _shown(bench: Bench) -> list[Row]:
    """The rows in the order of the table: the base, the baselines at their best rate, the curriculum, the rest."""
    best = [_best(bench, kind) for kind in BASELINES]
    swept = [row for kind in BASELINES for row in bench.baselines[kind] if len(bench.baselines[kind]) > 1]
    return [bench.rows[0], *(row for row in best if row), *bench.rows[1:], *bench.extended(), *swept]


def _best(bench: Bench, kind: str) -> Row | None:
    row = bench.best(kind)
    path = bench.answers_path(bench.seeds[0], row.training, row.stages, "greedy")
    if not path.is_file():
        return None
    label = row.label.partition(", rate")[0]
    return Row(key=kind, label=label, training=row.training, stages=row.stages)


def _all_answers(bench: Bench, mode: str) -> dict[str, Answers]:
    found = {}
    for row in _shown(bench):
        lines = {seed: answers for seed in bench.seeds
                 if (answers := read_json(bench.answers_path(seed, row.training, row.stages, mode)))}  # fmt: skip
        if len({answers["ids"] for answers in lines.values()}) > 1:
            raise SystemExit(f"{row.key}: its seeds answered different problems; `run` again")
        if lines:
            found[row.key] = Answers(
                seeds=tuple(lines),
                right_SP=np.array([answers["right"] for answers in lines.values()], dtype=np.float64),
                tokens_SP=np.array([answers["tokens"] for answers in lines.values()], dtype=np.float64),
            )
    return found


def _summary(bench: Bench, row: Row, answers: Answers, mode: str) -> dict[str, Any]:
    accuracy, tokens = estimate(answers)
    files = [read_json(bench.answers_path(seed, row.training, row.stages, mode)) for seed in answers.seeds]
    asked = answers.right_SP.size
    return {
        "accuracy": accuracy.value,
        "accuracy_ci95": list(accuracy.ci95),
        "tokens": tokens.value,
        "tokens_ci95": list(tokens.ci95),
        "truncated": sum(file["truncated"] for file in files) / asked,
        "no_answer": sum(file["no_answer"] for file in files) / asked,
        "accuracy_of_seeds": answers.right_SP.mean(axis=1).tolist(),
        "tokens_of_seeds": answers.tokens_SP.mean(axis=1).tolist(),
    }


def _compared(found: dict[str, dict[str, Answers]], key: str, other: str) -> dict[str, Any]:
    if key == other:
        return {}
    return {
        mode: compare(answers[key], answers[other]).to_json()
        for mode, answers in found.items()
        if key in answers and other in answers and set(answers[key].seeds) & set(answers[other].seeds)
    }


def _compute(bench: Bench, row: Row, seeds: Sequence[int]) -> dict[str, Any] | None:
    """Token-forwards of what the row was trained with, a mean over seeds, and its share of the full curriculum's."""
    if not row.stages:
        return None
    spent, full = [], []
    for seed in seeds:
        try:
            stages = bench.compute(seed, row.training)
            spent.append(sum(stages[number] for number in row.stages))
            full.append(sum(bench.compute(seed, bench.full()).values()))
        except (ValueError, KeyError):  # not trained under this seed (yet)
            continue
    if not spent:
        return None
    return {"token_forwards": sum(spent) / len(spent), "share_of_full": sum(spent) / sum(full)}


def _costs(bench: Bench) -> list[dict[str, Any]]:
    """What each trained stage cost, a mean over the seeds it was trained under."""
    trainings = list(dict.fromkeys(row.training for row in _shown(bench) if row.table != "sweep"))
    costs = []
    for training in trainings:
        for number in training.stages:
            measured: list[dict[str, float]] = []
            for seed in bench.seeds if number not in training.shared else ():
                note = bench.note(seed, training, number)
                try:
                    folder = bench.run_dir(seed, training, number)
                    spent = bench.compute(seed, training)[number]
                except (ValueError, KeyError):
                    continue
                if "peak_bytes" not in note:
                    continue
                metrics, run = read_metrics(folder / "metrics.jsonl"), read_json(folder / "run.json")
                made = run["details"].get("rollout")
                rollouts = {"rollout_share": made["share"], "sync_bytes": made["sync_bytes"],
                            "sync_s": made["sync_seconds"]} if made else {}  # fmt: skip
                train_s = _training_s(metrics, run["steps"])
                times = [line["step_time"] for line in metrics if "step_time" in line]
                measured.append({
                    "steps": run["steps"],
                    "s_a_step": sum(times) / len(times) if times else train_s / max(run["steps"], 1),
                    "training_s": train_s,
                    "stage_s": run["details"]["wall_s"],
                    "process_s": note["wall_s"],
                    "cpu_s": note["cpu_s"],
                    "peak_bytes": note["peak_bytes"],
                    "token_forwards": spent,
                    **rollouts,
                })  # fmt: skip
            if measured:
                mean = {key: sum(item[key] for item in measured) / len(measured) for key in measured[0]}
                costs.append({"trained_as": training.name, "stage": number, "seeds": len(measured), **mean})
    return costs


def _training_s(metrics: Sequence[dict[str, Any]], steps: int) -> float:
    """Seconds of all steps, by the clock of the run; the trainer's own starts anew with each process."""
    done = [(line["step"], line["wall_s"]) for line in metrics if "loss" in line]
    if len(done) < 2:
        return float(sum(line["train_runtime"] for line in metrics if "train_runtime" in line))
    (first, start_s), (last, end_s) = done[0], done[-1]
    return float((end_s - start_s) / (last - first) * steps)


def _asked(bench: Bench) -> dict[str, Any]:
    """Protocol and engine, as the evaluations on disk say them."""
    for seed in bench.seeds:
        greedy = read_json(bench.answers_path(seed, bench.full(), (), "greedy"))
        sampled = read_json(bench.answers_path(seed, bench.full(), (), "sampled"))
        if greedy:
            return {
                "protocol": greedy["protocol"],
                "engine": greedy["engine"],
                "sampling": {"temperature": sampled["engine"]["temperature"], "top_p": 1.0} if sampled else None,
                "held_out": greedy["problems"],
            }
    return {}


def _goals(
    found: dict[str, dict[str, Answers]], rows: dict[str, dict[str, Any]], base: str, final: str
) -> list[dict[str, Any]]:
    """The claims that are asked of this table, and whether they hold (by the point estimate), greedy and sampled."""
    goals: list[dict[str, Any]] = []
    for mode, answers in found.items():
        if base not in answers or final not in answers:
            continue
        against = compare(answers[final], answers[base])
        goals += [
            {"mode": mode, "claim": f"at least {100 * GOAL_ACCURACY:.2f} points above the base",
             "holds": against.accuracy.value >= GOAL_ACCURACY, "figure": _points(against)},
            {"mode": mode, "claim": f"outputs at least {-100 * GOAL_LENGTH:.1f} % shorter than the base's",
             "holds": against.length.value <= GOAL_LENGTH, "figure": _percent(against)},
        ]  # fmt: skip
        for kind in BASELINES:
            if kind in answers:
                difference = compare(answers[final], answers[kind])
                told = {"more": "", "less": "; the interval is below 0", "even": "; the interval holds 0"}
                figure = f"{_points(difference)}{told[verdict(difference.accuracy)]}; length {_percent(difference)}"
                goals.append({
                    "mode": mode,
                    "claim": f"more accurate than {rows[kind]['label']}, with shorter outputs",
                    "holds": difference.accuracy.value > 0 and difference.tokens.value < 0,
                    "figure": figure,
                })  # fmt: skip
    return goals


def _recipes(bench: Bench) -> list[dict[str, Any]]:
    """How each row was trained, under the first seed, by the configurations on disk."""
    from plyfold.core.config import load_config

    seed, recipes = bench.seeds[0], []
    for training in dict.fromkeys(row.training for row in _shown(bench) if row.table != "sweep"):
        path = bench.folder(seed) / "configs" / f"{training.name}.yaml"
        if not path.is_file():
            continue
        config = load_config(path)
        for stage in sorted(config.stages.values(), key=lambda stage: stage.number):
            if stage.number in training.shared:
                continue
            try:
                steps = read_json(bench.run_dir(seed, training, stage.number) / "run.json").get("steps")
            except ValueError:
                continue
            recipes.append({
                "trained_as": training.name,
                "stage": stage.number,
                "task": stage.task,
                "rows": (stage.data or config.data).rows,
                "rationales": (stage.data or config.data).rationales,
                "unaided_share": stage.unaided_share,
                "steps": steps,
                "batch": completions_a_step(stage),
                "learning_rate": stage.trainer.get("learning_rate"),
                "schedule": stage.trainer.get("lr_scheduler_type", "linear"),
                "reward": "" if stage.task == SUPERVISED else
                          stage.reward.mode + (f", brevity {stage.reward.brevity:g}" if stage.reward.mode ==
                                               "continuous" else ""),
            })  # fmt: skip
    return recipes


def _choices(
    bench: Bench, rows: dict[str, dict[str, Any]], found: dict[str, dict[str, Answers]], final: str
) -> list[dict[str, Any]]:
    """What each stage adds: the whole curriculum against the curriculum trained without it."""
    numbers, choices = bench.full().stages, []
    for left_out in numbers:
        key = f"without-{left_out}" if left_out != numbers[-1] else "+".join(map(str, numbers[:-1]))
        if key not in rows or final not in rows or key == final:
            continue
        told = {}
        for mode, answers in found.items():
            if key in answers and final in answers:
                difference = compare(answers[final], answers[key])
                told[mode] = {"accuracy": verdict(difference.accuracy), "tokens": verdict(difference.tokens),
                              "figure": f"{_points(difference)}, {_percent(difference)} in length"}  # fmt: skip
        choices.append({"stage": left_out, "without": key, **told})
    return choices


def _device(bench: Bench) -> str:
    try:
        run = read_json(bench.run_dir(bench.seeds[0], bench.full(), bench.full().stages[0]) / "run.json")
    except ValueError:
        return "cpu"
    return str(run.get("details", {}).get("device", "cpu"))


def _points(difference: Difference) -> str:
    accuracy = difference.accuracy
    return f"{100 * accuracy.value:+.1f} points {interval(accuracy.ci95, '+.1f')}"


def _percent(difference: Difference) -> str:
    length = difference.length
    return f"{100 * length.value:+.1f} % {interval(length.ci95, '+.1f')}"
