"""A config without rows to score on: a share of the training questions is held out, said, and never trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.config import DataConfig, build_config, config_dict, load_config
from plyfold.core.errors import ConfigError
from plyfold.data.dataset import load_rationales, load_rows, load_scored
from plyfold.registry.store import Store
from plyfold.stages.data.report import check_data
from plyfold.stages.plan.curriculum_plan import plan_curriculum

BASE = "base: {repo: plyfold/sandbox-base, revision: auto, path: sandbox, compute_dtype: float32}\n"
LINES = {
    "curriculum": "curriculum: mine\n",
    "base": BASE,
    "data": "data: {path: rows.jsonl}\n",
    "stages": "stages: {structure: {number: 1, task: reconstruct, trainer: {per_device_train_batch_size: 2}}}\n",
}


def _row(number: int) -> dict[str, Any]:
    solution = f"{number}+1={number + 1}\n{number + 1}+2={number + 3}\n#### {number + 3}"
    return {"question": f"What is {number} and one and two more, all told?", "answer": solution}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("".join(LINES.values()))
    return tmp_path


def _write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _sides(config: Any) -> tuple[set[str], set[str]]:
    trained, scored = load_rows(config.data), load_rows(config.eval.data)
    return {row.question for row in trained}, {row.question for row in scored}


@pytest.mark.parametrize("count", [2, 3, 7, 40, 400])
def test_the_questions_are_divided_and_both_sides_have_some(folder: Path, count: int) -> None:
    rows = [_row(number) for number in range(count)]
    _write([*rows, rows[0]])  # a question twice is on one side
    trained, scored = _sides(load_config("mine.yaml"))
    assert trained | scored == {row["question"] for row in rows}
    assert trained
    assert scored
    assert not trained & scored
    assert len(scored) < max(2, 0.2 * count)


def test_which_are_held_out_is_a_matter_of_their_text_alone(folder: Path) -> None:
    rows = [_row(number) for number in range(200)]
    _write(rows)
    _, first = _sides(load_config("mine.yaml"))
    random.Random(0).shuffle(rows)
    _write([{**row, "question": row["question"].upper()} for row in rows[:150]])
    trained, second = _sides(load_config("mine.yaml"))
    assert second == {row["question"].upper() for row in rows[:150] if row["question"] in first}
    assert not {question.lower() for question in trained} & {question.lower() for question in first}
    _write(rows)
    _, more = _sides(load_config("mine.yaml", ["eval.held_out_share=0.3"]))
    assert first < more


def test_what_is_trained_and_scored_is_the_same_when_read_from_a_record(folder: Path) -> None:
    _write([_row(number) for number in range(50)])
    config = load_config("mine.yaml", ["eval.held_out_share=0.2", "eval.max_new_tokens=9"])
    again = build_config(json.loads(json.dumps(config_dict(config))))
    assert again == config
    assert _sides(again) == _sides(config)
    assert load_rationales(config.data)[1].split == "train [0.2, 1)"
    assert load_scored(config.eval.data)[1].split == "train [0, 0.2)"


def test_every_stage_goes_without_them_and_the_plan_says_how_many(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write([_row(number) for number in range(60)])
    _write([_row(number) for number in range(30, 90)], "other.jsonl")
    grpo = "{num_generations: 2, per_device_train_batch_size: 2}"
    stage = f"{{number: 2, task: complete, data: {{path: other.jsonl}}, trainer: {grpo}}}"
    config = load_config("mine.yaml", [f"stages.brevity={stage}"])
    plan = plan_curriculum(config, Store(folder / "registry"), only_show=True)
    held_out = {problem.question for problem in load_scored(config.eval.data)[0]}
    assert held_out
    assert all(not held_out & {row.question for row in stage.rationales} for stage in plan.stages)
    assert f"10 % of the questions are held out from training: {len(held_out)} of rows.jsonl" in capsys.readouterr().err
    assert check_data(config).evaluation.usable == len(held_out)


def test_a_held_out_question_that_stands_inside_a_trained_one_is_left_to_training(folder: Path) -> None:
    rows = [_row(number) for number in range(60)]
    _write(rows)
    _, scored = _sides(load_config("mine.yaml"))
    _write(
        [*rows, *({"question": f"Think step by step. {question}", "answer": rows[0]["answer"]} for question in scored)]
    )
    config = load_config("mine.yaml")
    plan_curriculum(config, Store(folder / "registry"), only_show=True)  # finds none on both sides
    trained, fewer = _sides(config)
    assert not trained & fewer


def test_rows_that_nothing_can_be_scored_on_are_not(folder: Path) -> None:
    _write([_row(number) | ({"answer": "yes"} if number % 2 else {}) for number in range(200)])
    config = load_config("mine.yaml")
    problems, _ = load_scored(config.eval.data)
    assert 0 < len(problems) == check_data(config).evaluation.usable < len(load_rows(config.eval.data))


def test_rows_to_score_on_and_a_share_are_not_both_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="none are held out"):
        load_config("sandbox", ["eval.held_out_share=0.2"])
    for share in ("0", "1", "2", "-0.1", "many"):
        with pytest.raises(ConfigError, match="share"):
            load_config("mine.yaml", [f"eval.held_out_share={share}"])
    named = load_config("mine.yaml", ["eval.data.path=test.jsonl"])
    assert named.eval.data.part is named.data.part is None


@pytest.mark.parametrize("part", [[0.5], [0.5, 0.2], [-0.1, 0.5], [0.5, 1.5]])
def test_a_part_that_is_none_is_refused(folder: Path, part: list[float]) -> None:
    _write([_row(number) for number in range(5)])
    with pytest.raises(ConfigError, match="not a part"):
        load_rows(DataConfig(path="rows.jsonl", part=part))


def test_a_lone_question_cannot_be_divided(folder: Path) -> None:
    _write([_row(1)])
    with pytest.raises(ConfigError, match="no question falls") as caught:
        check_data(load_config("mine.yaml"))
    assert "eval.data.path=" in caught.value.next_step


def test_columns_that_are_missing_are_missing_in_the_training_data(folder: Path) -> None:
    _write([{"question": row["question"], "rationale": row["answer"]} for row in map(_row, range(30))])
    with pytest.raises(ConfigError, match="no column answer") as caught:
        check_data(load_config("mine.yaml"))
    config = load_config("mine.yaml", caught.value.next_step.split())
    assert check_data(config).refusal is None
    assert config.eval.data.part == [0.0, 0.1]


@pytest.mark.parametrize("missing", [*LINES, "all"])
def test_a_missing_section_is_answered_with_a_line_that_mends_it(
    folder: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _write([_row(number) for number in range(20)], "train.jsonl")
    kept = [line for section, line in LINES.items() if missing not in (section, "all")]
    Path("mine.yaml").write_text("".join(kept) or "seed: 1\n")
    assert run(["data", "check", "-c", "mine.yaml"]) == 2
    shown = capsys.readouterr().err.partition("with your own values:\n")[2].splitlines()
    assert len(shown) == (4 if missing == "all" else 1)
    with Path("mine.yaml").open("a") as file:
        file.writelines(f"{line.strip()}\n" for line in shown)
    assert load_config("mine.yaml").eval.data.part == [0.0, 0.1]


@pytest.mark.parametrize(
    ("base", "mended"),
    [
        ("repo: a/b, path: here", "base: {repo: a/b, path: here, revision: auto}"),
        ("repo: a/b, path: '${oc.env:MODELS}/b'", "base: {repo: a/b, path: '${oc.env:MODELS}/b', revision: auto}"),
        ("repo: a/b, compute_dtype: float32", "base: {repo: a/b, compute_dtype: float32, revision: main}"),
    ],
)
def test_a_base_without_a_revision_keeps_its_other_words(
    folder: Path, base: str, mended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS", "/somewhere")
    others = [line for section, line in LINES.items() if section != "base"]
    Path("mine.yaml").write_text("".join(others) + f"base: {{{base}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config("mine.yaml")
    assert caught.value.next_step.splitlines()[1:] == [mended]
    Path("mine.yaml").write_text("".join(others) + mended + "\n")
    assert load_config("mine.yaml").base.repo == "a/b"


@pytest.mark.parametrize(("lacking", "step"), [("number", "number: 1"), ("task", "task: reconstruct")])
def test_a_stage_that_lacks_a_key_is_told_which(folder: Path, lacking: str, step: str) -> None:
    keys = {"number": 1, "task": "complete"}
    del keys[lacking]
    Path("mine.yaml").write_text("".join(list(LINES.values())[:3]) + f"stages: {{brevity: {json.dumps(keys)}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config("mine.yaml")
    assert step in caught.value.next_step


def test_configs_that_name_their_rows_mean_what_they_meant() -> None:
    for name in ("sandbox", "gsm8k", "paper"):
        config = load_config(name)
        sections = [config.data, config.eval.data, *(stage.data for stage in config.stages.values() if stage.data)]
        assert all(section.part is None for section in sections)
