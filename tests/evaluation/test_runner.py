"""The runner, the protocols and the reports, on an engine that answers from a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import ConfigError, ConflictError
from plyfold.data.problems import Problem
from plyfold.engines.protocol import Generation, end_token_ids
from plyfold.evaluation.grader import grader
from plyfold.evaluation.protocols import protocol
from plyfold.evaluation.report import print_evaluation, resolution, write_evaluation
from plyfold.evaluation.runner import compare, evaluate, score
from plyfold.evaluation.scores import warn_of_golds

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
    assert resolution(found) == ["20 problems place one accuracy within about ±16.8 points."]


def test_table_shows_scores_differences_and_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(evaluate(PROBLEMS, ENGINE, ["base", "1+2"], PROTOCOL), "gsm8k")
    shown = capsys.readouterr().out
    for part in ("gsm8k", "zero-shot", "20 problems", "40.0 %", "80.0 %", "+40.0", "0.008", "-10.0", "McNemar"):
        assert part in shown


STEPS = TableEngine({"base": 8, "1": 14, "1+2": 16, "1+2+3": 17}, {"base": 40, "1": 30, "1+2": 20, "1+2+3": 20})


def test_a_stage_is_compared_with_the_one_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(PROBLEMS, STEPS, ["base", "1", "1+2", "1+2+3"], PROTOCOL)
    assert {name: step.against for name, step in found.steps.items()} == {"1+2": "1", "1+2+3": "1+2"}
    assert (found.steps["1+2+3"].paired.fixed, found.steps["1+2"].paired.tokens) == (1, -10)
    assert set(found.comparisons) == {"1", "1+2", "1+2+3"}
    said = found.to_json()["steps"]["1+2"]
    assert (said["against"], said["fixed"], said["broken"]) == ("1", 2, 0)
    print_evaluation(found)
    out = capsys.readouterr().out
    assert "1+2+3 against 1+2" in out
    assert "step by step" in out


@pytest.mark.parametrize(
    ("variants", "steps"),
    [
        (["base", "1+2"], {}),
        (["1", "1+2"], {}),  # against the first already
        (["1+2", "1", "base"], {"1": "base"}),
        (["base", "toy:1", "toy:1+2"], {"toy:1+2": "toy:1"}),
        (["base", "1", "1+2*0.5", "toy-s1.s2-svd16"], {"1+2*0.5": "1"}),
    ],
)
def test_which_variants_are_steps(variants: list[str], steps: dict[str, str]) -> None:
    engine = TableEngine(dict.fromkeys(variants, 8), dict.fromkeys(variants, 40))
    found = evaluate(PROBLEMS, engine, variants, PROTOCOL).steps
    assert {name: step.against for name, step in found.items()} == steps


def test_the_sentence_on_what_n_can_tell_names_its_pair_and_its_power() -> None:
    _, said = resolution(evaluate(PROBLEMS, STEPS, ["base", "1", "1+2", "1+2+3"], PROTOCOL))
    assert said.startswith("1+2+3 against 1+2: +5.0 points [")
    assert "p = 1.000; on 20 problems a difference of " in said
    assert said.endswith("is found with 80 % power (exact McNemar at 5 %, this pair alone, answers that differ: 1).")


def test_too_few_problems_to_tell_anything_are_said_to_be() -> None:
    engine = TableEngine({"base": 2, "1": 4}, {"base": 40, "1": 40})
    _, said = resolution(evaluate(PROBLEMS[:5], engine, ["base", "1"], PROTOCOL))
    assert "5 problems are too few to find any difference" in said


def test_an_evaluation_names_its_grader_and_limits() -> None:
    said = evaluate(PROBLEMS, ENGINE, ["base"], PROTOCOL).to_json()
    assert said["grader"] == grader()


def test_other_problems_or_another_order_are_not_compared() -> None:
    outcomes = evaluate(PROBLEMS, ENGINE, ["base"], PROTOCOL).outcomes["base"]
    with pytest.raises(ConfigError, match="another order"):
        compare(outcomes, outcomes[::-1])
    with pytest.raises(ConfigError, match="nothing to score"):
        score("base", [])


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


def test_golds_that_no_answer_can_equal_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem(id=f"test-{index}", question="?", gold=gold) for index, gold in enumerate(["5", "B", "x + 1"])]
    warn_of_golds(problems)
    assert "2 of 3 gold answers are no number" in (said := capsys.readouterr().err)
    assert "test-1: B" in said
    warn_of_golds(problems[:1])
    assert not capsys.readouterr().err
