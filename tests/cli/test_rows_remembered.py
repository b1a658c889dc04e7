"""Before a first stage and right after it: the base of a config is scored, and files are found where they were read."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.registry.store import find_store

from ..conftest import Hub

pytestmark = pytest.mark.slow

CONFIG = """
curriculum: mine
base: {repo: plyfold/sandbox-base, revision: auto, path: sandbox, compute_dtype: float32}
data: {path: rows.jsonl}
stages: {structure: {number: 1, task: reconstruct, trainer: {max_steps: 1, per_device_train_batch_size: 2}}}
"""
FAST = ["eval.max_new_tokens=2", "eval.batch_size=2", "--limit", "2"]


def _rows(first: int, count: int) -> str:
    solutions = ((n, f"{n}+1={n + 1}\n{n + 1}+2={n + 3}\n#### {n + 3}") for n in range(first, first + count))
    return "".join(f"{json.dumps({'question': f'{n} and 1 and 2 are?', 'answer': text})}\n" for n, text in solutions)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("mine.yaml").write_text(CONFIG)
    Path("rows.jsonl").write_text(_rows(0, 30))
    Path("test.jsonl").write_text(_rows(50, 3))
    return tmp_path


@pytest.mark.parametrize("there", ["nothing", "an empty registry", "another curriculum"])
def test_the_base_of_a_config_is_scored_before_anything_is_trained(
    folder: Path, there: str, make_store: Any, tiny_base: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if there == "an empty registry":
        find_store(Path(".plyfold"), create=True)
    elif there == "another curriculum":
        make_store(Path(".plyfold"), tiny_base(dtype="float32"), stages=1)
    assert run(["eval", "base", "-c", "mine.yaml", "--json", *FAST]) == 0
    said = capsys.readouterr()
    assert [row["variant"] for row in json.loads(said.out)["variants"]] == ["base"]
    assert "held out" in said.err
    if there != "another curriculum":  # else its stage 1 is meant, on these rows
        assert run(["eval", "base", "1", "-c", "mine.yaml", *FAST]) == 3
        assert "plyfold train -c mine.yaml" in capsys.readouterr().err


def test_without_a_config_the_way_on_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "base"]) == 3
    assert "plyfold eval base -c FILE" in capsys.readouterr().err


def test_a_file_is_found_where_it_was_read_and_its_place_goes_nowhere(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder / "work"
    paths = [f"data.path={work / 'rows.jsonl'}", f"eval.data.path={work / 'test.jsonl'}"]
    registry = ["--registry", str(work / ".plyfold")]
    assert run(["train", "-c", "mine.yaml", *paths, *registry]) == 0
    assert stat.S_IMODE((work / ".plyfold/locations.json").stat().st_mode) == 0o600
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    capsys.readouterr()
    assert run(["eval", "base", "1", *registry, "--json", *FAST]) == 0
    assert json.loads(capsys.readouterr().out)["problems"]["n"] == 2

    store = find_store(work / ".plyfold")
    shown = [store.stage("mine", 1).path / "lineage.json", *(work / ".plyfold/attest").rglob("*.json")]
    assert len(shown) > 1
    assert run(["push", "acme/mine", "--allow-dirty", *registry]) == 0
    published = [path for path in hub.store.root.rglob("*") if path.is_file()]
    assert any(b"test.jsonl" in path.read_bytes() for path in published)
    for path in [*shown, *published]:
        assert str(folder).encode() not in path.read_bytes(), path

    (work / "test.jsonl").rename(work / "moved.jsonl")
    assert run(["eval", "base", *registry, *FAST]) == 3
    error = capsys.readouterr().err
    assert str(work / "test.jsonl") in error
    assert "--data FILE" in error
    Path("test.jsonl").write_text(_rows(60, 3))  # of the same name, in this folder
    assert run(["eval", "base", *registry, *FAST]) == 4
    error = capsys.readouterr().err
    assert str(folder / "elsewhere/test.jsonl") in error
    assert str(work / "test.jsonl") in error
    assert run(["eval", "base", *registry, *FAST, "--data", str(work / "moved.jsonl")]) == 0
    Path("test.jsonl").write_text((work / "moved.jsonl").read_text())
    assert run(["eval", "base", *registry, *FAST]) == 0
