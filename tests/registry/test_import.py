"""Adapters of others: canonical copies with an unknown origin, named once, and refused where they cannot be sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.cli.main import run
from plyfold.registry.store import find_store

from ..conftest import REPO, REVISION
from ..support.peft_folders import write_base_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["import", *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_copy_is_canonical_and_the_source_untouched(
    here: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_adapter(here / "alice", r=4, alpha=16, target_modules=["v_proj", "q_proj"], modules={
        f"model.layers.0.self_attn.{name}": (64, 64) for name in ("q_proj", "v_proj")
    }, peft_version="0.1")  # fmt: skip
    (source / "README.md").write_text("about")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    value = imported(["alice"], capsys)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    entry = find_store().load(value["digest"])
    record = entry.record
    assert (record.kind, record.curriculum, record.stage) == ("foreign", "imported", None)
    assert record.recipe.details["provenance"] == "unknown"
    assert (record.base.repo, record.base.revision, record.licence) == (REPO, REVISION, "unknown")
    assert (record.weights.r, record.weights.alpha, record.weights.targets) == (4, 16.0, ["q_proj", "v_proj"])
    assert {file.path for file in record.files} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((entry.path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert "peft_version" not in config
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (entry.path, source))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert find_store().merges("imported") == {"alice": value["digest"]}
    assert run(["verify", "--deep"]) == 0


def test_again_changes_nothing_and_another_is_a_conflict(
    here: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_adapter(here / "alice", seed=1)
    make_adapter(here / "bob", seed=2)
    first = imported(["alice"], capsys)["digest"]
    assert imported(["alice"], capsys)["digest"] == first
    assert len(find_store().digests()) == 1
    assert run(["import", "bob", "--name", "alice"]) == 5
    assert find_store().merges("imported") == {"alice": first}


def test_it_can_be_a_stage_of_a_curriculum(here: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(here / "alice", seed=1)
    make_adapter(here / "bob", seed=2)
    for number, name in enumerate(("alice", "bob"), start=1):
        imported([name, "--curriculum", "mix", "--stage", str(number)], capsys)
    assert list(find_store().stages("mix")) == [1, 2]
    assert run(["merge", "--stages", "1,2", "--json"]) == 0
    capsys.readouterr()
    assert run(["tree", "mix"]) == 0
    shown = capsys.readouterr().out
    assert "1 alice" in shown
    assert "mix-s1.s2" in shown


def test_the_tree_calls_it_foreign(here: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(here / "alice")
    imported(["alice"], capsys)
    assert run(["tree"]) == 0
    assert "foreign" in capsys.readouterr().out
    assert run(["tree", "--json"]) == 0
    (base,) = json.loads(capsys.readouterr().out)["curricula"][0]["children"]
    assert base["children"][0]["variant"] is None  # it is not the base's own variant


@pytest.mark.parametrize(
    ("config", "arguments", "code"),
    [
        ({"revision": None}, [], 2),
        ({"revision": None}, ["--base", f"{REPO}@{'c' * 40}"], 0),
        ({"repo": "/home/alice/models/tiny"}, [], 2),
        ({"repo": "/home/alice/models/tiny"}, ["--base", REPO], 0),
        ({}, ["--base", f"{REPO}@main"], 2),
        ({}, ["--name", "../up"], 2),
        ({"use_dora": True}, [], 8),
    ],
)
def test_what_is_not_known_or_not_sound_is_refused(
    here: Path, make_adapter: Any, config: dict[str, Any], arguments: list[str], code: int
) -> None:
    make_adapter(here / "alice", **config)
    assert run(["import", "alice", *arguments]) == code
    assert len(find_store().digests()) == (code == 0)
    assert not list((find_store().root / "tmp").iterdir())


def test_pickles_nan_and_nothing_are_refused(here: Path, make_adapter: Any) -> None:
    path = make_adapter(here / "alice") / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    assert run(["import", "alice"]) == 4
    path.rename(path.with_name("adapter_model.bin"))
    assert run(["import", "alice"]) == 4
    assert run(["import", "nobody"]) == 3
    assert find_store().digests() == []


def test_other_names_and_copies_of_base_weights_are_taken_out_with_a_word(
    here: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_adapter(here / "alice", modules={"model.layers.0.self_attn.q_proj": (8, 6), "lm_head": (9, 6)})
    values = load_file(source / "adapter_model.safetensors")
    spelt = {key.replace("base_model.model.", "base_model.model._orig_mod."): each for key, each in values.items()}
    copy = {"base_model.model._orig_mod.lm_head.base_layer.weight": torch.ones(9, 6)}
    save_file(spelt | copy, source / "adapter_model.safetensors")
    assert run(["import", "alice"]) == 0
    said = capsys.readouterr().err
    assert "_orig_mod" in said
    assert "lm_head.weight; not compared" in said
    entry = find_store().load(find_store().merges("imported")["alice"])
    ours = load_file(entry.path / "adapter_model.safetensors")
    assert ours.keys() == values.keys()
    assert all(torch.equal(ours[key], values[key]) for key in values)


def test_an_import_is_checked_against_a_base_at_hand(
    here: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base_folder(here / "base", dtype=torch.float32)
    head = {"lm_head": (50, 20)}
    for name, modules in (("alice", head), ("bob", head), ("carol", {"lm_head": (50, 21)})):
        source = make_adapter(here / name, modules=modules)
        own = base["lm_head.weight"] + (name == "bob")
        values = load_file(source / "adapter_model.safetensors")
        save_file(values | {"base_model.model.lm_head.weight": own}, source / "adapter_model.safetensors")
    assert run(["import", "alice"]) == 8  # the whole weight may be a trained one
    find_store(create=True).remember_base(REPO, REVISION, here / "base")
    assert run(["import", "alice"]) == 0
    assert "equal to the base's" in capsys.readouterr().err
    assert run(["import", "bob"]) == 8
    assert "whole trained weight" in capsys.readouterr().err
    assert run(["import", "carol"]) == 8
    assert "another size" in capsys.readouterr().err
