"""What goes wrong in a stage is one clear error or a counted skip, and what was done before it is kept."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base import load
from plyfold.cli.main import run as run_command
from plyfold.core.config import CurriculumConfig, load_config
from plyfold.core.errors import FailedError, IntegrityError, NotFoundError
from plyfold.registry.store import Store
from plyfold.sandbox.problems import make_problems
from plyfold.stages.curriculum import train
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.rewards.hierarchical import HierarchicalReward
from plyfold.stages.runtime.metrics import read_metrics
from plyfold.stages.training.checkpoints import last_checkpoint
from plyfold.stages.training.recorder import RunRecorder
from plyfold.stages.training.run_folder import unfinished
from plyfold.stages.training.trainers import GRPOTrainer, StageGRPOTrainer, StageSFTTrainer

from ..support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

STAGES = """
  structure:
    number: 1
    task: reconstruct
    trainer: {per_device_train_batch_size: 4, learning_rate: 1.0e-3, max_steps: 4, save_steps: 2}
  brevity:
    number: 2
    task: complete
    masking: {mode: scattered}
    trainer: {per_device_train_batch_size: 4, gradient_accumulation_steps: 2, num_generations: 4,
               max_completion_length: 8, learning_rate: 1.0e-3, max_steps: 2}
"""


@pytest.fixture
def make_config(tmp_path: Path, tiny_base: Any) -> Callable[..., CurriculumConfig]:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(tiny_base(), STAGES, rows=20, scored=20))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _interrupt(config: CurriculumConfig, store: Store, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of stage 1 that ended in its third step; its folder."""

    class Killed(BaseException):
        pass

    def kill(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_end", kill)
        with pytest.raises(Killed):
            train(config, store, [1], runs)
    return runs / "tiny" / "1-structure"


@pytest.mark.parametrize(("number", "iterations", "kept"), [("SIGINT", 1, 3), ("SIGTERM", 2, 4)])
def test_a_signal_lets_the_step_end_and_keeps_it(
    number: str,
    iterations: int,
    kept: int,
    make_config: Callable[..., CurriculumConfig],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With two iterations the fourth step, since completions are drawn anew every second one."""
    trainer = {"max_steps": 6, "save_steps": 6, "num_iterations": iterations}
    config = make_config(*(f"stages.brevity.trainer.{name}={value}" for name, value in trainer.items()))
    train(config, store, [1], tmp_path / "runs")
    asked, handler = getattr(signal, number), signal.getsignal(getattr(signal, number))
    on_step_begin = RunRecorder.on_step_begin

    def signalled(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        on_step_begin(self, args, state, control, **others)
        if state.global_step == 2:  # the third step begins
            signal.raise_signal(asked)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_begin", signalled)
        with pytest.raises(KeyboardInterrupt):
            train(config, store, [2], tmp_path / "runs")
    said = capsys.readouterr().err
    assert said.count("stops after this step, which is kept in a checkpoint") == 1
    assert "taught nothing" not in said
    assert "changes nothing" not in said
    assert signal.getsignal(asked) is handler
    assert unfinished(plan_curriculum(config, store), store, tmp_path / "runs") == {2: kept}
    assert 2 not in store.stages("tiny")
    assert train(config, store, [2], tmp_path / "runs").stages[1].trained
    steps = [line["step"] for line in read_metrics(tmp_path / "runs" / "tiny" / "2-brevity" / "metrics.jsonl")]
    assert sorted(set(steps)) == list(range(1, 7))


def test_half_a_stage_is_never_published(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == 3

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_end", stop)
        with pytest.raises(FailedError, match="ended before its last step") as caught:
            train(make_config(), store, [1], tmp_path / "runs")
    assert caught.value.found == "step 3 of 4"
    assert store.stages("tiny") == {}
    assert train(make_config(), store, [1], tmp_path / "runs").stages[0].details["steps"] == 4


def test_a_second_signal_stops_at_once(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    def signalled(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("once")
        signal.raise_signal(signal.SIGINT)
        reached.append("twice")

    monkeypatch.setattr(RunRecorder, "on_step_begin", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(), store, [1], tmp_path / "runs")
    assert reached == ["once"]


def test_out_of_memory_says_where_and_what_to_do_and_keeps_the_checkpoint(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    step = StageSFTTrainer.training_step

    def no_room(self: Any, *args: Any, **kwargs: Any) -> Any:  # only the raise is made up: no GPU to fill here
        if self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageSFTTrainer, "training_step", no_room)
        with pytest.raises(FailedError, match="out of memory") as caught:
            train(make_config(), store, [1], tmp_path / "runs")
    assert caught.value.where == "stage 1 structure, step 3"
    assert caught.value.found == "CUDA out of memory. Tried to allocate 2.00 GiB."
    told = caught.value.next_step
    for way in ("per_device_train_batch_size=2", "gradient_accumulation_steps=2", "gradient_checkpointing=true"):
        assert f"stages.structure.trainer.{way}" in told
    run_dir = tmp_path / "runs" / "tiny" / "1-structure"
    fingerprint = json.loads((run_dir / "run.json").read_text())["fingerprint"]
    assert last_checkpoint(run_dir, fingerprint) == run_dir / "checkpoints" / "checkpoint-2"
    train(make_config(), store, [1], tmp_path / "runs")
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]


def test_weights_that_blow_up_between_logged_steps_reach_no_checkpoint(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = StageSFTTrainer.training_step

    def blown(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 3:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(StageSFTTrainer, "training_step", blown)
    with pytest.raises(FailedError, match="adapter is not finite") as caught:
        train(make_config("stages.structure.trainer.logging_steps=20"), store, [1], tmp_path / "runs")
    assert caught.value.where == "stage 1 structure, step 4"
    run_dir = tmp_path / "runs" / "tiny" / "1-structure"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (run_dir / "adapter").exists()


def test_memory_that_no_device_has_is_told_as_such(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def too_much(*_: Any, **__: Any) -> Any:  # a real refusal of torch's CPU allocator
        return torch.empty(1 << 60, dtype=torch.uint8)

    config = make_config()
    config.stages = {"brevity": config.stages["brevity"]}
    with monkeypatch.context() as patch:
        patch.setattr(StageGRPOTrainer, "training_step", too_much)
        with pytest.raises(FailedError, match="out of memory") as caught:
            train(config, store, None, tmp_path / "runs")
    assert caught.value.where == "stage 2 brevity, step 1"
    assert "per_device_train_batch_size=2" in caught.value.next_step
    with monkeypatch.context() as patch:
        patch.setattr(load, "load_nf4", too_much)
        with pytest.raises(FailedError, match="out of memory") as caught:
            train(config, store, None, tmp_path / "runs")
    assert caught.value.where == "stage 2 brevity, as its base was loaded"
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", too_much)
    with pytest.raises(FailedError, match="out of memory") as caught:
        train(config, store, None, tmp_path / "runs")
    told = caught.value.next_step
    assert "stages.brevity.trainer.generation_batch_size (now" in told
    assert "num_generations=4" in told
    assert "per_device_train_batch_size" not in told


@pytest.mark.parametrize(
    ("name", "gone"), [("adapter_model.safetensors", False), ("optimizer.pt", True), ("trainer_state.json", False)]
)
def test_a_damaged_checkpoint_is_passed_over_aloud(
    name: str,
    gone: bool,
    make_config: Callable[..., CurriculumConfig],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config("stages.structure.trainer.save_steps=1")
    run_dir = _interrupt(config, store, tmp_path / "runs", monkeypatch)
    fingerprint = json.loads((run_dir / "run.json").read_text())["fingerprint"]
    newest = last_checkpoint(run_dir, fingerprint)
    assert newest is not None
    file = newest / name
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    before = last_checkpoint(run_dir, fingerprint)
    assert before is not None
    assert before.name == "checkpoint-1"
    assert f"{newest.name} is damaged and passed over: {name}" in capsys.readouterr().err.replace("\n", "")
    train(config, store, [1], tmp_path / "runs")
    assert "continues from checkpoint-1" in capsys.readouterr().err
    assert store.stage("tiny", 1).record.recipe.steps == 4


@pytest.mark.parametrize(("steps", "rows"), [(3, 20), (-1, 12)], ids=["max_steps", "epochs"])
def test_a_run_killed_after_its_last_step_makes_no_step_more(
    steps: int,
    rows: int,
    make_config: Callable[..., CurriculumConfig],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(f"stages.structure.trainer.max_steps={steps}",
                         "stages.structure.trainer.lr_scheduler_type=constant", f"data.rows=[0, {rows}]")  # fmt: skip

    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("plyfold.stages.training.stage_run._StageRunner.finish", kill)
        with pytest.raises(Killed):
            train(config, store, [1], tmp_path / "runs")
    run_dir = tmp_path / "runs" / "tiny" / "1-structure"
    lines = read_metrics(run_dir / "metrics.jsonl")
    train(config, store, [1], tmp_path / "runs")
    assert store.stage("tiny", 1).record.recipe.steps == 3
    weights = [folder / "adapter_model.safetensors" for folder in
               (run_dir / "checkpoints" / "checkpoint-3", run_dir / "adapter")]  # fmt: skip
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = read_metrics(run_dir / "metrics.jsonl")
    assert [line for line in again if "loss" in line] == [line for line in lines if "loss" in line]


def test_rows_that_cannot_be_taught_from_are_counted_by_reason(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(row) for row in make_problems("train", 12)]
    rows[1]["answer"] = "#### 5"
    rows[2]["answer"] = ""
    rows[3]["question"] = ""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quick = (f"data.path={file}", "data.rows=null", "stages.structure.trainer.max_steps=1")
    train(make_config(*quick), store, [1], tmp_path / "runs")
    told = capsys.readouterr().err
    for reason in ("9 rows", "1 skipped (fewer than 2 steps)", "1 skipped (no gold answer)", "1 skipped (no question)"):
        assert reason in told
    assert store.stage("tiny", 1).record.data[0].rows == 9


@pytest.mark.parametrize("mode", ["continuous", "paper", "binary"])
def test_an_empty_completion_is_wrong_and_nothing_else(mode: str, make_config: Callable[..., CurriculumConfig]) -> None:
    config = make_config(f"stages.brevity.reward.mode={mode}")
    reward = HierarchicalReward(config.stages["brevity"].reward, "complete")
    columns = {"gold": ["1", "1"], "unaided": [True, False], "teacher_tokens": [0, 9]}
    columns |= {"teacher_words": [0, 9], "teacher_steps": [0, 2]}
    empty = reward(prompts=["p", "p"], completions=["", ""], completion_ids=[[], [5]], **columns)  # type: ignore[arg-type]
    wrong = reward(prompts=["p"], completions=["no"], completion_ids=[[1, 2]], **{k: v[1:] for k, v in columns.items()})  # type: ignore[arg-type]
    assert empty == [wrong[0]] * 2


def test_a_prior_whose_files_are_gone_or_damaged_is_refused(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path
) -> None:
    config = make_config("stages.structure.trainer.max_steps=1")
    train(config, store, [1], tmp_path / "runs")
    prior = store.stage("tiny", 1).path
    aside = tmp_path / "aside"
    shutil.move(prior, aside)
    with pytest.raises(NotFoundError) as caught:
        plan_curriculum(config, store, [2])
    assert caught.value.next_step == "the same command with --stages 1,2"
    shutil.move(aside, prior)
    weights = prior / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(IntegrityError):
        train(config, store, [2], tmp_path / "runs")
    assert sorted(store.stages("tiny")) == [1]


def test_numbers_that_are_not_finite_end_grpo_too(
    make_config: Callable[..., CurriculumConfig], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HierarchicalReward, "score", lambda self, text, *_: float(len(set(text))))
    config = make_config("stages.brevity.trainer.learning_rate=1e30", "stages.brevity.trainer.max_grad_norm=0")
    config.stages = {"brevity": config.stages["brevity"]}
    with pytest.raises(FailedError, match="not finite") as caught:
        train(config, store, None, tmp_path / "runs")
    assert caught.value.where == "stage 2 brevity, step 2"
    assert "learning_rate" in caught.value.next_step


def test_a_gate_stops_before_the_next_stage_and_is_not_measured_twice(
    make_config: Callable[..., CurriculumConfig],
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["stages.structure.trainer.max_steps=1", "stages.brevity.trainer.max_steps=1", "eval.max_new_tokens=4"]
    command = ["train", "-c", "tiny.yaml", "--registry", str(store.root), *quick]
    make_config()
    assert run_command([*command, "stages.structure.gate=accuracy >= 0.5", "--dry-run"]) == 0
    assert "has to reach accuracy >= 0.5" in capsys.readouterr().out
    assert run_command([*command, "stages.structure.gate=accuracy >= 60"]) == 2
    assert run_command([*command, "stages.structure.gate=accuracy >= 0.5"]) == 5
    told = capsys.readouterr().err
    assert "error[gate]" in told
    assert "n 20" in told
    assert sorted(store.stages("tiny")) == [1]
    (measured,) = store.attestations(store.ref("tiny", 1), "eval")
    assert run_command([*command, "stages.structure.gate=accuracy >= 0.5"]) == 5
    assert run_command([*command, "stages.structure.gate=tokens <= 4 and accuracy <= 0.9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [item["passed"] for item in result["stages"][0]["gate"]] == [True, True]
    assert [stage["trained"] for stage in result["stages"]] == [False, True]
    assert [item.payload for item in store.attestations(store.ref("tiny", 1), "eval")] == [measured.payload]
    assert len(list((tmp_path / "runs" / "tiny" / "eval").iterdir())) == 1
