"""The runner, the protocols and the reports, on an engine that answers from a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import ConfigError, ConflictError
from plyfold.evaluation.engines import Generation, end_token_ids
from plyfold.evaluation.problems import Problem
from plyfold.evaluation.protocols import protocol
from plyfold.evaluation.report import print_evaluation, resolution, write_evaluation
from plyfold.evaluation.runner import evaluate

PROBLEMS = [Problem(id=f"test-{i}", question=f"What is {i} + {{x}}?", gold=str(i)) for i in range(20)]
PROTOCOL = protocol("zero-shot")


class TableEngine:
    """Right on the first `right[variant]` problems; every answer `tokens[variant]` long."""

    def __init__(self, right: dict[str, int], tokens: dict[str, int], inert: Sequence[str] = ()) -> None:
        self.right, self.tokens, self.inert = right, tokens, inert

    def generate(self, variant: str, prompts: Sequence[str]) -> list[Generation]:
        made = []
        for index, prompt in enumerate(prompts):
            assert prompt == f"Question: What is {index} + {{x}}?\nSolution:\n"
            text = f"Answer: {index}" if index < self.right[variant] else "I do not know" if index % 2 else "Answer: 99"
            reason = "length" if text.startswith("I") else "stop"
            made.append(Generation(text=text, num_tokens=self.tokens[variant], finish_reason=reason))
        return made

    def generate_all(self, variants: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Generation]]:
        return {variant: self.generate(variant, prompts) for variant in variants}

    def probe(self, variant: str, prompts: Sequence[str]) -> list[tuple[float, ...]]:
        same = variant == "base" or variant in self.inert
        return [(-0.5 if same else -0.5 - len(variant) / 1e6, -1.0) for _ in prompts]

    def describe(self) -> dict[str, Any]:
        return {"engine": "table"}


ENGINE = TableEngine({"base": 8, "1+2": 16}, {"base": 40, "1+2": 30})


def test_scores_and_comparison() -> None:
    found = evaluate(PROBLEMS, ENGINE, ["base", "1+2"], PROTOCOL)
    base, composed = found.scores
    assert (base.variant, base.n, base.correct, base.accuracy, base.mean_tokens) == ("base", 20, 8, 0.4, 40)
    assert (composed.correct, composed.accuracy) == (16, 0.8)
    assert base.truncated_share == base.no_answer_share == 0.3
    assert base.methods == {"answer-line": 14, "none": 6}
    assert base.accuracy_ci95.low < 0.4 < base.accuracy_ci95.high
    paired = found.comparisons["1+2"]
    assert (paired.fixed, paired.broken, paired.tokens, paired.tokens_both_right) == (8, 0, -10, -10)
    assert paired.p_value == pytest.approx(2 / 2**8)
    assert found.baseline == "base"
    assert found.inert == []


def test_an_adapter_without_effect_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    engine = TableEngine({"base": 8, "1": 8}, {"base": 40, "1": 40}, inert=["1"])
    assert evaluate(PROBLEMS, engine, ["base", "1"], PROTOCOL).inert == ["1"]
    assert "variant 1 has no effect" in capsys.readouterr().err


def test_one_variant_alone_has_nothing_to_be_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(PROBLEMS, ENGINE, ["1+2"], PROTOCOL)
    print_evaluation(found)
    assert found.comparisons == {}
    assert "80.0 %" in capsys.readouterr().out
    assert resolution(found).startswith("20 problems place one accuracy within about ±16.8 ")


def test_table_shows_scores_differences_and_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(evaluate(PROBLEMS, ENGINE, ["base", "1+2"], PROTOCOL), "gsm8k")
    shown = capsys.readouterr().out
    for part in ("gsm8k", "zero-shot", "20 problems", "40.0 %", "80.0 %", "+40.0", "0.008", "-10.0", "McNemar"):
        assert part in shown


def test_few_differing_answers_are_said_to_separate_nothing() -> None:
    engine = TableEngine({"base": 8, "1": 10}, {"base": 40, "1": 40})
    assert "only 2 answers that differ" in resolution(evaluate(PROBLEMS, engine, ["base", "1"], PROTOCOL))


def test_result_files_hold_every_answer(tmp_path: Path) -> None:
    found = evaluate(PROBLEMS, ENGINE, ["base", "1+2"], PROTOCOL)
    folder = write_evaluation(found, tmp_path / "eval" / "now")
    assert sorted(path.name for path in folder.iterdir()) == ["1+2.jsonl", "base.jsonl", "results.json"]
    rows = [json.loads(line) for line in (folder / "1+2.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [problem.id for problem in PROBLEMS]
    assert rows[3] == {
        "id": "test-3",
        "question": "What is 3 + {x}?",
        "gold": "3",
        "text": "Answer: 3",
        "answer": "3",
        "method": "answer-line",
        "correct": True,
        "num_tokens": 30,
        "finish_reason": "stop",
    }
    results = json.loads((folder / "results.json").read_text())
    assert results["variants"][1]["accuracy"] == 0.8
    assert results["variants"][1]["accuracy_ci95"] == list(found.scores[1].accuracy_ci95)
    with pytest.raises(ConflictError):
        write_evaluation(found, folder)


@pytest.mark.parametrize(
    ("problems", "variants"),
    [([], ["base"]), (PROBLEMS, []), (PROBLEMS, ["base", "base"]), (PROBLEMS[:1] * 2, ["base"])],
)
def test_nothing_or_the_same_twice_is_refused(problems: list[Problem], variants: list[str]) -> None:
    with pytest.raises(ConfigError):
        evaluate(problems, ENGINE, variants, PROTOCOL)


def test_protocols_are_named_and_told_apart_by_digest() -> None:
    assert PROTOCOL.prompt(" 2 {question} {0}? ") == "Question: 2 {question} {0}?\nSolution:\n"
    assert PROTOCOL.digest() == protocol("zero-shot").digest()
    with pytest.raises(ConfigError, match="no such protocol"):
        protocol("zero")


def test_end_tokens_come_from_both_configs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 7]}')
    assert end_token_ids(tmp_path) == (7, 9)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").unlink()
    assert end_token_ids(tmp_path) == ()
