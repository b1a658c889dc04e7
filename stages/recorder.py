"""What a run leaves behind: metrics.jsonl, progress, alarms, and the checkpoints a rerun may continue from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from ..adapters.stack import check_frozen, has_moved
from ..core.console import Task, warn
from ..core.digest import sha256_file
from ..core.errors import FailedError
from ..core.files import write_json
from .alarms import Alarm, Alarms

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
COMPLETE = "plyfold.json"
"""Written last into a checkpoint: without it the checkpoint is half-written and never resumed from."""

_NOTED = {"loss": "loss", "mean_token_accuracy": "token accuracy", "reward": "reward", "accuracy": "accuracy",
          "completions/mean_length": "tokens"}  # fmt: skip


class RunRecorder(TrainerCallback):
    """Writes metrics.jsonl, moves the progress bar, raises alarms and checks the freeze at every step."""

    def __init__(self, run_dir: Path, task: Task) -> None:
        self.path = run_dir / METRICS
        self.task = task
        self.shown = 0
        self.step = 0
        """Steps done, for whoever has to say where it stopped."""
        self.alarms = Alarms()

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
        text = "".join(f"{json.dumps(line)}\n" for line in kept)
        self.path.write_text(text, encoding="utf-8")
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

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: PeftModel, **_: Any) -> None:
        """Say so if all of it was for nothing."""
        if not state.is_world_process_zero:
            return
        if alarms := self.alarms.finish(state.global_step, moved=has_moved(model)):
            self._append(state, {}, alarms)

    def _append(self, state: Any, measured: dict[str, Any], alarms: list[Alarm]) -> None:
        line = {"step": state.global_step, **measured}
        if alarms:
            line["alarms"] = [alarm.to_json() for alarm in alarms]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for alarm in alarms:
            warn(f"step {alarm.step}: {alarm.message}")


def seal_checkpoint(folder: Path, fingerprint: str) -> None:
    """Mark a checkpoint as complete, with the digest of each file: transformers goes on without one that is gone."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    write_json(folder / COMPLETE, {"schema": 1, "fingerprint": fingerprint, "files": files})


def last_checkpoint(run_dir: Path, fingerprint: str) -> Path | None:
    """The newest sound checkpoint of this very configuration.

    Half-written and foreign ones are passed over, damaged ones with a warning.
    """
    found = [(_step(path), path) for path in (run_dir / CHECKPOINTS).glob("checkpoint-*") if _step(path) >= 0]
    for _, path in sorted(found, reverse=True):
        try:
            note = json.loads((path / COMPLETE).read_bytes())
            if note["fingerprint"] != fingerprint:
                continue
            damaged = [name for name, digest in note.get("files", {}).items() if not _is(path / name, digest)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if not damaged:
            return path
        warn(f"{path} is damaged and passed over: {', '.join(damaged)} is not as it was written")
    return None


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_file(file) == digest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; a line cut by a kill is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return metrics


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


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
