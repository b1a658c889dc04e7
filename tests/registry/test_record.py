"""Records: canonical bytes, identity, and everything an untrusted or careless record may not hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plyfold.core.disk.digest import canonical_json
from plyfold.core.errors import ConfigError, IntegrityError
from plyfold.registry.record import (
    MAX_RECORD_BYTES,
    FileEntry,
    Recipe,
    check_portable,
    parse_record,
    portable,
    utc_now,
)


def test_the_digest_is_the_sha256_of_the_canonical_bytes(make_record: Any) -> None:
    record = make_record()
    data = record.to_bytes()
    assert record.digest() == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    assert parse_record(data) == record


def test_a_record_has_one_spelling(make_record: Any) -> None:
    """Its digest is of its bytes: were there others that mean the same, it would have two names, or two meanings."""
    data = make_record().to_bytes()
    value = json.loads(data)
    for other in (
        json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode(),
        json.dumps(value, sort_keys=True).encode(),
        data.replace(b'"kind":', b'"kind":"merge","kind":'),
        data.replace(b'"seed":0', b'"seed":"0"'),
        data.replace(b'"alpha":8.0', b'"alpha":8'),
        data.replace(b'"steps":0', b'"steps":1' + b"0" * 5000),
        data.replace(b'"requires":[],', b""),
        data + b"\n",
        b"\xef\xbb\xbf" + data,
    ):
        assert other != data
        with pytest.raises(IntegrityError):
            parse_record(other)


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "A"],
        ["\u00e9", "e\u0301"],
        ["a", "a/b"],
        ["A/b", "a"],
        ["LINEAGE.json"],
        ["lineage.json/x"],
        ["é" * 128],
        ["photo\u202egpj"],
        ["a\x85b"],
    ],
)
def test_a_file_list_that_not_every_folder_can_hold_is_refused(make_record: Any, paths: list[str]) -> None:
    value = make_record().to_json()
    value["files"] = [{"path": path, "size": 1, "sha256": f"sha256:{'1' * 64}"} for path in paths]
    with pytest.raises(IntegrityError, match="record"):
        parse_record(canonical_json(value))


def test_identities_of_published_adapters_do_not_change_between_versions(make_record: Any) -> None:
    """A changed digest means that a field of schema 1 was added, dropped or renamed: that needs a new schema."""
    files = [FileEntry(path="adapter_model.safetensors", size=3, sha256=f"sha256:{'1' * 64}")]
    record = make_record(files=files, recipe=Recipe(seed=7, steps=20, config={"lr": 1e-4, "é": [None, True]}))
    assert record.digest() == "sha256:ff4e9f6699610926bfe22d3131f542f59dc037e5a5f716313a3cdbbf237cbb7e"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(config=st.dictionaries(st.text(), json_values, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_portable_config_survives_writing_and_reading(make_record: Any, config: dict[str, Any]) -> None:
    config = {f"k{index}": value for index, value in enumerate(portable(config).values())}
    try:
        check_portable(config)
    except ConfigError:
        return  # a key that looks like a path: refused, not altered
    record = make_record(recipe=Recipe(config=config))
    again = parse_record(record.to_bytes())
    assert again.recipe.config == config
    assert again.to_bytes() == record.to_bytes()


@pytest.mark.parametrize(
    "value",
    ["/home/ann/data.jsonl", "~/data", "~ann/data", "C:\\data", "d:/data", "\\\\server\\data", "file:///data", "/x"],
)
def test_a_local_path_is_refused_wherever_it_stands(make_record: Any, value: str) -> None:
    for fields in (
        {"env": {"python": value}},
        {"env": {value: "3.11"}},
        {"recipe": Recipe(config={"data": [{"path": value}]})},
        {"licence": value},
    ):
        with pytest.raises(ValidationError, match="local path"):
            make_record(**fields)


@pytest.mark.parametrize(
    "value", ["openai/gsm8k", "data/train.jsonl", "../shared/x", "hf://a/b@c", "https://x.y/z", "a / b", "// no", "/"]
)
def test_other_strings_are_kept(make_record: Any, value: str) -> None:
    assert make_record(env={"note": value}).env["note"] == value


def test_portable_cuts_local_paths_to_their_last_part() -> None:
    value = {"path": "/home/ann/gsm8k/train.jsonl", "base": Path("/models/qwen/"), "list": ["C:\\a\\b", "x/y", 3]}
    assert portable(value) == {"path": "train.jsonl", "base": "qwen", "list": ["b", "x/y", 3]}
    check_portable(portable(value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(make_record: Any, value: float) -> None:
    with pytest.raises(ValidationError):
        make_record(recipe=Recipe(config={"lr": value}))
    with pytest.raises(ValidationError):
        make_record(metrics=[{"name": "accuracy", "value": value}])
    with pytest.raises(ConfigError, match="NaN"):
        check_portable({"deep": [{"x": value}]})


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./x", "a\\b", "a\nb", "x\x00", "c:x", "lineage.json", "n" * 300],
)
def test_a_file_name_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="payload file"):
        FileEntry(path=path, size=0, sha256=f"sha256:{'0' * 64}")


def test_stage_and_kind_have_to_agree(make_record: Any) -> None:
    with pytest.raises(ValidationError, match="needs"):
        make_record(stage=None, kind="stage")
    with pytest.raises(ValidationError, match="has no"):
        make_record(stage=1, kind="merge")
    assert make_record(stage=None, kind="foreign").stage is None


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"schema": "plyfold/adapter-record/2"},
        {"curriculum": "../x"},
        {"stage": {"number": 0, "name": "x"}},
        {"stage": {"number": 1, "name": "1"}},
        {"base": {"repo": "/home/x", "revision": "0" * 40}},
        {"base": {"repo": "a/b", "revision": "main"}},
        {"parents": [{"role": "friend", "digest": f"sha256:{'0' * 64}"}]},
        {"parents": [{"role": "teacher", "digest": "sha256:00"}]},
        {"created": "yesterday"},
        {"files": [{"path": "a", "size": 1, "sha256": f"sha256:{'0' * 64}"}] * 2},
    ],
)
def test_what_is_no_record_is_refused_by_field(make_record: Any, change: dict[str, Any]) -> None:
    data = json.dumps({**make_record().to_json(), **change}).encode()
    with pytest.raises(IntegrityError) as caught:
        parse_record(data, "here")
    assert caught.value.where == "here"
    assert caught.value.found


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"env": {"x": NaN}}', b" " * (MAX_RECORD_BYTES + 1)]
)
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_record(data)


def test_a_record_is_frozen_and_dated_in_utc(make_record: Any) -> None:
    record = make_record(created=utc_now())
    with pytest.raises(ValidationError):
        record.curriculum = "other"
