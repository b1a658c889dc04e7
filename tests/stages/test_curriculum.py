"""Whole stages on real bitsandbytes, PEFT and TRL, with a tiny random base: a few steps each.

A random base never answers right, so where gradients matter the reward is replaced by one that varies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.adapters.base.load import load_nf4, load_tokenizer
from plyfold.adapters.base.resolve import BaseRef, Quantisation, tokenizer_digest
from plyfold.adapters.stack import attach, frozen_digest
from plyfold.adapters.tensors import read_adapter, tensor_digest
from plyfold.cli.main import run as run_command
from plyfold.core.config import CurriculumConfig, load_config
from plyfold.core.disk.digest import sha256_file
from plyfold.core.errors import BaseMismatchError, ConfigError, FailedError, NotFoundError
from plyfold.evaluation.grader import grader
from plyfold.registry.record import check_portable
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.plan.trl_args import trainer_arguments
from plyfold.stages.rewards.hierarchical import HierarchicalReward
from plyfold.stages.runtime.metrics import read_metrics
from plyfold.stages.training.checkpoints import last_checkpoint
from plyfold.stages.training.recorder import RunRecorder
from plyfold.stages.training.run_folder import unfinished

from ..support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., CurriculumConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_base: Any) -> MakeConfig:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(tiny_base()))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def varied_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HierarchicalReward, "score", lambda self, text, *_: float(len(set(text))))


def _tensors(folder: Path) -> dict[str, Any]:
    factors = read_adapter(folder).factors
    return {f"{name}.{half}": getattr(value, half) for name, value in factors.items() for half in ("A_RI", "B_OR")}


def test_three_stages_train_and_their_lineage_is_on_record(
    make_config: MakeConfig, store: Store, tiny_base: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    result = train(config, store, runs_dir=tmp_path / "runs")
    assert [stage.trained for stage in result.stages] == [True] * 3

    entries = [store.stage("tiny", number) for number in (1, 2, 3)]
    digests = [entry.digest for entry in entries]
    for index, entry in enumerate(entries):
        record = entry.record
        assert [parent.digest for parent in record.parents] == record.requires == digests[:index]
        assert {parent.role for parent in record.parents} <= {"active_during_training"}
        assert record.recipe.steps == 4
        assert record.data[0].rows == 40
        assert record.base.quantisation == Quantisation(compute_dtype="float32").to_json()
        assert record.base.config_digest == sha256_file(tiny_base() / "config.json")
        assert record.base.tokenizer_digest == tokenizer_digest(tiny_base())
        assert record.weights.digest == tensor_digest(entry.path)
        assert {path.name for path in entry.path.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "lineage.json"
        }  # fmt: skip
        check_portable(record.to_json())
        assert str(tmp_path) not in json.dumps(record.to_json())
    assert {entry.record.recipe.details["grader"] for entry in entries} == {grader()}
    assert entries[2].record.recipe.details["mined"]["failures"] == 12  # a random base solves nothing
    one, two, three = (_tensors(entry.path) for entry in entries)
    for name in (name for name in one if name.endswith("A_RI")):  # stages read directions of their own
        for first, second in ((one, two), (one, three), (two, three)):
            assert torch.cosine_similarity(first[name].flatten(), second[name].flatten(), dim=0).abs() < 0.5
    assert result.curves == tmp_path / "runs" / "tiny" / "curves.html"
    assert "3 remedy" in result.curves.read_text()

    run_dir = tmp_path / "runs" / "tiny" / "2-brevity"
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "reward" in line]
    assert steps == [1, 2, 3, 4]
    assert len(list((run_dir / "completions").glob("*.parquet"))) == 4
    assert (run_dir / "config.resolved.yaml").is_file()
    shown = capfd.readouterr()
    assert "'loss'" not in shown.out + shown.err  # neither TRL's prints nor bars
    assert "it/s]" not in shown.err

    assert run_command(["verify", "--deep", "--registry", str(store.root), "--json"]) == 0
    assert [check["notes"] for check in json.loads(capfd.readouterr().out)["checks"]] == [[]] * 3
    first = entries[0].record
    forged = first.recipe.model_copy(update={"config": {**first.recipe.config, "seed": 7}})
    store.publish(entries[0].path, first.model_copy(update={"recipe": forged}))
    assert run_command(["verify", "--deep", "--registry", str(store.root), "--json"]) == 0
    (note,) = (note for check in json.loads(capfd.readouterr().out)["checks"] for note in check["notes"])
    assert note.startswith("its config_digest is not that of its configuration")

    plan = plan_curriculum(config, store)
    assert [stage.status for stage in plan.stages] == ["trained"] * 3
    again = train(config, store, runs_dir=tmp_path / "runs")
    assert [stage.trained for stage in again.stages] == [False] * 3
    assert [stage.digest for stage in again.stages] == digests

    changed = plan_curriculum(make_config("stages.brevity.reward.brevity=0.9"), store)
    assert [stage.status for stage in changed.stages] == ["trained", "stale", "stale"]
    assert changed.stages[1].reasons == ("its configuration has changed: reward.brevity 0.5 -> 0.9",)
    assert changed.stages[2].reasons == ("stage 2 is stale",)

    with pytest.raises(BaseMismatchError) as caught:
        plan_curriculum(make_config("base.double_quant=false"), store)
    assert caught.value.exit_code == 8


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["stages.brevity.trainer.num_iterations=2"],
        ["stages.brevity.data.path=sandbox", "stages.brevity.data.rows=[0,5]"],  # two steps a pass over the rows
    ],
    ids=["once", "twice", "in another pass"],
)
def test_a_killed_run_continues_to_the_very_same_adapter(
    extra: list[str],
    make_config: MakeConfig,
    store: Store,
    tmp_path: Path,
    varied_reward: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, name = "stages.structure.trainer.max_steps=2", "2-brevity"
    train(make_config(short), store, [1], tmp_path / "runs")
    config = make_config(short, "stages.brevity.trainer.beta=0.05", *extra)
    other, first = Store(tmp_path / "other"), store.stage("tiny", 1)
    other.set_ref("tiny", 1, other.publish(first.path, first.record))
    train(config, other, [2], tmp_path / "whole")

    on_step_end = RunRecorder.on_step_end

    def killed_at_three(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise _Killed
        on_step_end(self, args, state, control, **others)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_end", killed_at_three)
        with pytest.raises(_Killed):
            train(config, store, [2], tmp_path / "runs")
    run_dir = tmp_path / "runs" / "tiny" / name
    assert 2 not in store.stages("tiny")
    checkpoint = run_dir / "checkpoints" / "checkpoint-2"
    half_written = run_dir / "checkpoints" / "checkpoint-3"
    half_written.mkdir()
    assert last_checkpoint(run_dir, json.loads((run_dir / "run.json").read_text())["fingerprint"]) == checkpoint
    assert set(_tensors(checkpoint)) == set(_tensors(tmp_path / "whole" / "tiny" / name / "adapter"))  # default alone

    metrics = run_dir / "metrics.jsonl"
    slow = [line | {"wall_s": line["wall_s"] + 1000} for line in read_metrics(metrics)]  # its last step is step 2
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in [*slow, slow[-1] | {"step": 3, "wall_s": 5000}]))

    assert unfinished(plan_curriculum(config, store), store, tmp_path / "runs") == {2: 2}
    _, stage = train(config, store, [2], tmp_path / "runs").stages[:2]
    assert unfinished(plan_curriculum(config, store), store, tmp_path / "runs") == {}
    assert 1000 < stage.details["wall_s"] < 5000  # the seconds of the killed process too, up to its checkpoint
    assert store.stage("tiny", 2).record.recipe.details["wall_s"] == stage.details["wall_s"]
    whole, resumed = (_tensors(root / "tiny" / name / "adapter") for root in (tmp_path / "whole", tmp_path / "runs"))
    assert all(whole[key].equal(resumed[key]) for key in whole)
    lines = [[line["step"] for line in read_metrics(root / "tiny" / name / "metrics.jsonl") if "loss" in line]
             for root in (tmp_path / "whole", tmp_path / "runs")]  # fmt: skip
    assert lines[0] == lines[1] == [1, 2, 3, 4]
    # The reference policy is base plus prior: no divergence before the first update, then some.
    kl = [line["kl"] for line in read_metrics(metrics) if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert max(kl[1:]) > 1e-6


def test_the_papers_reward_trains_and_its_components_are_logged(
    make_config: MakeConfig, store: Store, tmp_path: Path
) -> None:
    config = make_config("stages.brevity.reward.mode=paper", "stages.brevity.trainer.max_steps=2")
    config.stages = {"brevity": config.stages["brevity"]}  # first of its curriculum: nothing to train before it
    train(config, store, None, tmp_path / "runs")
    lines = [
        line for line in read_metrics(tmp_path / "runs" / "tiny" / "2-brevity" / "metrics.jsonl") if "loss" in line
    ]
    assert [line["reward"] for line in lines] == [-2.0, -2.0]  # a random base answers nothing right
    for name, value in (("share_wrong", 1), ("share_unformatted", 0), ("share_correct", 0), ("brevity", 0)):
        assert [line[f"reward/{name}"] for line in lines] == [value, value]


def test_every_factor_trains_in_float32_and_nothing_else_moves(
    make_config: MakeConfig, store: Store, tmp_path: Path, varied_reward: None
) -> None:
    import torch

    from plyfold.stages.training.trainers import StageGRPOTrainer

    train(make_config("stages.structure.trainer.max_steps=2"), store, [1], tmp_path / "runs")
    config = make_config("stages.brevity.trainer.learning_rate=1e-6", "stages.brevity.trainer.max_steps=4")
    plan = plan_curriculum(config, Store(tmp_path / "empty"))
    model = attach(load_nf4(plan.base, plan.quantisation), config.adapter, store.stage("tiny", 1).path, seed=0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    digest = frozen_digest(model)

    class NoTask:
        def advance(self, steps: int = 1, note: str = "") -> None: ...
        def total(self, steps: int) -> None: ...

    rows = [{"prompt": "Question: a\nSolution:\n", "gold": "1", "teacher_tokens": 9, "unaided": True}] * 4
    trainer = StageGRPOTrainer(
        model=model,
        args=trainer_arguments(config, "brevity", tmp_path / "grpo", on_gpu=False),  # type: ignore[arg-type]
        rows=rows,
        reward=HierarchicalReward(config.stages["brevity"].reward),
        tokenizer=load_tokenizer(plan.base.path),
        base=BaseRef(repo="acme/tiny-qwen2", revision="0" * 40, path=plan.base.path),
        fingerprint="none",
        callbacks=[RunRecorder(tmp_path, NoTask())],
    )
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert (trainer.scale_rewards, trainer.loss_type, trainer.args.disable_dropout) == ("batch", "dapo", True)
    trainer.train()
    assert frozen_digest(model) == digest
    moved = {name: (value != before[name]).float().mean().item() for name, value in model.named_parameters()}
    assert {name for name, share in moved.items() if share} == {name for name in moved if ".default." in name}
    # In bfloat16 at this learning rate 2 % of A would ever move.
    assert min(share for name, share in moved.items() if "lora_A.default" in name) > 0.99


def test_another_configuration_starts_afresh_and_keeps_the_old_run(
    make_config: MakeConfig, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("stages.structure.trainer.max_steps=2",)
    train(make_config(*short), store, [1], tmp_path / "runs")
    train(make_config(*short, "seed=1"), store, [1], tmp_path / "runs")
    folders = sorted(path.name for path in (tmp_path / "runs" / "tiny").iterdir() if path.is_dir())
    assert len(folders) == 2
    assert folders[1].startswith("1-structure.")
    assert "another configuration" in capsys.readouterr().err
    assert store.stage("tiny", 1).record.recipe.seed == 1


def test_a_stage_is_stale_once_other_stages_stand_below_it(
    make_config: MakeConfig, store: Store, tmp_path: Path
) -> None:
    quick = [f"stages.{name}.trainer.max_steps=1" for name in ("structure", "brevity")]
    both, alone = make_config(*quick), make_config(*quick)
    both.stages = {name: both.stages[name] for name in ("structure", "brevity")}
    alone.stages = {"brevity": both.stages["brevity"]}
    train(alone, store, None, tmp_path / "runs")
    assert plan_curriculum(alone, store).stages[0].status == "trained"
    assert plan_curriculum(both, store).stages[1].reasons == (
        "it was trained on top of the base, and the config has 1 below it",
    )
    train(both, store, None, tmp_path / "runs")
    plan = plan_curriculum(both, store)
    assert [stage.status for stage in plan.stages] == ["trained", "trained"]
    assert len(store.stage("tiny", 2).record.parents) == 1
    below = "it was trained on top of 1, and the config has the base below it"
    assert plan_curriculum(alone, store).stages[0].reasons == (below,)


def test_a_configuration_that_comes_back_finds_its_runs_finished(
    make_config: MakeConfig, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"stages.{name}.trainer.max_steps=1" for name in ("structure", "brevity")]

    def of(seed: int) -> CurriculumConfig:
        config = make_config(*quick, f"seed={seed}")
        config.stages = {name: config.stages[name] for name in ("structure", "brevity")}
        return config

    train(of(0), store, None, tmp_path / "runs")
    first = store.stages("tiny")
    train(of(1), store, None, tmp_path / "runs")
    capsys.readouterr()
    train(of(0), store, None, tmp_path / "runs")
    assert capsys.readouterr().err.count("finished in") == 2
    assert store.stages("tiny") == first  # not published again, which would make stale what was built on them


def test_a_loss_that_is_not_finite_stops_the_run(make_config: MakeConfig, store: Store, tmp_path: Path) -> None:
    config = make_config("stages.structure.trainer.learning_rate=1e30", "stages.structure.trainer.max_grad_norm=0")
    with pytest.raises(FailedError, match="not finite"):
        train(config, store, [1], tmp_path / "runs")
    assert store.stages("tiny") == {}


def test_what_cannot_be_meant_is_refused_before_training(make_config: MakeConfig, store: Store) -> None:
    cases: list[tuple[str, type[Exception], str]] = [
        ("stages.brevity.trainer.num_generation=4", ConfigError, "num_generations"),
        ("stages.brevity.trainer.use_vllm=true", ConfigError, "quantised base"),
        ("stages.brevity.trainer.hub_token=x", ConfigError, "secrets"),
        ("stages.brevity.trainer.num_generations=3", ConfigError, "TRL refuses"),
        ("stages.brevity.trainer.steps_per_generation=6", ConfigError, "generation cycle"),
        ("stages.brevity.masking.mode=all", ConfigError, "masking mode"),
        ("stages.brevity.reward.mode=guess", ConfigError, "no such reward mode"),
        ("stages.remedy.task=guess", ConfigError, "no such task"),
        ("stages.structure.reward.brevity=0.9", ConfigError, "reward means nothing where task is reconstruct"),
        ("data.columns.answer=gold", ConfigError, "no column gold"),
        ("base.compute_dtype=float16", ConfigError, "do not train in float16"),
        ("eval.protocol=few", ConfigError, "protocol"),
        ("eval.data.split=train", ConfigError, "among the evaluation rows"),
        ("base.path=/nonexistent", NotFoundError, "base folder"),
    ]
    for override, kind, message in cases:
        with pytest.raises(kind) as caught:
            plan_curriculum(make_config(override), store)
        assert message in str(caught.value), override


def test_a_stage_without_its_prior_names_the_next_command(make_config: MakeConfig, store: Store) -> None:
    with pytest.raises(NotFoundError) as caught:
        plan_curriculum(make_config(), store, [3])
    assert caught.value.next_step == "the same command with --stages 1,2,3"
    with pytest.raises(NotFoundError, match="no such stage"):
        plan_curriculum(make_config(), store, [4])


def test_too_few_failures_and_too_few_rows_are_clear_errors(
    make_config: MakeConfig, store: Store, tmp_path: Path
) -> None:
    quick = [f"stages.{name}.trainer.max_steps=1" for name in ("structure", "brevity", "remedy")]
    config = make_config(*quick, "stages.remedy.mining.minimum=12", "stages.remedy.mining.wrong_share=1")
    config.stages = {"remedy": config.stages["remedy"]}  # first of its curriculum: nothing to train before it
    with pytest.raises(FailedError, match="too few persistent failures"):
        train(config, store, None, tmp_path / "runs")
    config = make_config(*quick, "stages.structure.trainer.max_length=20")
    with pytest.raises(ConfigError, match="no row fits"):
        train(config, store, [1], tmp_path / "runs")


def test_the_command_shows_its_plan_and_changes_nothing(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["train", "-c", "tiny.yaml", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema"] == 1
    assert [(stage["status"], stage["steps"]) for stage in plan["stages"]] == [("missing", 4)] * 3
    assert plan["stages"][0]["trainable_parameters"] == 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert run_command(["train", "-c", "tiny.yaml", "--dry-run"]) == 0
    assert "1 structure" in capsys.readouterr().out
    assert run_command(["rollouts", "-c", "tiny.yaml", "--dry-run"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}
    assert run_command(["train", "-c", "tiny.yaml", "--stages", "2"]) == 3
    assert "the same command with --stages 1,2" in capsys.readouterr().err
