"""A gate's grammar, what it holds a stage against, and where it finds what was measured before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.config import DataConfig, EvalConfig
from plyfold.core.errors import ConfigError, GateError, NotFoundError
from plyfold.data.problems import Problem
from plyfold.evaluation import scores as scoring
from plyfold.evaluation.grader import grader
from plyfold.evaluation.protocols import PROTOCOLS
from plyfold.evaluation.runner import problems_digest
from plyfold.registry.lineage.scores import attest_scores
from plyfold.registry.lineage.shared_scores import SharedScore, adopt_evaluations, evaluations
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store
from plyfold.stages.gates import Condition, GateMeasurement, check_gate, parse_gate

WHERE = "stages.structure.gate"
PROBLEMS = [Problem(id="test-0", question="1 + 1?", gold="2"), Problem(id="test-1", question="2 + 2?", gold="4")]
DATA = DataRef(id="sandbox", split="test", rows=2, sha256=f"sha256:{'1' * 64}")
CONFIG = EvalConfig(data=DataConfig(path="sandbox", split="test"))


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("accuracy >= 0.6", [Condition(metric="accuracy", comparison=">=", bar=0.6)]),
        (" accuracy>.6 ", [Condition(metric="accuracy", comparison=">", bar=0.6)]),
        ("accuracy >= previous", [Condition(metric="accuracy", comparison=">=", bar=0, relative=True)]),
        (
            "accuracy >= previous - 0.01 and tokens <= 120",
            [
                Condition(metric="accuracy", comparison=">=", bar=-0.01, relative=True),
                Condition(metric="tokens", comparison="<=", bar=120),
            ],
        ),
        ("accuracy >= previous - 1e-3", [Condition(metric="accuracy", comparison=">=", bar=-1e-3, relative=True)]),
        ("tokens <= 1.2E2", [Condition(metric="tokens", comparison="<=", bar=120)]),
        ("accuracy >= 1", [Condition(metric="accuracy", comparison=">=", bar=1)]),
        ("tokens < previous + 5", [Condition(metric="tokens", comparison="<", bar=5, relative=True)]),
    ],
)
def test_a_gate_is_read_and_said_again(text: str, conditions: list[Condition]) -> None:
    assert list(parse_gate(text, WHERE)) == conditions
    assert parse_gate(" and ".join(map(str, conditions)), WHERE) == tuple(conditions)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a gate"),
        ("accuracy", "not a gate"),
        ("accuracy = 0.6", "not a gate"),
        ("accuracy >= 1e", "not a gate"),
        ("accuracy >= 0.6 and", "not a gate"),
        ("accuracy >= previous * 2", "not a gate"),
        ("accuracy >= nan", "not a gate"),
        ("reward >= 0.5", "no known metric"),
        ("accuracy >= 60", "write 0.6 for 60 %"),
        ("truncated <= 1.5", "fraction"),
        ("accuracy >= .", "not a gate"),
        ("accuracy > 1", "never holds"),
        ("accuracy < 0", "never holds"),
        ("accuracy >= 0", "always holds"),
        ("accuracy <= 1", "always holds"),
        ("tokens >= 0", "always holds"),
        ("tokens <= 1e999", "always holds"),
        ("tokens > 1e999", "never holds"),
        ("tokens >= previous - 1e999", "always holds"),
        ("accuracy > previous + 1", "never holds"),
        ("accuracy >= previous - 1", "always holds"),
    ],
)
def test_what_is_no_gate_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_gate(text, WHERE)
    assert told in str(caught.value)
    assert WHERE in str(caught.value)


def test_an_engine_that_is_not_there_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    scoring.check_engine(CONFIG)
    with pytest.raises(ConfigError, match="no such engine"):
        scoring.check_engine(replace(CONFIG, engine="guess"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match="vLLM"):
        scoring.check_engine(replace(CONFIG, engine="vllm"))


def test_an_interval_and_its_n_are_said_beside_the_bar() -> None:
    relative = Condition(metric="accuracy", comparison=">=", bar=-0.01, relative=True)
    measured = GateMeasurement(condition=relative, value=0.5, ci95=(0.4, 0.6), n=100, bar=0.49)
    assert measured.passed
    assert str(measured) == "accuracy >= previous - 0.01 (that is 0.49): 0.5 [0.4, 0.6], n 100"
    assert measured.to_json()["ci95"] == [0.4, 0.6]


def test_a_score_on_the_bar_is_on_the_bar() -> None:
    """0.651 - 0.01 is 0.641 with a rest in floating point."""
    (condition,) = parse_gate("accuracy >= previous - 0.01", "x")
    for right in range(10, 1001):
        bar = condition.bar + right / 1000
        measured = GateMeasurement(condition=condition, value=(right - 10) / 1000, ci95=None, n=1000, bar=bar)
        assert measured.passed
        assert not replace(measured, value=(right - 11) / 1000).passed


@pytest.fixture
def store(tmp_path: Path, tiny_base: Any, make_store: Any) -> Store:
    store: Store = make_store(tmp_path / "store", tiny_base(), stages=2)
    return store


def _attest(store: Store, stages: tuple[int, ...], accuracy: float, **over: Any) -> None:
    details = {
        "engine": {"engine": "hf", "max_new_tokens": CONFIG.max_new_tokens},
        "problems": {"digest": problems_digest(PROBLEMS)},
        "protocol": PROTOCOLS["zero-shot"].digest(),
        "grader": grader(),
    }
    metrics = [Metric(name="accuracy", value=accuracy, n=2, ci95=(0.1, 0.9)), Metric(name="tokens", value=9, n=2)]
    attest_scores(store, "tiny", stages, metrics, {**details, **over}, DATA)


def _check(store: Store, gate: str, tmp_path: Path) -> list[GateMeasurement]:
    return check_gate(parse_gate(gate, WHERE), store, "tiny", (1, 2), CONFIG, PROBLEMS, DATA, tmp_path, "stages.b")


def _heard(store: Store) -> SharedScore:
    """What somebody else says stages 1 and 2 scored on the very same terms."""
    _attest(store, (1, 2), 0.9)
    digest = store.ref("tiny", 2)
    (said,) = [item for item in evaluations(store, digest) if item.payload["grader"] == grader()
               and item.payload["engine"] == {"engine": "hf", "max_new_tokens": CONFIG.max_new_tokens}
               and item.payload["protocol"] == PROTOCOLS["zero-shot"].digest()
               and item.payload["problems"] == {"digest": problems_digest(PROBLEMS)}]  # fmt: skip
    for path in (store.root / "attest" / digest.removeprefix("sha256:")).glob("*.json"):
        if json.loads(path.read_text())["payload"] == said.payload:
            path.unlink()
    return said


def test_scores_on_record_are_not_measured_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def score(store: Store, variants: Any, *_: Any, **__: Any) -> None:
        asked.append([variant.name for variant in variants])
        for variant in variants:
            _attest(store, variant.stages, 0.7)

    monkeypatch.setattr(scoring, "score_variants", score)
    _attest(store, (1, 2), 0.9, protocol="sha256:other")  # asked in another way
    _attest(store, (1, 2), 0.9, problems={"digest": "sha256:other"})
    _attest(store, (1, 2), 0.9, engine={"engine": "hf", "max_new_tokens": 7})
    _attest(store, (1, 2), 0.9, grader=None)  # read by a grader that is not known
    _attest(
        store,
        (1, 2),
        0.9,
        engine={"engine": "hf", "max_new_tokens": CONFIG.max_new_tokens, "temperature": 0.7, "seed": 1},
    )
    adopt_evaluations(store, [_heard(store)])
    _attest(store, (2,), 0.9)  # another variant beside the same adapter
    (measured,) = _check(store, "accuracy >= 0.6", tmp_path)
    assert (measured.value, measured.n, asked) == (0.7, 2, [["1+2"]])
    _check(store, "accuracy >= 0.6 and tokens <= 9", tmp_path)
    assert len(asked) == 1
    measured = _check(store, "accuracy >= previous", tmp_path)[0]
    assert (measured.bar, asked[1:]) == (0.7, [["1"]])


def test_a_missed_gate_says_by_how_much_and_what_to_do(store: Store, tmp_path: Path) -> None:
    _attest(store, (1,), 0.8)
    _attest(store, (1, 2), 0.7)
    assert [item.passed for item in _check(store, "accuracy >= 0.7 and tokens < 10", tmp_path)] == [True, True]
    with pytest.raises(GateError) as caught:
        _check(store, "accuracy >= previous - 0.05 and tokens < 10", tmp_path)
    error = caught.value
    assert error.exit_code == 5
    assert error.expected == "accuracy >= previous - 0.05"
    assert error.found == "accuracy >= previous - 0.05 (that is 0.75): 0.7 [0.1, 0.9], n 2"
    assert "stages.b.gate=" in error.next_step
