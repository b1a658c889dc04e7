"""YAML of configs, held to a size, a depth and a number of values before anything is made of it.

Nine lines of aliases to aliases are a billion values once each is a value of its own, and a page of brackets is a
traceback. Events of the parser are counted, which takes neither memory nor recursion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk.files import read_capped
from ..errors import ConfigError

MAX_BYTES = 200_000
"""Longest config accepted; those of the package are under 10,000."""
MAX_DEPTH = 24
"""Deepest nesting of a config, whose own is 5."""
MAX_VALUES = 20_000
"""Most values of a config, each counted where it stands and where an alias repeats it."""
MAX_DIGITS = 64
"""Longest whole number."""


def read_yaml(path: Path) -> str:
    """The text of a config file, which may be parsed.

    Raises:
        ConfigError: Too long, no UTF-8, no plain file, or as `check_yaml`.
        YAMLError: It is no YAML.
    """
    try:
        data = read_capped(path, MAX_BYTES)
        if len(data) > MAX_BYTES:
            raise ConfigError("the config is too long", where=path, expected=f"at most {MAX_BYTES:,} bytes",
                              next_step="keep rows in a data file and name it in data.path")  # fmt: skip
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the config cannot be read", where=path, found=error, expected="a file of UTF-8") from error
    check_yaml(text, path)
    return text


def check_yaml(text: str, where: object) -> None:
    """Refuse what would be too much once parsed.

    Raises:
        ConfigError: Half of a surrogate pair, as in an argument that is no UTF-8; nested too deep, too many values with
            those that aliases repeat, or an alias inside what it names.
        YAMLError: It is no YAML.
    """
    import yaml

    check_values(text, where)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    sizes: dict[str, int | None] = {}  # None while the value is still open
    opened: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=loader):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(anchor or "", 1)
            if size is None:
                raise _too_much("a value of the config holds itself", where, f"*{anchor}")
            total += size
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            opened.append((anchor, total))
            if anchor:
                sizes[anchor] = None
            if len(opened) > MAX_DEPTH:
                raise _too_much("the config is nested too deep", where, f"more than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if anchor:
                sizes[anchor] = 1
        if total > MAX_VALUES:
            raise _too_much(
                "the config has too many values", where, f"more than {MAX_VALUES:,} with what aliases repeat"
            )


def check_values(value: Any, where: object, key: str = "") -> None:
    """Refuse numbers that no setting can mean and text that cannot be written.

    Args:
        value: A config's plain values, nested no deeper than `check_yaml` lets pass.
        where: What an error names.
        key: Dotted place of `value`.

    Raises:
        ConfigError: NaN or an infinity, a whole number of over 64 digits, or half of a surrogate pair.
    """
    place = f"{key} in {where}" if where else key
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_values(item, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_values(item, where, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("a number of the config is not finite", where=place, found=value)
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise ConfigError("a number of the config is too long", where=place, expected=f"at most {MAX_DIGITS} digits")
    elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigError("a text of the config holds half of a surrogate pair", where=place, found=ascii(value)[:200])


def _too_much(what: str, where: object, found: str) -> ConfigError:
    return ConfigError(what, where=where, found=found, next_step="write its values out, and only those it needs")
