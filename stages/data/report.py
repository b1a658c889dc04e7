"""What a config's rows are, before anything is trained: counts, lengths, repetitions, the rows `train` would refuse.

Reads rows and, where it is on this disk, the base's tokenizer; never its weights, and nothing from a network but the
rows of a Hub dataset.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from ...core.config import CurriculumConfig, DataConfig
from ...core.disk.digest import digest_json
from ...core.errors import ConfigError
from ...data.answers.reader import normalise
from ...data.contamination import find_shared
from ...data.dataset import (
    Row,
    data_of,
    has_number,
    is_scorable,
    load_problems,
    load_rationales,
    load_rows,
    load_scored_rows,
    part_name,
    question_hash,
    require_disjoint,
    require_train_split,
    source_name,
)
from ...data.rationale.answer_leaks import hide_answer
from ...data.rationale.number_spans import find_numbers
from ...data.rationale.parse import (
    Rationale,
    UnusableRationale,
    answer_in_step,
    parse_rationale,
    read_gold,
    render_solution,
)
from ...evaluation.protocols import protocol
from ..mining.sample_log import rows_seed
from ..plan.token_budget import (
    TokenCounter,
    context_tokens,
    fitting_rows,
    require_possible,
    require_rows,
    token_counter,
)
from ..plan.trl_args import trainer_arguments
from ..prompts.masking import check_masking
from ..prompts.tasks import SUPERVISED, check_stage, make_rows

_LATEX = re.compile(r"\\(?:[A-Za-z]+|[()\[\]{}$%,;!])")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Smallest, middle and largest of some counts."""

    min: int
    median: float
    max: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Spread | None:
        """The spread of `counts`; None of nothing."""
        return cls(min=min(counts), median=statistics.median(counts), max=max(counts)) if counts else None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How many rows something holds for, and one to look at."""

    rows: int = 0
    example: int | None = None
    """Position in its split of the first such row, from 0."""

    @classmethod
    def of(cls, found: Sequence[Row]) -> Finding:
        """The finding that rows make."""
        return cls(rows=len(found), example=found[0].index if found else None)


@dataclass(frozen=True, kw_only=True)
class RowsCheck:
    """The rows of a stage, or of the evaluation."""

    name: str
    """`1 structure`, or `eval`."""
    source: str
    """Hub id, file name or `sandbox`."""
    split: str
    columns: dict[str, str | list[str]]
    """`question`, `answer` and `rationale` -> the column each is read from, or those that are joined."""
    range: tuple[int, int | None]
    """Rows asked for, [start, stop)."""
    rows: int
    """Rows read."""
    usable: int
    """Rows that can be taught from, or scored on."""
    bare: int
    """Of these, rows with a gold answer and no rationale."""
    duplicates: Finding
    """Usable rows whose question an earlier one has, but for case, spacing and punctuation."""
    gold_unreadable: Finding
    """Rows read whose gold answer is empty or holds no number: no completion can be right."""
    skipped: dict[str, Finding] = field(default_factory=dict)
    """Reason -> rows."""
    steps: Spread | None = None
    """Steps per usable rationale."""
    length: Spread | None = None
    """Of the solutions as they are taught, in the check's unit."""
    latex: Finding = Finding()
    """Usable rows with LaTeX in their steps."""
    latex_dropped: Finding = Finding()
    """Usable rows with LaTeX only in what is no step: thoughts before the first, or the answer line."""
    answers_stripped: Finding = Finding()
    """Usable rows whose teacher stated the answer inside a step, from which it was taken."""
    answers_left: Finding = Finding()
    """Usable rows whose answer the question gives as a number, too: prompts may show it among the operands."""
    unread: dict[str, Finding] = field(default_factory=dict)
    """Column that often holds the rest of a question, and is not read -> rows with text in it."""
    scored: Finding = Finding()
    """Usable rows whose question is among the evaluation rows, or holds one of them."""
    training_rows: int | None = None
    """Rows made of them, over all epochs; None where the base's tokenizer is not on this disk."""
    too_long: int | None = None
    """Of these, rows that training leaves out because they do not fit."""


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What the rows of a whole config are."""

    curriculum: str
    unit: str
    """What lengths are counted in: `tokens` of the base, or `characters` where its tokenizer is not on this disk."""
    stages: tuple[RowsCheck, ...]
    """In order of their numbers."""
    evaluation: RowsCheck
    shared: dict[tuple[str, str], int]
    """Two stages -> questions that both have; pairs without any are left out."""
    refusal: ConfigError | None = None
    """The first error `train` would end with because of the rows."""

    def require(self) -> None:
        """Refuse the rows `train` would refuse.

        Raises:
            ConfigError: As `refusal`.
        """
        if self.refusal:
            raise self.refusal

    def to_json(self) -> dict[str, Any]:
        """The check as plain values."""
        return {
            "curriculum": self.curriculum,
            "unit": self.unit,
            "trainable": self.refusal is None,
            "refusal": {"what": self.refusal.what, **dict(self.refusal.fields())} if self.refusal else None,
            "stages": [asdict(stage) for stage in self.stages],
            "eval": asdict(self.evaluation),
            "shared": [{"stages": list(pair), "questions": count} for pair, count in self.shared.items()],
        }


@dataclass(frozen=True)
class _Read:
    rows: list[Row]
    usable: list[tuple[Row, Rationale]]
    skipped: dict[str, list[Row]]


def check_data(config: CurriculumConfig) -> DataCheck:
    """Read every row a config names and say what they are.

    Raises:
        ConfigError: A task, masking or split that cannot be meant, or rows that cannot be read.
        NotFoundError: A file, dataset or split that does not exist.
        IntegrityError: A file that is not JSON.
        OfflineError: A Hub dataset that is not cached, without a network.
    """
    named = sorted(config.stages.items(), key=lambda item: item[1].number)
    for name, stage in named:
        check_stage(stage, f"stages.{name}")
        check_masking(stage.masking, f"stages.{name}")
        if stage.task == "rewrite":
            require_train_split(data_of(config, name)[0], f"stages.{name}")
    counter = token_counter(config.base)
    held_out = load_scored_rows(config.eval.data)
    scored = [row.question for row in held_out]
    context = context_tokens(config.base) if counter else None
    refusals, late = [_refusal(load_problems, config.eval.data)], list[ConfigError | None]()
    read: dict[str, _Read] = {}
    stages: list[RowsCheck] = []
    questions: dict[str, set[str]] = {}
    for name, stage in named:
        (data, section), label = data_of(config, name), f"{stage.number} {name}"
        bare = stage.task not in SUPERVISED
        key = digest_json([asdict(data), bare])
        if key not in read:
            read[key] = _read(data, bare, section)
        usable = read[key].usable
        questions[label] = {question_hash(row.question) for row, _ in usable}
        checked = _check_rows(label, data, read[key], scored, counter.text if counter else len)
        learnable = any(rationale.steps for _, rationale in usable)
        if learnable:
            checked, refusal = _fit(checked, config, name, [item for _, item in usable], counter, context)
            late.append(refusal)
        stages.append(checked)
        if not learnable:
            refusals.append(_refusal(partial(load_rationales, bare=bare, section=section), data))
        train = [rationale.question for _, rationale in usable]
        refusals.append(_refusal(require_disjoint, train, scored, f"stages.{name}"))
    pairs = {pair: len(questions[pair[0]] & questions[pair[1]]) for pair in combinations(questions, 2)}
    return DataCheck(
        curriculum=config.curriculum,
        unit="tokens" if counter else "characters",
        stages=tuple(stages),
        evaluation=_check_held_out(config.eval.data, held_out),
        shared={pair: count for pair, count in pairs.items() if count},
        refusal=next(filter(None, [*refusals, *late]), None),
    )


def _fit(
    checked: RowsCheck,
    config: CurriculumConfig,
    name: str,
    rationales: Sequence[Rationale],
    counter: TokenCounter | None,
    context: int | None,
) -> tuple[RowsCheck, ConfigError | None]:
    """The check with the rows that do not fit counted, where that can be, and what training says if too few do."""
    stage = config.stages[name]
    try:
        arguments = trainer_arguments(config, name, Path("."), on_gpu=False)
    except ConfigError as error:
        return checked, error
    impossible = _refusal(require_possible, len(rationales), name, stage, arguments, context)
    if counter is None or context is None:
        return checked, impossible
    rows = make_rows(rationales, stage, protocol(config.eval.protocol), rows_seed(config, stage.number), counter.text)
    fitting, limit = fitting_rows(rows, stage, arguments, context, counter)
    refusal = impossible or _refusal(require_rows, len(fitting), name, stage, arguments, limit)
    return replace(checked, training_rows=len(rows), too_long=len(rows) - len(fitting)), refusal


def _refusal(check: Callable[..., object], *arguments: object) -> ConfigError | None:
    try:
        check(*arguments)
    except ConfigError as error:
        return error
    return None


def _read(data: DataConfig, bare: bool, section: str) -> _Read:
    if "rationale" not in data.columns:
        load_rationales(data, section=section)  # refuses
    read = _Read(load_rows(data, section=section), [], {})
    for row in read.rows:
        try:
            read.usable.append((row, parse_rationale(row.question, row.rationale, row.answer, bare=bare)))
        except UnusableRationale as reason:
            read.skipped.setdefault(str(reason), []).append(row)
    return read


def _check_rows(
    name: str, data: DataConfig, read: _Read, scored: Sequence[str], length: Callable[[str], int]
) -> RowsCheck:
    usable = [row for row, _ in read.usable]
    solved = [(row, rationale) for row, rationale in read.usable if rationale.steps]
    kept = [row for row, rationale in solved if any(map(_LATEX.search, rationale.steps))]
    known = {row.index for row in kept}
    return RowsCheck(
        name=name,
        usable=len(usable),
        bare=len(usable) - len(solved),
        duplicates=_repeated(usable),
        skipped={reason: Finding.of(rows) for reason, rows in sorted(read.skipped.items(), key=_most_rows)},
        steps=Spread.of([len(rationale.steps) for _, rationale in solved]),
        length=Spread.of([length(render_solution(rationale)) for _, rationale in solved]),
        latex=Finding.of(kept),
        latex_dropped=Finding.of([row for row in usable if row.index not in known and _LATEX.search(row.rationale)]),
        answers_stripped=Finding.of([row for row, known in solved if answer_in_step(row.rationale, known.answer)]),
        answers_left=Finding.of([row for row, rationale in solved if _shows_answer(rationale)]),
        scored=Finding.of([usable[place] for place in find_shared([row.question for row in usable], scored)]),
        **_common(data, read.rows),
    )


def _check_held_out(data: DataConfig, rows: list[Row]) -> RowsCheck:
    readable = [row for row in rows if read_gold(row.answer) and (data.part is None or is_scorable(row))]
    return RowsCheck(name="eval", usable=len(readable), bare=0, duplicates=_repeated(readable), **_common(data, rows))


def _common(data: DataConfig, rows: list[Row]) -> dict[str, Any]:
    start, stop = data.rows or (0, None)
    return {
        "source": source_name(data),
        "split": part_name(data),
        "columns": dict(data.columns),
        "range": (start, stop),
        "rows": len(rows),
        "unread": {
            name: Finding.of([row for row in rows if name in row.unread])
            for name in dict.fromkeys(name for row in rows for name in row.unread)
        },
        "gold_unreadable": Finding.of([row for row in rows if not has_number(row)]),
    }


def _shows_answer(rationale: Rationale) -> bool:
    gold = (normalise(rationale.answer) or "").removeprefix("-")
    if gold not in {number.value for number in find_numbers(rationale.question)}:
        return False
    shown = hide_answer(rationale.steps, rationale.question, rationale.answer)
    return any(number.value == gold for step in shown for number in find_numbers(step))


def _repeated(rows: Sequence[Row]) -> Finding:
    seen: Counter[str] = Counter()
    repeated = []
    for row in rows:
        digest = question_hash(row.question)
        if seen[digest]:
            repeated.append(row)
        seen[digest] += 1
    return Finding.of(repeated)


def _most_rows(item: tuple[str, list[Row]]) -> int:
    return -len(item[1])
