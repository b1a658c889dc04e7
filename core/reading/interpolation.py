"""Interpolations of a config, told apart before OmegaConf sees them: what may be resolved, and what stays a text.

OmegaConf resolves references to other keys alone. What reads the environment goes through it as a marked text, and is
read only where it arrives at a field that stays on this machine, on whatever way it came there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

from ..environment import VARIABLE, EnvironmentText, is_unset, value_of
from ..errors import ConfigError

_BEGINNING = re.compile(r"(?<!\\)(?P<escapes>\\*)\$\{")
_REFERENCE = re.compile(r"\$\{\s*\.*[\w\-]+(?:\[[\w\-]+\]|\.[\w\-]+)*\s*\}")
"""`${data.path}`, `${..path}`, `${data[path]}`: a key, spelt out."""

MAX_RESOLVED = 2_000_000
"""Characters of a config, ten times as many as its file may have, with what references repeat."""


class ConfigWriter:
    """Values on their way into a config, with all that reads the environment marked.

    Args:
        place: Says where a key was given, for errors.
        scalars: Every field that holds one value, `NAME` in the place of a stage's name -> whether that stays here.
    """

    def __init__(self, place: Callable[[object], object], scalars: Mapping[str, bool]) -> None:
        self._place, self._local = place, [key for key, stays_here in scalars.items() if stays_here]
        self._stays_here, self._is_scalar = _one_of(self._local), _one_of(scalars)
        self._mark = secrets.token_hex(8)
        self._marked = re.compile(VARIABLE.pattern + self._mark)

    def marked(self, value: Any, key: str = "") -> Any:
        """A user's own values, ready for OmegaConf.

        Raises:
            ConfigError: An interpolation other than a key of the config, or a variable of the environment in a field
                that stays here.
        """
        return _mapped(value, self._with_marks, key)

    def literal(self, value: Any) -> Any:
        """Plain values, ready for OmegaConf: each text stays as it is. What is an `EnvironmentText` is read again."""
        return _mapped(value, lambda text, key: self._with_marks(str(text), key)
                       if isinstance(text, EnvironmentText) else escaped(text))  # fmt: skip

    def unmarked(self, value: Any) -> Any:
        """Values as they were written, from what OmegaConf holds of them."""
        marked = re.compile(rf"\\({VARIABLE.pattern}){self._mark}")
        return _mapped(value, lambda text, _: marked.sub(r"\1", text))

    def is_marked(self, text: str) -> bool:
        """Whether something in it was to be read from the environment."""
        return self._mark in text

    def read(self, text: str, key: str) -> str | None:
        """The text of a field that stays here, what is marked in it being read; None for a default of `null`.

        Raises:
            ConfigError: A variable that is not set and has no default.
        """
        if not self.is_marked(text):
            return text
        for found in self._marked.finditer(text):
            if is_unset(found):
                raise ConfigError(
                    "the environment has no such variable",
                    where=self._place(key),
                    found=self._spelt(text),
                    next_step=f"export {found['name']}=..., or give a default: ${{oc.env:{found['name']},DEFAULT}}",
                )
        meaning = self._marked.sub(value_of, text)
        whole = self._marked.fullmatch(text)
        return None if whole and meaning == "null" else EnvironmentText(self._spelt(text), meaning)

    def refuse(self, text: object, key: str) -> None:
        """Refuse a marked text in a field that does not stay here.

        Raises:
            ConfigError: It is one.
        """
        if isinstance(text, str) and self.is_marked(text):
            raise self.refusal(key, text)

    def refusal(self, key: object, text: str) -> ConfigError:
        """The error of a value that would leave this machine, `text` being that or an error about it."""
        variables = list(dict.fromkeys(found["name"] for found in VARIABLE.finditer(text)))
        by_shell = (
            f', or, where it may stand in records, let the shell put it in: {key}="${variables[0]}"'
            if self._is_scalar.fullmatch(str(key)) and len(variables) == 1
            else ""
        )
        return ConfigError(
            "a value that may leave this machine cannot be read from the environment",
            where=self._place(key),
            expected=f"the value itself; only {', '.join(self._local)} are read from there",
            found=", ".join(f"${{oc.env:{name}}}" for name in variables),
            next_step=f"write the value itself{by_shell}",
        )

    def _with_marks(self, text: str, key: str) -> str:
        pieces, done = [], 0
        for found in _BEGINNING.finditer(text):
            start = found.end() - 2
            if start < done or len(found["escapes"]) % 2:
                continue
            variable = VARIABLE.match(text, start)
            if variable and not self._stays_here.fullmatch(key):
                raise self.refusal(key, variable[0])
            if variable:
                pieces += [text[done:start], "\\", variable[0], self._mark]
                done = variable.end()
            elif not _REFERENCE.match(text, start):
                raise ConfigError(
                    "an interpolation that is not read",
                    where=self._place(key),
                    expected="${section.key} of this config, or ${oc.env:NAME} in "
                    f"{', '.join(self._local)}; \\${{ is the text ${{",
                    found=text,
                    next_step="write the value itself",
                )
        return "".join([*pieces, text[done:]])

    def _spelt(self, text: str) -> str:
        return text.replace(self._mark, "")


def _one_of(keys: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(key).replace("NAME", r"[^.]+") for key in keys))


def check_growth(values: Any, where: object) -> None:
    """Refuse references that double each other: each line of a file may be twice the one before it.

    Args:
        values: A config's values before references are resolved.
        where: What an error names.

    Raises:
        ConfigError: Resolved they would be longer than `MAX_RESOLVED`.
    """
    sizes: dict[tuple[str, ...], int] = {}
    whole = _text_keys(values)

    def at(path: tuple[str, ...]) -> int:
        if path not in sizes:
            sizes[path] = 0  # one that holds itself is OmegaConf's to tell
            node = whole
            for part in path:
                if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                    node = node[int(part)]
                else:
                    node = node.get(part) if isinstance(node, Mapping) else None
            sizes[path] = of(node, path)
        return sizes[path]

    def of(node: Any, path: tuple[str, ...]) -> int:
        if isinstance(node, Mapping):
            return 1 + sum(at((*path, name)) for name in node)
        if isinstance(node, list):
            return 1 + sum(at((*path, str(index))) for index in range(len(node)))
        size = len(node) if isinstance(node, str) else 1
        for found in _BEGINNING.finditer(node) if isinstance(node, str) else ():
            reference = _REFERENCE.match(node, found.end() - 2)
            if reference and not len(found["escapes"]) % 2:
                inside = reference[0][2:-1].strip()
                dots = len(inside) - len(inside.lstrip("."))
                size += at((*(path[:-dots] if dots else ()), *re.findall(r"[\w\-]+", inside)))
        return size

    if at(()) > MAX_RESOLVED:
        raise ConfigError(
            "the config is too long once its references are resolved",
            where=where,
            expected=f"at most {MAX_RESOLVED:,} characters",
            next_step="write its values out",
        )


def _text_keys(value: Any) -> Any:
    """A copy in which numbers are named as a reference names them."""
    if isinstance(value, Mapping):
        return {str(name): _text_keys(item) for name, item in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def escaped(value: Any) -> Any:
    """Values in which every text means itself to OmegaConf, but for what was read from the environment."""
    return _mapped(value, lambda text, _: str(text) if isinstance(text, EnvironmentText)
                   else _BEGINNING.sub(lambda found: found["escapes"] * 2 + "\\${", text))  # fmt: skip


def _mapped(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """A copy of nested values with each text changed; keys stay as they are."""
    if isinstance(value, Mapping):
        return {name: _mapped(item, change, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change, f"{key}[{index}]") for index, item in enumerate(value)]
    text = str(value) if isinstance(value, PurePath) else value  # YAML has a tag for it, and OmegaConf makes it a text
    return change(text, key) if isinstance(text, str) else value
