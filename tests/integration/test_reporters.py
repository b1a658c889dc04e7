"""What TRL reports while a stage trains, read back from the reporter's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plyfold.core.config import load_config
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.metrics import read_metrics

CONFIG = """
curriculum: tiny
base: {{repo: acme/tiny-qwen2, revision: auto, path: {base}, compute_dtype: float32}}
adapter: {{r: 4, alpha: 8}}
data: {{path: sandbox, rows: [0, 20]}}
eval: {{data: {{path: sandbox, split: test, rows: [0, 20]}}}}
threads: 1
stages:
  structure:
    number: 1
    task: reconstruct
    trainer: {{per_device_train_batch_size: 4, learning_rate: 1.0e-3, max_steps: 3, report_to: tensorboard}}
"""


def test_tensorboard_gets_what_metrics_jsonl_has(tiny_base: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "tiny.yaml").write_text(CONFIG.format(base=tiny_base()))
    train(load_config(tmp_path / "tiny.yaml"), Store(tmp_path / "store"), None, tmp_path / "runs")
    run_dir = tmp_path / "runs" / "tiny" / "1-structure"
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    (events,) = run_dir.rglob("events.out.tfevents*")
    reported = EventAccumulator(str(events))
    reported.Reload()
    losses = {event.step: event.value for event in reported.Scalars("train/loss")}
    assert losses == {line["step"]: pytest.approx(line["loss"]) for line in lines}
    assert len(losses) == 3
