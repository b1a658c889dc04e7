"""What a config reads from the environment: used on this machine, said nowhere.

A value such as `${oc.env:MODELS}/qwen` stays the text it is spelt as: that is what is printed, saved, hashed and put on
record. What it means here is had from `meaning` alone, by whoever opens the file or the connection. Other libraries
only know the meaning, and their errors and logs quote it: `spelt` puts the spelling back in its place.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*(?:,(?P<default>[^{}$]*))?\}")
"""`${oc.env:NAME}` or `${oc.env:NAME,default}`."""
LEAST_ANYWHERE = 8
"""Characters from which a value is replaced wherever it stands; a shorter one might be any word, and is replaced where
it is a part of a path."""

_spellings: dict[str, str] = {}
"""What was read in this process -> how it is spelt."""


class EnvironmentText(str):
    """A text as it is spelt, with what it means here kept apart."""

    _meaning: str

    def __new__(cls, spelling: str, meaning: str) -> EnvironmentText:
        """The text `spelling`, which means `meaning`; both are remembered for `spelt`."""
        text = super().__new__(cls, spelling)
        text._meaning = meaning
        if not _spellings:
            _spell_logs()
        for found in VARIABLE.finditer(spelling):
            value = os.environ.get(found["name"], "")
            _spellings.update(dict.fromkeys((value, os.path.expanduser(value)), f"${{oc.env:{found['name']}}}"))
        _spellings.update(dict.fromkeys(_forms(meaning), text.plain))
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        """How another process makes it again."""
        return EnvironmentText, (str(self), self._meaning)

    @property
    def plain(self) -> str:
        """The spelling without defaults, which may be paths of this machine."""
        return VARIABLE.sub(lambda found: f"${{oc.env:{found['name']}}}", self)

    @property
    def is_whole(self) -> bool:
        """Whether one variable is all of it, but for a path behind it: then no host is named beside the variable."""
        first = VARIABLE.match(self)
        rest = self[first.end() :] if first else "${"
        return rest[:1] in ("", "/") and "${" not in rest

    @property
    def last(self) -> str:
        """The last part of the path: a file's name, or the variable that holds it."""
        return self.plain.rstrip("/").rpartition("/")[2]


def meaning(text: str) -> str:
    """What a text of a config means here: the text itself where nothing of it was read from the environment."""
    return text._meaning if isinstance(text, EnvironmentText) else text


def is_unset(found: re.Match[str]) -> bool:
    """Whether a `VARIABLE` has neither a value nor a default; an empty one has none."""
    return not os.environ.get(found["name"]) and found["default"] is None


def value_of(found: re.Match[str]) -> str:
    """The value of a `VARIABLE`, its default where it is not set."""
    return os.environ.get(found["name"]) or (found["default"] or "").strip().strip("'\"")


def spelt(text: str) -> str:
    """The text with everything that was read from the environment as it is spelt in the config."""
    if not _spellings:
        return text
    values = sorted(filter(_tells, _spellings), key=len, reverse=True)
    return re.sub("|".join(map(_pattern, values)) or "(?!)", lambda found: _spellings[found[0]], text)


def _spell_logs() -> None:
    """Let every line that any library logs from now on be as `spelt` has it."""
    make = logging.getLogRecordFactory()

    def make_spelt(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        with suppress(TypeError, ValueError):  # a line whose parts do not fit is its logger's affair
            record.msg, record.args = spelt(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_spelt)


def _tells(value: str) -> bool:
    """Whether replacing a value hides anything: `.` and `/` are in every path."""
    return any(map(str.isalnum, value))


def _pattern(value: str) -> str:
    anywhere = len(value) >= LEAST_ANYWHERE or "/" in value
    word = re.escape(value)
    return word if anywhere else rf"(?<=/){word}(?![\w.-])|(?<![\w.-]){word}(?=/)"


def _forms(value: str) -> Iterator[str]:
    """A path or an address as it is quoted once it was made absolute, resolved or stripped."""
    yield value
    yield value.rstrip("/").removesuffix("/v1")
    yield value.rpartition("@")[2].partition("?")[0]
    yield value[:200]  # as errors cut what is long
    if "://" in value:
        return
    with suppress(OSError, RuntimeError, ValueError):  # what no system takes for a path
        path = Path(value).expanduser()
        yield from map(str, (Path(value), path, path.absolute(), path.resolve()))
