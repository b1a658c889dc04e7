"""JSON from elsewhere, read in one way only: held to a size and a depth, or refused by name.

Python's parser takes NaN, takes `1e999` for infinity and the last of two equal names, and makes gigabytes of a few
megabytes of brackets. What other programs wrote, and what may have been changed since it was written here, is read by
this one, so that none of that goes further than the place it came from.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from ..disk.files import read_capped
from ..errors import IntegrityError

MAX_BYTES = 16_000_000
"""Longest text, unless a caller says otherwise; of brackets alone Python makes 22 times as much."""
MAX_DEPTH = 32
"""Deepest nesting; what walks, copies or writes values goes down by recursion."""
MAX_DIGITS = 64
"""Longest whole number; transformers writes one of 31 digits for "no limit"."""

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"[^"]*+"')
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_AS_NINES = bytes.maketrans(b"012345678", b"9" * 9)


class MalformedJSONError(ValueError):
    """Not JSON, or JSON that is not read here; the message says why in a line."""


def parse_json(data: bytes, *, max_bytes: int = MAX_BYTES, infinity: bool = False) -> Any:
    """The value of some bytes.

    Args:
        data: JSON in UTF-8, without a byte order mark.
        max_bytes: Longest text accepted.
        infinity: Take `Infinity`, which transformers writes into the configs of some models (`time_step_limit`).

    Raises:
        MalformedJSONError: Too long, no UTF-8, no JSON, a name twice in an object, NaN or an infinity, a number beyond
            float64 or of over 64 digits, half of a surrogate pair, or nested more than 32 deep.
    """
    if len(data) > max_bytes:
        raise MalformedJSONError(f"more than {max_bytes:,} bytes")
    if data.startswith(codecs.BOM_UTF8):
        raise MalformedJSONError("a byte order mark before the text")
    if (value := _compact(data)) is not None:
        return value
    try:
        value = (_WITH_INFINITY if infinity else _DECODER).decode(data.decode())
    except UnicodeDecodeError as error:
        raise MalformedJSONError(f"byte {error.start} is no UTF-8") from None
    except _NumberError as error:
        found = re.escape(error.text[:MAX_DIGITS].encode())
        # Possessive, since going back over a megabyte of spaces from each of them would take hours.
        field = re.search(rb'"([^"\\]{1,80})"\s*+:\s*+\[?+[^\]"]*?' + found, data)
        raise MalformedJSONError(f"{field[1].decode()} is {error}" if field else f"a value is {error}") from None
    except json.JSONDecodeError as error:
        raise MalformedJSONError(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    if _is_too_deep(data):
        raise _too_deep()
    if _HALF_PAIR.search(data):
        _check_text(value)
    return value


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, infinity: bool = False) -> Any:
    """The value of a plain file; arguments as of `parse_json`.

    Raises:
        OSError: There is no such file, it may not be read, or it is no plain file.
        MalformedJSONError: As `parse_json`.
    """
    return parse_json(read_capped(path, max_bytes), max_bytes=max_bytes, infinity=infinity)


def read_object(
    path: Path, what: str, *, max_bytes: int = MAX_BYTES, infinity: bool = False, next_step: str = ""
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        what: Its name in an error: `the adapter config`.
        max_bytes: Longest text accepted.
        infinity: As of `parse_json`.
        next_step: What mends it.

    Raises:
        OSError: There is no such file, it may not be read, or it is no plain file.
        IntegrityError: It holds no JSON object that is read here.
    """
    try:
        value = read_json(path, max_bytes=max_bytes, infinity=infinity)
    except MalformedJSONError as error:
        raise IntegrityError(f"{what} is not JSON to rely on", where=path, found=error, next_step=next_step) from error
    if not isinstance(value, dict):
        raise IntegrityError(
            f"{what} is not a JSON object", where=path, found=type(value).__name__, next_step=next_step
        )
    return value


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """The objects of a JSON Lines text; a line that is none, such as one cut by a kill, is left out."""
    rows = []
    for line in data.split(b"\n"):
        try:
            row = parse_json(line)
        except MalformedJSONError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class _NumberError(ValueError):
    """A number that is not read here."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(reason)
        self.text = text


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of names that each stand once, as the `object_pairs_hook` of a laxer parser.

    Raises:
        MalformedJSONError: One stands twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):  # of the two, some readers take the first
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedJSONError(f"the name {twice[:80]!r} stands twice in an object")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _NumberError(text, f"a whole number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _NumberError(text, f"{text[:40]}, beyond the numbers of float64")
    return number


def _constant(text: str) -> float:
    raise _NumberError(text, f"{text}, which is no JSON")


def _infinity(text: str) -> float:
    return _constant(text) if text == "NaN" else float(text)


_HOOKS: dict[str, Any] = {"object_pairs_hook": unique, "parse_int": _whole, "parse_float": _finite}
_DECODER = json.JSONDecoder(**_HOOKS, parse_constant=_constant)
_WITH_INFINITY = json.JSONDecoder(**_HOOKS, parse_constant=_infinity)


def _compact(data: bytes) -> Any:
    """The value of a text without spaces, as most are that were written here; None where the slow way has to tell.

    A parser in Rust takes what it likes: but the value it comes to has each name once, and where that is written as the
    very bytes that were read, no name stood twice in them, and nothing else of them can mean another value.
    """
    text = data.removesuffix(b"\n")
    try:
        value = from_json(text, allow_inf_nan=False)
        same = to_json(value) == text
    except ValueError:
        return None
    long_number = b"9" * (MAX_DIGITS // 4) in text[::4].translate(_AS_NINES)  # or a text that looks like one
    return value if same and not long_number and not _is_too_deep(text) else None


def _is_too_deep(data: bytes) -> bool:
    """Whether a JSON text nests deeper than `MAX_DEPTH`; of the text, which is faster than going through its values."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRING.sub(b"", data.translate(_AS_SQUARE, _NO_BRACKETS).replace(b'""', b""))
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    return bool(brackets)


def _check_text(value: Any, name: str = "a value") -> None:
    if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise MalformedJSONError(f"{name} holds half of a surrogate pair, which is no text")
    for key, item in value.items() if isinstance(value, dict) else ():
        _check_text(key, "a name")
        _check_text(item, key[:80])
    for item in value if isinstance(value, list) else ():
        _check_text(item, name)


def _too_deep() -> MalformedJSONError:
    return MalformedJSONError(f"nested more than {MAX_DEPTH} deep")
