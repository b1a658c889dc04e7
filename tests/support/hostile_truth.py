"""What a record and an object's folder may be, written a second time: no pydantic, no code of the registry.

The verdicts on hostile input hold what plyfold accepts against this.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

MAX_BYTES, MAX_DEPTH = 1_000_000, 200
DIGEST, COMMIT = r"sha256:[0-9a-f]{64}", r"[0-9a-f]{40}"
LOCAL = re.compile(r"/[^/\s]|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\\w|file:/")
RECORD = "lineage.json"

Test = Callable[[Any], bool]


def strictly(data: bytes) -> Any:
    """The JSON value of some bytes that can be read in one way only.

    Raises:
        ValueError: Not UTF-8, not JSON, a name twice, NaN, or nested too deep to be read.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    def number(text: str) -> Any:
        raise ValueError(text)

    try:
        text = data.decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            raise ValueError("nested too deep")
        return json.loads(text, object_pairs_hook=once, parse_constant=number)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def lawful(data: bytes) -> bool:
    """May these bytes stand as a record?"""
    if len(data) > MAX_BYTES:
        return False
    try:
        value = strictly(data)
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        same = canonical.encode() == data
    except ValueError:
        return False
    return same and RECORD_FORM(value) and _consistent(value) and not any(LOCAL.match(text) for text in _texts(value))


def _depth(text: str) -> int:
    """Levels of brackets, those in strings left out."""
    levels = [
        {"[": 1, "{": 1, "]": -1, "}": -1}[sign]
        for sign in re.findall(r"[\[\]{}]", re.sub(r'"(\\.|[^"\\])*"', "", text))
    ]
    return max(accumulate(levels), default=0)


def lawful_name(path: str) -> bool:
    """May a payload file be called so?"""
    parts = path.split("/")
    return (
        all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in parts)
        and len(path) <= 255
        and path.isprintable()
        and not set(path) & set("\\:")
        and parts[0].casefold() != RECORD
    )


def whole(folder: Path, value: Mapping[str, Any]) -> bool:
    """Does a folder hold exactly the plain files that a lawful record declares?"""
    declared = {item["path"]: item for item in value["files"]}
    found: set[str] = set()
    for at, folders, files in os.walk(folder):
        found |= {os.path.relpath(os.path.join(at, name), folder) for name in files}
        found |= {os.path.relpath(os.path.join(at, name), folder) for name in folders if (Path(at) / name).is_symlink()}
    if found != {*declared, RECORD}:
        return False
    for name in found:
        status = (folder / name).lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        if name == RECORD:
            continue
        item = declared[name]
        if status.st_size != item["size"]:
            return False
        if f"sha256:{hashlib.sha256((folder / name).read_bytes()).hexdigest()}" != item["sha256"]:
            return False
    return True


def _consistent(value: Mapping[str, Any]) -> bool:
    staged = value.get("stage") is not None
    paths = [item["path"] for item in value.get("files", [])]
    folders = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}
    alike = {unicodedata.normalize("NFC", path).casefold() for path in paths}
    kind_fits = value["kind"] == "foreign" or (value["kind"] == "stage") == staged
    return kind_fits and len(alike) == len(paths) and not folders & set(paths)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in _texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


# ---- forms: tests of JSON values


def _text(pattern: str = r"(?s).*") -> Test:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _integer(least: float = -math.inf, most: float = math.inf) -> Test:
    return lambda value: type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _one_of(*values: str) -> Test:
    return lambda value: isinstance(value, str) and value in values


def _list(item: Test) -> Test:
    return lambda value: isinstance(value, list) and all(item(each) for each in value)


def _map(item: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(item(each) for each in value.values())


def _or_null(form: Test) -> Test:
    return lambda value: value is None or form(value)


def _any(value: Any) -> bool:
    return True


def _object(**fields: Test) -> Test:
    known = {name.rstrip("_"): test for name, test in fields.items()}
    return lambda value: (
        isinstance(value, dict) and set(value) == set(known) and all(known[name](item) for name, item in value.items())
    )


REPO = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
_digest, _count = _text(DIGEST), _integer(0)
_plain: Test = lambda value: type(value) in (str, int, bool)  # noqa: E731
_repo: Test = lambda value: _text(REPO)(value) and len(value) <= 200  # noqa: E731
_ROLES = ("active_during_training", "merged_into_base", "warm_start", "merge_input", "teacher")

RECORD_FORM = _object(
    schema=_one_of("plyfold/adapter-record/1"),
    kind=_one_of("stage", "merge", "foreign"),
    curriculum=_text(r"[a-z0-9][a-z0-9-]{0,62}"),
    stage=_or_null(_object(number=_integer(1, 999), name=_text(r"[a-z][a-z0-9_-]{0,62}"))),
    base=_object(
        repo=_repo,
        revision=_text(COMMIT),
        quantisation=_or_null(_map(_plain)),
        config_digest=_or_null(_digest),
        tokenizer_digest=_or_null(_digest),
    ),
    parents=_list(_object(role=_one_of(*_ROLES), digest=_digest, scale=_number)),
    requires=_list(_digest),
    recipe=_object(
        config=_map(_any), config_digest=_or_null(_digest), seed=_integer(), steps=_count, details=_map(_any)
    ),
    data=_list(_object(id=_text(r"(?s).+"), revision=_or_null(_text()), split=_text(), rows=_count, sha256=_digest)),
    code=_object(version=_text(), git=_or_null(_text()), dirty=_or_null(lambda value: type(value) is bool)),
    env=_map(_text()),
    metrics=_list(
        _object(
            name=_text(r"(?s).+"),
            value=_number,
            n=_or_null(_count),
            ci95=_or_null(lambda value: _list(_number)(value) and len(value) == 2),
            protocol=_or_null(_text()),
        )
    ),
    weights=_object(digest=_digest, dtype=_text(), r=_integer(1), alpha=_number, targets=_list(_text())),
    files=_list(
        _object(
            path=lambda value: isinstance(value, str) and lawful_name(value), size=_integer(0, 2**53), sha256=_digest
        )
    ),
    licence=_text(),
    created=_text(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
)
