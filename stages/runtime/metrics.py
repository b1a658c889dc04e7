"""The lines of a run's metrics.jsonl, read back, and what they come to over a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.disk.files import read_capped
from ...core.errors import IntegrityError
from ...core.reading.strict_json import parse_lines

METRICS = "metrics.jsonl"
MAX_METRICS_BYTES = 256_000_000
"""Largest metrics.jsonl that is read: some 500 bytes for each of 500,000 steps."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; what a kill has cut, or is no line of such a file, is dropped.

    Raises:
        IntegrityError: It is too large for one.
    """
    if not path.is_file():
        return []
    if (size := path.stat().st_size) > MAX_METRICS_BYTES:
        raise IntegrityError(
            "the metrics of a run are too large to be read",
            where=path,
            expected=f"at most {MAX_METRICS_BYTES:,} bytes",
            found=f"{size:,} bytes",
            next_step="move that file aside; what the run logged before is then not drawn",
        )
    return [row for row in parse_lines(read_capped(path, MAX_METRICS_BYTES)) if _is_step(row)]


def _is_step(row: dict[str, Any]) -> bool:
    alarms, wall_s = row.get("alarms", []), row.get("wall_s", 0.0)
    return (
        type(row.get("step")) is int
        and isinstance(wall_s, (int, float))
        and isinstance(alarms, list)
        and all(isinstance(alarm, dict) and type(alarm.get("step")) is int and "name" in alarm for alarm in alarms)
    )


def final_means(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of the last ten steps of what people ask for."""
    wanted = ("loss", "mean_token_accuracy", "reward", "accuracy", "accuracy_unaided", "completions/mean_length",
              "completions/clipped_ratio", "kl")  # fmt: skip
    last = [line for line in metrics if "loss" in line][-10:]
    means = {}
    for key in wanted:
        values = [line[key] for line in last if isinstance(line.get(key), (int, float))]
        if values:
            means[key] = round(sum(values) / len(values), 6)
    return means


def rollout_totals(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds and bytes of a whole run, from the lines of its metrics.jsonl; empty for supervised training."""
    lines = [line for line in metrics if "rollout/wall_seconds" in line]
    if not lines:
        return {}
    names = ("seconds", "sync_seconds", "sync_bytes", "wall_seconds")
    totals = {name: sum(line[f"rollout/{name}"] for line in lines) for name in names}
    share = (totals["seconds"] + totals["sync_seconds"]) / totals["wall_seconds"] if totals["wall_seconds"] else 0.0
    return {name: round(value, 3) for name, value in totals.items()} | {"share": round(share, 4)}
