"""Files as the tools of the field write them: read where they can only be meant one way, refused by name otherwise."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.config import DataConfig
from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError
from plyfold.data.dataset import load_rows
from plyfold.data.readers import read_file, refuse_address

ROWS: list[dict[str, Any]] = [{"question": f"{number}+1?", "answer": str(number + 1)} for number in range(12)]
NAMES = list(ROWS[0])
BY_COLUMN = {name: {str(index): row[name] for index, row in enumerate(ROWS)} for name in NAMES}


def _read(path: Path | str, split: str = "train") -> list[dict[str, str]]:
    return [{name: getattr(row, name) for name in NAMES} for row in load_rows(DataConfig(path=str(path), split=split))]


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        BY_COLUMN,
        {str(index): row for index, row in enumerate(ROWS)},
        {"columns": NAMES, "index": list(range(12)), "data": [list(row.values()) for row in ROWS]},
        {"columns": NAMES, "data": [list(row.values()) for row in ROWS]},
        {"schema": {"fields": []}, "data": [{"index": index, **row} for index, row in enumerate(ROWS)]},
        {name: [row[name] for row in ROWS] for name in NAMES},
    ],
    ids=["records", "columns", "index", "split", "split-without-index", "table", "lists"],
)
def test_every_unambiguous_orientation_of_a_table_is_read(tmp_path: Path, value: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert _read(tmp_path / "x.json") == ROWS


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([list(row.values()) for row in ROWS], "orient=values"),
        ({"ann": ROWS[0], "bob": ROWS[1]}, "rows or columns"),
        ({"0": {"0": "a"}, "1": {"0": "b"}}, "rows or columns"),
        ({"question": {"a": "1?"}, "answer": {"a": "2"}}, "rows or columns"),
        ({"columns": NAMES, "data": [["1?"]]}, "other columns"),
        ({"question": ["1?", "2?"], "answer": ["1"]}, "an object of question, answer"),
        ({}, "nothing"),
    ],
)
def test_what_may_be_meant_in_several_ways_is_refused_with_the_call_that_writes_it(
    tmp_path: Path, value: Any, found: str
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(IntegrityError) as caught:
        _read(tmp_path / "x.json")
    assert found in caught.value.found
    assert 'to_json("x.jsonl", orient="records", lines=True)' in caught.value.next_step


@pytest.mark.parametrize("beside", [{"test": ROWS[:2]}, {"version": "1.0"}, {"name": "mine", "num_rows": 12}])
def test_rows_inside_an_object_are_taken_out_by_the_command_that_is_named(
    tmp_path: Path, beside: dict[str, Any]
) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"train": ROWS, **beside}))
    with pytest.raises(IntegrityError) as caught:
        _read(tmp_path / "x.json")
    subprocess.run(caught.value.next_step, shell=True, cwd=tmp_path, check=True)
    assert _read(tmp_path / "x.jsonl") == ROWS


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.ndjson", "x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_a_line_is_read_under_every_name(tmp_path: Path, name: str, end: str) -> None:
    data = b"\xef\xbb\xbf" + end.join(map(json.dumps, ROWS)).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert _read(tmp_path / name) == ROWS


def test_one_row_is_a_row_and_not_a_table(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Answer: 3"}]}
    for value, columns in (
        (ROWS[0], {}),
        ({**ROWS[0], "tags": ["a", "b"]}, {}),
        (chat, dict.fromkeys(NAMES, "messages")),
        ({"id": "1", **chat}, dict.fromkeys(NAMES, "messages")),
    ):
        (tmp_path / "x.json").write_text(json.dumps(value, indent=1))
        config = DataConfig(path=str(tmp_path / "x.json"))
        config.columns |= columns
        assert len(load_rows(config if not columns else DataConfig(path=config.path, columns=columns))) == 1


def test_a_list_that_is_called_lines_is_told_its_name(tmp_path: Path) -> None:
    for text in (json.dumps(ROWS), json.dumps(ROWS, indent=1)):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(IntegrityError) as caught:
            _read(tmp_path / "x.jsonl")
        assert caught.value.next_step.endswith("mv x.jsonl x.json")


def test_a_backslash_that_json_does_not_know_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"question": "\\sqrt{4}?", "answer": "2"}')
    with pytest.raises(IntegrityError) as caught:
        _read(tmp_path / "x.jsonl")
    assert r"\\sqrt" in caught.value.next_step


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "lines.json", "rows.jsonl.gz", "shards"])
def test_a_column_that_a_row_names_twice_is_named(tmp_path: Path, name: str) -> None:
    lines = [json.dumps(row) for row in ROWS]
    lines[3] = '{"question": "3+1?", "answer": "5", "answer": "4"}'
    text = f"[{','.join(lines)}]" if name == "rows.json" else "\n".join(lines)
    path = tmp_path / name
    if name == "shards":
        path.mkdir()
        (path / "train.jsonl").write_text(text)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(IntegrityError) as refused:
        _read(path)
    assert "'answer' stands twice" in refused.value.found or name == "shards"
    assert "line 4" in refused.value.where or name in ("rows.json", "shards")


def test_packed_files_that_are_cut_or_none_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(ROWS).encode())
    for data in (whole[:-9], b"no gzip", b""):
        (tmp_path / "x.json.gz").write_bytes(data)
        with pytest.raises(IntegrityError):
            _read(tmp_path / "x.json.gz")


def test_a_packed_file_that_grows_out_of_all_proportion_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plyfold.data.readers.MIN_UNPACKED_BYTES", 1 << 20)
    lines = "".join(f"{json.dumps(ROWS[0])}\n" for _ in range(100))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert len(_read(tmp_path / "x.jsonl.gz")) == 100  # however alike they are
    (tmp_path / "a b.jsonl.gz").write_bytes(gzip.compress(b'{"question": "' + b" " * (5 << 20) + b'"}\n'))
    with pytest.raises(IntegrityError) as caught:
        _read(tmp_path / "a b.jsonl.gz")
    assert caught.value.next_step.endswith(f"gunzip '{tmp_path / 'a b.jsonl.gz'}'")


def test_folders_of_save_to_disk_and_of_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved, test=saved.select(range(2))).save_to_disk(tmp_path / "several")
    saved.to_json(tmp_path / "saved.json")
    (tmp_path / "shards").mkdir()
    for place in range(3):
        saved.shard(3, place, contiguous=True).to_parquet(tmp_path / "shards" / f"part-{place}.parquet")
    for path in ("one", "several", "several/train", "saved.json", "shards"):
        assert _read(tmp_path / path) == ROWS, path
    assert _read(tmp_path / "several", "test") == ROWS[:2]
    with pytest.raises(ConfigError, match="no such split") as caught:
        _read(tmp_path / "several", "validation")
    assert (caught.value.expected, caught.value.next_step) == ("train, test", "data.split=train")
    with pytest.raises(ConfigError, match="kind that is not read") as caught:
        _read(next((tmp_path / "one").glob("*.arrow")))
    assert f"data.path={tmp_path / 'one'} " in caught.value.next_step
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no table")
    with pytest.raises(IntegrityError, match="save_to_disk"):
        _read(tmp_path / "one")


def test_a_split_that_a_folder_lacks_is_answered_with_those_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    for name in ("train", "test"):
        (tmp_path / "mine" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path / "mine", "validation")
    assert "['train', 'test']" in caught.value.found
    assert caught.value.next_step == "data.split=train"


@pytest.mark.parametrize(
    ("address", "step"),
    [
        ("https://huggingface.co/datasets/openai/gsm8k", "data.path=openai/gsm8k"),
        ("https://huggingface.co/datasets/openai/gsm8k/", "data.path=openai/gsm8k"),
        ("huggingface.co/datasets/openai/gsm8k?library=datasets", "data.path=openai/gsm8k"),
        ("https://hf.co/datasets/openai/gsm8k/tree/main", "data.path=openai/gsm8k"),
        ("https://huggingface.co/datasets/openai/gsm8k/tree/e53f/main", "data.path=openai/gsm8k data.revision=e53f"),
        ("https://huggingface.co/datasets/openai/gsm8k/viewer/main/test?row=3",
         "data.path=openai/gsm8k data.name=main data.split=test"),
        ("https://huggingface.co/datasets/openai/gsm8k/discussions", "data.path=openai/gsm8k"),
        ("datasets/openai/gsm8k", "data.path=openai/gsm8k"),
        ("hf://datasets/openai/gsm8k@e53f", "data.path=openai/gsm8k data.revision=e53f"),
        ("https://huggingface.co/openai/gsm8k", "data.path=openai/gsm8k"),
        ("https://huggingface.co/datasets/openai/gsm8k/blob/main/main/a.parquet",
         "hf download --repo-type dataset openai/gsm8k main/a.parquet --local-dir . && "
         "plyfold data check -c FILE data.path=main/a.parquet"),
        ("https://example.org/a/rows.jsonl?token=1",
         "curl -L -o rows.jsonl 'https://example.org/a/rows.jsonl?token=1', then data.path=rows.jsonl"),
        ("hf://openai/gsm8k", "data.path=openai/gsm8k"),
        ("file:///data/rows.jsonl", "data.path=/data/rows.jsonl"),
        ("s3://bucket/rows.jsonl", "copy it here, then data.path=rows.jsonl"),
    ],
)  # fmt: skip
def test_an_address_is_answered_with_what_to_type(address: str, step: str) -> None:
    with pytest.raises(ConfigError, match="address") as caught:
        load_rows(DataConfig(path=address))
    assert caught.value.next_step == step


@pytest.mark.parametrize(
    "path", ["openai/gsm8k", "gsm8k", "rows.jsonl", "a/b/c.jsonl", "/data/https/x.json", "sandbox"]
)
def test_a_name_or_a_path_is_no_address(path: str) -> None:
    refuse_address(path)


def test_the_index_that_pandas_writes_has_no_name(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(",question,answer\n0,How many?,5\n1,Who?,6\n")
    assert read_file(path) == [{"question": "How many?", "answer": "5"}, {"question": "Who?", "answer": "6"}]
    for names in ("question,,answer", ",", ",question,question"):
        path.write_text(f"{names}\n0,How many?,5\n")
        with pytest.raises(IntegrityError, match="does not name the columns") as caught:
            read_file(path)
        assert caught.value.next_step


@pytest.mark.parametrize("sign", ["\t", ";", "|"])
def test_other_separators_than_commas_are_named_with_a_call_that_mends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text(f'question{sign}answer\n"How, many?"{sign}5\n')
    with pytest.raises(IntegrityError, match="another sign") as caught:
        load_rows(DataConfig(path="x.csv", columns={"question": "question", "answer": "answer"}))
    (call,) = re.findall(r'-c "(.*)"', caught.value.next_step)
    subprocess.run([sys.executable, "-c", call], check=True)
    assert read_file(Path("rows.csv")) == [{"question": "How, many?", "answer": "5"}]


def test_a_pattern_or_a_folder_that_is_not_there_is_no_dataset_of_the_hub(tmp_path: Path) -> None:
    for path, step in ((f"{tmp_path}/*.jsonl", f"cat {tmp_path}/*.jsonl > "), ("nowhere/", "check data.path")):
        with pytest.raises(NotFoundError) as caught:
            _read(path)
        assert step in caught.value.next_step
