"""Columns as datasets of the field have them: in structs, in lists, in two columns, under other names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.config import DataConfig, build_config
from plyfold.core.errors import ConfigError
from plyfold.data.columns import ABSENT, propose, value_at
from plyfold.data.dataset import load_rationales, load_rows, load_scored

SOLUTION = "3*5=15\n15-2=13\n#### 13"
WRONG = "3*5=15\n15-1=14\n#### 14"


def _write(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def _columns(question: Any, answer: Any, rationale: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, "rationale": rationale}


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a.b": 2, "a": {"b": 1}}, "a.b", 2),  # a name that really has a dot
        ({"a": {"b.c": 3}}, "a.b.c", 3),
        ({"a.b": {"c": 4}}, "a.b.c", 4),
        ({"a": {"b": {"c": None}}}, "a.b.c", None),
        ({"a": None}, "a.b", None),
        ({"a": [{"b": 1}, {"b": 2}]}, "a.b", [1, 2]),
        ({"a": ["x", "y"]}, "a.1", "y"),
        ({"a": ["x"]}, "a.1", None),
        ({"a": [{"b": "x"}]}, "a.0.b", "x"),
        ({"a": "text"}, "a.b", ABSENT),
        ({"a": {"b": 1}}, "a.c", ABSENT),
        ({"a": {"b": 1}}, "b", ABSENT),
    ],
)
def test_a_dotted_name_is_a_path_into_structs_and_lists(record: dict[str, Any], name: str, value: Any) -> None:
    assert value_at(record, name) is value or value_at(record, name) == value


def test_rows_of_structs_with_messages_as_prompts_are_read(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "3*5-2?"}],
        "reward_model": {"style": "rule", "ground_truth": "13"},
        "extra_info": {"answer": SOLUTION},
    }
    columns = _columns("prompt", "reward_model.ground_truth", "extra_info.answer")
    ((found,), _) = load_rationales(DataConfig(path=_write(tmp_path, row), columns=columns))
    assert (found.question, found.answer, found.steps) == ("3*5-2?", "13", ("3*5=15", "15-2=13"))
    with pytest.raises(ConfigError, match="a struct") as caught:
        load_rows(DataConfig(path=_write(tmp_path, row), columns={**columns, "answer": "reward_model"}))
    assert "reward_model.ground_truth" in caught.value.expected
    assert "flattened" in caught.value.expected
    with pytest.raises(ConfigError, match=r"no column extra_info\.solution") as caught:
        load_rows(DataConfig(path=_write(tmp_path, row), columns={**columns, "rationale": "extra_info.solution"}))
    assert "extra_info.answer" in caught.value.expected


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        ([WRONG, SOLUTION], SOLUTION),
        ([None, "", SOLUTION], SOLUTION),
        ([SOLUTION], SOLUTION),
        ([WRONG, "15-3=12\n#### 12"], WRONG),  # none states it: left out as wrong
        ([], ""),
        (None, ""),
    ],
)
def test_of_several_rationales_the_first_that_states_the_gold_answer_is_read(
    tmp_path: Path, texts: list[str | None] | None, read: str
) -> None:
    row = {"rationale": texts, "answer": ["13"], "question": ["3*5-2?"]}  # in an order that asks for the answer late
    columns = {"rationale": "rationale", "question": "question", "answer": "answer"}
    (found,) = load_rows(DataConfig(path=_write(tmp_path, row), columns=columns))
    assert (found.question, found.answer, found.rationale) == ("3*5-2?", "13", read)


@pytest.mark.parametrize("ours", ["question", "answer"])
def test_a_list_of_texts_that_may_all_be_meant_is_called_that(tmp_path: Path, ours: str) -> None:
    row = {"question": "3*5-2?", "answer": "13", "rationale": SOLUTION} | {ours: ["12", "13"]}
    data = DataConfig(path=_write(tmp_path, row), columns=_columns("question", "answer", "rationale"))
    with pytest.raises(ConfigError, match="a list of texts") as caught:
        load_rows(data)
    assert f"data.columns.{ours}={ours}.0" in caught.value.next_step
    data.columns[ours] = f"{ours}.0"
    assert getattr(load_rows(data)[0], ours) == "12"


def test_several_golds_that_are_one_number_are_one(tmp_path: Path) -> None:
    row = {"question": "?", "answer": [SOLUTION, "13.0", 13]}
    assert load_rows(DataConfig(path=_write(tmp_path, row)))[0].answer == SOLUTION


def test_several_columns_are_joined_and_empty_parts_skipped(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Mia packs 3 boxes of 5 and gives 2 away.", "input": "How many are left?", "output": SOLUTION},
        {"instruction": "3*5-2?", "input": "", "output": SOLUTION},
        {"instruction": "3*5-2?", "input": None, "output": SOLUTION},
    ]
    columns = _columns(["instruction", "input"], "output", "output")
    read = load_rows(DataConfig(path=_write(tmp_path, *rows), columns=columns))
    assert [row.question for row in read] == [f"{rows[0]['instruction']}\nHow many are left?", "3*5-2?", "3*5-2?"]
    assert not any(row.unread for row in read)
    alone = load_rationales(DataConfig(path=_write(tmp_path, *rows), columns={**columns, "question": "instruction"}))
    assert alone[1].unread == {"input": 1}
    for broken in ([], "", ["instruction", 1.5], True, ["instruction", "inputs"]):
        with pytest.raises(ConfigError, match=r"not a column|no column inputs"):
            load_rows(DataConfig(path=_write(tmp_path, *rows), columns={**columns, "question": broken}))
    with pytest.raises(ConfigError, match="one column"):
        load_rows(DataConfig(path=_write(tmp_path, *rows), columns={**columns, "answer": ["output", "input"]}))


def test_what_tables_write_for_nothing_is_nothing(tmp_path: Path) -> None:
    row = {"question": "3*5-2?", "answer": 13.0, "rationale": float("nan")}
    (found,) = load_rows(DataConfig(path=_write(tmp_path, row), columns=_columns("question", "answer", "rationale")))
    assert (found.answer, found.rationale) == ("13", "")


def test_problems_to_be_scored_on_need_no_rationale_column(tmp_path: Path) -> None:
    data = DataConfig(path=_write(tmp_path, {"q": "?", "gold": 13}), columns=_columns("q", "gold", "solution"))
    assert load_scored(data)[0][0].gold == "13"
    with pytest.raises(ConfigError, match="no column solution"):
        load_rows(data)


@pytest.mark.parametrize(
    "record",
    [
        {"Problem": "3*5-2?", "Final Answer": "13", "Solution": SOLUTION},
        {"id": 7, "level": "1", "problem": "3*5-2?", "solution": "3*5=15\n15-2=13\nSo the answer is 13."},
        {"uid": "b3", "instruction": "3*5 and", "input": "minus 2?", "output": SOLUTION},
        {"messages": [{"role": "user", "content": "3*5-2?"}, {"role": "assistant", "content": SOLUTION}]},
        {"conversations": [{"from": "human", "value": "3*5-2?"}, {"from": "gpt", "value": SOLUTION}]},
        {"data": {"question": "3*5-2?", "gold": "13"}, "n": 2, "teacher_cot": [WRONG, SOLUTION]},
        {"Problem Statement": "3*5-2?", "Worked Solution": SOLUTION, "Final": 13},
        {"Body": "He has 3*5.", "Question": "Less 2?", "Answer": 13.0, "cot": SOLUTION},
        {"query": "3*5-2?", "a": "13", "b": "nothing", "thoughts about it": SOLUTION},
    ],
)
def test_an_error_over_columns_proposes_a_mapping_that_works_when_typed(tmp_path: Path, record: dict[str, Any]) -> None:
    plain = {
        "curriculum": "toy",
        "base": {"repo": "toy/base", "revision": "auto"},
        "data": {"path": _write(tmp_path, record, record)},
        "stages": {"structure": {"number": 1, "task": "reconstruct"}},
        "eval": {"data": {"path": "sandbox", "split": "test"}},
    }
    with pytest.raises(ConfigError) as caught:
        load_rationales(build_config(plain).data)
    rationales, _ = load_rationales(build_config(plain, shlex.split(caught.value.next_step)).data)
    assert [found.steps for found in rationales] == [("3*5=15", "15-2=13")] * 2
    assert all(found.answer == "13" and "2?" in found.question for found in rationales)


def test_what_comes_before_a_question_is_joined_before_it() -> None:
    row = {"Question": "Less 2?", "Body": "He has 3*5.", "input": "Round down.", "Answer": 13, "cot": SOLUTION}
    assert "columns.question=[Body,Question,input]" in propose([row], "data", taught=True)


def test_where_no_column_would_do_none_is_proposed() -> None:
    assert propose([{"question": "?", "answer": "yes"}], "data", taught=True) == ""
    assert propose([{"text": 3.5}], "data", taught=True) == ""
    assert propose([], "data", taught=True) == ""
    assert propose([{"problem": "?", "label": "4"}], "eval.data", taught=False).split() == [
        "eval.data.columns.question=problem",
        "eval.data.columns.answer=label",
    ]
