"""Judged samples of a policy in a file of the run folder: what a killed run has drawn is not drawn again.

A line is known by all that decides its samples: the policy's digest, how it is sampled and judged, the problems and
the label of the draw, of which the seed is made. So equal draws are equal whether they were interrupted or not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.config import MiningConfig
from ..core.digest import PREFIX, digest_json, sha256_file
from ..core.files import disk_errors, write_bytes
from ..evaluation import answers
from ..evaluation.protocols import Protocol
from .mining import OUTCOMES, Ask, judge
from .rationale import Rationale
from .sampling import Sampler


class Draws:
    """Draws samples, judges them and keeps how they ended."""

    def __init__(self, path: Path, config: MiningConfig, protocol: Protocol, seed: int) -> None:
        """Read what has been drawn.

        Args:
            path: The file; a line that a kill cut off is dropped from it.
            config: Temperature and longest completion.
            protocol: Whose bare prompt is asked: no mask and no hint.
            seed: Of all samples.
        """
        self._path, self._protocol, self._seed = path, protocol, seed
        self._conditions = {
            "temperature": config.temperature,
            "max_new_tokens": config.max_new_tokens,
            "protocol": protocol.digest(),
            "verifier": verifier(),
            "seed": seed,
        }
        self._known = self._read()

    def asking(self, policy: str, sampler: Sampler, rationales: Sequence[Rationale]) -> Ask:
        """A function that gives the outcomes of one sample of each problem it is asked, by index.

        Args:
            policy: Digest of the sampled weights.
            sampler: Draws from them.
            rationales: The problems.
        """

        def ask(indices: Sequence[int], label: str) -> list[str]:
            problems = [[rationales[index].question, rationales[index].answer] for index in indices]
            key = digest_json([self._conditions, policy, label, problems])
            if key not in self._known:
                prompts = [self._protocol.prompt(question) for question, _ in problems]
                samples = sampler(prompts, draw_seed(self._seed, label))
                outcomes = [judge(sample, gold) for sample, (_, gold) in zip(samples, problems, strict=True)]
                self._append({"key": key, "outcomes": outcomes})
                self._known[key] = outcomes
            return list(self._known[key])

        return ask

    def _append(self, line: dict[str, Any]) -> None:
        with disk_errors(self._path.parent), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> dict[str, list[str]]:
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        lines = text.split("\n")
        known = {entry["key"]: entry["outcomes"] for line in lines if (entry := _entry(line))}
        sound = "".join(f"{line}\n" for line in lines if _entry(line))
        if sound != text:  # else the next line would be written onto half of one
            write_bytes(self._path, sound.encode())
        return known


def draw_seed(seed: int, label: str) -> int:
    """The seed of one draw, in [0, 2 ** 32): a function of the run's seed and the label alone."""
    return int(digest_json([seed, label]).removeprefix(PREFIX)[:8], 16)


def verifier() -> dict[str, str]:
    """What judges an answer: the version of plyfold, and the digest of the module that reads answers."""
    return {"plyfold": metadata.version("plyfold"), "answers": sha256_file(Path(answers.__file__))}


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        sound = isinstance(entry["key"], str) and set(entry["outcomes"]) <= set(OUTCOMES)
    except (ValueError, TypeError, KeyError):
        return None
    return entry if sound else None
