"""Judged samples of a policy in a file of the run folder: what a killed run has drawn is not drawn again.

A line holds what was drawn at once. Each outcome in it is known by all that decides from which distribution its sample
is: the policy's digest, how it is sampled and judged, the problem, and which of the problem's samples in its round it
is. Not by what shared its batch: plain `generate` draws a batch from one stream of random numbers, but a line is
written whole, so a killed run that goes on with the same batches draws the very same ones; one that goes on with
others, as after a change of `rollout.engine`, takes what is there and draws the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...core.config import CurriculumConfig, MiningConfig
from ...core.disk.digest import PREFIX, digest_json
from ...core.disk.files import disk_errors, write_bytes
from ...core.reading.strict_json import parse_json
from ...data.rationale.parse import Rationale
from ...evaluation.grader import grader
from ...evaluation.protocols import Protocol
from ..rollouts.sampling import Sampler
from .mining import OUTCOMES, Ask, judge

KEY_DIGITS = 16
"""Hexadecimal digits of an outcome's key: two of a million coincide with a chance of 3e-8."""


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
        asked = Counter[str]()

        def key_of(index: int, label: str) -> str:
            problem = [self._conditions, policy, label, rationales[index].question, rationales[index].answer]
            asked[sample := digest_json(problem)] += 1
            return f"{sample.removeprefix(PREFIX)[:KEY_DIGITS]}.{asked[sample]}"

        def ask(indices: Sequence[int], label: str, start: int) -> list[str]:
            keys = [key_of(index, label) for index in indices]
            missing = [place for place, key in enumerate(keys) if key not in self._known]
            if missing:
                problems = [rationales[indices[place]] for place in missing]
                prompts = [self._protocol.prompt(problem.question) for problem in problems]
                # Of the first place that is drawn: whatever the batches, no seed of a round is used twice.
                samples = sampler(prompts, draw_seed(self._seed, f"{label} {start + missing[0]}"))
                outcomes = [judge(sample, problem.answer) for sample, problem in zip(samples, problems, strict=True)]
                drawn = dict(zip((keys[place] for place in missing), outcomes, strict=True))
                self._append({"outcomes": drawn})
                self._known |= drawn
            return [self._known[key] for key in keys]

        return ask

    def _append(self, line: dict[str, Any]) -> None:
        with disk_errors(self._path.parent), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> dict[str, str]:
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        lines = text.split("\n")
        entries = {line: entry for line in lines if (entry := _entry(line))}
        known = {key: outcome for entry in entries.values() for key, outcome in entry.items()}
        sound = "".join(f"{line}\n" for line in lines if line in entries)
        if sound != text:  # else the next line would be written onto half of one
            write_bytes(self._path, sound.encode())
        return known


def draw_seed(seed: int, label: str) -> int:
    """The seed of one draw, in [0, 2 ** 32): a function of the run's seed and the label alone."""
    return int(digest_json([seed, label]).removeprefix(PREFIX)[:8], 16)


def rows_seed(config: CurriculumConfig, number: int) -> int:
    """The seed of a stage's rows: the curriculum's, but where an earlier stage has the same task and drew with it."""
    task = next(stage.task for stage in config.stages.values() if stage.number == number)
    again = any(stage.task == task and stage.number < number for stage in config.stages.values())
    return draw_seed(config.seed, f"rows of stage {number}") if again else config.seed


def verifier() -> dict[str, str]:
    """What judges an answer: the version of plyfold, and the grader."""
    return {"plyfold": metadata.version("plyfold"), "grader": grader()}


def _entry(line: str) -> dict[str, str] | None:
    try:
        outcomes: dict[str, str] = parse_json(line.encode())["outcomes"]
        sound = set(outcomes.values()) <= set(OUTCOMES)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return outcomes if sound else None
