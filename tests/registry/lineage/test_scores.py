"""Only scores on equal terms stand side by side; the others are named with what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.registry.hub.push.card import render_card
from plyfold.registry.hub.push.card_facts import facts_of
from plyfold.registry.lineage.scores import attest_scores, scored
from plyfold.registry.lineage.shared_scores import adopt_evaluations, evaluations
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store, find_store

TERMS = {
    "engine": {"engine": "hf", "max_new_tokens": 512, "temperature": 0.0},
    "problems": {"n": 500, "digest": "sha256:" + "1" * 64},
    "protocol": "sha256:" + "2" * 64,
    "grader": "2:0123456789ab",
}
OTHERS = {
    "data": {"problems": {"n": 500, "digest": "sha256:" + "9" * 64}},
    "protocol": {"protocol": "sha256:" + "8" * 64},
    "grader": {"grader": "1:ba9876543210"},
    "no grader": {"grader": None},
    "engine": {"engine": {**TERMS["engine"], "engine": "vllm"}},  # type: ignore[dict-item]
    "length": {"engine": {**TERMS["engine"], "max_new_tokens": 64}},  # type: ignore[dict-item]
    "sampling": {"engine": {**TERMS["engine"], "temperature": 0.7, "seed": 1}},  # type: ignore[dict-item]
}


def _attest(store: Store, stages: list[int], value: float, n: int = 500, data: str = "sums", **over: Any) -> None:
    rows = DataRef(id=data, split="test", rows=n, sha256="sha256:" + "5" * 64)
    metrics = [Metric(name="accuracy", value=value, n=n, ci95=(0.1, 0.9), protocol="zero-shot")]
    attest_scores(store, "toy", stages, metrics, {**TERMS, **over}, rows)


@pytest.fixture
def store(tmp_path: Path, make_record: Any, make_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(tmp_path / ".plyfold", create=True)
    folder = make_adapter(tmp_path / "adapter")
    one = store.publish(folder, make_record(1, "structure", []))
    store.set_ref("toy", 1, one)
    store.set_ref("toy", 2, store.publish(make_adapter(tmp_path / "second", seed=1), make_record(2, "brevity", [one])))
    for stages, value in (([], 0.5), ([1], 0.754), ([1, 2], 0.9)):
        _attest(store, stages, value)
    return store


@pytest.mark.parametrize("over", OTHERS.values(), ids=OTHERS)
def test_a_score_on_other_terms_stands_apart(store: Store, over: dict[str, Any]) -> None:
    _attest(store, [1], 0.999, **over)
    found = scored(store, "toy")
    assert [found.shown[name].accuracy for name in ("base", "1", "1+2")] == [0.5, 0.754, 0.9]
    (other,) = found.apart["1"]
    assert other.accuracy == 0.999
    assert other.terms != found.terms
    assert other.terms.against(found.terms)


def test_more_problems_of_another_file_do_not_win(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    _attest(store, [1], 0.999, n=100_000, data="other", problems={"digest": "sha256:" + "9" * 64})
    assert run(["tree"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "75.4 %" in out
    assert "apart: 99.9 %, on other test (n=100000)" in out
    assert "on sums test (n=500)" in out
    assert run(["tree", "--json"]) == 0
    (root,) = json.loads(capsys.readouterr().out)["curricula"]
    one = root["children"][0]["children"][0]
    assert root["terms"]["grader"] == TERMS["grader"]
    assert one["metrics"][0]["value"] == 0.754
    assert one["apart"] == ["99.9 %, on other test (n=100000)"]


def test_the_same_name_with_other_rows_is_said(store: Store) -> None:
    _attest(store, [1], 0.999, **OTHERS["data"])
    (other,) = scored(store, "toy").apart["1"]
    assert other.apart_from(scored(store, "toy").terms) == "99.9 %, on other problems of that name"


def test_an_own_score_comes_before_a_pulled_one_and_a_pulled_one_is_said(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = store.ref("toy", 2)
    (own,) = evaluations(store, two)
    metrics = [{**own.payload["metrics"][0], "value": 0.999}]  # type: ignore[index,dict-item]
    forged = own.model_copy(update={"payload": {**own.payload, "metrics": metrics}, "created": "2099-01-01T00:00:00Z"})
    adopt_evaluations(store, [forged])
    assert scored(store, "toy").shown["1+2"].accuracy == 0.9
    for path in (store.root / "attest" / two.removeprefix("sha256:")).glob("*.json"):
        if path.name != "statements.json":
            path.unlink()
    assert scored(store, "toy").shown["1+2"].heard
    assert run(["tree"]) == 0
    assert "99.9 % [10.0, 90.0] (n=500) measured elsewhere, pulled" in " ".join(capsys.readouterr().out.split())


def test_a_score_is_of_its_inputs_whatever_name_it_gives_itself(store: Store) -> None:
    (own,) = evaluations(store, store.ref("toy", 1))[:1]
    store.attest(own.digest, "eval", {**own.payload, "variant": "1+2", "inputs": {}, "grader": "3:0"})
    assert scored(store, "toy").shown["1+2"].accuracy == 0.9
    assert "1+2" not in scored(store, "toy").apart


def test_scores_without_a_grader_stand_together_and_say_so(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for digest in store.stages("toy").values():
        for path in (store.root / "attest" / digest.removeprefix("sha256:")).glob("*.json"):
            path.unlink()
    for stages, value in (([], 0.5), ([1], 0.754)):
        _attest(store, stages, value, grader=None)
    assert run(["tree"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "grader unknown" in out
    assert "75.4 %" in out
    _attest(store, [1], 0.76)
    assert scored(store, "toy").shown["1"].accuracy == 0.76
    assert [score.accuracy for score in scored(store, "toy").apart["base"]] == [0.5]


def test_a_card_says_on_what_terms_and_lists_the_others_apart(store: Store) -> None:
    _attest(store, [1], 0.999, n=100_000, data="other", problems={"digest": "sha256:" + "9" * 64})
    entry = store.stage("toy", 1)
    page = render_card(entry.record, repo="acme/toy-s01-structure", facts=facts_of(store, entry, {}))
    assert "| accuracy | 0.754 |" in page
    assert "at most 512 tokens, grader 2:0123456789ab" in page
    assert "not to be compared with these: 99.9 %, on other test (n=100000)" in page
    assert "0.999 |" not in page


def test_show_says_the_terms_of_every_score(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    _attest(store, [1], 0.999, n=100_000, data="other", grader=None)
    assert run(["show", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "accuracy 0.754 on sums test (n=500)" in out
    assert "accuracy 0.999 on other test (n=100000)" in out
    assert "grader unknown" in out


def test_merge_names_the_terms_and_what_stands_apart(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    _attest(store, [1], 0.999, n=100_000, data="other", problems={"digest": "sha256:" + "9" * 64})
    assert run(["merge", "--stages", "1,2", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [stage["accuracy"] for stage in said["stages"]] == [0.754, 0.9]
    assert said["scores"]["apart"] == ["1: 99.9 %, on other test (n=100000)"]
    assert "grader 2:0123456789ab" in said["scores"]["terms"]
