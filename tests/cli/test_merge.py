"""`plyfold merge` as typed: reports, registry, refusals and exit codes."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from plyfold.cli.main import run
from plyfold.registry.lineage.scores import attest_scores
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store, find_store

from ..support.peft_folders import SHAPES, write_adapter_folder, write_base_folder

REPO, REVISION = "acme/tiny-qwen2", "0123456789abcdef0123456789abcdef01234567"
BASE = {"base_model_name_or_path": REPO, "revision": REVISION}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    return tmp_path


@pytest.fixture
def folders(here: Path) -> list[str]:
    return [write_adapter_folder(here / name, seed=seed, **BASE).path.name for seed, name in enumerate("abc")]


def publish(store: Store, make_record: Any, number: int, name: str, parents: list[str], seed: int) -> str:
    folder = write_adapter_folder(store.root.parent / f"stage-{number}-{seed}", seed=seed, **BASE).path
    digest = store.publish(folder, make_record(number, name, parents, licence="apache-2.0"))
    store.set_ref("toy", number, digest)
    return digest


@pytest.fixture
def store(here: Path, make_record: Any) -> Store:
    store = find_store(here / ".plyfold", create=True)
    one = publish(store, make_record, 1, "structure", [], 1)
    two = publish(store, make_record, 2, "brevity", [one], 2)
    publish(store, make_record, 3, "remedy", [one, two], 3)
    scored = [Metric(name="accuracy", value=0.625, n=8), Metric(name="tokens", value=41.5, n=8)]
    attest_scores(store, "toy", [1, 2], scored)
    return store


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["merge", *arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


class TestFolders:
    def test_the_report_says_what_was_merged(self, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", *folders, "--weights", "1,0.7,-0.5", "-o", "out"]) == 0
        shown = capsys.readouterr().out
        for text in (
            REPO,
            "0123456789ab",
            "-0.5",
            "exact, rank 12",
            "--max-lora-rank 16",
            "a / b",
            "sha256:",
            "plyfold serve ./out",
        ):
            assert text in shown
        assert Path("out/adapter_model.safetensors").is_file()

    def test_without_o_the_folder_is_named_after_what_goes_in(
        self, folders: list[str], here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = report(capsys, *folders)["written"]["path"]
        second = report(capsys, *folders, "--weights", "1,1,0.5")["written"]["path"]
        assert first.startswith("merged-")
        assert first != second
        assert run(["merge", *folders]) == 5
        assert "exists already" in capsys.readouterr().err

    def test_a_dry_run_computes_and_writes_nothing(
        self, folders: list[str], here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(here.iterdir())
        value = report(capsys, *folders, "--method", "svd", "--rank", "4", "--dry-run")
        assert value["dry_run"] is True
        assert value["written"] is None
        assert 0 < value["certificate"]["relative_error"] < 1
        assert value["vllm_max_lora_rank"] == 8
        assert any("lossy" in warning for warning in value["warnings"])
        assert sorted(here.iterdir()) == before

    def test_norms_relative_to_the_base(
        self, folders: list[str], here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        base = write_base_folder(here / "base")
        value = report(capsys, *folders, "--base", "base", "--dry-run")
        weight = sum(float(base[f"{name}.weight"].double().square().sum()) for name in SHAPES) ** 0.5
        for row in value["stages"]:
            assert row["relative_norm"] == pytest.approx(row["delta_norm"] / weight, rel=1e-6)

    def test_folding_into_a_base_folder(
        self, folders: list[str], here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_base_folder(here / "base")
        arguments = [*folders, "--into", "model", "--base", "base", "--base-view", "original", "--dtype", "fp32"]
        value = report(capsys, *arguments, "-o", "out")
        assert value["written"]["modules_changed"] == len(SHAPES)
        assert value["written"]["rounding_loss"] == 0
        assert load_file("out/model.safetensors").keys() == load_file("base/model.safetensors").keys()

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 2, "stages or folders"),
            (["a", "--stages", "1"], 2, "stages or folders"),
            (["a", "b", "--weights", "1"], 2, "one weight per adapter"),
            (["a", "b", "--weights", "1,x"], 2, "list of numbers"),
            (["a", "b", "--weights", "1,nan"], 2, "not finite"),
            (["a", "b", "--method", "tie"], 2, "no such merge method"),
            (["a", "b", "--dtype", "int4"], 2, "no such dtype"),
            (["a", "b", "--base-view", "original"], 2, "--base-view"),
            (["a", "nowhere"], 3, "no such adapter folder"),
            (["a", "a"], 8, "given twice"),
            (["a", "--into", "model", "--base", "./nowhere"], 3, "no such base folder"),
            (["a", "--into", "model", "--base", "a"], 3, "config.json"),
            (["a", "--into", "model", "--base-view", "trained"], 2, "not on record"),
            (["--stages", "1,2"], 3, "no registry"),
        ],
    )
    def test_refusals(
        self,
        folders: list[str],
        here: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        code: int,
        message: str,
    ) -> None:
        before = sorted(here.rglob("*"))
        assert run(["merge", *arguments]) == code
        assert message in capsys.readouterr().err
        assert sorted(here.rglob("*")) == before


class TestStages:
    def test_the_trained_chain_goes_into_the_registry(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        value = report(capsys, "--stages", "1,2,3")
        assert value["trained_order"] is True
        assert value["certificate"]["bit_exact"] is True
        assert value["licence"] == "apache-2.0"
        assert [row["trained_on"] for row in value["stages"]] == ["base", "1", "1+2"]
        assert [row["accuracy"] for row in value["stages"]] == [None, 0.625, None]
        assert value["warnings"] == []
        entry = store.load(store.merges("toy")["toy-s1.s2.s3"])
        assert value["written"]["record"] == entry.digest
        assert entry.record.kind == "merge"
        assert [parent.digest for parent in entry.record.parents] == list(store.stages("toy").values())
        assert entry.record.weights.digest == value["written"]["digest"]
        assert "plyfold serve base 1+2+3" in value["next"]

    def test_merging_again_changes_nothing(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        first = report(capsys, "--stages", "1,2")["written"]
        assert report(capsys, "--stages", "2,1")["written"] == first
        assert len(store.digests()) == 4
        assert list((store.root / "tmp").iterdir()) == []

    def test_a_skipped_middle_stage_is_said(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", "--stages", "1,3"]) == 0
        shown = capsys.readouterr()
        assert "stage 3 was trained and measured as 1+2+3; without stage 2 this is a model that was never" in shown.err
        assert "not the trained order" in shown.out
        attest_scores(store, "toy", [1, 2, 3], [Metric(name="accuracy", value=0.7, n=8)])
        (warning,) = report(capsys, "--stages", "3", "--dry-run")["warnings"]
        assert "measured as 1+2+3, where it scored 70.0 %; without stage 1 and stage 2 this" in warning

    def test_what_a_stage_requires_is_missed_too(
        self, store: Store, make_record: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = write_adapter_folder(store.root.parent / "four", seed=4, **BASE).path
        record = make_record(4, "alone", requires=[store.ref("toy", 2)])
        store.set_ref("toy", 4, store.publish(folder, record))
        assert report(capsys, "--stages", "2,4", "--dry-run")["warnings"][1:] == []
        (warning,) = report(capsys, "--stages", "4", "--dry-run")["warnings"]
        assert warning.startswith("stage 4 was trained and measured as 2+4; without stage 2")

    def test_a_score_of_rows_that_a_stage_was_trained_on_is_said(
        self, store: Store, make_record: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = DataRef(id="acme/sums", split="train", rows=8, sha256=f"sha256:{'7' * 64}")
        folder = write_adapter_folder(store.root.parent / "one", seed=9, **BASE).path
        store.set_ref("toy", 1, store.publish(folder, make_record(1, "structure", data=[rows])))
        attest_scores(store, "toy", [1], [Metric(name="accuracy", value=0.7, n=8)], data=rows)
        (warning,) = report(capsys, "--stages", "1", "--dry-run")["warnings"]
        assert warning.startswith("the score of stage 1 says little: toy 1 structure")
        assert warning.endswith("was trained on the very rows that are scored (train of acme/sums)")
        folder = write_adapter_folder(store.root.parent / "two", seed=10, **BASE).path
        two = make_record(2, "brevity", [store.ref("toy", 1)], data=[rows])
        store.set_ref("toy", 2, store.publish(folder, two))
        attest_scores(store, "toy", [1, 2], [Metric(name="accuracy", value=0.7, n=8)], data=rows)
        warnings = report(capsys, "--stages", "1,2", "--dry-run")["warnings"]
        assert [text.partition(" (")[0] for text in warnings] == [
            "the score of stage 1 says little: toy 1 structure",
            "the score of stage 2 says little: toy 1 structure",
        ]
        assert warnings[1].endswith("; so were toy 2 brevity")

    def test_a_stage_trained_again_is_said(
        self, store: Store, make_record: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publish(store, make_record, 2, "brevity", [store.ref("toy", 1)], 22)
        value = report(capsys, "--stages", "1,2,3")
        assert value["trained_order"] is False
        assert "stage 3 was trained on another stage 2" in value["warnings"][0]

    def test_weights_follow_the_stages_as_typed(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        value = report(capsys, "--stages", "3,1", "--weights", "0.5,1")
        assert [(row["label"], row["weight"]) for row in value["stages"]] == [("1 structure", 1), ("3 remedy", 0.5)]
        assert "toy-s1.s3x0.5" in store.merges("toy")
        assert value["trained_order"] is False

    def test_o_copies_it_out(self, store: Store, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        value = report(capsys, "--stages", "1,2", "-o", "out", "--method", "svd", "--rank", "3")
        assert "toy-s1.s2-svd3" in store.merges("toy")
        for file in Path(value["written"]["path"]).iterdir():
            assert (here / "out" / file.name).read_bytes() == file.read_bytes()

    def test_folding_into_the_original_base(self, store: Store, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_base_folder(here / "base")
        store.remember_base(REPO, REVISION, here / "base")
        value = report(capsys, "--stages", "1,2", "--into", "model", "--base-view", "original")
        assert Path("toy-s1.s2/config.json").is_file()
        assert value["stages"][0]["relative_norm"] > 0

    def test_a_dry_run_leaves_the_registry_alone(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        report(capsys, "--stages", "1,2,3", "--dry-run")
        assert store.merges("toy") == {}

    def test_a_damaged_stage_is_refused(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        path = store.stage("toy", 2).path / "adapter_model.safetensors"
        path.chmod(0o644)
        shutil.copyfile(store.stage("toy", 1).path / "adapter_model.safetensors", path)
        assert run(["merge", "--stages", "1,2"]) == 4
        assert "does not match its record" in capsys.readouterr().err

    def test_an_unknown_stage_lists_the_known_ones(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", "--stages", "1,4"]) == 3
        assert "3 (remedy)" in capsys.readouterr().err


class TestNextStep:
    """What `merge` prints as the next step is typed as it stands."""

    @pytest.fixture
    def trained(self, make_store: Any, tiny_base: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        """A registry whose last stage says what to score on."""
        from plyfold.core.config import config_dict, load_config
        from plyfold.engines import vllm_options
        from plyfold.registry.record import Recipe
        from plyfold.serving import launch

        for module in (vllm_options, launch):
            monkeypatch.setattr(module, "vllm_version", lambda: "0.32.0+cpu")
        made: Store = make_store(here / "kept", tiny_base(dtype="float32"), stages=2)
        entry = made.stage("tiny", 2)
        recipe = Recipe(config=config_dict(load_config("sandbox")))
        record = entry.record.model_copy(update={"recipe": recipe})
        made.set_ref("tiny", 2, made.publish(entry.path, record))
        return made

    def typed(self, told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
        """Run the commands of a next step; `serve` is only planned."""
        commands = [shlex.split(command) for command in told["next"].split("   or   ")]
        for program, command, *arguments in commands:
            assert program == "plyfold"
            scored = ["--limit", "2", "eval.max_new_tokens=4"]
            more = ["--port", "0", "--dry-run"] if command == "serve" else scored
            assert run([command, *arguments, *more]) == 0, capsys.readouterr().err
            capsys.readouterr()
        return [command for _, command, *_ in commands]

    @pytest.mark.parametrize("options", [[], ["--rank", "3"], ["--weights", "1,0.5"], ["--into", "model"]])
    def test_of_stages(self, trained: Store, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        told = report(capsys, "--stages", "1,2", "--registry", str(trained.root), *options)
        assert self.typed(told, capsys) == ["eval", "serve"]

    def test_of_one_of_several_curricula(
        self, trained: Store, make_store: Any, tiny_base: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_store(trained.root, tiny_base(dtype="float32"), stages=1, curriculum="other")
        where = ["--curriculum", "tiny", "--registry", str(trained.root)]
        assert self.typed(report(capsys, "--stages", "1,2", *where), capsys) == ["eval", "serve"]

    def test_of_folders(
        self, trained: Store, make_adapter: Any, tiny_base: Any, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for seed, name in enumerate("ab"):
            make_adapter(here / name, seed=seed, repo="")
        base = ["--base", str(tiny_base(dtype="float32"))]
        assert self.typed(report(capsys, "a", "b", *base), capsys) == ["serve"]
        assert self.typed(report(capsys, "a", "b", *base, "-o", "with a space"), capsys) == ["serve"]
        assert self.typed(report(capsys, "a", "b", *base, "--into", "model", "-o", "folded"), capsys) == ["serve"]
