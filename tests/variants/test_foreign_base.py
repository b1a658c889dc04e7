"""Adapters that do not say how their base was quantised, beside stages that do: taken together, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import BaseMismatchError, IncompatibleError
from plyfold.engines import vllm_options
from plyfold.registry.import_peft import import_adapter
from plyfold.registry.store import Store
from plyfold.serving import launch
from plyfold.variants import parse_variant, plan_variant
from plyfold.variants.base import base_of

UNSAID = "does not say how its base was quantised"


@pytest.fixture
def store(tmp_path: Path, make_store: Any, tiny_base: Any, make_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stages 2 and 3 trained here, stage 1 and `beside` of another tool."""
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store: Store = make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"), stages=3)
    (store.root / "refs" / "tiny" / "1" / "latest").unlink()
    (store.root / "refs" / "tiny" / "1").rmdir()
    import_adapter(store, make_adapter(tmp_path / "alice", seed=8), curriculum="tiny", stage=1)
    import_adapter(store, make_adapter(tmp_path / "source", seed=9), curriculum="tiny", name="beside")
    return store


@pytest.fixture(autouse=True)
def _vllm_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vllm_options, launch):
        monkeypatch.setattr(module, "vllm_version", lambda: "0.32.0+cpu")


def reported(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    out, told = capsys.readouterr()
    return dict(json.loads(out)), told


def test_they_merge_with_a_warning(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    value, told = reported(capsys, "merge", "--stages", "1,2,3")
    (warning,) = (text for text in value["warnings"] if UNSAID in text)
    assert warning.startswith("1 alice")
    assert "2 tiny-2, blocksize 64, compute_dtype float32" in warning
    assert told.count(UNSAID) == 1
    record = store.load(value["written"]["record"]).record
    assert record.base == store.stage("tiny", 2).record.base
    assert record.licence == "other, unknown"
    assert "tiny-s1.s2.s3" in store.merges("tiny")
    value, told = reported(capsys, "merge", "--stages", "1")
    assert not [text for text in value["warnings"] if UNSAID in text]  # nothing is assumed
    assert store.load(value["written"]["record"]).record.base.quantisation is None
    assert run(["tree"]) == 0
    assert "1 alice" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["1+2+3", "1"])
def test_they_are_served_on_the_base_of_the_others(
    store: Store, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    known, told = reported(capsys, "serve", "2", "--port", "0", "--dry-run")
    assert UNSAID not in told
    value, told = reported(capsys, "serve", "base", variant, "--port", "0", "--dry-run")
    assert value["twin"] == known["twin"]
    assert told.count(UNSAID) == 1
    assert "tiny 1 alice" in told


def test_a_fold_goes_into_the_base_of_the_others(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    value, told = reported(capsys, "merge", "--stages", "1,2", "--into", "model", "--dry-run")
    assert told.count(UNSAID) == 1
    assert value["trained_order"] is False


def test_where_nothing_is_known_it_can_be_said(
    store: Store, make_adapter: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = import_adapter(store, tmp_path / "alice", curriculum="alone", stage=1)
    variant = parse_variant("1", "alone")
    with pytest.raises(IncompatibleError) as caught:
        base_of(store, [variant])
    assert "--quantisation nf4" in caught.value.next_step
    assert run(["import", "alice", "--curriculum", "alone", "--stage", "1", "--quantisation", "nf4"]) == 0
    assert store.ref("alone", 1) != alone.digest
    assert base_of(store, [variant])[1].to_json() == {
        "compute_dtype": "bfloat16",
        "double_quant": True,
        "quant_type": "nf4",
        "blocksize": 64,
    }
    again = store.ref("alone", 1)
    assert run(["import", "alice", "--curriculum", "alone", "--stage", "1"]) == 0
    assert store.ref("alone", 1) == again  # what was said is kept
    assert run(["import", "alice", "--curriculum", "alone", "--stage", "1", "--licence", "mit"]) == 0
    record = store.stage("alone", 1).record
    assert (record.licence, (record.base.quantisation or {})["quant_type"]) == ("mit", "nf4")


def test_really_different_ones_are_refused(
    store: Store, make_adapter: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_adapter(store, make_adapter(tmp_path / "a", seed=3), curriculum="tiny", stage=4, quantisation="nf4")
    import_adapter(store, make_adapter(tmp_path / "b", seed=4, revision="f" * 40), curriculum="tiny", stage=5)
    for names, words in (("3+4", "compute_dtype bfloat16"), ("1+3+4", "compute_dtype bfloat16"), ("3+5", "ffffffff")):
        with pytest.raises(BaseMismatchError, match=words):
            plan_variant(store, parse_variant(names, "tiny"))
        with pytest.raises(BaseMismatchError, match=words):
            base_of(store, [parse_variant(names, "tiny")])
    assert plan_variant(store, parse_variant("1+4", "tiny")).entries  # unknown goes with either
    assert run(["merge", "--stages", "3,4"]) == 8
    assert run(["serve", "3", "5", "--dry-run", "--port", "0"]) == 8


def test_one_beside_the_stages_is_merged_by_its_name(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plyfold.adapters.tensors import tensor_digest

    value, _ = reported(capsys, "merge", "tiny:2", "beside", "-o", "named")
    assert [each["label"] for each in value["stages"]] == ["tiny:2", "beside"]
    paths = [str(store.stage("tiny", 2).path), str(store.read_record(store.merges("tiny")["beside"]).path)]
    reported(capsys, "merge", *paths, "-o", "by-path")
    assert tensor_digest(tmp_path / "named") == tensor_digest(tmp_path / "by-path")
    assert run(["merge", "tiny:2", "nobody"]) == 3
    shown = capsys.readouterr().err
    assert "neither a folder nor an adapter of the registry" in shown
    assert run(["merge", "tiny:2", "no/such/folder"]) == 3
