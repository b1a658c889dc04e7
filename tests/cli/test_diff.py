"""`plyfold diff` as typed: stages, folders, what differs, the page and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.differences import differences
from plyfold.registry.record import DataRef, Recipe
from plyfold.registry.store import Store, find_store

from ..support.peft_folders import SHAPES, write_adapter_folder

BASE = {"base_model_name_or_path": "acme/tiny-qwen2", "revision": "0123456789abcdef0123456789abcdef01234567"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    return tmp_path


@pytest.fixture
def folders(here: Path) -> None:
    write_adapter_folder(here / "a", seed=1, **BASE)
    write_adapter_folder(here / "b", seed=2, r=8, **BASE)


@pytest.fixture
def store(here: Path, make_record: Any) -> Store:
    store = find_store(here / ".plyfold", create=True)
    parents: list[str] = []
    for number, name in enumerate(("structure", "brevity"), start=1):
        folder = write_adapter_folder(here / f"made-{number}", seed=number, **BASE).path
        recipe = Recipe(config={"train": {"lr": number / 10, "batch": 8}}, seed=7, steps=10 * number)
        data = [DataRef(id="sandbox", rows=5, sha256=f"sha256:{str(number) * 64}")]
        record = make_record(number, name, parents, recipe=recipe, data=data)
        parents.append(store.publish(folder, record))
        store.set_ref("toy", number, parents[-1])
    return store


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["diff", *arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == 1
    return dict(value)


def test_stages_by_number_and_name(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    value = report(capsys, "1", "brevity")
    assert [each["label"] for each in value["adapters"]] == ["toy 1 structure", "toy 2 brevity"]
    assert [each["record"] for each in value["adapters"]] == [store.ref("toy", 1), store.ref("toy", 2)]
    assert (value["same"], value["same_tensors"]) == (False, False)
    fields = {each["field"]: (each["first"], each["second"]) for each in value["fields"]}
    assert fields["recipe.config.train.lr"] == (0.1, 0.2)
    assert fields["recipe.steps"] == (10, 20)
    assert fields["data[0].sha256"] == (f"sha256:{'1' * 64}", f"sha256:{'2' * 64}")
    assert fields["parents[0].digest"] == (None, store.ref("toy", 1))
    assert not {"recipe.seed", "recipe.config.train.batch", "base.revision"} & fields.keys()
    assert not [name for name in fields if name.startswith(("files", "adapter_config"))]
    relation = value["interference"]
    assert set(relation["modules"]) == SHAPES.keys()
    assert list(relation["kinds"]) == ["q_proj", "k_proj", "down_proj"]
    assert 0 < relation["column_overlap"] < 1


def test_what_is_shown(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", "1", "2"]) == 0
    shown = capsys.readouterr().out
    for text in (
        f"toy 1 structure  {store.ref('toy', 1)}",
        f"toy 2 brevity  {store.ref('toy', 2)}",
        "different tensors, ",
        "recipe.config.train.lr",
        "k_proj",
        "column overlap",
        "lowest",
    ):
        assert text in shown
    relation = report(capsys, "1", "2")["interference"]
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["all"])
    assert f"{relation['cosine']:+.4f}" in row
    assert f"{relation['row_overlap']:.3f} ({relation['row_chance']:.3f})" in row


def test_folders(folders: None, capsys: pytest.CaptureFixture[str]) -> None:
    value = report(capsys, "a", "./b")
    assert [each["label"] for each in value["adapters"]] == ["a", "b"]
    assert {each["field"]: each["second"] for each in value["fields"]} == {"adapter_config.r": 8}


def test_an_adapter_with_itself_is_the_same(store: Store, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = report(capsys, "1", "made-1")
    assert value["same"] is True
    assert value["fields"] == []  # the folder has no record; its config is the same
    assert value["interference"]["cosine"] == pytest.approx(1)
    again = report(capsys, "1", "1")
    assert [each["label"] for each in again["adapters"]] == ["toy 1 structure (A)", "toy 1 structure (B)"]
    assert again["same"] is True
    assert run(["diff", "1", "made-1"]) == 0
    assert "only toy 1 structure has one" in capsys.readouterr().out


def test_equal_tensors_with_another_alpha_are_not_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, alpha in (("a", 8), ("b", 16)):
        write_adapter_folder(here / name, seed=1, alpha=alpha)
    value = report(capsys, "a", "b")
    assert (value["same"], value["same_tensors"]) == (False, True)
    assert value["fields"] == [{"field": "adapter_config.lora_alpha", "first": 8, "second": 16}]
    assert value["interference"]["norms"][1] == pytest.approx(2 * value["interference"]["norms"][0])


def test_a_record_beside_a_folder_is_read(store: Store, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(store.stage("toy", 1).path, here / "copy")
    value = report(capsys, "copy", "2")
    assert value["adapters"][0]["record"] == store.ref("toy", 1)
    assert "recipe.steps" in {each["field"] for each in value["fields"]}


def test_other_modules_and_another_base_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter_folder(here / "a", seed=1)
    write_adapter_folder(here / "b", seed=2, shapes={"lm_head": (9, 20)}, base_model_name_or_path="acme/other")
    assert run(["diff", "a", "b"]) == 0
    shown = capsys.readouterr()
    assert "bases differ (acme/tiny, acme/other)" in shown.err
    assert "3 modules: model.layers.0.mlp.down_proj" in shown.out
    assert "1 modules: lm_head" in shown.out


def test_a_stage_wins_over_a_folder_of_its_name(store: Store, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter_folder(here / "2", seed=9, **BASE)
    labels = [each["label"] for each in report(capsys, "2", "./2")["adapters"]]
    assert labels == ["toy 2 brevity", "2"]


def test_the_page(folders: None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = report(capsys, "a", "b", "--html", "out/page.html")
    assert value["html"] == "out/page.html"
    page = (here / "out/page.html").read_text()
    assert "<title>a and b</title>" in page
    assert value["adapters"][0]["digest"] in page
    assert "adapter_config.r</th><td>4 \u2192 8" in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a"], 2, "Missing argument"),
        (["a", "nowhere"], 3, "neither an adapter of the registry nor a folder"),
        (["a", "./nowhere"], 3, "no such adapter folder"),
        (["a", "wide"], 8, "different sizes"),
        (["a", "broken"], 4, "adapter_model.safetensors"),
    ],
)
def test_refusals(
    folders: None, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    write_adapter_folder(here / "wide", seed=1, shapes={name: (out, 99) for name, (out, _) in SHAPES.items()})
    shutil.copytree(here / "a", here / "broken")
    (here / "broken/adapter_model.safetensors").write_bytes(b"\x00" * 20)
    assert run(["diff", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_damaged_stage_is_refused(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (store.stage("toy", 2).path / "surprise").write_text("")
    assert run(["diff", "1", "2"]) == 4
    assert "surprise" in capsys.readouterr().err


def test_differences_of_json() -> None:
    first = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": [{"f": 1}, {"f": 2}], "g": {}}
    second = {"b": {"c": [2, 1]}, "e": [{"f": 1}], "h": False, "a": 1}
    assert differences(first, second) == [("b.c", [1, 2], [2, 1]), ("e[1].f", 2, None), ("h", None, False)]
    assert differences(first, first) == []
