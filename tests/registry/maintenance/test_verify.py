"""`verify` beyond hashes: contents, lineage, names and statements; what it finds and that nothing ends it."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plyfold.adapters.tensors import tensor_digest
from plyfold.cli.main import run
from plyfold.core.disk.digest import short
from plyfold.registry.lineage.scores import attest_scores
from plyfold.registry.maintenance import verify as verify_module
from plyfold.registry.maintenance.verify import Check, verify
from plyfold.registry.record import DataRef, Metric, Parent, Recipe, Weights
from plyfold.registry.store import Store, find_store

from ...support.peft_folders import write_adapter_folder

REPO, REVISION = "acme/tiny-qwen2", "0123456789abcdef0123456789abcdef01234567"
BASE = {"base_model_name_or_path": REPO, "revision": REVISION}
TARGETS = ["down_proj", "k_proj", "q_proj"]


class Shelf:
    """A store of real adapters: two stages and their merge."""

    def __init__(self, root: Path, make_record: Any) -> None:
        self.store: Store = find_store(root / ".plyfold", create=True)
        self.root, self.make_record, self.count = root, make_record, 0
        self.one = self.stage(1, "structure")
        self.two = self.stage(2, "brevity", [self.one])

    def folder(self, **adapter: Any) -> Path:
        self.count += 1
        return write_adapter_folder(self.root / f"a{self.count}", seed=self.count, **{**BASE, **adapter}).path

    def publish(self, folder: Path, number: int | None, name: str = "x", parents: Any = (), **fields: Any) -> str:
        weights = {"digest": tensor_digest(folder), "dtype": "float32", "r": 4, "alpha": 8, "targets": TARGETS}
        weights |= fields.pop("weights", {})
        return self.store.publish(folder, self.make_record(number, name, parents, weights=Weights(**weights), **fields))

    def stage(self, number: int, name: str, parents: Any = (), **fields: Any) -> str:
        digest = self.publish(self.folder(), number, name, parents, **fields)
        self.store.set_ref("toy", number, digest)
        return digest

    def deep(self, digest: str) -> Check:
        return next(check for check in verify(self.store, [digest], deep=True) if check.digest == digest)

    def faults(self, digest: str) -> dict[str, tuple[str, str]]:
        return {problem.path: (problem.expected, problem.found) for problem in self.deep(digest).problems}


@pytest.fixture
def shelf(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return Shelf(tmp_path, make_record)


def rewrite(folder: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata=metadata or {"format": "pt"})


class TestContent:
    def test_sound_adapters_and_their_merge(self, shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", "--stages", "1,2", "--weights", "1,0.5"]) == 0
        checks = list(verify(shelf.store, deep=True))
        assert len(checks) == 3
        assert [(check.problems, check.notes) for check in checks] == [([], [])] * 3

    def test_whatever_the_record_says_otherwise_is_named(self, shelf: Shelf) -> None:
        wrong = {"digest": f"sha256:{'1' * 64}", "dtype": "bfloat16", "r": 8, "alpha": 16, "targets": ["q_proj"]}
        base = {"repo": "a/b", "revision": "1" * 40}
        digest = shelf.publish(folder := shelf.folder(), 3, weights=wrong, base=base)
        assert shelf.faults(digest) == {
            "base": (f"a/b@{'1' * 40}", f"{REPO}@{REVISION}"),
            "r": ("8", "4"),
            "alpha": ("16", "8"),
            "dtype": ("bfloat16", "float32"),
            "targets": ("q_proj", ", ".join(TARGETS)),
            "tensors": (wrong["digest"], tensor_digest(folder)),
        }
        assert not any(check.problems for check in verify(shelf.store))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_none(self, shelf: Shelf, value: float) -> None:
        folder = shelf.folder()
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        rewrite(folder, **{key: torch.full((4, 20), value)})
        (problem,) = shelf.deep(shelf.publish(folder, 3)).problems
        assert problem.fault == "unsound"
        assert "NaN or infinity" in problem.found

    @pytest.mark.parametrize(("name", "data"), [("extra.bin", b"x"), ("notes.txt", b"\x80\x04K\x07.")])
    def test_pickles(self, shelf: Shelf, name: str, data: bytes) -> None:
        folder = shelf.folder()
        (folder / name).write_bytes(data)
        (problem,) = shelf.deep(shelf.publish(folder, 3)).problems
        assert (problem.path, problem.fault) == (name, "unsound")

    def test_another_form_is_a_note(self, shelf: Shelf) -> None:
        folder = shelf.folder(target_modules=TARGETS[::-1])
        rewrite(folder, metadata={"format": "pt", "author": "ann"})
        check = shelf.deep(shelf.publish(folder, 3))
        assert check.problems == []
        assert ["author" in check.notes[0], "target_modules" in check.notes[1]] == [True, True]

    def test_a_composition_of_other_inputs(self, shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", "--stages", "1,2"]) == 0
        entry = shelf.store.load(shelf.store.merges("toy")["toy-s1.s2"])
        for change in (
            {"parents": [Parent(role="merge_input", digest=shelf.one)]},
            {"parents": [parent.model_copy(update={"scale": 0.5}) for parent in entry.record.parents]},
        ):
            digest = shelf.store.publish(entry.path, entry.record.model_copy(update=change))
            assert list(shelf.faults(digest)) == ["composition.json"]
        folder = shelf.root / "garbled"
        shutil.copytree(entry.path, folder)
        (folder / "composition.json").chmod(0o644)
        for text in ("[", "[]", '{"inputs": [{"record": 1}]}'):
            (folder / "composition.json").write_text(text)
            assert list(shelf.faults(shelf.store.publish(folder, entry.record))) == ["composition.json"]
        (folder / "composition.json").unlink()
        assert shelf.deep(shelf.store.publish(folder, entry.record)).notes == ["it has no composition.json"]

    def test_a_score_of_training_rows_is_a_note(self, shelf: Shelf) -> None:
        rows = DataRef(id="acme/sums", split="train", rows=8, sha256=f"sha256:{'7' * 64}")
        digest = shelf.stage(3, "remedy", data=[rows])
        attest_scores(shelf.store, "toy", [3], [Metric(name="accuracy", value=0.5, n=8)], data=rows)
        (note,) = shelf.deep(digest).notes
        assert note.startswith("overlap: variant 3")


class TestLineage:
    def test_parents_of_another_base_or_a_later_stage(self, shelf: Shelf) -> None:
        other = shelf.publish(
            shelf.folder(base_model_name_or_path="a/b"), 1, "other", base={"repo": "a/b", "revision": REVISION}
        )
        digest = shelf.publish(shelf.folder(), 2, "wrong", [other, shelf.two])
        assert shelf.faults(digest) == {
            f"base of 1 other ({short(other)})": (f"{REPO}@{REVISION}", f"a/b@{REVISION}"),
            f"stage of 2 brevity ({short(shelf.two)})": ("below 2", ""),
        }
        required = shelf.publish(shelf.folder(), 1, "early", requires=[shelf.two])
        assert list(shelf.faults(required)) == [f"stage of 2 brevity ({short(shelf.two)})"]
        teacher = shelf.make_record(1, "pupil").model_copy(
            update={
                "parents": [Parent(role="teacher", digest=other)],
                "weights": shelf.store.read_record(shelf.one).record.weights,
            }
        )
        assert shelf.deep(shelf.store.publish(shelf.store.read_record(shelf.one).path, teacher)).problems == []

    def test_only_what_is_asked_and_what_it_came_from(self, shelf: Shelf) -> None:
        three = shelf.stage(3, "remedy", [shelf.two])

        def checked(deep: bool) -> set[str]:
            return {check.digest for check in verify(shelf.store, [shelf.two], deep=deep)}

        assert checked(False) == {shelf.two}
        assert checked(True) == {shelf.one, shelf.two}
        assert three not in checked(True)

    def test_requirements_that_are_not_held_are_notes(self, shelf: Shelf) -> None:
        gone = f"sha256:{'e' * 64}"
        check = shelf.deep(shelf.publish(shelf.folder(), 3, requires=[gone]))
        assert (check.problems, check.notes) == ([], [f"ancestor {short(gone)} is not in this registry"])


class TestNothingEndsIt:
    def test_statements_names_and_records_that_cannot_be_read(self, shelf: Shelf) -> None:
        refs, attest = shelf.store.root / "refs/toy", shelf.store.root / "attest"
        (refs / "1/latest").write_text("nonsense")
        (refs / "2/v1").write_text(f"sha256:{'e' * 64}")
        shelf.store.attest(shelf.one, "note", {}).write_text("{")
        shelf.store.attest(shelf.two, "eval", {"inputs": {}, "metrics": 7})
        other = attest / ("e" * 64)
        other.mkdir()
        (other / "revoked-1.json").write_text(json.dumps({"digest": f"sha256:{'e' * 64}", "kind": "revoked",
                                                          "created": "x", "payload": {}}))  # fmt: skip
        record = shelf.store.read_record(shelf.two).path / "lineage.json"
        record.chmod(0o644)
        record.write_text("{}")
        found = {(check.name, check.problems[0].fault) for check in verify(shelf.store) if check.problems}
        assert found == {
            ("(unreadable)", "record"),
            ("refs/toy/1", "unreadable"),
            ("refs/toy/2/v1", "missing"),
            (f"attest/{short(shelf.one)}", "unreadable"),
            (f"attest/{short(shelf.two)}", "unreadable"),
            (f"attest/{'e' * 12}", "unreadable"),
        }

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_a_file_without_permission(self, shelf: Shelf) -> None:
        (shelf.store.read_record(shelf.one).path / "adapter_config.json").chmod(0)
        (check,) = verify(shelf.store, [shelf.one])
        assert check.problems[0].fault == "unreadable"

    def test_a_file_that_fails_while_it_is_read(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> list[Any]:
            raise OSError(5, "Input/output error", str(shelf.root / "adapter_model.safetensors"))

        monkeypatch.setattr(verify_module, "find_problems", fail)
        (check,) = verify(shelf.store, [shelf.one])
        assert [(problem.path, problem.fault, problem.found) for problem in check.problems] == [
            ("adapter_model.safetensors", "unreadable", "Input/output error")
        ]


class TestCommand:
    def test_named_adapters_only(self, shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
        (shelf.store.read_record(shelf.one).path / "surprise").write_text("")
        for arguments, count, code in ((["2"], 1, 0), (["brevity", "1"], 2, 4), (["2", "--deep"], 2, 4), ([], 2, 4)):
            assert run(["verify", *arguments, "--json"]) == code
            assert len(json.loads(capsys.readouterr().out)["checks"]) == count
        assert run(["verify", "7"]) == 3

    def test_what_mends_it_is_said(self, shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
        note = shelf.store.attest(shelf.one, "note", {})
        note.write_text("{")
        assert run(["verify", "1"]) == 4
        assert f"attest/{shelf.one[7:]}" in "".join(capsys.readouterr().err.split())
        note.unlink()
        (shelf.store.root / "refs/toy/2/latest").write_text("nonsense")
        assert run(["verify"]) == 4
        assert "or remove that file" in " ".join(capsys.readouterr().err.split())

    def test_notes_and_faults_have_lines_of_their_own(self, shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
        gone = f"sha256:{'e' * 64}"
        digest = shelf.stage(3, "remedy", requires=[gone])
        (shelf.store.read_record(shelf.one).path / "surprise").write_text("")
        assert run(["verify"]) == 4
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert any(line.startswith(f"{short(digest)} toy 3 remedy") and line.endswith("ok, 1 note") for line in lines)
        assert f"{short(digest)} note: ancestor {short(gone)} is not in this registry" in lines
        assert f"{short(shelf.one)} surprise is not in the record" in lines

    def test_a_damaged_record_can_be_named(self, shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
        record = shelf.store.read_record(shelf.two).path / "lineage.json"
        record.chmod(0o644)
        record.write_text("{}")
        for name in ("2", shelf.two, short(shelf.two)):
            assert run(["verify", name, "--json"]) == 4
            assert json.loads(capsys.readouterr().out)["checks"][0]["digest"] == shelf.two


@pytest.mark.parametrize("config", [{"x": 1}, {"curriculum": "toy", "stages": {}}, {"curriculum": 7}])
def test_a_configuration_that_cannot_be_read_is_a_note(
    shelf: Shelf, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.stage(3, "remedy", recipe=Recipe(config=config, config_digest=f"sha256:{'1' * 64}"))
    assert run(["verify", "3", "--deep", "--json"]) == 0
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert check["notes"][0].startswith("its configuration cannot be read by this version")


def test_files_are_hashed_side_by_side(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "THREADS", 2)
    original, both = verify_module.find_problems, threading.Barrier(2)

    def together(*arguments: Any) -> list[Any]:
        both.wait(timeout=10)
        return original(*arguments)

    monkeypatch.setattr(verify_module, "find_problems", together)
    assert not any(check.problems for check in verify(shelf.store))
