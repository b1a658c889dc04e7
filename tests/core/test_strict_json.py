"""JSON from elsewhere means one thing, is held to its bounds, and is refused in a line that says why."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plyfold.core.errors import IntegrityError
from plyfold.core.reading.strict_json import (
    MAX_DEPTH,
    MalformedJSONError,
    parse_json,
    parse_lines,
    read_object,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.slow
@given(_VALUES, st.booleans())
def test_what_every_reader_understands_alike_is_read(value: object, escaped: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(_VALUES, st.booleans())
def test_the_quick_way_comes_to_the_very_value(value: object, newline: bool) -> None:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n" * newline
    assert repr(parse_json(text.encode())) == repr(json.loads(text))


@given(
    st.recursive(
        st.sampled_from([1, "", "[", '"]', "\\", '\\"{', "[" * 40]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "{", '"', "\\"]), inner, max_size=3)
        ),
        max_leaves=40,
    ),
    st.integers(0, 34),
)
def test_brackets_in_texts_are_no_levels(value: object, levels: int) -> None:
    def depth(item: object) -> int:
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    for _ in range(levels):
        value = [value, "]"]
    data = json.dumps(value, separators=(",", ":")).encode()
    if depth(value) <= MAX_DEPTH:
        assert parse_json(data) == value
    else:
        with pytest.raises(MalformedJSONError, match="nested"):
            parse_json(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"r": NaN}', "r is NaN"),
        (b'{"lora_alpha": [1, -Infinity]}', "lora_alpha is -Infinity"),
        (b"1e999", "float64"),
        (b'{"r": -1e999}', "r is -1e999"),
        (b'{"r": 1' + b"0" * 400 + b"}", "r is a whole number of 401 digits"),
        (b"9" * 5000, "5,000 digits"),
        (b'{"r": 1, "r": 2}', "'r' stands twice"),
        (b'{"a": {"r": 1, "r": 1}}', "'r' stands twice"),
        (b'{"a":[{"r":1,"s":2,"r":1}]}', "'r' stands twice"),
        (b'{"\\u0072":1,"r":1}', "'r' stands twice"),
        (b'{"r":' + b"9" * 65 + b"}", "65 digits"),
        (b'{"a":' * 33 + b'"]"' + b"}" * 33, "nested"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"r": 1}'.encode("utf-16"), "UTF-8"),
        (b"{} {}", "Extra data"),
        (b"[1,]", "JSON|value"),
        (b"[1] // one", "Extra data"),
        (b'"' + b"a" * 2000 + b'"', "more than 2,000 bytes"),
    ],
)
def test_anything_else_is_refused_in_a_line(data: bytes, reason: str) -> None:
    limit = 2000 if data.startswith(b'"aaa') else 10_000_000
    with pytest.raises(MalformedJSONError, match=reason) as caught:
        parse_json(data, max_bytes=limit)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{%s" % b"".join(b'"a%d":1,' % number for number in range(20_000)) + b'"a19999":1}', "'a19999' stands twice"),
        (b'{"a":' + b" " * 20_000 + b'"x","b":NaN}', "b is NaN"),
    ],
    ids=["many names", "many spaces"],
)
def test_the_reason_is_found_in_time_however_the_text_is_laid_out(data: bytes, reason: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(MalformedJSONError, match=reason):
        parse_json(data)
    assert time.monotonic() - begin_s < 2  # 0.03 s; 16 MB of it would take hours if it grew with the square


def test_a_pair_of_surrogates_is_a_character_and_32_levels_are_read() -> None:
    assert parse_json(b'"\\ud83d\\ude00 \\\\ud800"') == "\U0001f600 \\ud800"
    assert parse_json(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH) is not None
    assert parse_json(b'["' + b"[" * 500 + b'"]') == ["[" * 500]


def test_infinity_only_where_it_is_expected() -> None:
    assert parse_json(b'{"time_step_limit": [0.0, Infinity]}', infinity=True)["time_step_limit"][1] == float("inf")
    with pytest.raises(MalformedJSONError, match="NaN"):
        parse_json(b"[NaN]", infinity=True)


def test_a_file_that_is_no_object_or_no_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(b"[]")
    with pytest.raises(IntegrityError, match="the note is not a JSON object") as caught:
        read_object(path, "the note")
    assert caught.value.where == str(path)
    path.write_bytes(b'{"a": "' + b"x" * 1000)
    with pytest.raises(IntegrityError, match="more than 100 bytes"):
        read_object(path, "the note", max_bytes=100)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="plain file"):
        read_object(tmp_path / "pipe", "the note")


def test_lines_that_are_no_objects_are_left_out() -> None:
    assert parse_lines(b'{"a": 1}\nNaN\n[1]\n{"a": NaN}\n{"b"') == [{"a": 1}]
