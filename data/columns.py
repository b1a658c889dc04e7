"""Which text of a record a column means: a name, a dotted path into structs, several columns, messages, lists of texts.

Knows how records are shaped, and how to find in them what question, gold answer and worked solution are; not what
becomes of a row.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import islice
from typing import Any

from ..core.errors import ConfigError
from .answers.reader import normalise, same_answer, spoken
from .rationale.parse import UnusableRationale, parse_rationale, read_gold, stated_answer

OUR_COLUMNS = ("question", "answer", "rationale")
ABSENT = object()
"""What a record holds at a column that it does not have; a null is something else."""
_BEFORE_QUESTION = ("context", "body", "passage", "table", "statement")
BESIDE_QUESTION = (*_BEFORE_QUESTION, "input", "choices", "options")
"""Columns that often hold the rest of a question, the first ones what comes before it."""
PROBED_ROWS = 20
"""Records looked at to find out which columns would do."""

_LIKELY = {
    "question": ("question", "problem", "prompt", "instruction", "query", "task", "q", "messages", "conversations",
                 "conversation", "body", "input", "text"),
    "answer": ("answer", "final_answer", "expected_answer", "gold_answer", "ground_truth", "gold", "target", "label",
               "result", "a", "solution", "output", "response", "completion", "messages", "conversations",
               "conversation"),
    "rationale": ("rationale", "solution", "cot", "chain_of_thought", "teacher_cot", "reasoning", "explanation",
                  "generated_solution", "generation", "generations", "output", "response", "completion", "answer",
                  "messages", "conversations", "conversation"),
}  # fmt: skip
_SHAREGPT = {"human": "user", "gpt": "assistant"}


def names_of(column: Any, where: str) -> list[str]:
    """The columns that one of ours is read from: one name, or several whose texts are joined.

    Raises:
        ConfigError: Neither a name nor a list of names, or several for the answer.
    """
    names = list(column) if isinstance(column, (list, tuple)) else [column]
    if not names or not all(
        isinstance(name, (str, int)) and not isinstance(name, bool) and name != "" for name in names
    ):
        raise ConfigError("not a column", where=where, found=column, expected="a column's name, or a list of names")
    if len(names) > 1 and where.endswith(".answer"):
        raise ConfigError(
            "a gold answer stands in one column",
            where=where,
            found=", ".join(map(str, names)),
            next_step=f"{where}={names[0]}",
        )
    return [str(name) for name in names]


def value_at(record: Mapping[str, Any], name: str) -> Any:
    """What stands in a column; ABSENT where there is none.

    A name with dots is a column of that very name, or else a path into structs. In a list a number counts from 0, and a
    name takes that member of every struct.
    """
    if name in record:
        return record[name]
    for place, sign in enumerate(name):
        if sign == "." and name[:place] in record:
            found = _inside(record[name[:place]], name[place + 1 :])
            if found is not ABSENT:
                return found
    return ABSENT


def _inside(value: Any, name: str) -> Any:
    if value is None or isinstance(value, Mapping):
        return None if value is None else value_at(value, name)
    if not isinstance(value, list):
        return ABSENT
    first, dot, rest = name.partition(".")
    if first.isascii() and first.isdecimal():
        item = value[int(first)] if len(first) < 10 and int(first) < len(value) else None
        return _inside(item, rest) if dot else item
    found = [inner for item in value if (inner := _inside(item, name)) is not ABSENT]
    return found if found else ABSENT


def column_names(record: Mapping[str, Any], depth: int = 3) -> Iterator[str]:
    """Names of a record's columns, those inside structs with dots."""
    for key, value in record.items():
        if isinstance(value, Mapping) and value and depth > 1:
            yield from (f"{key}.{inner}" for inner in column_names(value, depth - 1))
        else:
            yield str(key)


def text_in(value: Any, ours: str, gold: str, where: str, column: str) -> str:
    """The text of one value; empty where there is none.

    Args:
        value: Text or a number, messages, or a list of texts.
        ours: `question`, `answer` or `rationale`.
        gold: The row's gold answer, which decides among several rationales; empty where it is not known.
        where: Names row and column, for errors.
        column: The key of the configuration that names the column, and the column: `data.columns.answer=solution`.

    Raises:
        ConfigError: A value that is none of these, several texts of which none is said to be meant, or no Unicode.
    """
    if isinstance(value, list):
        texts = [text for item in value if item is not None and (text := _plain(item)) is not None]
        if len(texts) == sum(item is not None for item in value):
            value = _of_texts(texts, ours, gold, where, column)
        else:
            value = _of_messages(ours, value)
    if value is None:
        return ""
    text = _plain(value)
    if text is None:
        raise _unreadable(value, where, column)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of an emoji: neither a digest nor a tokenizer takes it
        raise ConfigError(
            "a value is no Unicode text",
            where=where,
            found=f"{text[error.start]!a} at character {error.start}",
            next_step="write the row's text anew, or leave the row out",
        ) from error
    return text


def _plain(value: Any) -> str | None:
    """A text, or a number as it is written; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    if isinstance(value, float) and math.isnan(value):
        return ""  # as tables write what is missing
    whole = isinstance(value, float) and value.is_integer()  # a column of whole numbers with gaps in it
    return str(int(value) if whole else value)


def _unreadable(value: Any, where: str, column: str) -> ConfigError:
    key, _, name = column.partition("=")
    if isinstance(value, Mapping) and value:
        inner = [f"{name}.{each}" for each in column_names(value)]
        return ConfigError(
            "a value is a struct, of which one member has to be named",
            where=where,
            expected=f"{key} is one of: {', '.join(inner)}, or a column of its own once the file is flattened",
            found=name,
            next_step=f"{key}={inner[0]}" if len(inner) == 1 else f"{key}={name}.<one of its members>",
        )
    listed = isinstance(value, list)
    return ConfigError(
        "a value is neither text, nor a number, nor messages, nor a list of texts",
        where=where,
        expected="text; a list of texts; or messages: a list of {role, content} or {from, value}, with text from "
        "user and assistant",
        found=f"a list of {', '.join(sorted({type(item).__name__ for item in value}))}"
        if listed
        else type(value).__name__,
        next_step=f"{key}=<a column of text or numbers>",
    )


def _of_texts(texts: Sequence[str], ours: str, gold: str, where: str, column: str) -> str:
    """Of several texts the one that is meant: the only one; of rationales the first that states the gold answer."""
    several = [text for text in texts if text.strip()]
    if len(several) < 2:
        return several[0] if several else ""
    if ours == "rationale":
        right = (text for text in several if gold and same_answer(stated_answer(text) or None, gold))
        return next(right, several[0])
    golds = [read_gold(text) for text in several] if ours == "answer" else []
    if golds and all(known and same_answer(known, golds[0]) for known in golds):
        return several[0]
    what = "state different answers" if golds else "may all be the question"
    raise ConfigError(
        f"a value is a list of texts, which {what}",
        where=where,
        expected="one text, or a list of one",
        found=f"a list of {len(several)} texts",
        next_step=f"{column}.0 reads the first of them",
    )


def _of_messages(ours: str, messages: list[Any]) -> Any:
    """Of a chat: the question its user asks last, or what the assistant says last, or the answer stated in that.

    The list itself where it is no chat.
    """
    role, said = "user" if ours == "question" else "assistant", None
    for message in messages:
        speaker, content = _spoken_by(message) if isinstance(message, dict) else (None, None)
        if speaker is None:
            return messages
        if speaker == role:
            said = content
    if said is None:
        return messages
    if ours != "answer":
        return said
    said = spoken(said)
    return said if "####" in said else stated_answer(said) and read_gold(said)


def _spoken_by(message: dict[str, Any]) -> tuple[str | None, str | None]:
    """Who says a message, in OpenAI's terms, and its text, of parts the text ones; None where that cannot be told."""
    speaker = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "\n".join(map(str, texts)) if texts else None
    speaker = _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else None
    return speaker, content if isinstance(content, str) else None


# ---- which columns would do


def propose(records: Sequence[Mapping[str, Any]], section: str, *, taught: bool) -> str:
    """Overrides that map columns which hold what is needed, found by looking at the first records; empty for none.

    Args:
        records: Of the dataset.
        section: Of the configuration.
        taught: Whether worked solutions are needed, as they are to train on.
    """
    probed = list(islice(records, PROBED_ROWS))
    names = list(dict.fromkeys(name for record in probed for name in column_names(record)))
    asked = next((name for name in _by_likeness(names, "question", only=True) if any(_texts(probed, name, "question"))),
                 None)  # fmt: skip
    if asked is None:
        return ""
    questions = _texts(probed, asked, "question")
    best: tuple[int, str, str] | None = None
    for answer in _by_likeness([name for name in names if name != asked or _chats(name)], "answer"):
        golds = [read_gold(text) for text in _texts(probed, answer, "answer")]
        readable = sum(normalise(gold) is not None for gold in golds)
        if not readable or (2 * readable <= len(probed)):
            continue
        if not taught:
            return _overrides(section, question=_question(probed, asked, names), answer=answer)
        for rationale in _by_likeness([name for name in names if name != asked or _chats(name)], "rationale"):
            texts = _texts(probed, rationale, "rationale", golds)
            usable = sum(map(_teaches, questions, texts, golds))
            if usable and (best is None or usable > best[0]):
                best = usable, answer, rationale
        if best and 2 * best[0] > len(probed):
            break
    if best is None:
        return ""
    return _overrides(section, question=_question(probed, asked, names), answer=best[1], rationale=best[2])


def _teaches(question: str, text: str, gold: str) -> bool:
    try:
        return bool(parse_rationale(question, text, gold).steps)
    except UnusableRationale:
        return False


def _texts(records: Sequence[Mapping[str, Any]], name: str, ours: str, golds: Sequence[str] = ()) -> list[str]:
    """Text of each record in a column; empty where it holds none of that kind."""
    found = []
    for place, record in enumerate(records):
        text = ""
        with suppress(ConfigError):
            value = value_at(record, name)
            text = "" if value is ABSENT else text_in(value, ours, golds[place] if golds else "", "", "")
        found.append(text)
    return found


def _by_likeness(names: Sequence[str], ours: str, *, only: bool = False) -> list[str]:
    likely = _LIKELY[ours]

    def place(name: str) -> int:
        words = re.split(r"[\W_]+", name.rpartition(".")[2].casefold())
        last = "_".join(words)
        among = (len(likely) + index for index, word in enumerate(likely) if len(word) > 1 and word in words)
        return likely.index(last) if last in likely else next(among, 2 * len(likely))

    ordered = sorted(names, key=place)  # a column as it stands before one of that name in a struct
    return [name for name in ordered if place(name) < 2 * len(likely)] if only else ordered


def _chats(name: str) -> bool:
    return name.rpartition(".")[2].casefold() in ("messages", "conversations", "conversation")


def _question(records: Sequence[Mapping[str, Any]], asked: str, names: Sequence[str]) -> str | list[str]:
    """The question's column, with the one that holds the rest of it."""
    rest = [name for name in names if name != asked and name.casefold() in BESIDE_QUESTION]
    rest = [name for name in rest if any(_texts(records, name, "question"))]
    return question_columns([asked], rest) if rest and not _chats(asked) else asked


def question_columns(asked: Sequence[str], rest: Sequence[str]) -> list[str]:
    """The columns of a question with those that hold the rest of it, in the order they are read in."""
    before = [name for name in rest if name.casefold() in _BEFORE_QUESTION]
    return [*before, *asked, *(name for name in rest if name not in before)]


def _overrides(section: str, **columns: str | list[str]) -> str:
    spelt = {ours: name if isinstance(name, str) else f"[{','.join(name)}]" for ours, name in columns.items()}
    return " ".join(shlex.quote(f"{section}.columns.{ours}={name}") for ours, name in spelt.items())


def unread_beside(record: Mapping[str, Any], read: Sequence[str]) -> tuple[str, ...]:
    """Columns that may hold the rest of the question, hold text and are not read."""
    taken = {name.partition(".")[0] for name in read} | set(read)
    return tuple(
        name
        for name, value in record.items()
        if name not in taken and str(name).casefold() in BESIDE_QUESTION and isinstance(value, str) and value.strip()
    )
