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
from ..core.digest import digest_json, sha256_bytes
from ..core.environment import EnvironmentText, meaning
from ..core.errors import ConfigError
from ..evaluation.answers import spoken
from ..evaluation.problems import Problem
from ..registry.record import DataRef
from .data_files import is_local, read_dataset, read_file
from .overlap import find_shared, letters_and_signs
from .rationale import Rationale, UnusableRationale, parse_rationale, read_gold, stated_answer

SANDBOX = "sandbox"
SANDBOX_ROWS = 2000
"""Rows of the sandbox where the config names no range."""
OUR_COLUMNS = ("question", "answer", "rationale")


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

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return dict(vars(self))

    def ref(self) -> DataRef:
        """The usable rows, as a record names them."""
        return DataRef(id=self.source, revision=self.revision, split=self.split, rows=self.parsed, sha256=self.sha256)


def data_of(config: CurriculumConfig, name: str) -> tuple[DataConfig, str]:
    """The rows a stage reads, its own or the curriculum's, and the section of the configuration that says so."""
    own = config.stages[name].data
    return (config.data, "data") if own is None else (own, f"stages.{name}.data")


def load_rows(config: DataConfig, *, section: str = "data") -> list[Row]:
    """Read the rows a config names; errors name its keys as keys of `section`.

    Raises:
        ConfigError: A column is missing, a value is no text (or not in Unicode) or number, the range is empty, or
            `data.rationales` is no number of rows.
        NotFoundError: The file, folder, dataset or split does not exist.
        IntegrityError: The file is not JSON.
        OfflineError: A Hub dataset that is not cached, without a network.
    """
    unknown = set(config.columns) - set(OUR_COLUMNS)
    if unknown:
        raise ConfigError(f"unknown names in {section}.columns", found=sorted(unknown), expected=", ".join(OUR_COLUMNS))
    missing = {"question", "answer"} - set(config.columns)
    if missing:
        raise ConfigError(f"{section}.columns lacks a name", where=config.path, expected=", ".join(sorted(missing)))
    start, stop = _range(config, section)
    if config.rationales is not None and config.rationales < 1:
        raise ConfigError(
            "not a number of rows", where=f"{section}.rationales", found=config.rationales, expected="1 or more"
        )
    _require_here(config, section)
    path = Path(meaning(config.path)).expanduser()
    if config.path == SANDBOX:
        records = _sandbox(config, stop)
    elif path.is_dir() or not is_local(config.path):
        records = read_dataset(config)
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
    known = {str(name) for _, record in chosen for name in record}
    return [_row(index, record, config, known, section) for index, record in chosen]


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
            next_step=_mend(reasons.most_common(1)[0][0], section, config.rationales),
        )
    return rationales, report


def _mend(reason: str, section: str, rationales: int | None) -> str:
    """What to do where most rows are left out for one reason; `rationales` as in the configuration."""
    if reason == "no rationale" and rationales is not None:
        return f"{section}.rationales={rationales} reads those of the first {rationales} rows; null reads all of them"
    if "gold answer" in reason:
        return (
            f"map {section}.columns.answer to final answers that are numbers, or to solutions that end with `#### 72`"
        )
    if "steps" in reason:
        return ("solutions need two steps or more, a line or a sentence each; what stands between <think> and </think> "
                "is not taught, so they have to follow it")  # fmt: skip
    return (f"map {section}.columns.rationale to worked solutions that end by stating their answer, as `#### 72`, "
            "`Answer: 72`, `\\boxed{72}` or `the answer is 72`")  # fmt: skip


def load_problems(config: DataConfig, limit: int | None = None) -> list[Problem]:
    """Read rows as problems to be scored on, as `load_scored` does."""
    return load_scored(config, limit)[0]


def load_scored(config: DataConfig, limit: int | None = None) -> tuple[list[Problem], LoadReport]:
    """Read rows as problems to be scored on, with what they are; a rationale column is not needed.

    Raises:
        ConfigError: As `load_rows`, or a row without a question or a gold answer.
    """
    rows = load_rows(config, section="eval.data")[:limit]
    problems = [
        Problem(id=f"{config.split}-{row.index}", question=row.question.strip(), gold=read_gold(row.answer))
        for row in rows
    ]
    for row, problem in zip(rows, problems, strict=True):
        if not (problem.question and problem.gold):
            lacking = "gold answer" if problem.question else "question"
            raise ConfigError(f"a row to be scored on has no {lacking}", where=f"{config.path}, row {row.index}")
    return problems, _report(config, rows, len(rows))


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
        split=config.split,
        rows=len(rows),
        parsed=parsed,
        sha256=digest_json([[row.question, row.answer, row.rationale] for row in rows]),
        bare=bare,
        skipped=skipped or {},
    )


def revision_of(config: DataConfig) -> str | None:
    """The commit of a Hub dataset; None for what is no such thing."""
    return config.revision if _on_hub(config) else None


def source_name(config: DataConfig) -> str:
    """The dataset's name without anything local: the name of a file or folder, the Hub id or `sandbox`."""
    if isinstance(config.path, EnvironmentText):
        return config.path.last
    return Path(config.path).absolute().name if is_local(config.path) else config.path


def _require_here(config: DataConfig, section: str) -> None:
    """Refuse a dataset of the Hub whose id is read from the environment: it would be in requests and on record."""
    if isinstance(config.path, EnvironmentText) and not is_local(config.path):
        raise ConfigError(
            "what the environment names is no file or folder here",
            where=f"{section}.path",
            expected="a data file, or a folder of them; a dataset of the Hub is named in the config itself",
            found=config.path,
            next_step="let the variable name a file or folder that is there, or write the dataset's id",
        )


def _on_hub(config: DataConfig) -> bool:
    """Whether a commit of the Hub can say which rows these are."""
    return config.path != SANDBOX and not is_local(config.path)


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


def _row(index: int, record: dict[str, Any], config: DataConfig, known: set[str], section: str) -> Row:
    values: dict[str, str] = {"rationale": ""}
    for ours, theirs in config.columns.items():
        if theirs in known and record.get(theirs) is None:
            values[ours] = ""  # counted, or refused, as what is missing
            continue
        if theirs not in record:
            raise ConfigError(
                f"the dataset has no column {theirs}",
                where=f"{source_name(config)}, row {index}",
                expected=f"{section}.columns.{ours} is one of: {', '.join(sorted(map(str, record)))}",
                found=theirs,
                next_step="separate its columns by commas"
                if len(record) == 1 and ";" in str(next(iter(record)))
                else f"{section}.columns.{ours}=<one of them>",
            )
        value = record[theirs]
        if isinstance(value, list):
            value = _of_messages(ours, value)
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ConfigError(
                "a value is neither text, nor a number, nor messages",
                where=f"{source_name(config)}, row {index}, column {theirs}",
                expected="of messages: a list of {role, content} or {from, value}, with text from user and assistant",
                found=type(record[theirs]).__name__,
            )
        whole = isinstance(value, float) and value.is_integer()  # a column of whole numbers with gaps in it
        values[ours] = str(int(value) if whole else value)
        try:
            values[ours].encode()
        except UnicodeEncodeError as error:  # half of an emoji: neither a digest nor a tokenizer takes it
            raise ConfigError(
                "a value is no Unicode text",
                where=f"{source_name(config)}, row {index}, column {theirs}",
                found=f"{values[ours][error.start]!a} at character {error.start}",
                next_step="write the row's text anew, or leave the row out",
            ) from error
    if config.rationales is not None and index >= config.rationales:
        values["rationale"] = ""
    return Row(index=index, **values)


def _of_messages(ours: str, messages: list[Any]) -> str | None:
    """Of a chat: the question its user asks last, or what the assistant says last, or the answer stated in that.

    None where the list is no chat.
    """
    role, said = "user" if ours == "question" else "assistant", None
    for message in messages:
        if not isinstance(message, dict):
            return None
        speaker, content = _spoken_by(message)
        if speaker is None:
            return None
        if speaker == role:
            said = content
    if said is None:
        return None
    if ours != "answer":
        return said
    said = spoken(said)
    return said if "####" in said else stated_answer(said) and read_gold(said)


_SHAREGPT = {"human": "user", "gpt": "assistant"}


def _spoken_by(message: dict[str, Any]) -> tuple[str | None, str | None]:
    """Who says a message, in OpenAI's terms, and its text, of parts the text ones; None where that cannot be told."""
    speaker = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "\n".join(map(str, texts)) if texts else None
    speaker = _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else None
    return speaker, content if isinstance(content, str) else None


def _sandbox(config: DataConfig, stop: int | None) -> list[dict[str, Any]]:
    from .sandbox.problems import make_problems

    if config.split not in ("train", "test"):
        raise ConfigError("no such split of the sandbox", found=config.split, expected="train or test")
    return [dict(row) for row in make_problems("train" if config.split == "train" else "test", stop or SANDBOX_ROWS)]
