"""Rows from the sandbox, a local file or the Hub, as rationales to train on and problems to be scored on.

Columns are mapped by name, so any dataset with a question, a gold answer and a teacher's solution will do; one column
of chat messages may stand for all three, its assistant's last word being solution and answer. Rows that
cannot be taught from are counted by reason, never repaired. Questions of the train and evaluation rows must differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.config import CurriculumConfig, DataConfig
from ..core.disk.digest import digest_json, sha256_bytes
from ..core.disk.files import expanded
from ..core.environment import EnvironmentText, meaning
from ..core.errors import ConfigError
from ..sandbox import SANDBOX
from .answers.reader import normalise
from .columns import ABSENT, OUR_COLUMNS, column_names, names_of, propose, text_in, unread_beside, value_at
from .contamination import find_shared, letters_and_signs, normal_question
from .problems import Problem
from .rationale.parse import (
    CODE,
    OTHER_ANSWER,
    TORN_LATEX,
    Rationale,
    UnusableRationale,
    is_torn,
    parse_rationale,
    read_gold,
)
from .readers import is_local_path, read_dataset, read_file, refuse_address

SANDBOX_ROWS = 2000
"""Rows of the sandbox where the config names no range."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a dataset, under our column names."""

    index: int
    """Position in the split, from 0."""
    question: str
    answer: str
    """Gold answer as the dataset writes it."""
    rationale: str
    """The teacher's text; empty where the config maps none, the row has none, or the config keeps none so far on."""
    unread: tuple[str, ...] = ()
    """Columns with text that often hold the rest of a question, and are not read."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a dataset's rows."""

    source: str
    """Hub id, file name or `sandbox`: nothing that holds on one machine only."""
    revision: str | None
    split: str
    rows: int
    """Rows read."""
    parsed: int
    """Rows that can be taught from."""
    sha256: str
    """Digest of the rows as read (questions, answers, rationales)."""
    bare: int = 0
    """Of the parsed, rows with a gold answer and no rationale: only ever asked without aid."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""
    unread: dict[str, int] = field(default_factory=dict)
    """Column that may hold the rest of a question, and is not read -> number of rows with text in it."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return dict(vars(self))


def data_of(config: CurriculumConfig, name: str) -> tuple[DataConfig, str]:
    """The rows a stage reads, its own or the curriculum's, and the section of the configuration that says so."""
    own = config.stages[name].data
    return (config.data, "data") if own is None else (own, f"stages.{name}.data")


def load_rows(config: DataConfig, *, section: str = "data", taught: bool = True) -> list[Row]:
    """Read the rows a config names; errors name its keys as keys of `section`.

    Args:
        config: Which rows.
        section: Of the configuration.
        taught: Whether a `rationale` column that is named has to be there, as it has for rows to train on.

    Raises:
        ConfigError: A column is missing, a value is no text (or not in Unicode) or number, the range is empty, or
            `data.rationales` is no number of rows.
        NotFoundError: The file, folder, dataset or split does not exist.
        IntegrityError: The file is not JSON.
        OfflineError: A Hub dataset that is not cached, without a network.
    """
    columns = _columns(config, section)
    chosen = _read(config, section)
    for ours, names in list(columns.items()):
        absent = [theirs for theirs in names if all(value_at(record, theirs) is ABSENT for _, record in chosen)]
        if absent and ours == "rationale" and not taught:
            del columns[ours]
        elif absent:
            raise _no_column(absent[0], ours, chosen, config, section, taught)
    source = source_name(config)
    rows = [_row(index, record, config, columns, section, source) for index, record in chosen]
    return rows if config.part is None else _of_part(rows, config.part, config, section)


def _of_part(rows: list[Row], part: Sequence[float], config: DataConfig, section: str) -> list[Row]:
    """The rows whose questions fall into a part, wherever else these stand: a question's place is its digest's.

    The first part is never empty: it has the question that comes first, and the last part goes without it. Nor does the
    first part have a question that holds, or is held in, one of the others.

    Raises:
        ConfigError: No such part, or no row in it.
    """
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
        raise ConfigError(
            "not a part of the questions",
            where=f"{section}.part",
            found=list(part),
            expected="[start, stop) with 0 <= start < stop <= 1",
        )
    start, stop = part
    places = [
        int(sha256_bytes(normal_question(row.question).encode()).rpartition(":")[2][:12], 16) / 16**12 for row in rows
    ]
    first = min(places)
    kept = [row for row, place in zip(rows, places, strict=True)
            if (start <= place < stop and not (start > 0 and stop == 1 and place == first))
            or (start == 0 and place == first)]  # fmt: skip
    if start == 0:
        taken = {row.index for row in kept}
        others = [row.question for row in rows if row.index not in taken]
        shared = set(find_shared([row.question for row in kept], others))
        kept = [row for place, row in enumerate(kept) if place not in shared]
    if not kept:
        raise ConfigError(
            "no question falls into a part",
            where=f"{section}.part of {source_name(config)}",
            found=f"{len(set(places))} different questions",
            expected=f"some in [{start:g}, {stop:g})",
            next_step="name rows of their own to score on: eval.data.path=test.jsonl eval.data.part=null",
        )
    return kept


def _columns(config: DataConfig, section: str) -> dict[str, list[str]]:
    """Our name -> the columns it is read from, the answer before the rationale."""
    unknown = set(config.columns) - set(OUR_COLUMNS)
    if unknown:
        raise ConfigError(f"unknown names in {section}.columns", found=sorted(unknown), expected=", ".join(OUR_COLUMNS))
    missing = {"question", "answer"} - set(config.columns)
    if missing:
        raise ConfigError(f"{section}.columns lacks a name", where=config.path, expected=", ".join(sorted(missing)))
    return {
        ours: names_of(config.columns[ours], f"{section}.columns.{ours}")
        for ours in OUR_COLUMNS
        if ours in config.columns
    }


def _read(config: DataConfig, section: str) -> list[tuple[int, dict[str, Any]]]:
    """The records of the rows a config names, each with its position."""
    start, stop = _range(config, section)
    if config.rationales is not None and config.rationales < 1:
        raise ConfigError(
            "not a number of rows", where=f"{section}.rationales", found=config.rationales, expected="1 or more"
        )
    _require_here(config, section)
    if not isinstance(config.path, EnvironmentText):
        refuse_address(config.path, section)
    path = expanded(meaning(config.path))
    if config.path == SANDBOX:
        records = _sandbox(config, stop)
    elif path.is_dir() or not is_local_path(config.path):
        records = read_dataset(config, section)
    else:
        records = read_file(path, section)
    chosen = list(islice(enumerate(records), start, stop))
    if not chosen:
        raise ConfigError(
            "no rows",
            where=config.path,
            found=f"range {config.rows} of {len(records)} rows" if config.rows else "an empty dataset",
            next_step=f"{section}.rows=null reads all" if config.rows else "",
        )
    return chosen


def load_rationales(
    config: DataConfig, *, bare: bool = False, section: str = "data"
) -> tuple[list[Rationale], LoadReport]:
    """Read rows and parse each teacher solution; unusable rows are counted by reason.

    Args:
        config: Which rows.
        bare: Whether rows without any rationale are usable, as they are where only the gold answer is needed. At
            least one row has to have one all the same: how short a solution is, is measured against the teacher's.
        section: Of the configuration, for errors that name its keys.

    Raises:
        ConfigError: As `load_rows`; no `rationale` column; or not one row with a usable rationale.
    """
    if "rationale" not in config.columns:
        raise ConfigError(f"{section}.columns names no rationale to learn from", where=config.path)
    rows = load_rows(config, section=section)
    rationales: list[Rationale] = []
    skipped: Counter[str] = Counter()
    for row in rows:
        try:
            rationales.append(parse_rationale(row.question, row.rationale, row.answer, bare=bare))
        except UnusableRationale as reason:
            skipped[str(reason)] += 1
    num_bare = sum(not rationale.steps for rationale in rationales)
    report = _report(config, rows, len(rationales), dict(skipped.most_common()), num_bare)
    if len(rationales) == num_bare:
        reasons = Counter(report.skipped) + Counter({"no rationale": num_bare})
        raise ConfigError(
            "not one row can be taught from",
            where=report.source,
            found=", ".join(f"{count} rows: {reason}" for reason, count in reasons.items()),
            next_step=(reasons.most_common(1)[0][0] != OTHER_ANSWER and _better_columns(config, section))
            or _mend(reasons.most_common(1)[0][0], section, config.rationales),
        )
    return rationales, report


def _better_columns(config: DataConfig, section: str) -> str:
    """Overrides of columns that hold what can be taught from, where others than those read do."""
    if config.rationales is not None:
        return ""
    return propose([record for _, record in _read(config, section)], section, taught=True)


def _mend(reason: str, section: str, rationales: int | None) -> str:
    """What to do where most rows are left out for one reason; `rationales` as in the configuration."""
    if reason == "no rationale" and rationales is not None:
        return f"{section}.rationales={rationales} reads those of the first {rationales} rows; null reads all of them"
    if reason == TORN_LATEX:
        return (
            "write the rows anew with json.dumps, or with every backslash twice: of \\\\frac, \\frac is read as a sign"
        )
    if reason == CODE:
        return (f"map {section}.columns.rationale to solutions that calculate in words and equations, or have a "
                "teacher write them: plyfold data rationales --help")  # fmt: skip
    if reason == OTHER_ANSWER:
        return (f"look at the rows: plyfold data check lists the first; either {section}.columns.answer or "
                f"{section}.columns.rationale is the wrong column, or the solutions are wrong")  # fmt: skip
    if "gold answer" in reason:
        return (
            f"map {section}.columns.answer to final answers that are numbers, or to solutions that end with `#### 72`"
        )
    if "steps" in reason:
        return ("solutions need two steps or more, a line or a sentence each; what stands between <think> and </think> "
                "is not taught, so they have to follow it")  # fmt: skip
    return (f"map {section}.columns.rationale to worked solutions that end by stating their answer, as `#### 72`, "
            "`Answer: 72`, `\\boxed{72}` or `the answer is 72`; where there are none, a teacher writes them: "
            "plyfold data rationales --help")  # fmt: skip


def load_problems(config: DataConfig, limit: int | None = None) -> list[Problem]:
    """Read rows as problems to be scored on, as `load_scored` does."""
    return load_scored(config, limit)[0]


def load_scored(config: DataConfig, limit: int | None = None) -> tuple[list[Problem], LoadReport]:
    """Read rows as problems to be scored on, with what they are; a rationale column is not needed.

    Raises:
        ConfigError: As `load_rows`, a row without a question or a gold answer, or no gold answer that is a number.
    """
    rows = load_scored_rows(config)
    if rows and any(row.answer.strip() for row in rows) and not any(map(has_number, rows)):
        raise ConfigError(
            "no gold answer is a number, so nothing could be scored as right",
            where=source_name(config),
            found=f"{next(row.answer for row in rows if row.answer.strip())[:80]!r} in the first of {len(rows)} rows",
            expected="a number, or a solution that ends with `#### 72`",
            next_step=propose([record for _, record in _read(config, "eval.data")], "eval.data", taught=False)
            or "map eval.data.columns.answer to a column of such answers",
        )
    if config.part is not None:  # of training data, in which such rows are left out too
        rows = list(filter(is_scorable, rows)) or rows
    rows = rows[:limit]
    problems = [
        Problem(id=f"{config.split}-{row.index}", question=row.question.strip(), gold=read_gold(row.answer))
        for row in rows
    ]
    for row, problem in zip(rows, problems, strict=True):
        if not (problem.question and problem.gold):
            lacking = "gold answer" if problem.question else "question"
            raise ConfigError(
                f"a row to be scored on has no {lacking}",
                where=f"{source_name(config)}, row {row.index}",
                next_step=f"map eval.data.columns.{lacking.rpartition(' ')[2]} to another column, or leave the row out",
            )
        if is_torn(row.question, row.answer):
            raise ConfigError(
                f"a row to be scored on holds {TORN_LATEX}",
                where=f"{source_name(config)}, row {row.index}",
                next_step=_mend(TORN_LATEX, "eval.data", None),
            )
    return problems, _report(config, rows, len(rows))


def load_scored_rows(config: DataConfig) -> list[Row]:
    """The rows `load_scored` makes problems of; those of training data are told of as such."""
    held_out = config.part is not None
    return load_rows(config, section="data" if held_out else "eval.data", taught=held_out)


def is_scorable(row: Row) -> bool:
    """Whether a row has a question, and a gold answer that a completion can give."""
    return bool(row.question.strip()) and has_number(row) and not is_torn(row.question, row.answer)


def has_number(row: Row) -> bool:
    """Whether a row's gold answer is one that a completion can give."""
    return normalise(read_gold(row.answer)) is not None


_SIGN = re.compile(r"(?<=[\w)])[ \t]*([-+*/=^<>×÷−])[ \t]*(?=[-(]?(?:[0-9]|[b-hj-z]\b))")  # noqa: RUF001


def question_hash(question: str) -> str:
    """Digest that names a question in manifests, of its letters, digits and signs.

    Case, spacing and punctuation make no new problem; signs are decimal points and what stands between operands:
    `2.5 * 4` is not `25 / 4`. It stays as it is, since manifests are compared by it; `overlap` folds further.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    return sha256_bytes(letters_and_signs(text, _SIGN).encode())


def require_disjoint(train: Sequence[str], held_out: Sequence[str], where: str) -> None:
    """Refuse to train on questions that variants are scored on, as `overlap.find_shared` finds them.

    Raises:
        ConfigError: At least one question is in both.
    """
    shared = find_shared(train, held_out)
    if shared:
        raise ConfigError(
            "training rows are among the evaluation rows",
            where=where,
            expected="no question in both",
            found=f"{len(shared)} shared, the first: {train[shared[0]][:80]}",
            next_step="point data at the train split, or eval.data at held-out rows",
        )


def require_train_split(data: DataConfig, where: str) -> None:
    """Refuse to mine failures among rows that variants may be scored on.

    Raises:
        ConfigError: The split is not `train`.
    """
    if data.split != "train":
        raise ConfigError("failures are mined on the train split only", where=where, found=data.split)


def _report(
    config: DataConfig, rows: Sequence[Row], parsed: int, skipped: dict[str, int] | None = None, bare: int = 0
) -> LoadReport:
    return LoadReport(
        source=source_name(config),
        revision=revision_of(config),
        split=part_name(config),
        rows=len(rows),
        parsed=parsed,
        sha256=digest_json([[row.question, row.answer, row.rationale] for row in rows]),
        bare=bare,
        skipped=skipped or {},
        unread=dict(Counter(name for row in rows for name in row.unread)),
    )


def revision_of(config: DataConfig) -> str | None:
    """The commit of a Hub dataset; None for what is no such thing."""
    return config.revision if _on_hub(config) else None


def source_name(config: DataConfig) -> str:
    """The dataset's name without anything local: the name of a file or folder, the Hub id or `sandbox`."""
    if isinstance(config.path, EnvironmentText):
        return config.path.last
    return Path(config.path).absolute().name if is_local_path(config.path) else config.path


def _require_here(config: DataConfig, section: str) -> None:
    """Refuse a dataset of the Hub whose id is read from the environment: it would be in requests and on record."""
    if isinstance(config.path, EnvironmentText) and not is_local_path(config.path):
        raise ConfigError(
            "what the environment names is no file or folder here",
            where=f"{section}.path",
            expected="a data file, or a folder of them; a dataset of the Hub is named in the config itself",
            found=config.path,
            next_step="let the variable name a file or folder that is there, or write the dataset's id",
        )


def part_name(config: DataConfig) -> str:
    """The split, and which part of it: `train [0.1, 1)`."""
    return config.split if config.part is None else f"{config.split} [{config.part[0]:g}, {config.part[1]:g})"


def held_out_share(scored: DataConfig) -> str:
    """What is said where rows to score on are a share of the training data; empty where they are not."""
    if scored.part is None:
        return ""
    return f"no rows to score on are named, so {100 * scored.part[1]:g} % of the questions are held out from training"


def _on_hub(config: DataConfig) -> bool:
    """Whether a commit of the Hub can say which rows these are."""
    return config.path != SANDBOX and not is_local_path(config.path)


def _range(config: DataConfig, section: str) -> tuple[int, int | None]:
    if config.rows is None:
        return 0, None
    if len(config.rows) != 2 or not 0 <= config.rows[0] < config.rows[1]:
        raise ConfigError(
            "not a range of rows",
            where=f"{section}.rows",
            found=config.rows,
            expected="[start, stop) with start < stop",
        )
    return config.rows[0], config.rows[1]


def _row(
    index: int,
    record: dict[str, Any],
    config: DataConfig,
    columns: dict[str, list[str]],
    section: str,
    source: str,
) -> Row:
    values: dict[str, str] = {"rationale": ""}
    for ours, names in columns.items():  # the gold answer before the rationale, which it may choose
        gold = read_gold(values["answer"]) if ours == "rationale" else ""
        parts = []
        for theirs in names:
            value = value_at(record, theirs)
            where = f"{source}, row {index}, column {theirs}"
            column = f"{section}.columns.{ours}={theirs}"
            parts.append("" if value is ABSENT else text_in(value, ours, gold, where, column))
        values[ours] = parts[0] if len(parts) == 1 else "\n".join(part for part in parts if part.strip())
    if config.rationales is not None and index >= config.rationales:
        values["rationale"] = ""
    return Row(index=index, unread=unread_beside(record, columns["question"]), **values)


def _no_column(
    theirs: str,
    ours: str,
    chosen: Sequence[tuple[int, dict[str, Any]]],
    config: DataConfig,
    section: str,
    taught: bool,
) -> ConfigError:
    index, record = chosen[0]
    taught = taught and "rationale" in config.columns
    found = propose([record for _, record in chosen], section, taught=taught)
    return ConfigError(
        f"the dataset has no column {theirs}",
        where=f"{source_name(config)}, row {index}",
        expected=f"{section}.columns.{ours} is one of: {', '.join(sorted(column_names(record)))}",
        found=theirs,
        next_step=found or f"{section}.columns.{ours}=<one of them>",
    )


def _sandbox(config: DataConfig, stop: int | None) -> list[dict[str, Any]]:
    from ..sandbox.problems import make_problems

    if config.split not in ("train", "test"):
        raise ConfigError("no such split of the sandbox", found=config.split, expected="train or test")
    return [dict(row) for row in make_problems("train" if config.split == "train" else "test", stop or SANDBOX_ROWS)]
