"""What TRL reports while a stage trains, read back from the reporter's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plyfold.core.config import load_config
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.runtime.metrics import read_metrics

from ...support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

STAGES = """
  structure:
    number: 1
    task: reconstruct
    trainer: &trainer {per_device_train_batch_size: 4, learning_rate: 1.0e-3, max_steps: 3, report_to: REPORTER}
  again:
    number: 2
    task: reconstruct
    trainer: *trainer
"""


def _train(reporter: str, base: Path, folder: Path) -> list[Path]:
    """The run folders of two stages that were trained with a reporter."""
    (folder / "tiny.yaml").write_text(tiny_config(base, STAGES.replace("REPORTER", reporter), rows=20, scored=20))
    train(load_config(folder / "tiny.yaml"), Store(folder / "store"), None, folder / "runs")
    return [folder / "runs" / "tiny" / name for name in ("1-structure", "2-again")]


def _losses(run_dir: Path) -> dict[int, Any]:
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    return {line["step"]: pytest.approx(line["loss"]) for line in lines}


def test_tensorboard_gets_what_metrics_jsonl_has(tiny_base: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run_dir in _train("tensorboard", tiny_base(), tmp_path):
        (events,) = run_dir.rglob("events.out.tfevents*")
        reported = EventAccumulator(str(events))
        reported.Reload()
        losses = {event.step: event.value for event in reported.Scalars("train/loss")}
        assert losses == _losses(run_dir)
        assert len(losses) == 3


def test_every_stage_is_a_run_of_its_own_at_wandb(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    runs, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: runs.append(init(**options)) or runs[-1])
    _train("wandb", tiny_base(), tmp_path)
    assert [(run.name, run.project) for run in runs] == [("tiny-1-structure", "tiny"), ("tiny-2-again", "tiny")]
    assert wandb.run is None
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2

    with init(project="theirs") as theirs:  # of a notebook that calls plyfold
        again = tmp_path / "again"
        again.mkdir()
        _train("wandb", tiny_base(), again)
        assert wandb.run is theirs


def test_trackio_gets_what_metrics_jsonl_has(tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage", reason="trackio is not installed").SQLiteStorage
    for run_dir in _train("trackio", tiny_base(), tmp_path):
        reported = storage.get_logs("tiny", f"tiny-{run_dir.name}")
        losses = {line["train/global_step"]: line["train/loss"] for line in reported if "train/loss" in line}
        assert losses == _losses(run_dir)
        assert len(losses) == 3
