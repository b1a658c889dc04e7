"""Rank and scale of each module as an adapter's config gives them, by PEFT's rules; patterns of strangers included.

A config comes from anywhere, and its patterns are regular expressions: how long they may take to match is bounded
before they are matched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import IntegrityError, UnsupportedAdapterError
from .header import shown

MAX_PATTERNS = 10_000
MAX_MATCH_STEPS = 1e8
"""Of matching all module names with all patterns, at worst: some seconds."""


class Scaling:
    """Rank, alpha and scale of a module by PEFT's rules: the first pattern that matches a dotted suffix wins.

    Raises:
        IntegrityError: A rank, an alpha, `use_rslora` or a pattern that is none.
        UnsupportedAdapterError: Patterns that could take for ever to match.
    """

    def __init__(self, config: Mapping[str, Any], where: Path) -> None:
        self.where = where
        self.r = _number(config.get("r", 8), "r", where, whole=True)
        self.alpha = _number(config.get("lora_alpha", 8), "lora_alpha", where)
        self.rslora = config.get("use_rslora") or False
        if not isinstance(self.rslora, bool):
            raise bad_config(where, "use_rslora", self.rslora, "true or false")
        self._steps = 0.0
        self.ranks = self._patterns(config, "rank_pattern", whole=True)
        self.alphas = self._patterns(config, "alpha_pattern")

    def of(self, name: str) -> tuple[int, float, float]:
        """(r, alpha, scale) of the module `name`."""
        r = int(self._first(self.ranks, name, self.r))
        alpha = self._first(self.alphas, name, self.alpha)
        return r, alpha, alpha / math.sqrt(r) if self.rslora else alpha / r

    def _first(self, patterns: list[tuple[re.Pattern[str], float]], name: str, default: float) -> float:
        for pattern, value in patterns:
            self._steps += _steps(pattern, name)
            if self._steps > MAX_MATCH_STEPS:
                raise _too_complex(self.where, pattern.pattern)
            if pattern.match(name):
                return value
        return default

    def _patterns(
        self, config: Mapping[str, Any], field: str, *, whole: bool = False
    ) -> list[tuple[re.Pattern[str], float]]:
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise bad_config(self.where, field, patterns, "a mapping of module names")
        if len(patterns) > MAX_PATTERNS:
            raise _too_complex(self.where, f"{len(patterns):,} patterns")
        return [
            (_compile(key, field, self.where), _number(value, f"{field}[{shown(key)}]", self.where, whole=whole))
            for key, value in patterns.items()
        ]


_PARENTS = r"(.*\.)?"
"""What may stand before a pattern, as PEFT has it."""


def _compile(key: str, field: str, where: Path) -> re.Pattern[str]:
    # Within a repeated group nothing bounds the ways to match; no real pattern needs one.
    if re.search(r"\)[*+{]", key) or len(key) > 1000:
        raise _too_complex(where, key)
    try:
        return re.compile(rf"{_PARENTS}({key})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise bad_config(where, field, key, f"a regular expression ({error})") from error


def _steps(pattern: re.Pattern[str], name: str) -> float:
    return _most_ways(pattern.pattern[len(_PARENTS) : -1], name)


def steps_of(pattern: str, name: str) -> float:
    """Most ways that a match of a whole name may try; infinite for a pattern that repeats a group, or a long one."""
    if re.search(r"\)[*+{]", pattern) or len(pattern) > 1000:
        return math.inf
    return _most_ways(pattern, name)


def _most_ways(key: str, name: str) -> float:
    """Most ways a backtracking match may try: every repeat may stop anywhere, every choice goes each way."""
    repeats, choices = _ways(key)
    return choices * math.comb(len(name) + repeats, repeats)


@cache
def _ways(key: str) -> tuple[int, float]:
    """Repeats in a pattern, and the product of its choices: 2 for each `?`, the number of alternatives of a group."""
    choices, groups = 1.0, [1]
    for sign in re.findall(r"\\.|\(\??|[*+?}]\?|[|)?]", key):
        if sign[0] == "(":
            groups.append(1)
        elif sign == "|":
            groups[-1] += 1
        elif sign == ")" and len(groups) > 1:
            choices *= groups.pop()
        elif sign in ("?", "??"):
            choices *= 2
    # 50 repeats are refused whatever the name; more would only leave the range of a float.
    return min(len(re.findall(r"[*+{]", key)), 50), choices * math.prod(groups)


def _too_complex(where: Path, pattern: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        "a module pattern is too complex to match safely",
        where=where,
        found=shown(pattern),
        next_step="name the modules in full in rank_pattern and alpha_pattern",
    )


def _number(value: Any, field: str, where: Path, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    sound = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
    if not sound or (whole and value < 1):
        raise bad_config(where, field, value, "a positive whole number" if whole else "a finite number")
    return value  # type: ignore[no-any-return]  # narrowed by isinstance above


def bad_config(where: Path, field: str, found: object, expected: str) -> IntegrityError:
    """The error for a field of a config that is not what it has to be."""
    return IntegrityError(f"{field} is malformed", where=where, found=shown(found), expected=expected)
