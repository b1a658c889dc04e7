"""The first training rows of a stage, exactly as `tasks.make_rows` makes them, beside what they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.config import CurriculumConfig
from ...core.errors import ConfigError
from ...data.dataset import data_of, load_rationales, require_train_split
from ...data.rationale.parse import Rationale
from ...evaluation.protocols import protocol
from ..mining.sample_log import rows_seed
from ..plan.token_budget import token_counter
from ..prompts.masking import check_masking, describe_masking
from ..prompts.tasks import SUPERVISED, Row, check_stage, draw_rows, find_stage


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training row and its source."""

    rationale: Rationale
    row: Row
    """`{prompt, completion}`, or `{prompt, gold, teacher_tokens, unaided}`; `teacher_tokens` is None where the base's
    tokenizer is not on this disk."""

    def to_json(self) -> dict[str, Any]:
        """The example as plain values."""
        source = {**vars(self.rationale), "steps": list(self.rationale.steps)}
        return {"source": source, "row": self.row}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The first rows of a stage."""

    number: int
    name: str
    task: str
    seed: int
    total: int
    """Rows the stage has, over all epochs; for `rewrite` those it would have if every problem were a failure."""
    examples: tuple[Example, ...]
    masking: str = ""
    """Which steps are hidden and what of them, in words; empty for `rewrite`, which masks none."""

    def to_json(self) -> dict[str, Any]:
        """The preview as plain values."""
        return {**vars(self), "examples": [example.to_json() for example in self.examples]}


def preview_stage(config: CurriculumConfig, stage: str, num_rows: int = 3, seed: int | None = None) -> Preview:
    """Make a stage's rows as `train` would, and take the first.

    Rows of `rewrite` are made of all its problems: which of them are failures is only known once they are mined.

    Args:
        config: The curriculum.
        stage: Name or number of the stage.
        num_rows: How many rows to show.
        seed: Of draws and order; None takes the config's.

    Raises:
        NotFoundError: The config has no such stage.
        ConfigError: Fewer than one row asked for, a value that cannot be meant, or as `load_rationales`.
    """
    name = find_stage(config, stage)
    if num_rows < 1:
        raise ConfigError("no row to show", where="-n", found=num_rows, expected="1 or more")
    full, where = config.stages[name], f"stages.{name}"
    check_stage(full, where)
    check_masking(full.masking, where)
    data, section = data_of(config, name)
    if full.task == "rewrite":
        require_train_split(data, where)
    rationales, _ = load_rationales(data, bare=full.task not in SUPERVISED, section=section)
    counter = token_counter(config.base)
    drawn_seed = rows_seed(config, full.number) if seed is None else seed
    asked = protocol(config.eval.protocol)
    drawn = draw_rows(rationales, full, asked, drawn_seed, counter.text if counter else len)
    unknown = {} if counter else {"teacher_tokens": None}
    return Preview(
        number=full.number,
        name=name,
        task=full.task,
        seed=drawn_seed,
        total=len(drawn),
        masking="" if full.task == "rewrite" else describe_masking(full.masking),
        examples=tuple(
            Example(rationale=rationales[index], row={key: unknown.get(key, value) for key, value in row.items()})
            for index, row in _some(drawn, num_rows, {asked.prompt(item.question) for item in rationales})
        ),
    )


def _some(drawn: Sequence[tuple[int, Row]], num_rows: int, bare: set[str]) -> list[tuple[int, Row]]:
    """The first rows; were all of them bare, the first that is not stands for the last of them."""
    first = list(drawn[:num_rows])
    if all(row["prompt"] in bare for _, row in first):
        first[-1:] = next(([item] for item in drawn if item[1]["prompt"] not in bare), first[-1:])
    return first
