"""`plyfold merge` where it needs a model or makes a page: prompts, logits, every method, heat maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes", reason="needs plyfold[train]")
pytest.importorskip("peft", reason="needs plyfold[train]")

PROMPTS = "What is 12 + 30?\nTom has 3 eggs and eats one.\nHow many apples are left?\n"


@pytest.fixture
def here(tmp_path: Path, tiny_base: Any, make_store: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"))
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return tmp_path


def merge(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["merge", "--stages", "1,2,3", *arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_prompts_decide_what_a_rank_keeps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = merge(capsys, "--method", "activation", "--rank", "4", "--prompts", "prompts.txt", "--dry-run")
    plain = merge(capsys, "--rank", "4", "--prompts", "prompts.txt", "--dry-run")
    assert chosen["statistics"]["num_prompts"] == 3
    assert chosen["certificate"]["output_error"] < plain["certificate"]["output_error"]
    assert chosen["certificate"]["relative_error"] > plain["certificate"]["relative_error"]


def test_what_prompts_decided_is_on_record_and_cannot_be_replayed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = merge(capsys, "--method", "activation", "--rank", "4", "--prompts", "prompts.txt")
    assert run(["show", value["written"]["record"], "--json"]) == 0
    details = json.loads(capsys.readouterr().out)["record"]["recipe"]["details"]
    assert details["statistics"] == value["statistics"]
    assert run(["verify", "--replay", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["replays"]
    assert (row["method"], row["verdict"]) == ("activation", "cannot")


def test_a_fold_is_held_against_its_adapters_on_both_views(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = merge(capsys, "--into", "model", "--verify-logits", "prompts.txt", "-o", "folded")["written"]
    assert written["logits"]["folded"]["top1"] == 1
    assert written["logits"]["base"]["kl"] > 100 * written["logits"]["folded"]["kl"]
    assert written["base_views"]["nearer"] == "trained"


def test_a_fold_that_is_not_its_adapters_fails(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plyfold.merge.calibrate import logits

    monkeypatch.setattr(logits, "MEDIAN_FACTOR", 0.0)  # no checkpoint can be nearer than not at all
    arguments = ["--stages", "1,2,3", "--into", "model", "--dtype", "bf16", "--verify-logits", "prompts.txt"]
    assert run(["merge", *arguments, "-o", "folded"]) == 5
    assert "does not do what the adapters do" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "knots", "core"])
def test_every_method_makes_an_adapter_on_record(here: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    value = merge(capsys, "--method", method, "--rank", "6")
    assert value["rank"] == 6
    assert value["written"]["ref"].startswith(f"merges/tiny-s1.s2.s3-{method.replace('_', '.')}6")
    approximates = method == "linear"
    assert any("adapters trained apart" in warning for warning in value["warnings"]) != approximates
    assert run(["show", value["written"]["ref"].removeprefix("merges/"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert method in json.dumps(record)


def test_peft_numerics_are_said_to_be_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = merge(capsys, "--method", "linear", "--numerics", "peft")
    assert value["settings"]["numerics"] == "peft"
    assert value["certificate"]["relative_error"] > 0.5  # random adapters: the cross terms are as large as the sum
    assert value["trained_order"] is False


def test_the_smallest_rank_that_meets_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = merge(capsys, "--max-error", "0.4")
    errors = {bucket["rank"]: bucket["relative_error"] for bucket in value["certificate"]["buckets"]}
    assert value["rank"] == min(rank for rank, error in errors.items() if error <= 0.4)
    assert value["certificate"]["relative_error"] <= 0.4


def test_the_page_maps_every_module(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = merge(capsys, "--html", "page.html")
    page = (here / "page.html").read_text()
    assert value["written"]["digest"] in page
    for kind in ("q_proj", "down_proj"):
        assert kind in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "activation", "--rank", "4"], "needs prompts"),
        (["--method", "ties", "--prompts", "prompts.txt"], "for methods that stand for the sum"),
        (["--verify-logits", "prompts.txt"], "goes with --into model"),
        (["--method", "activation", "--rank", "4", "--prompts", "none.txt"], "prompts file does not exist"),
        (["--method", "svd", "--density", "0.5", "--rank", "4"], "svd has no --density"),
        (["--rank", "4", "--max-error", "0.1"], "not both"),
        (["--numerics", "peft", "--method", "svd", "--rank", "4"], "svd has no --numerics peft"),
    ],
)
def test_options_that_do_not_belong_together(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(here.rglob("*"))
    assert run(["merge", "--stages", "1,2,3", *arguments]) in (2, 3)
    assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before
