"""Scores that travel: only added, joined in any order, read from strangers with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import IntegrityError
from plyfold.registry.hub.sidecars import said_together
from plyfold.registry.lineage.scores import attest_scores, scored, scores
from plyfold.registry.lineage.shared_scores import (
    EVALUATIONS,
    SharedScore,
    adopt_evaluations,
    evaluations,
    parse_evaluations,
)
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store
from plyfold.registry.trust.shared_statements import MAX_TRAVEL_BYTES, to_bytes

ABSENT = "sha256:" + "a" * 64


@pytest.fixture
def stores(tmp_path: Path, make_record: Any, make_adapter: Any) -> tuple[Store, Store]:
    """Two registries with the same stages 1 and 2."""
    both = Store(tmp_path / "here"), Store(tmp_path / "there")
    folder = make_adapter(tmp_path / "adapter")
    first = make_record(1, "structure", [])
    for store in both:
        one = store.publish(folder, first)
        two = store.publish(folder, make_record(2, "brevity", [one]).model_copy(update={"created": first.created}))
        store.set_ref("toy", 1, one)
        store.set_ref("toy", 2, two)
    assert both[0].stages("toy") == both[1].stages("toy")
    return both


def _score(store: Store, stages: list[int], accuracy: float, n: int = 100) -> None:
    data = DataRef(id="openai/gsm8k", split="test", rows=n, sha256="sha256:" + "5" * 64)
    metrics = [Metric(name="accuracy", value=accuracy, n=n, ci95=(0.1, 0.9), protocol="zero-shot")]
    attest_scores(store, "toy", stages, metrics, {"engine": "hf"}, data)


def test_what_one_measured_is_known_to_the_other(stores: tuple[Store, Store]) -> None:
    here, there = stores
    _score(here, [], 0.2)
    _score(here, [1, 2], 0.6)
    _score(there, [1, 2], 0.7, n=500)
    for digest in here.stages("toy").values():
        both = [*evaluations(here, digest), *evaluations(there, digest)]
        data = to_bytes(both)
        assert data == to_bytes(reversed(both))
        for store in (here, there):
            assert all(item.is_about(digest, store.read_record(digest).record) for item in parse_evaluations(data))
            adopt_evaluations(store, parse_evaluations(data))
            assert adopt_evaluations(store, parse_evaluations(data)) == []
            assert to_bytes(evaluations(store, digest)) == data
    assert {name: found[0].value for name, found in scores(here, "toy").items()} == {"base": 0.2, "1+2": 0.6}
    assert {name: found[0].value for name, found in scores(there, "toy").items()} == {"1+2": 0.7}
    (other,) = scored(here, "toy").apart["1+2"]
    assert (other.accuracy, other.heard) == (0.7, True)
    assert "measured elsewhere, pulled" in other.apart_from(scored(here, "toy").terms)


def test_scores_with_other_adapters_or_on_another_base_are_not_about_it(stores: tuple[Store, Store]) -> None:
    here, _ = stores
    _score(here, [1, 2], 0.6)
    two = here.ref("toy", 2)
    record = here.read_record(two).record
    (sound,) = evaluations(here, two)
    for change in ({"inputs": {"1": ABSENT, "2": two}}, {"base": "acme/other@" + "0" * 40}):
        assert not sound.model_copy(update={"payload": {**sound.payload, **change}}).is_about(two, record)
    assert not sound.model_copy(update={"digest": ABSENT}).is_about(two, record)
    assert sound.is_about(two, record)


def test_scores_of_other_tools_stay_where_they_are(stores: tuple[Store, Store]) -> None:
    here, _ = stores
    one = here.ref("toy", 1)
    here.attest(one, "eval", {"tool": "another", "score": 3})
    assert evaluations(here, one) == []


@pytest.mark.slow
def test_of_thousands_the_newest_travel_and_none_pushes_out_what_was_measured_here(
    stores: tuple[Store, Store], capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = stores
    _score(here, [1], 0.6)
    digest = here.ref("toy", 1)
    (one,) = evaluations(here, digest)
    many = [
        SharedScore.model_validate({**one.model_dump(), "created": f"20{year:02}-01-{day:02}T00:00:00Z"})
        for year in range(30, 100)
        for day in range(10, 29)
    ]
    kept = said_together(here, digest, many, EVALUATIONS)
    assert (kept[0], many[-1] in kept) == (one, True)
    assert len(kept) == 1 + EVALUATIONS.max_heard
    capsys.readouterr()
    adopt_evaluations(here, many)
    assert f"{len(many) - EVALUATIONS.max_heard:,} scores about" in capsys.readouterr().err
    assert evaluations(here, digest) == kept
    adopt_evaluations(here, many)
    assert evaluations(here, digest) == kept
    (path,) = (here.root / "attest" / digest.removeprefix("sha256:")).glob("statements.json")
    assert path.stat().st_size < 1.1 * EVALUATIONS.max_heard_bytes
    mine = [item.model_copy(update={"created": item.created.replace("20", "19", 1)}) for item in many[:600]]
    adopt_evaluations(here, mine, own=True)  # of these there may be more
    assert len(evaluations(here, digest)) > 2 * len(kept)
    assert one in evaluations(here, digest)


def _file(**changes: Any) -> bytes:
    payload = {
        "curriculum": "toy",
        "variant": "1+2",
        "base": "acme/base@" + "0" * 40,
        "inputs": {"1": ABSENT},
        "metrics": [{"name": "accuracy", "value": 0.5}],
        **changes.pop("payload", {}),
    }
    row = {"digest": ABSENT, "kind": "eval", "created": "2026-11-20T10:00:00Z", "payload": payload, **changes}
    return json.dumps({"schema": 1, "statements": [row]}).encode()


def test_the_sound_file_of_the_next_test_is_read() -> None:
    assert len(parse_evaluations(_file())) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"{" + b" " * MAX_TRAVEL_BYTES + b"}",
        b'{"schema": 2, "statements": []}',
        _file(digest="sha256:.."),
        _file(kind="revoked"),
        _file(created="now"),
        _file(more=1),
        _file(payload={"curriculum": "../toy"}),
        _file(payload={"variant": "\x1b[2J"}),
        _file(payload={"inputs": {"1": "stage one"}}),
        _file(payload={"metrics": []}),
        _file(payload={"metrics": [{"name": "accuracy", "value": float("nan")}]}),
        _file(payload={"engine": "hf\nand more"}),
        _file(payload={"engine": "x" * 2001}),
        _file(payload={"path": "/home/me/run"}),
        _file(payload={"far": float("inf")}),
    ],
)
def test_what_is_no_file_of_evaluations_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="is not what this version understands"):
        parse_evaluations(data, "hf://acme/toy")
