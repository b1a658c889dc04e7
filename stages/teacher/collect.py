"""Rationales written by a teacher behind an endpoint: every problem asked until a solution is verified, or k times.

A solution is kept if training can use it: it ends by itself, states the gold answer and has steps. The gold answer is
never sent. Every completion is on file, kept or not, before the next is asked for, so that a run killed at any moment
continues where it stopped.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ...core.config import CurriculumConfig, DataConfig
from ...core.console import Task, progress, warn
from ...core.disk.digest import digest_json
from ...core.disk.files import disk_errors
from ...core.disk.links import refuse_link
from ...core.disk.locks import file_lock
from ...core.errors import ConfigError, FailedError
from ...data.answers.reader import extract_solution, normalise
from ...data.dataset import Row, data_of, load_rows, question_hash, require_disjoint, revision_of, source_name
from ...data.rationale.parse import UnusableRationale, parse_rationale, read_gold
from ..plan.at_hand import held_out_questions
from ..prompts.tasks import find_stage
from .chat import Answer, Chat, Endpoint, MalformedAnswerError, RefusedRequestError
from .files import (
    REFUSED,
    cut_last_line,
    read_lines,
    rejected_path,
    require_same_teacher,
    sort_lines,
    write_manifest,
)

PROMPT = """Solve this problem. Write one calculation a line as "Step 1: ...", "Step 2: ..." and so on. End with a \
line "Answer: " and the number alone.

{question}"""
MOST_REFUSED = 5
"""Requests refused before any is answered, after which the settings are what is wrong; where none ever was, all there
are."""
MOST_MALFORMED = 32
"""Answers in a row that are no completions, after which the endpoint is what is wrong."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a problem is asked for."""

    attempts: int = 4
    """k, completions asked of a problem at most; the first that is verified ends them."""
    concurrency: int = 8
    """Requests in flight at once."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 4096
    """Longest completion, thoughts included; a longer one is not kept."""
    seed: int = 0
    """With the attempt's number added, sent along; an endpoint may pass over it."""
    request: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request, or other values of those above; null leaves a field out, as some endpoints want
    (`{"max_tokens": null, "max_completion_tokens": 4096}`)."""

    def check(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ConfigError: A count below one, a temperature below zero, a top_p outside (0, 1], or a field of the request
                that is not to be chosen.
        """
        if chosen := sorted({"model", "messages", "stream", "n"} & set(self.request)):
            raise ConfigError("a field of the request that this command fills in itself", found=", ".join(chosen))
        for name in ("attempts", "concurrency", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} has to be positive", found=getattr(self, name))
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ConfigError(
                "no such sampling",
                found=f"temperature {self.temperature}, top_p {self.top_p}",
                expected="a temperature of 0 or more, top_p above 0 and up to 1",
            )
        if self.temperature == 0 and self.attempts > 1:
            raise ConfigError(
                "without a temperature every attempt is the same",
                found=f"{self.attempts} attempts at temperature 0",
                next_step="--attempts 1, or a temperature above 0",
            )

    def sampling(self) -> dict[str, Any]:
        """What decides a completion, but for the attempt's number."""
        named = {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
        return {name: value for name, value in (named | self.request).items() if value is not None}

    @property
    def longest(self) -> int:
        """Tokens of a completion at most, by whichever name the endpoint knows them."""
        limits = [self.sampling().get(name) for name in ("max_tokens", "max_completion_tokens")]
        return next((limit for limit in limits if isinstance(limit, int)), self.max_tokens)


@dataclass(frozen=True)
class UnansweredRow:
    """A question to be asked."""

    row: Row
    gold: str
    used: int
    """Attempts that are on file."""


@dataclass(frozen=True, kw_only=True)
class RationalesPlan:
    """What would be asked, and what it may cost."""

    out: Path
    source: str
    rows: int
    """Rows read."""
    kept: int
    """Of them, rows whose solution is on file."""
    given_up: int
    """Rows that used all attempts."""
    skipped: dict[str, int]
    """Reason -> rows that cannot be asked."""
    problems: tuple[UnansweredRow, ...] = field(repr=False)
    """To be asked."""
    asking: SamplingOptions
    about: dict[str, Any] = field(repr=False)
    """What the manifest says of teacher and questions."""

    @property
    def most_requests(self) -> int:
        """If no completion were ever kept; tries of one request apart."""
        return sum(self.asking.attempts - problem.used for problem in self.problems)

    @property
    def most_prompt_tokens(self) -> int:
        """A token is at least a byte of text; what a chat template adds is not counted."""
        return sum(
            len(_prompt(problem.row.question).encode()) * (self.asking.attempts - problem.used)
            for problem in self.problems
        )

    @property
    def most_completion_tokens(self) -> int:
        """If every completion were as long as it may be."""
        return self.most_requests * self.asking.longest

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "output": str(self.out),
            "source": self.source,
            "rows": self.rows,
            "kept": self.kept,
            "given_up": self.given_up,
            "skipped": self.skipped,
            "problems": len(self.problems),
            "at_most": {
                "requests": self.most_requests,
                "prompt_tokens": self.most_prompt_tokens,
                "completion_tokens": self.most_completion_tokens,
            },
            **self.about,
        }


def find_questions(config: CurriculumConfig, stage: str | None = None) -> DataConfig:
    """The rows a teacher is to be asked about: a stage's, or the curriculum's.

    Raises:
        NotFoundError: The config has no such stage.
        ConfigError: Questions that variants are scored on are among them.
    """
    name = find_stage(config, stage) if stage else None
    data, section = data_of(config, name) if name else (config.data, "data")
    columns = {ours: theirs for ours, theirs in data.columns.items() if ours != "rationale"}
    data = replace(data, columns=columns)
    held_out, _, unknown = held_out_questions(config.eval.data, only_show=True)
    if unknown:
        warn(f"whether these questions are among the evaluation rows is not known: {unknown}")
    questions = [row.question for row in load_rows(data, section=section)]
    require_disjoint(questions, held_out, f"stages.{name}" if name else "data")
    return data


def plan_rationales(data: DataConfig, out: Path, endpoint: Endpoint, asking: SamplingOptions) -> RationalesPlan:
    """Decide what has to be asked; reads what is on file and changes nothing.

    Args:
        data: Questions and gold answers, as `find_questions` gives them.
        out: A `.jsonl` file; continued where it exists.
        endpoint: The teacher.
        asking: Attempts and sampling.

    Raises:
        ConfigError: A value that cannot be meant, another suffix, or not one row with a readable gold answer.
        ConflictError: The file is another teacher's, or no such file at all.
        IntegrityError: A line of it, other than a cut last one, is no row.
    """
    endpoint.check()
    asking.check()
    if out.suffix != ".jsonl":
        raise ConfigError("rationales go into a .jsonl file", found=out)
    rows = load_rows(data)
    teacher = {"model": endpoint.model, "prompt": PROMPT, "sampling": asking.sampling()}
    require_same_teacher(out, teacher)
    solved = {question_hash(row["question"]) for row in read_lines(out)}
    failed = [row for row in read_lines(rejected_path(out)) if row["reason"] != REFUSED]
    used = Counter(question_hash(row["question"]) for row in failed)
    skipped: Counter[str] = Counter()
    problems, kept, given_up, seen = [], 0, 0, set()
    for row in rows:
        key, gold = question_hash(row.question), read_gold(row.answer)
        if not _is_text(row.question):
            skipped["a question that is no Unicode text"] += 1
        elif not row.question.strip() or normalise(gold) is None:
            skipped["no gold answer that is a number" if row.question.strip() else "no question"] += 1
        elif key in seen:
            skipped["question seen before"] += 1
        elif key in solved:
            kept += 1
        elif used[key] >= asking.attempts:
            given_up += 1
        else:
            problems.append(UnansweredRow(row, gold, used[key]))
        seen.add(key)
    if not (problems or kept or given_up):
        raise ConfigError("not one row can be asked", where=source_name(data), found=dict(skipped))
    questions = {
        "source": source_name(data),
        "revision": revision_of(data),
        "split": data.split,
        "rows": data.rows,
        "sha256": digest_json([[row.question, row.answer] for row in rows]),
    }
    return RationalesPlan(
        out=out,
        source=source_name(data),
        rows=len(rows),
        kept=kept,
        given_up=given_up,
        skipped=dict(skipped),
        problems=tuple(problems),
        asking=asking,
        about={"teacher": teacher, "endpoint": endpoint.host, "attempts": asking.attempts, "questions": questions},
    )


def collect_rationales(plan: RationalesPlan, endpoint: Endpoint) -> dict[str, Any]:
    """Ask what is to be asked and write each completion as it comes.

    Returns:
        The manifest, with `requests`, `retries` and `wall_s` of this run.

    Raises:
        ConflictError: Another process writes to the same file.
        AuthError, NotFoundError, OfflineError, FailedError: As `Chat.ask`; what was complete is kept.
        FailedError: Its answers are no completions.
        ConfigError: The endpoint refuses whatever it is asked.
    """
    start_s = time.monotonic()
    if endpoint.tells_key:
        warn(f"the key goes to {endpoint.host} over http, for everybody between to read")
    refuse_link(rejected_path(plan.out))
    with file_lock(plan.out, "another process writes rationales to this file"):
        for path in (plan.out, rejected_path(plan.out)):
            cut_last_line(path)
        write_manifest(plan.out, plan.about, complete=False)
        requests = retries = 0
        solved = {question_hash(row["question"]) for row in read_lines(plan.out)}  # by who had the files until now
        problems = [problem for problem in plan.problems if question_hash(problem.row.question) not in solved]
        if problems:
            try:
                requests, retries = asyncio.run(_ask_all(plan, problems, endpoint))
            except BaseExceptionGroup as several:  # of the workers, which end together
                raise _first(several) from None
            finally:
                write_manifest(plan.out, plan.about, complete=False)
        sort_lines(plan.out)
        manifest = write_manifest(plan.out, plan.about, complete=True)
    return {**manifest, "requests": requests, "retries": retries, "wall_s": round(time.monotonic() - start_s, 1)}


async def _ask_all(plan: RationalesPlan, problems: Sequence[UnansweredRow], endpoint: Endpoint) -> tuple[int, int]:
    waiting = iter(problems)
    with (
        disk_errors(plan.out.parent),
        plan.out.open("ab") as kept,
        rejected_path(plan.out).open("ab") as rejected,
        progress(f"asking {endpoint.model}", len(problems)) as task,
    ):
        async with Chat(endpoint, plan.asking.concurrency) as chat, asyncio.TaskGroup() as group:
            run = _Run(plan, chat, kept, rejected, task)
            for _ in range(min(plan.asking.concurrency, len(problems))):
                group.create_task(run.work(waiting))
        if run.malformed and not (run.answered or run.answered_before):
            raise run.not_a_teacher()
        return run.requests, chat.retries


class _Run:
    """What the workers share. They run on one thread, so a line is never cut by another's."""

    def __init__(self, plan: RationalesPlan, chat: Chat, kept: BinaryIO, rejected: BinaryIO, task: Task) -> None:
        self.asking, self.chat, self.kept, self.rejected, self.task = plan.asking, chat, kept, rejected, task
        self.answered_before = bool(plan.kept or plan.given_up or any(problem.used for problem in plan.problems))
        self.most_refused = MOST_REFUSED if self.answered_before else min(MOST_REFUSED, len(plan.problems))
        self.requests = self.answered = self.taken = self.solved = 0
        self.malformed = 0
        """Answers that were no completions since the last one that was."""
        self.last_malformed = ""

    async def work(self, waiting: Iterator[UnansweredRow]) -> None:
        for problem in waiting:
            for attempt in range(problem.used + 1, self.asking.attempts + 1):
                reason = await self._try(problem, attempt)
                if not reason:
                    self.solved += 1
                if reason in ("", REFUSED):  # the same request would be refused again
                    break
            self.taken += 1
            self.task.advance(note=f"{self.solved} of {self.taken} solved")

    async def _try(self, problem: UnansweredRow, attempt: int) -> str:
        """Ask once and write down what came; why it was not kept, empty if it was."""
        question, gold = problem.row.question, problem.gold
        sampling = self.asking.sampling()
        if isinstance(sampling.get("seed"), int):
            sampling["seed"] += attempt
        self.requests += 1
        try:
            answer = await self.chat.ask([{"role": "user", "content": _prompt(question)}], sampling)
            self.answered += 1
            self.malformed = 0
            reason = why_not(question, answer, gold)
        except MalformedAnswerError as error:
            self.malformed += 1
            self.last_malformed = f"{error.reason}: {error.detail}".rstrip(": ")
            answer, reason = Answer(error.detail, "malformed"), error.reason
        except RefusedRequestError as error:
            if not self.answered and self.requests >= self.most_refused:
                raise ConfigError(
                    "the endpoint refuses whatever it is asked",
                    where=self.chat.endpoint.host,
                    found=error,
                    next_step="change the sampling or the model; --request max_tokens= leaves a field out",
                ) from None
            answer, reason = Answer(str(error), "refused"), REFUSED
        line = {"question": question, "index": problem.row.index, "attempt": attempt}
        if reason:
            text = answer.text.encode(errors="replace").decode()
            line |= {"reason": reason, "finish": answer.finish, "completion": text}
        else:
            line |= {"answer": solution(answer.text, gold), "gold": gold}
        line["tokens"] = {"prompt": answer.prompt_tokens, "completion": answer.completion_tokens}
        file = self.rejected if reason else self.kept
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        file.flush()
        if self.malformed >= MOST_MALFORMED:
            raise self.not_a_teacher()
        return reason

    def not_a_teacher(self) -> FailedError:
        """The error of an endpoint that only sends what is no completion."""
        return FailedError(
            "the endpoint's answers are no chat completions",
            where=self.chat.endpoint.host,
            expected="choices[0].message.content",
            found=f"{self.last_malformed}; {self.malformed} in a row, on file as rejected",
            next_step="check the address: it usually ends in /v1",
        )


def why_not(question: str, answer: Answer, gold: str) -> str:
    """Why a completion is not kept; empty if it is."""
    if answer.finish == "length":
        return "cut off"
    if not answer.text.strip():
        return "empty"
    try:
        answer.text.encode()
        parse_rationale(question, answer.text, gold)
    except UnicodeEncodeError:
        return "no Unicode text"
    except UnusableRationale as reason:
        return str(reason)
    return ""


def solution(text: str, gold: str) -> str:
    """A verified completion in GSM8K's form: without what was thought aloud, the gold answer on a line of its own."""
    return f"{extract_solution(text)[0].strip()}\n#### {gold}"


def _is_text(text: str) -> bool:
    """Whether a text can be sent and written: it holds no half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _prompt(question: str) -> str:
    return PROMPT.replace("{question}", question.strip())


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    error = several.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
