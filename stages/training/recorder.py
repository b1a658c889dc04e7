"""What is seen of a run while it trains: metrics.jsonl, progress and alarms; and that nothing else can move."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from ...adapters.stack import check_frozen, has_moved
from ...core.console import Task, warn
from ...core.disk.files import write_bytes
from ...core.errors import FailedError
from ..runtime.metrics import METRICS, read_metrics
from .curves import write_curves
from .health import Alarm, Alarms

DRAW_S = 10.0
"""Seconds at least between two drawings of the page of curves."""

_NOTED = {"loss": "loss", "mean_token_accuracy": "token accuracy", "reward": "reward", "accuracy": "accuracy",
          "completions/mean_length": "tokens"}  # fmt: skip


class RunRecorder(TrainerCallback):
    """Writes metrics.jsonl, moves the progress bar, raises alarms and checks the freeze at every step."""

    def __init__(self, run_dir: Path, task: Task, start_s: float | None = None) -> None:
        """A recorder of the run in `run_dir`, which began at `start_s` of the monotonic clock; None means now."""
        self.path = run_dir / METRICS
        self._start_s = time.monotonic() if start_s is None else start_s
        self.task = task
        self.shown = 0
        self.step = 0
        """Steps done, for whoever has to say where it stopped."""
        self.alarms = Alarms()
        self._drawn_s = -math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop metrics of steps after the checkpoint that is resumed from; they are run again."""
        self.step = state.global_step
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_metrics(self.path)
                if line["step"] <= state.global_step and line.keys() != {"step", "alarms"}]  # fmt: skip
        self.alarms = Alarms()
        for line in kept:
            self.alarms.observe(line)
        self._start_s -= max((line.get("wall_s", 0.0) for line in kept), default=0.0)
        write_bytes(self.path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self.task.total(state.max_steps)
        self.task.advance(state.global_step)
        self.shown = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: PeftModel, **_: Any) -> None:
        """Refuse to go on once anything but the trainable adapter could move."""
        self.step = state.global_step
        check_frozen(model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append what was measured, and show the few numbers that matter."""
        logs = logs or {}
        finite = {key: _finite(value) for key, value in logs.items()}
        if state.is_world_process_zero:
            self._append(state, finite, self.alarms.observe({"step": state.global_step, **finite}))
        if isinstance(norm := logs.get("grad_norm"), float) and not math.isfinite(norm):
            raise not_finite("gradient norm", state.global_step, norm)
        if not state.is_world_process_zero:
            return
        note = "  ".join(f"{label} {finite[key]:.3g}" for key, label in _NOTED.items() if finite.get(key) is not None)
        self.task.advance(state.global_step - self.shown, note)
        self.shown = state.global_step
        if time.monotonic() - self._drawn_s >= DRAW_S:
            write_curves(self.path.parent.parent, running=True)
            self._drawn_s = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: PeftModel, **_: Any) -> None:
        """Say so if all of it was for nothing; a run that was stopped goes on."""
        if not state.is_world_process_zero or state.global_step < state.max_steps:
            return
        if alarms := self.alarms.finish(state.global_step, moved=has_moved(model)):
            self._append(state, {}, alarms)

    def wall_s(self) -> float:
        """Seconds that led here: of this process, and of those before it up to the checkpoint it went on from."""
        return round(time.monotonic() - self._start_s, 2)

    def _append(self, state: Any, measured: dict[str, Any], alarms: list[Alarm]) -> None:
        line = {"step": state.global_step, **measured}
        if measured:
            line["wall_s"] = self.wall_s()
        if alarms:
            line["alarms"] = [alarm.to_json() for alarm in alarms]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for alarm in alarms:
            warn(f"step {alarm.step}: {alarm.message}")


def not_finite(what: str, step: int | str, value: object) -> FailedError:
    """The error of a run whose numbers blew up."""
    return FailedError(
        f"the {what} is not finite",
        where=f"step {step}" if isinstance(step, int) else step,
        found=value,
        next_step="lower trainer.learning_rate; the checkpoints before this step are sound",
    )


def require_finite(model: PeftModel, step: int) -> None:
    """Refuse to keep weights that blew up: gradients are looked at only where they are logged.

    Raises:
        FailedError: A number of what trains is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise not_finite("adapter", step, name)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
