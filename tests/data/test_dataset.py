"""Rows from files and the sandbox: columns by name, honest counts, clear errors, and disjoint splits."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from plyfold.core.config import DataConfig, load_config
from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError
from plyfold.data.dataset import load_problems, load_rationales, load_rows, require_disjoint
from plyfold.registry.store import Store
from plyfold.stages.data.report import check_data
from plyfold.stages.plan.curriculum_plan import plan_curriculum

GOOD = {"question": "1+1+1?", "answer": "1+1=2\n2+1=3\n#### 3"}
ONE_STEP = {"question": "1+1?", "answer": "1+1=2\n#### 2"}


def _write(path: Path, rows: list[dict[str, object]]) -> str:
    text = json.dumps(rows) if path.suffix == ".json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_files_of_both_kinds_are_read(tmp_path: Path, name: str) -> None:
    rationales, report = load_rationales(DataConfig(path=_write(tmp_path / name, [GOOD, ONE_STEP, GOOD])))
    assert [rationale.answer for rationale in rationales] == ["3", "3"]
    assert (report.rows, report.parsed, report.skipped) == (3, 2, {"fewer than 2 steps": 1})
    assert report.source == name  # no local path


def test_a_commit_of_the_hub_says_nothing_about_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", [GOOD])
    assert load_rationales(DataConfig(path=path, revision="e53f0488"))[1].revision is None


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", [{"q": "1+1+1?", "gold": 3, "cot": "Step 1: 1+1=2\nStep 2: 2+1=3\nAnswer: 3"}])
    config = DataConfig(path=path, columns={"question": "q", "answer": "gold", "rationale": "cot"})
    rationales, _ = load_rationales(config)
    assert rationales[0].steps == ("1+1=2", "2+1=3")
    assert rationales[0].answer == "3"


def test_a_whole_number_is_one_however_the_file_holds_it_and_home_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path / "x.jsonl", [{**GOOD, "gold": 3.0}, {**GOOD, "gold": 2.5}])
    columns = {"question": "question", "answer": "gold", "rationale": "answer"}
    assert [row.answer for row in load_rows(DataConfig(path="~/x.jsonl", columns=columns))] == ["3", "2.5"]
    assert len(load_rows(DataConfig(path="~", split="train"))) == 2  # a folder of data files


def _chat(question: str, solution: object) -> dict[str, object]:
    said = [("system", "Be right."), ("user", "Hello"), ("assistant", "Ask. Answer: 9"), ("user", question)]
    turns = [{"role": role, "content": text} for role, text in [*said, ("assistant", solution)]]
    return {"messages": turns}


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("<think>Step 1: 7. Answer: 7</think>Step 1: 1+1=2\nStep 2: 2+1=3\nAnswer: 3", "3"),
        ("<think>7. Answer: 7</think>Step 1: 1+1=2\nStep 2: 2+1=\\boxed{3}", "3"),
        ("<think>#### 7</think>Step 1: 1+1=2\nStep 2: 2+1=\\boxed{3}", "3"),
        ("1+1=<<1+1=2>>2\n2+1=3\n#### 3", "3"),
        ("Step 1: 1+1=2\nStep 2: 2+1=\\boxed{3}", "3"),
    ],
)
def test_messages_hold_question_solution_and_answer(tmp_path: Path, solution: str, gold: str) -> None:
    columns = dict.fromkeys(("question", "answer", "rationale"), "messages")
    config = DataConfig(path=_write(tmp_path / "x.jsonl", [_chat("1+1+1?", solution)]), columns=columns)
    ((rationale,), report) = load_rationales(config)
    assert (rationale.question, rationale.steps, rationale.answer) == ("1+1+1?", ("1+1=2", "2+1=3"), gold)
    assert report.parsed == 1


def test_chats_of_parts_and_of_sharegpt_are_read_as_the_same_messages(tmp_path: Path) -> None:
    columns = dict.fromkeys(("question", "answer", "rationale"), "messages")
    row = _chat("1+1+1?", "1+1=2\n2+1=3\n#### 3")
    parts, sharegpt = [], []
    for message in row["messages"]:  # type: ignore[attr-defined]
        image = {"type": "image_url", "image_url": {"url": "a.png"}}
        parts.append({**message, "content": [image, {"type": "text", "text": message["content"]}]})
        speaker = {"user": "human", "assistant": "gpt"}.get(message["role"], message["role"])
        sharegpt.append({"from": speaker, "value": message["content"]})
    found = [
        load_rationales(DataConfig(path=_write(tmp_path / "x.jsonl", [{"messages": messages}]), columns=columns))[0]
        for messages in (row["messages"], parts, sharegpt)
    ]
    assert found[0] == found[1] == found[2] != []


def test_a_null_is_counted_or_refused_as_what_is_missing(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "question": None}, {**GOOD, "answer": None}]
    data = DataConfig(path=_write(tmp_path / "x.jsonl", rows))
    assert load_rationales(data)[1].skipped == {"no question": 1, "no gold answer": 1}
    for row, lacking in ((1, "question"), (2, "gold answer")):
        with pytest.raises(ConfigError, match=f"no {lacking}"):
            load_problems(replace(data, rows=[row, row + 1]))


@pytest.mark.parametrize("gold", ["yes", "B", r"\sqrt{2}"])
def test_golds_of_which_none_is_a_number_are_nothing_to_score_on(tmp_path: Path, gold: str) -> None:
    rows = [{"question": "Which?", "answer": gold, "number": 5}, {"question": "And?", "answer": gold, "number": 6}]
    columns = {"question": "question", "answer": "answer"}
    with pytest.raises(ConfigError, match="no gold answer is a number") as caught:
        load_problems(
            DataConfig(path=_write(tmp_path / "x.jsonl", rows), columns=columns),
            limit=1,
        )
    assert "eval.data.columns.answer=number" in caught.value.next_step
    rows[0]["answer"] = "5"
    assert len(load_problems(DataConfig(path=_write(tmp_path / "y.jsonl", rows), columns=columns))) == 2


def test_solutions_that_differ_from_the_golds_are_not_made_the_golds(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", [{"question": GOOD["question"], "answer": "999", "rationale": GOOD["answer"]}])
    columns = {name: name for name in ("question", "answer", "rationale")}
    with pytest.raises(ConfigError, match="not one row") as caught:
        load_rationales(DataConfig(path=path, columns=columns))
    assert "columns.answer=" not in caught.value.next_step
    assert "the solutions are wrong" in caught.value.next_step


@pytest.mark.parametrize("gold", ["yes", "2x + 3", r"\sqrt{2}", "B"])
def test_an_answer_that_no_completion_can_give_is_no_problem_to_mine(tmp_path: Path, gold: str) -> None:
    columns = {"question": "question", "answer": "gold", "rationale": "answer"}
    rows = [{**GOOD, "gold": "3"}, {"question": "?", "gold": gold, "answer": None}]
    data = DataConfig(path=_write(tmp_path / "x.jsonl", rows), columns=columns)
    assert load_rationales(data, bare=True)[1].skipped == {"the gold answer is no number": 1}


def test_messages_without_an_answer_or_a_turn_are_counted_or_refused(tmp_path: Path) -> None:
    columns = dict.fromkeys(("question", "answer", "rationale"), "messages")
    unsaid = ["1+1=2\nand 2+1=3", "<think>1+1=2\n2+1=3\nAnswer: 3</think>"]
    rows = [_chat("1+1+1?", "1+1=2\n2+1=3\n#### 3"), *(_chat("?", text) for text in unsaid)]
    path = _write(tmp_path / "x.jsonl", rows)
    assert load_rationales(DataConfig(path=path, columns=columns))[1].skipped == {"no gold answer": 2}
    for broken in ([{"role": "user", "content": "?"}], [["?"]], _chat("?", ["a"])["messages"]):
        path = _write(tmp_path / "y.jsonl", [{"messages": broken}])
        with pytest.raises(ConfigError, match="nor messages"):
            load_rows(DataConfig(path=path, columns=columns))


def test_a_missing_column_lists_what_there_is(tmp_path: Path) -> None:
    config = DataConfig(path=_write(tmp_path / "x.jsonl", [{"problem": "?", "solution": "#### 1"}]))
    with pytest.raises(ConfigError) as caught:
        load_rows(config)
    assert "problem, solution" in caught.value.expected
    assert caught.value.found == "question"


def test_ranges_are_half_open_and_checked(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", [{**GOOD, "question": f"{index}?"} for index in range(10)])
    assert [row.index for row in load_rows(DataConfig(path=path, rows=[3, 6]))] == [3, 4, 5]
    for rows in ([6, 3], [1], [-1, 2]):
        with pytest.raises(ConfigError):
            load_rows(DataConfig(path=path, rows=rows))
    with pytest.raises(ConfigError, match="no rows"):
        load_rows(DataConfig(path=path, rows=[50, 60]))


def test_broken_and_absent_files_have_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_rows(DataConfig(path=str(tmp_path / "none.jsonl")))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "cut o')
    with pytest.raises(IntegrityError):
        load_rows(DataConfig(path=str(broken)))
    with pytest.raises(IntegrityError):
        load_rows(DataConfig(path=_write(tmp_path / "numbers.json", [1, 2])))  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="neither text, nor a number"):
        load_rows(DataConfig(path=_write(tmp_path / "list.json", [{"question": [["a"]], "answer": "1"}])))


@pytest.mark.parametrize(
    ("name", "data", "where", "found"),
    [
        ("x.jsonl", b'{"question": "a"}\n\n{"question": "cut o\n', "x.jsonl, line 3", "Unterminated"),
        ("x.jsonl", b'{"question": "a"}\n[1]\n', "x.jsonl, line 2", "list"),
        ("x.json", b'[{"question": "a"}, 5]', "x.json, row 1", "int"),
        ("x.json", b'"question"', "x.json", "str"),
        ("x.json", b"[" * 100_000, "x.json", "too deep"),
        ("x.jsonl", b"{}\n" + b'{"a":' * 100_000, "x.jsonl, line 2", "too deep"),
        ("x.jsonl", '{"question": "a"}\n'.encode("utf-16"), "x.jsonl", "0xff at 0"),
        ("x.csv", b"question,answer\n1, or 2?,3\n", "x.csv, line 2", "3"),
        ("x.csv", b'question,answer\n\n"a\nb",1\n"a,1\n', "x.csv, line 5", "unexpected end of data"),
        ("x.tsv", b"question\tquestion\n", "x.tsv, line 1", "question, question"),
        ("x.parquet", b"PAR1", "x.parquet", ""),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_place(
    tmp_path: Path, name: str, data: bytes, where: str, found: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        load_rows(DataConfig(path=str(tmp_path / name)))
    assert caught.value.where.endswith(where)
    assert found in caught.value.found


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert load_rows(DataConfig(path=str(path)))[0].question == GOOD["question"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_are_read_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Text stays text: a table of numbers with one `1,234` or `07` among them is not turned into other values."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"question": 'He says "one, two" and\nleaves 07?', "answer": "1,234", "cot": "1+1=2\n2+1,232=1,234"},
            {"question": "2+2?", "answer": "4", "cot": ""}]  # fmt: skip
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == "tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    columns = {"question": "question", "answer": "answer", "rationale": "cot"}
    read = load_rows(DataConfig(path=str(path), columns=columns))
    assert [{"question": row.question, "answer": row.answer, "cot": row.rationale} for row in read] == rows


def test_local_paths_are_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.xlsx", "x.jsonl.bz2", "rows"):
        (tmp_path / name).write_bytes(b"question,answer")
        with pytest.raises(ConfigError, match="a kind that is not read") as refused:
            load_rows(DataConfig(path=name))
        assert ".jsonl" in refused.value.expected
    (tmp_path / "empty").mkdir()
    for absent in ("./none", "none.csv", "../a/b/c", str(tmp_path / "none"), "empty"):
        with pytest.raises(NotFoundError) as missing:
            load_rows(DataConfig(path=absent))
        assert missing.value.next_step


def test_a_folder_is_read_and_leaves_no_path_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    _write(tmp_path / "mine" / "train.jsonl", [GOOD])
    _, report = load_rationales(DataConfig(path=str(tmp_path / "mine"), revision="main"))
    assert (report.source, report.revision, report.parsed) == ("mine", None, 1)
    (tmp_path / "mine" / "train.jsonl").write_text("{bad")
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_rows(DataConfig(path=str(tmp_path / "mine")))


@pytest.mark.parametrize("rationale", [{"cot": None}, {}])
def test_a_row_without_the_rationale_that_others_have_counts_as_one_without(
    tmp_path: Path, rationale: dict[str, object]
) -> None:
    columns = {"question": "question", "answer": "answer", "rationale": "cot"}
    rows = [{"question": "2+2?", "answer": "4"} | rationale, {**GOOD, "cot": GOOD["answer"]}]
    data = DataConfig(path=_write(tmp_path / "x.jsonl", rows), columns=columns)
    assert load_rationales(data)[1].skipped == {"no rationale": 1}
    assert load_rationales(data, bare=True)[1].bare == 1
    with pytest.raises(ConfigError, match=r"no column cot|can be taught from"):
        load_rationales(replace(data, rows=[0, 1]))


def test_half_an_emoji_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "question": "1+1+1 \ud83d?"}]
    with pytest.raises(ConfigError, match="no Unicode text") as caught:
        load_rationales(DataConfig(path=_write(tmp_path / "x.jsonl", rows)))
    assert "row 1, column question" in caught.value.where
    assert caught.value.found == r"'\ud83d' at character 6"


def test_no_usable_row_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_rationales(DataConfig(path=_write(tmp_path / "x.jsonl", [ONE_STEP])))
    assert "1 rows: fewer than 2 steps" in caught.value.found
    assert "</think>" in caught.value.next_step
    columns = {"question": "question", "answer": "gold", "rationale": "answer"}
    for gold, answer, column in (("", "3", "answer"), ("B", "3", "answer"), ("3", "and so on", "rationale")):
        path = _write(tmp_path / "y.jsonl", [{"question": "?", "gold": gold, "answer": answer}])
        with pytest.raises(ConfigError, match="can be taught from") as caught:
            load_rationales(DataConfig(path=path, columns=columns))
        assert f"data.columns.{column}" in caught.value.next_step


def test_rows_without_a_rationale_are_counted_and_of_use_to_rewards_only(tmp_path: Path) -> None:
    columns = {"question": "question", "answer": "gold", "rationale": "answer"}
    rows = [{**GOOD, "gold": "3"}, {**ONE_STEP, "gold": "2"}, {"question": "2+2?", "gold": "4", "answer": " "}]
    data = DataConfig(path=_write(tmp_path / "x.jsonl", [*rows, {**rows[2], "gold": ""}]), columns=columns)
    rationales, report = load_rationales(data)
    assert ([known.answer for known in rationales], report.bare) == (["3"], 0)
    assert report.skipped == {"fewer than 2 steps": 1, "no rationale": 1, "no gold answer": 1}
    rationales, report = load_rationales(data, bare=True)
    assert [(known.answer, len(known.steps)) for known in rationales] == [("3", 2), ("4", 0)]
    assert (report.parsed, report.bare, report.skipped) == (2, 1, {"fewer than 2 steps": 1, "no gold answer": 1})
    with pytest.raises(ConfigError, match="not one row") as error:  # there is no length to measure brevity against
        load_rationales(replace(data, rows=[2, 3]), bare=True)
    assert error.value.found == "1 rows: no rationale"


def test_only_the_first_rationales_are_kept_whatever_the_range() -> None:
    kept = DataConfig(path="sandbox", rows=[3, 9], rationales=5)
    assert [bool(row.rationale) for row in load_rows(kept)] == [True] * 2 + [False] * 4
    whole, _ = load_rationales(DataConfig(path="sandbox", rows=[3, 9]))
    rationales, report = load_rationales(kept, bare=True)
    assert [known.answer for known in rationales] == [known.answer for known in whole]
    assert (rationales[:2], report.bare) == (whole[:2], 4)
    assert load_rationales(kept)[1].skipped == {"no rationale": 4}
    with pytest.raises(ConfigError, match="not a number of rows"):
        load_rows(replace(kept, rationales=0))


def test_the_digest_is_of_the_rows_not_of_the_file(tmp_path: Path) -> None:
    first = load_rationales(DataConfig(path=_write(tmp_path / "a.jsonl", [GOOD])))[1]
    second = load_rationales(DataConfig(path=_write(tmp_path / "b.json", [{**GOOD, "extra": 1}])))[1]
    other = load_rationales(DataConfig(path=_write(tmp_path / "c.jsonl", [{**GOOD, "question": "?"}])))[1]
    assert first.sha256 == second.sha256 != other.sha256


def test_problems_need_no_rationale() -> None:
    config = DataConfig(
        path="sandbox", split="test", rows=[0, 20], columns={"question": "question", "answer": "answer"}
    )
    problems = load_problems(config, limit=5)
    assert [problem.id for problem in problems] == [f"test-{index}" for index in range(5)]
    assert all(problem.gold.isdecimal() for problem in problems)


def test_sandbox_rows_are_a_stable_prefix() -> None:
    few, many = (load_rows(DataConfig(path="sandbox", rows=[5, stop])) for stop in (10, 40))
    assert few == many[:5]
    with pytest.raises(ConfigError):
        load_rows(DataConfig(path="sandbox", split="validation"))


def test_sandbox_splits_are_disjoint() -> None:
    train, test = (
        [row.question for row in load_rows(DataConfig(path="sandbox", split=split, rows=[0, 500]))]
        for split in ("train", "test")
    )
    require_disjoint(train, test, "here")


def test_errors_name_the_section_the_rows_come_from(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", [GOOD])
    own = [f"stages.brevity.data.path={path}", "stages.brevity.data.columns.answer=gold"]
    for overrides, section in (
        (["stages.structure.data=null", f"data.path={path}", "data.columns.answer=gold"], "data"),
        (own, "stages.brevity.data"),
        ([f"eval.data.path={path}", "eval.data.columns.answer=gold"], "eval.data"),
    ):
        for plan in (lambda config: plan_curriculum(config, Store(tmp_path)), check_data):
            with pytest.raises(ConfigError, match="no column gold") as caught:
                plan(load_config("sandbox", overrides))
            proposed = [f"{section}.columns.question=question", f"{section}.columns.answer=answer"]
            proposed += [] if section == "eval.data" else [f"{section}.columns.rationale=answer"]
            assert caught.value.next_step.split() == proposed
            assert f"{section}.columns.answer is one of" in caught.value.expected
