"""Which modules an adapter's config targets, by PEFT's rules; a stranger's patterns included.

PEFT drops a tensor whose module the config does not target, vLLM applies it: such a file has two meanings.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.errors import UnsupportedAdapterError
from .header import shown
from .names import canonical, ends
from .scaling import bad_config, steps_of

MAX_STEPS = 1e7
"""Of matching all names with one pattern here, at worst: a second. Beyond it a process of its own matches them."""
MAX_MATCH_S = 2
"""How long that process may take; a pattern that PEFT itself loads adapters with needs a few ms."""
MAX_PATTERN = 10_000
"""Longest pattern that is matched; Unsloth's for vision-language models has some 700 characters."""
ALL_LINEAR = "all-linear"
_MATCHER = """
import json, re, sys
pattern, method, names = json.load(sys.stdin)
matches = [getattr(re.compile(pattern), method)(name) for name in names]
json.dump([match and match.groupdict().get("idx", "") for match in matches], sys.stdout)
"""


class Targets:
    """What a config says of the modules of a file, after wrappers were taken out of both.

    Args:
        config: `adapter_config.json`.
        where: Its path, for errors.
        names: Every name that `leave_out` is asked for.

    Raises:
        IntegrityError: A field that is no list of names, pattern or list of layers.
        UnsupportedAdapterError: A pattern that takes too long to match.
    """

    def __init__(self, config: Mapping[str, Any], where: Path, names: Sequence[str]) -> None:
        self._where, self._all = where, tuple(names)
        self._targets = self._matched(config, "target_modules")
        self._excluded = self._matched(config, "exclude_modules") or set()
        layers = config.get("layers_to_transform")
        layers = [layers] if type(layers) is int else layers
        if layers and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
            raise bad_config(where, "layers_to_transform", layers, "a layer's number, or a list of them")
        if layers and not isinstance(config.get("target_modules"), str):
            self._other_layers = {name for name, layer in self._layers(config).items() if layer not in layers}
            self._other_layers -= {canonical(each) for each in config.get("target_modules") or ()}
        else:
            self._other_layers = set()

    def leave_out(self, name: str) -> bool:
        """Whether the config does not target a module."""
        if name in self._excluded:
            return True
        return self._targets is not None and (name not in self._targets or name in self._other_layers)

    def _matched(self, config: Mapping[str, Any], field: str) -> set[str] | None:
        """The names whose end a list has, or that a pattern matches whole; None where the field chooses nothing."""
        value = config.get(field)
        if isinstance(value, str):
            everything = field == "target_modules" and value.lower() == ALL_LINEAR
            return None if everything else set(self._matches(field, value, "fullmatch"))
        names = _list_of_names(config, field, self._where)
        if names is None:
            return None
        chosen = {canonical(each) for each in names}
        return {name for name in self._all if not chosen.isdisjoint(ends(name))}

    def _layers(self, config: Mapping[str, Any]) -> dict[str, int]:
        """The number of the layer that each name lies in, -1 for one outside; the first after a list's name counts."""
        field = "layers_pattern"
        value = config.get(field) or []
        lists = [value] if isinstance(value, str) else _list_of_names(config, field, self._where) or []
        found = dict.fromkeys(self._all, -1)
        for each in reversed(lists or [r"[^.]*"]):
            start = r"(?:^|.*?\.)" if lists else r".*?\."
            found |= self._matches(field, rf"{start}{each}\.(?P<idx>\d+)\.", "match")
        return found

    def _matches(self, field: str, pattern: str, method: str) -> dict[str, int]:
        """The names that a pattern matches, with the number in its group `idx`, 0 without one."""
        try:
            if len(pattern) > MAX_PATTERN:
                raise TimeoutError
            groups = _match(pattern, method, self._all)
        except (re.error, OverflowError, RecursionError) as error:
            raise bad_config(self._where, field, pattern, f"a regular expression ({error})") from error
        except (TimeoutError, subprocess.SubprocessError) as error:
            raise UnsupportedAdapterError(
                f"the pattern of {field} takes too long to match",
                where=self._where,
                found=shown(pattern),
                next_step=f"name the modules in {field} in a list",
            ) from error
        return {name: int(group or 0) for name, group in zip(self._all, groups, strict=True) if group is not None}


def _list_of_names(config: Mapping[str, Any], field: str, where: Path) -> list[str] | None:
    value = config.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise bad_config(where, field, value, "a list of names, or a pattern")
    return value


@lru_cache(8)
def _match(pattern: str, method: str, names: tuple[str, ...]) -> list[str | None]:
    """For each name the group `idx` of its match by a method of `re`, empty without one; None without a match."""
    compiled = re.compile(pattern)
    if sum(steps_of(pattern, name) for name in names) < MAX_STEPS:
        matches = [getattr(compiled, method)(name) for name in names]
        return [match and match.groupdict().get("idx", "") for match in matches]
    # Nothing but the end of its process ends a match that takes for ever.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MATCHER],
        input=json.dumps([pattern, method, names]),
        capture_output=True,
        text=True,
        timeout=MAX_MATCH_S,
        check=True,
    )
    found: list[str | None] = json.loads(done.stdout)
    return found
