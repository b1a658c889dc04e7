"""`plyfold eval` from the command line to the registry, on a store of random adapters over a tiny random base."""

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run

pytestmark = pytest.mark.slow

STAGES = """
curriculum: tiny
base: {repo: acme/tiny, revision: auto}
data: {path: sandbox}
eval: {data: {path: sandbox, split: test, rows: [0, 6]}, max_new_tokens: 8, batch_size: 4}
stages: {one: {number: 1, task: reconstruct}}
"""


@pytest.fixture(scope="module")
def store(make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_store(tmp_path_factory.mktemp("store") / ".plyfold", tiny_base(dtype="float32"), stages=2)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(STAGES)
    return "c.yaml"


def _eval(store: Any, *arguments: str) -> int:
    return run(["eval", "--registry", str(store.root), *arguments])


def test_every_step_is_scored_written_and_attested(
    store: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plyfold.registry.lineage.scores import scores

    assert _eval(store, "-c", config, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["curriculum"], said["baseline"]) == (1, "tiny", "base")
    assert [row["variant"] for row in said["variants"]] == ["base", "1", "1+2"]
    assert set(said["comparisons"]) == {"1", "1+2"}
    assert said["engine"]["engine"] == "hf"
    assert all(row["n"] == 6 and 1 <= row["mean_tokens"] <= 8 for row in said["variants"])
    folder = tmp_path / said["folder"]
    assert folder.parent == tmp_path / "runs" / "tiny" / "eval"
    answers = [json.loads(line) for line in (folder / "1+2.jsonl").read_text().splitlines()]
    base = [json.loads(line) for line in (folder / "base.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers] == [f"test-{index}" for index in range(6)]
    assert [row["text"] for row in answers] != [row["text"] for row in base]
    attested = scores(store, "tiny")
    assert set(attested) == {"base", "1", "1+2"}
    for row in said["variants"]:
        found = {metric.name: metric for metric in attested[row["variant"]]}
        assert found["accuracy"].value == row["accuracy"]
        assert found["tokens"].value == row["mean_tokens"]
        assert (found["accuracy"].n, found["accuracy"].protocol) == (6, "zero-shot")
    payload = store.attestations(store.ref("tiny", 2), "eval")[0].payload
    assert {key: payload["data"][key] for key in ("id", "split", "rows")} == {
        "id": "sandbox",
        "split": "test",
        "rows": 6,
    }


def test_sampled_scores_are_written_and_not_attested(
    store: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [len(store.attestations(store.ref("tiny", number), "eval")) for number in (1, 2)]
    assert _eval(store, "1", "-c", config, "eval.temperature=1", "eval.seed=5") == 0
    assert "sampled at temperature 1" in " ".join(capsys.readouterr().out.split())
    results = json.loads(next((tmp_path / "runs").rglob("results.json")).read_text())
    assert (results["engine"]["temperature"], results["engine"]["seed"]) == (1.0, 5)
    assert [len(store.attestations(store.ref("tiny", number), "eval")) for number in (1, 2)] == known
    assert _eval(store, "1", "-c", config, "eval.temperature=-1") == 2


def test_rows_that_a_stage_was_trained_on_are_said_before_they_are_scored(
    store: Any, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plyfold.registry.lineage.scores import scores
    from plyfold.registry.record import DataRef

    entry = store.stage("tiny", 1)
    rows = DataRef(id="sandbox", split="test", rows=9, sha256=f"sha256:{'5' * 64}")
    store.set_ref("tiny", 1, store.publish(entry.path, entry.record.model_copy(update={"data": [rows]})))
    monkeypatch.setattr("plyfold.evaluation.scores.load_engine", lambda *_: pytest.fail("scored without a word"))
    try:
        with pytest.raises(pytest.fail.Exception):
            _eval(store, "1", "-c", config)
        assert "was trained on the split that is scored (test of sandbox)" in " ".join(capsys.readouterr().err.split())
        assert "1" not in scores(store, "tiny")
    finally:
        store.set_ref("tiny", 1, entry.digest)


def test_named_variants_limits_and_a_file(
    store: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(5)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["1+2", "1", "-c", config, "--data", "mine.jsonl", "--limit", "3", "eval.max_new_tokens=4"]
    assert _eval(store, *arguments) == 0
    shown = capsys.readouterr().out
    assert "3 problems" in shown
    assert "against 1+2" in shown
    results = json.loads(next((tmp_path / "runs").rglob("results.json")).read_text())
    assert results["baseline"] == "1+2"
    assert results["engine"]["max_new_tokens"] == 4
    assert [json.loads(line)["gold"] for line in next((tmp_path / "runs").rglob("1.jsonl")).open()] == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["1+7", "-c", "c.yaml"], 3, "stage 7"),
        (["base", "-c", "absent.yaml"], 3, "no such config"),
        (["base", "-c", "c.yaml", "eval.limt=3"], 2, "limt"),
        (["base", "-c", "c.yaml", "--protocol", "no"], 2, "no such protocol"),
        (["base", "-c", "c.yaml", "eval.engine=x"], 2, "no such engine"),
        (["base", "-c", "c.yaml", "--data", "absent.jsonl"], 3, "absent.jsonl"),
        (["base", "-c", "c.yaml", "eval.data.columns.answer=gold"], 2, "gold"),
        (["base"], 2, "name a config"),  # these records hold no config
        (["bse", "-c", "c.yaml"], 2, "not a variant"),
    ],
)
def test_bad_input_ends_with_one_error_and_writes_nothing(
    store: Any,
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert _eval(store, *arguments) == code
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("error[") == 1
    assert not (tmp_path / "runs").exists()


def test_a_stage_that_does_not_say_how_its_base_was_quantised_is_scored_beside_those_that_do(
    make_store: Any,
    make_adapter: Any,
    tiny_base: Any,
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"), stages=1)
    make_adapter(tmp_path / "alice", seed=9)
    assert run(["import", "alice", "--stage", "2"]) == 0
    capsys.readouterr()
    assert _eval(store, "base", "1+2", "2", "-c", config, "--json") == 0
    said, told = capsys.readouterr()
    assert [row["variant"] for row in json.loads(said)["variants"]] == ["base", "1+2", "2"]
    assert told.count("tiny 2 alice does not say how its base was quantised") == 1
    assert len([path for path in (store.cache / "twins").iterdir() if path.is_dir()]) == 1


def test_every_kind_of_variant_is_scored_side_by_side(
    make_store: Any, make_adapter: Any, tiny_base: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"), stages=2)
    make_adapter(tmp_path / "my-lora", seed=9)
    assert run(["merge", "--stages", "1,2", "--rank", "3"]) == 0
    assert run(["merge", "--stages", "1,2", "--into", "model", "-o", "folded"]) == 0
    capsys.readouterr()
    asked = ["base", "1+2", "tiny-s1.s2-svd3", store.ref("tiny", 2)[7:17], "./my-lora", "./folded"]
    assert _eval(store, *asked, "-c", config, "--json") == 0
    said, told = capsys.readouterr()
    value = json.loads(said)
    names = ["base", "1+2", "tiny-s1.s2-svd3", "2", "./my-lora", "./folded"]
    assert [row["variant"] for row in value["variants"]] == names
    assert "./my-lora does not say how its base was quantised while training" in " ".join(told.split())
    answers = {
        path.stem: [json.loads(line)["text"] for line in path.open()]
        for path in (tmp_path / value["folder"]).glob("*.jsonl")
    }
    assert len(answers) == len(names)
    # The twin is in float32 here, and so is the fold: what was left apart and what was folded in answer alike.
    assert answers["folded"] == answers["1+2"]
    assert answers["my-lora"] not in (answers["base"], answers["1+2"])
    assert value["inert"] == []
    assert value["steps"] == {}
    assert set(value["engine"]["checkpoints"]) == {"./folded"}


def test_a_folder_of_another_base_is_refused_before_anything_is_loaded(
    store: Any,
    make_adapter: Any,
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_adapter(tmp_path / "foreign", repo="acme/another")
    monkeypatch.setattr("plyfold.evaluation.scores.load_engine", lambda *_: pytest.fail("loaded"))
    assert _eval(store, "base", "./foreign", "-c", config) == 8
    said = capsys.readouterr().err
    assert "./foreign" in said
    assert "acme/another" in said
    assert not (tmp_path / "runs").exists()


def test_folders_are_scored_where_no_registry_is(
    make_adapter: Any, tiny_base: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_base(dtype="float32"))
    make_adapter(tmp_path / "my-lora", seed=9, repo="")
    assert run(["eval", "./my-lora", "-c", config]) == 2
    assert "--base" in capsys.readouterr().err
    assert run(["eval", "./my-lora", "-c", config, "--base", base, "--json"]) == 0
    assert [row["variant"] for row in json.loads(capsys.readouterr().out)["variants"]] == ["./my-lora"]


def test_two_names_that_are_alike_to_a_file_system_keep_their_answers() -> None:
    from plyfold.evaluation.report import file_names

    names = ["./a-b", "./a/b", "A-B", "gsm8k:1+2*0.5", "."]
    assert list(file_names(names).values()) == ["a-b", "a-b-2", "A-B-3", "gsm8k-1+2x0.5", "variant"]
