"""Scores of rows that a model was trained on: found along the whole lineage, and shown wherever the score is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.config import DataConfig
from plyfold.data.dataset import load_rationales, load_scored
from plyfold.registry.lineage.contamination import nearest, overlaps
from plyfold.registry.lineage.graph import tree
from plyfold.registry.lineage.scores import attest_scores, scored
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store, find_store


def rows(name: str, split: str = "train", *, fill: str = "1", revision: str | None = None) -> DataRef:
    return DataRef(id=name, revision=revision, split=split, rows=10, sha256=f"sha256:{fill * 64}")


def accuracy(value: float = 0.5, n: int = 10) -> list[Metric]:
    return [Metric(name="accuracy", value=value, n=n)]


class Trained:
    """Stage 1 on its own rows, stage 2 on top of it on other rows, stage 3 that requires 2 without naming a parent."""

    def __init__(self, root: Path, make_record: Any) -> None:
        self.store: Store = find_store(root / ".plyfold", create=True)
        self.folder = root / "adapter"
        self.folder.mkdir()
        (self.folder / "adapter_config.json").write_text("{}")
        self.make_record = make_record
        self.one = self.stage(1, "structure", data=[rows("acme/sums", fill="1", revision="a")])
        self.two = self.stage(2, "brevity", [self.one], data=[rows("acme/words", fill="2")])
        self.three = self.stage(3, "remedy", requires=[self.two], data=[rows("acme/more", fill="3")])

    def stage(self, number: int, name: str, parents: Any = (), **fields: Any) -> str:
        digest = self.store.publish(self.folder, self.make_record(number, name, parents, **fields))
        self.store.set_ref("toy", number, digest)
        return digest


@pytest.fixture
def trained(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return Trained(tmp_path, make_record)


def found(trained: Trained, digest: str, evaluated: DataRef) -> list[tuple[str, str]]:
    return [(item.digest, item.same) for item in overlaps(trained.store, [digest], evaluated)]


class TestOverlaps:
    def test_parents_and_requirements_are_walked(self, trained: Trained) -> None:
        same = rows("renamed", "test", fill="1")
        assert found(trained, trained.three, same) == [(trained.one, "rows")]
        assert found(trained, trained.one, same) == [(trained.one, "rows")]
        assert found(trained, trained.three, rows("x", fill="9")) == []

    @pytest.mark.parametrize(
        ("learnt", "scored_on", "may_share"),
        [
            ("train [0.1, 1)", "train [0, 0.1)", False),
            ("train", "train [0, 0.1)", True),
            ("train [0.1, 1)", "train", True),
            ("train [0.1, 1)", "train [0, 0.2)", True),
            ("train [0.1, 1)", "test [0.1, 1)", False),
            ("train [1-, 1)", "train [1-, 1)", True),  # of a stranger's record
        ],
    )
    def test_parts_of_a_split_share_rows_where_they_meet(
        self, trained: Trained, learnt: str, scored_on: str, may_share: bool
    ) -> None:
        digest = trained.stage(4, "parts", data=[rows("acme/parts", learnt, fill="4")])
        assert bool(found(trained, digest, rows("acme/parts", scored_on, fill="5"))) == may_share

    def test_the_same_split_may_share_rows_whatever_the_revision(self, trained: Trained) -> None:
        assert found(trained, trained.two, rows("acme/sums", fill="9", revision="b")) == [(trained.one, "split")]
        assert found(trained, trained.two, rows("acme/sums", "test", fill="9", revision="a")) == []
        assert found(trained, trained.one, rows("acme/words", fill="9")) == []  # a descendant's data is not its own

    def test_ancestors_come_first_and_once(self, trained: Trained, make_record: Any) -> None:
        four = trained.stage(4, "last", [trained.one, trained.two], data=[rows("acme/sums", fill="4")])
        both = overlaps(trained.store, [trained.two, four], rows("acme/sums", fill="1"))
        assert [(item.digest, item.same) for item in both] == [(trained.one, "rows"), (four, "split")]
        assert "toy 1 structure" in str(both[0])
        assert "the very rows" in str(both[0])

    def test_what_is_not_held_says_nothing(self, trained: Trained, make_record: Any) -> None:
        four = trained.stage(4, "last", [f"sha256:{'e' * 64}"])
        assert found(trained, four, rows("acme/sums")) == []
        (trained.store.read_record(trained.one).path / "lineage.json").unlink()
        assert found(trained, trained.two, rows("acme/sums")) == []

    def test_nearest_agrees_with_the_walks(self, trained: Trained) -> None:
        digests = [trained.one, trained.two, trained.three]
        for evaluated in (rows("acme/sums"), rows("acme/words", fill="9"), rows("acme/none", fill="9")):
            reached = nearest(trained.store, digests, evaluated)
            assert {digest for digest in digests if overlaps(trained.store, [digest], evaluated)} == set(reached)
        assert nearest(trained.store, [trained.three], rows("acme/sums"))[trained.three].digest == trained.one


class TestWhereItIsShown:
    @pytest.fixture(autouse=True)
    def scored(self, trained: Trained) -> None:
        for stages in ([1], [1, 2]):
            attest_scores(trained.store, "toy", stages, accuracy(), data=rows("acme/words", fill="2"))

    def test_tree(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        one = tree(trained.store, "toy").children[0].children[0]
        assert one.overlap is None
        assert one.children[0].overlap is not None
        assert one.children[0].overlap.digest == trained.two
        assert run(["tree", "--json"]) == 0
        node = json.loads(capsys.readouterr().out)["curricula"][0]["children"][0]["children"][0]
        assert node["overlap"] is None
        assert (node["children"][0]["overlap"]["same"], node["children"][0]["overlap"]["digest"]) == (
            "rows",
            trained.two,
        )
        assert run(["tree"]) == 0
        assert "overlap: toy 2 brevity" in capsys.readouterr().out

    def test_show(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["show", "2", "--json"]) == 0
        (overlap,) = json.loads(capsys.readouterr().out)["overlaps"]
        assert (overlap["variant"], overlap["trained"][0]["digest"]) == ("1+2", trained.two)
        assert run(["show", "2"]) == 0
        assert "variant 1+2  toy 2 brevity" in capsys.readouterr().out
        assert run(["show", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["overlaps"] == []


class TestScores:
    def test_a_short_run_does_not_replace_a_full_one(self, trained: Trained) -> None:
        for value, n in ((0.6, 400), (0.9, 5), (0.7, 400), (1.0, 4)):
            attest_scores(trained.store, "toy", [1], accuracy(value, n))
        found = scored(trained.store, "toy")
        assert found.shown["1"].metrics == accuracy(0.7, 400)
        assert [score.n for score in found.apart["1"]] == [5, 4]

    def test_the_rows_are_on_record(self, trained: Trained) -> None:
        attest_scores(trained.store, "toy", [1], accuracy(), data=rows("acme/sums", "test"))
        assert scored(trained.store, "toy").shown["1"].data == rows("acme/sums", "test")
        assert trained.store.attestations(trained.one)[0].payload["data"]["split"] == "test"

    @pytest.mark.parametrize(
        "payload",
        [
            {"metrics": [{"name": 3}]},
            {"metrics": 7},
            {"data": {"id": ""}},
            {"data": [1]},
        ],
    )
    def test_an_unreadable_score_is_named(
        self, trained: Trained, payload: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        base = "acme/tiny-qwen2@0123456789abcdef0123456789abcdef01234567"
        said = {"curriculum": "toy", "variant": "1", "base": base, "inputs": {"1": trained.one}, "metrics": []}
        trained.store.attest(trained.one, "eval", {**said, **payload})
        assert run(["tree"]) == 4
        assert f"attest/{trained.one[7:]}" in "".join(capsys.readouterr().err.split())

    def test_scores_of_other_tools_are_passed_over(self, trained: Trained) -> None:
        for inputs in (None, [1], {"1": ["x"]}, {"1": 7}):
            trained.store.attest(trained.one, "eval", {"curriculum": "toy", "inputs": inputs, "base": ["x"]})
        assert scored(trained.store, "toy").shown == {}


def test_rows_scored_and_rows_trained_on_are_told_alike(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    lines = [
        json.dumps({"question": f"{n}+1?", "answer": f"There are {n}.\nOne more makes {n + 1}.\n#### {n + 1}"})
        for n in range(6)
    ]
    path.write_text("\n".join(lines))
    config = DataConfig(path=str(path))
    report = load_rationales(config)[1]
    problems, scored_rows = load_scored(config)
    assert len(problems) == 6
    assert DataRef.of(scored_rows).sha256 == DataRef.of(report).sha256
    assert DataRef.of(scored_rows).id == "sums.jsonl"
    few = DataRef.of(load_scored(config, 2)[1])
    assert (few.rows, few.sha256 == DataRef.of(report).sha256) == (2, False)
