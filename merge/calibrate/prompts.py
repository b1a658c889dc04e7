"""Files of prompts that a merge is judged on, or fitted to. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.disk.digest import digest_json
from ...core.errors import ConfigError, NotFoundError
from ...core.reading.strict_json import MalformedJSONError, parse_json

FIELDS = ("prompt", "question")
"""Fields of a .jsonl row that are taken as the prompt, the first that is there."""


@dataclass(frozen=True)
class Prompts:
    """Texts as the model gets them: no chat template, no instruction is added."""

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ConfigError: No prompt, or an empty one.
        """
        if not self.texts or not all(text.strip() for text in self.texts):
            raise ConfigError("no prompts" if not self.texts else "a prompt is empty", expected="at least one text")

    @property
    def digest(self) -> str:
        """Of the texts, whatever their order: nothing measured on them depends on it."""
        return digest_json(sorted(self.texts))


def read_prompts(path: Path) -> Prompts:
    """Read a .txt file, a prompt a line, or a .jsonl file with a `prompt` or `question` field; blank lines are skipped.

    Raises:
        NotFoundError: No such file.
        ConfigError: Another suffix, not readable as UTF-8, empty, or a row without a prompt.
    """
    if not path.is_file():
        raise NotFoundError("the prompts file does not exist", where=path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ConfigError("not a file of prompts", where=path, found=path.suffix, expected=".txt or .jsonl")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also cut at U+2028 inside a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the prompts cannot be read", where=path, found=error, expected="UTF-8 text") from error
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError("the prompts file is empty", where=path, expected="at least one prompt")
    return Prompts(tuple(line for _, line in numbered) if path.suffix == ".txt" else tuple(_rows(path, numbered)))


def _rows(path: Path, numbered: list[tuple[int, str]]) -> Iterator[str]:
    for number, line in numbered:
        try:
            row = parse_json(line.encode())
        except MalformedJSONError as error:
            raise ConfigError("a row is not JSON to rely on", where=f"{path}:{number}", found=error) from error
        text = next((row[field] for field in FIELDS if field in row), None) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ConfigError(
                "a row has no prompt",
                where=f"{path}:{number}",
                found=found[:200],
                expected=f"text in one of the fields {', '.join(FIELDS)}",
            )
        yield text
