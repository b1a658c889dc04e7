"""What `train --dry-run` says where the base or its rows are not on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.config import load_config
from plyfold.core.errors import ConfigError, NotFoundError, OfflineError
from plyfold.data.dataset import load_rows
from plyfold.registry.store import Store
from plyfold.sandbox.problems import make_problems
from plyfold.stages.plan import at_hand
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.rollouts import validate as rollout_check


@pytest.fixture(autouse=True)
def _nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def _rows_here(folder: Path, num_rows: int) -> list[str]:
    """Overrides that put the sandbox's rows, as GSM8K-shaped files, in place of a Hub dataset."""
    overrides = []
    for split, key in (("train", "data.path"), ("test", "eval.data.path")):
        file = folder / f"{split}.jsonl"
        rows = [dict(row) for row in make_problems(split, num_rows if split == "train" else 20)]  # type: ignore[arg-type]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"{key}={file}")
    return overrides


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """Overrides for few rows at hand, of which each stage of `gsm8k` reads its own."""
    own = {"structure": "[0,60]", "brevity": "[60,140]"}
    return [*_rows_here(tmp_path, 160), *(f"stages.{name}.data.rows={rows}" for name, rows in own.items())]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def show(*arguments: str) -> Any:
        capsys.readouterr()
        code = run(["train", *arguments, "--dry-run", "--json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out)

    return show


def test_the_plan_is_complete_without_weights(local: list[str], shown: Callable[..., Any]) -> None:
    plan = shown("-c", "gsm8k", *local)
    assert plan["base"]["missing"]
    assert "known sizes" in plan["shape_source"]
    assert [stage["parents"] for stage in plan["stages"]] == [[], [1], [1, 2]]
    assert [stage["prior_rank"] for stage in plan["stages"]] == [0, 16, 32]
    assert [stage["steps_bound"] for stage in plan["stages"]] == [False, False, True]
    for stage in plan["stages"]:
        assert stage["rows"] > 0
        assert stage["steps"] > 0
        assert stage["trainable_parameters"] == 29_933_568
        assert stage["status"] == "missing"
        assert stage["batch"]["step"] == 32
        assert stage["memory"]["total"] > stage["memory"]["held"] > 2e9
    assert plan["run_folder"] == "runs/gsm8k"


def test_the_plan_says_what_vllm_beside_the_trainer_needs(
    local: list[str], shown: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rollout_check, "vllm_version", lambda: "0.32.0")
    asked = ["-c", "gsm8k", *local, "rollout.engine=vllm"]
    first, second, third = (stage["memory"]["vllm"] for stage in shown(*asked)["stages"])
    assert first == 0 < 6.2e9 < second < third < 0.5 * 24e9
    assert run(["train", *asked, "--dry-run"]) == 0
    assert "vLLM beside, at least" in capsys.readouterr().out


def test_rows_that_are_not_here_are_said_to_be_unknown(
    monkeypatch: pytest.MonkeyPatch, shown: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise OfflineError("the dataset is not in the local cache")

    monkeypatch.setattr(at_hand, "load_rationales", absent)
    monkeypatch.setattr(at_hand, "load_scored", absent)
    plan = shown("-c", "gsm8k")
    first, _, last = plan["stages"]
    assert first["rows"] is None
    assert "not in the local cache" in first["rows_unknown"]
    assert (first["steps"], first["steps_bound"]) == (313, True)  # 2,000 rows at most, 5 copies, 32 a step
    assert last["steps"] is None
    assert plan["evaluation_rows_unknown"]
    assert run(["train", "-c", "gsm8k", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "unknown" in text
    assert "peak, estimated" in text


def test_no_base_is_fetched_for_a_plan(
    local: list[str], shown: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    assert shown("-c", "gsm8k", *local)["base"]["missing"]


def test_an_unknown_base_is_planned_without_an_estimate(local: list[str], shown: Callable[..., Any]) -> None:
    plan = shown("-c", "gsm8k", *local, "base.repo=acme/other", f"base.revision={'1' * 40}")
    assert "config.json is not here" in plan["shape_source"]
    assert all(stage["memory"] is None and stage["trainable_parameters"] is None for stage in plan["stages"])
    assert all(stage["steps"] for stage in plan["stages"])


def test_a_plan_to_be_carried_out_is_refused_without_its_base(local: list[str], tmp_path: Path) -> None:
    with pytest.raises(OfflineError):
        plan_curriculum(load_config("gsm8k", local), Store(tmp_path / "registry"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "paper", "sandbox"])
def test_every_shipped_config_plans_on_the_sandbox(name: str, tmp_path: Path, shown: Callable[..., Any]) -> None:
    overrides = [] if name == "sandbox" else [*_rows_here(tmp_path, 4100), "base.path=sandbox", "base.revision=auto"]
    config = load_config(name, overrides)
    plan = shown("-c", name, *overrides)
    assert plan["base"]["missing"] is None
    assert len(plan["stages"]) == len(config.stages) == 3
    assert all(stage["memory"]["total"] > 0 for stage in plan["stages"])
    assert ["the longest of its rows" in stage["memory"]["assumption"] for stage in plan["stages"]] == [
        False,
        True,
        True,
    ]
    assert all(load_rows(stage.data or config.data) for stage in config.stages.values())


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["stages.brevity.data.rows=[0,10]"], "stages.brevity"),
        (["stages.remedy.mining.problems=4"], "stages.remedy.mining"),
        (["stages.remedy.mining.minimum=2000"], "stages.remedy.mining"),
        (["stages.brevity.trainer.max_completion_length=1024"], "stages.brevity.trainer.max_completion_length"),
        (["stages.remedy.mining.max_new_tokens=1024"], "stages.remedy.mining.max_new_tokens"),
        pytest.param(["stages.structure.trainer.max_length=8"], "stages.structure", marks=pytest.mark.slow),
        pytest.param(["stages.brevity.trainer.max_completion_length=1020"], "stages.brevity", marks=pytest.mark.slow),
        pytest.param(
            ["stages.remedy.mining.max_new_tokens=1021"], "stages.remedy.mining.max_new_tokens", marks=pytest.mark.slow
        ),
        (["base.revision=main"], "base"),
        (["base.repo=my model"], "base"),
    ],
)
@pytest.mark.parametrize("only_show", [True, False])
def test_what_could_only_fail_after_hours_is_refused_first(
    overrides: list[str], where: str, only_show: bool, tmp_path: Path
) -> None:
    config = load_config("sandbox", ["stages.structure.epochs=2", *overrides])
    with pytest.raises(ConfigError) as caught:
        plan_curriculum(config, Store(tmp_path / "registry"), only_show=only_show)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("override", "where", "mended"),
    [
        ("stages.brevity.data.rows=[40,10]", "stages.brevity.data.rows", ""),
        ("stages.brevity.data.path=nosuch.jsonl", "nosuch.jsonl", "check stages.brevity.data.path"),
        ("stages.brevity.data.rows=[5000,5100]", "sandbox", "stages.brevity.data.rationales=100 reads those of"),
    ],
)
def test_rows_that_cannot_be_read_name_their_key(override: str, where: str, mended: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, NotFoundError)) as caught:
        plan_curriculum(load_config("sandbox", [override]), Store(tmp_path / "registry"))
    assert str(caught.value.where) == where
    assert mended in caught.value.next_step


def test_an_override_that_is_not_yaml_is_named() -> None:
    with pytest.raises(ConfigError, match="not YAML") as caught:
        load_config("sandbox", ["seed=1", "stages.brevity.data.rows=[40"])
    assert caught.value.where == "stages.brevity.data.rows=[40"


def test_fewer_rows_that_fit_than_a_batch_takes_are_refused_before_an_earlier_stage_trains(tmp_path: Path) -> None:
    few = [
        "stages.structure.epochs=2",
        "stages.brevity.trainer.max_completion_length=985",
        "stages.brevity.data.rows=[0,40]",
    ]
    with pytest.raises(ConfigError, match="too few rows for one generation batch") as caught:
        plan_curriculum(load_config("sandbox", few), Store(tmp_path / "registry"))
    found = re.fullmatch(r"(\d+) rows of at most 39 tokens", str(dict(caught.value.fields())["found"]))
    assert found
    assert 0 < int(found[1]) < 16
