"""Which modules an adapter's config targets, by PEFT's rules; a stranger's patterns are matched where it is cheap.

PEFT drops a tensor whose module the config does not target, vLLM applies it: such a file has two meanings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .names import canonical
from .scaling import bad_config, steps_of

MAX_STEPS = 1e6
"""Of matching one name with one pattern, at worst; beyond it a pattern says nothing here."""
ALL_LINEAR = "all-linear"


class Targets:
    """What a config says of a module's name, after wrappers were taken out of both.

    Raises:
        IntegrityError: A field that is no list of names, pattern or list of layers.
    """

    def __init__(self, config: Mapping[str, Any], where: Path) -> None:
        self._targets = _names(config, "target_modules", where)
        self._excluded = _names(config, "exclude_modules", where)
        layers = config.get("layers_to_transform")
        layers = [layers] if type(layers) is int else layers
        if layers and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
            raise bad_config(where, "layers_to_transform", layers, "a layer's number, or a list of them")
        self._layers: list[int] = layers or []
        self._lists: list[str] = _listed(_names(config, "layers_pattern", where))

    def leave_out(self, name: str) -> bool:
        """Whether the config certainly does not target a module."""
        if self._excluded and _matches(self._excluded, name):
            return True
        if isinstance(self._targets, str):
            return self._targets.lower() != ALL_LINEAR and _matches(self._targets, name) is False
        if self._targets is None or name in self._targets:
            return False
        return not _matches(self._targets, name) or (bool(self._layers) and self._other_layer(name))

    def _other_layer(self, name: str) -> bool:
        """Whether a module lies in none of the chosen layers; the first number after a list's name counts."""
        lists = [re.escape(each) for each in self._lists if each.replace("_", "").isalnum()]
        if len(lists) != len(self._lists):
            return False  # a pattern of a stranger
        patterns = [rf"(?:^|.*?\.){each}\.(\d+)\." for each in lists] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for each in patterns if (match := re.match(each, name))), None)
        return found is None or int(found[1]) not in self._layers


def _names(config: Mapping[str, Any], field: str, where: Path) -> list[str] | str | None:
    value = config.get(field)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [canonical(each) for each in value]
    if value is not None and not isinstance(value, str):
        raise bad_config(where, field, value, "a list of names, or a pattern")
    return value


def _listed(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value or ())


def _matches(targets: list[str] | str, name: str) -> bool | None:
    """Whether a list has a name's end, or a pattern all of it; None for a pattern that could take for ever."""
    if not isinstance(targets, str):
        return any(name == target or name.endswith(f".{target}") for target in targets)
    if steps_of(targets, name) > MAX_STEPS:
        return None
    try:
        return re.fullmatch(targets, name) is not None
    except (re.error, OverflowError, RecursionError):
        return None
