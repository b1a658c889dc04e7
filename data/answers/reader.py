r"""The number a completion answers with, and whether two spellings are the same number.

Layers, strongest first, each read from its last occurrence to its first:
  answer-line   `Answer: 18`, `**Final Answer:** $18`, `#### 18`, `Antwort: 18`, `答案：18`
  boxed         `\boxed{18}`
  answer-is     `the answer is 18`, `la respuesta es 18`
  last-number   the last number of the text
A statement that is not one number (`Answer: 18 or 20`, `\boxed{2x + 3}`; see `numbers`) is no answer, and nothing
weaker is read in its place. What is thought aloud before `</think>` (`...done thinking.` in a transcript of Ollama) is
passed over where anything is said after it, and so is what a text runs on to after it has answered (see `run_on`).

Golds are read by the same rules. Comparison is exact on rationals. Currency signs, thousands separators, units and `%`
are dropped, so `$1,800.00` equals `1800` and `18%` equals `18`. Numbers in words are not read.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from ...core.errors import ConfigError
from .numbers import (
    CURRENCY,
    DIGITS,
    NEAR,
    REFUSED,
    Reading,
    clean,
    is_contested,
    is_operand,
    read_last,
    read_number,
    spell,
)
from .run_on import asks, cuts, spoken

__all__ = [
    "ANSWER_IS",
    "ANSWER_NAMES",
    "CURRENCY",
    "DIGITS",
    "Extracted",
    "extract",
    "extract_answer",
    "extract_solution",
    "gold_answer",
    "normalise",
    "same_answer",
    "spoken",
]

MAX_CUES = 8
"""Answer lines or boxes tried, from the last; bounds the time a degenerate completion takes."""

ANSWER_NAMES = (
    r"Antwort|Endergebnis|R[ée]ponse(?: finale)?|Respuesta(?: final)?|Risposta(?: finale)?|Resposta(?: final)?|Antwoord"
    r"|Svar|Vastaus|Odpowiedź|Odpověď|Válasz|Răspuns|Cevap|Yanıt|Jawaban|Đáp án|Đáp số|Trả lời|Ответ|Відповідь|Απάντηση"
    r"|最终答案|最終答案|答案|答え|答|回答|解答|정답|답변|답|उत्तर|जवाब|উত্তর|الجواب|الإجابة|جواب|پاسخ|תשובה|คำตอบ"
)
"""The word for an answer in other languages, as it heads one."""
_ANSWER_LINE = re.compile(
    r"(?:\b(?:(?P<checks>check|verify)|(?P<seeks>find|calculate|compute|determine|get))(?:ing)?[ \t]{1,3}"
    r"(?:[a-z]{2,7}[ \t]{1,3}){0,3})?\banswer[*_ \t]{0,4}:"
    rf"|(?<!\w)(?:{ANSWER_NAMES})[*_ \t]{{0,4}}:|[\[【](?:answer|{ANSWER_NAMES})[\]】][ \t]{{0,4}}:?"
    r"|(?P<heading>^[#*_> \t]{0,8}(?:final[ \t]+)?answer[*_ \t]{0,4}$)|(?P<tag><answer>)|####",
    re.IGNORECASE | re.MULTILINE,
)
"""`find the answer:` and a heading `Answer` state it on their line or a last one below, `check the answer:` never."""
ANSWER_IS = (
    r"(?<!\w)(?:Antwort|R[ée]ponse|Respuesta|Risposta|Resposta|Antwoord|Svaret|Ответ)(?: final[e]?)?\s{1,3}"
    r"(?:ist|lautet|est|es|è|é|is|är|er|-|=|будет)(?!\w)\s?:?"
    r"|(?:答案|答え|回答)\s?(?:是|为|為|は|等于)\s?:?|정답은|답은|उत्तर\s(?:है\s?:?)?(?=[-$]?[0-9])|(?:الجواب|الإجابة)\s(?:هو|هي)"
)
"""`the answer is` in other languages."""
_ANSWER_IS = re.compile(rf"\banswer\s{{1,3}}(?:is|was|equals|=)\b\s?:?|{ANSWER_IS}", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")
_NUMBERED = re.compile(r"[\s*_\\(\[{$~-]*[0-9](?:[0-9]|[.,/](?=[0-9]))*")
_AFTER_HASHES = re.compile(r"[.\s%*]*[A-Za-z ]{0,40}[.\s*]*(?:[(,;].*)?$")
_FACTORIAL = re.compile(r"[0-9)}]\s?!")
_TITLE = re.compile(r"[ \t]*[0-9]{1,3}[.):]\**[ \t]+\**[^\W\d_]")
_BULLET = re.compile(r"^[-*\u2022]\s+")


@dataclass(frozen=True)
class Extracted:
    """What was read from a completion."""

    value: str | None
    """Canonical number (`18`, `-3`, `0.75`, `1/3`), or None: nothing stated, or not one number."""
    method: str
    """Layer that decided: answer-line, boxed, answer-is, last-number or none."""
    span: str = field(default="", compare=False)
    """The statement it was read from; of `\\boxed{2x + 3}`, which has no value here, `2x + 3`."""


def extract_answer(text: str) -> str | None:
    """The number `text` answers with in canonical spelling, or None."""
    return extract(text).value


def extract(text: str) -> Extracted:
    """The answer of a completion, and the layer that found it."""
    return _extract(text)[1]


def extract_solution(text: str) -> tuple[str, Extracted]:
    """What of a teacher's text is its solution, and the answer that is read from it.

    The text without thoughts and without what it runs on to after it has stated an answer: another problem, or the
    same one where all before it was a preamble.
    """
    end, _ = _extract(text, states=True)
    said = spoken(text[:end])
    return said, _layers(clean(said))


def _extract(text: str, *, states: bool = False) -> tuple[int, Extracted]:
    """Where the solution ends, and its answer; with `states`, only a statement ends it before the text does."""
    whole = _layers(clean(_said_in(text)))
    for cut in cuts(text):
        before = text[: cut.start]
        found = _layers(clean(_said_in(before)))
        if cut.kind in ("hashes", "question"):  # without a mark, only another answer tells that it is another problem
            ends = bool(found.span) and found != whole and (cut.kind == "hashes" or _is_answered(before, found))
        else:
            ends = bool(found.span) or (not states and cut.kind == "mark" and found.value is not None)
        if ends:
            return cut.start, found
    return len(text), whole


def _is_answered(before: str, found: Extracted) -> bool:
    """Whether a question behind a statement is another problem's, and no step of a solution that asks itself."""
    apart = found.method == "answer-line" or before.rstrip(" \t").endswith("\n")
    return apart and ("####" in before or not asks(before))


def normalise(text: str) -> str | None:
    """Canonical spelling of a short answer such as `$1,800.00`, `18 eggs` or `x = -3`.

    None without a number, and for what is not one number: `2x + 3`, `sqrt{3}`, `3 or 4`, `5:30`.
    """
    value = _read(_StatedAnswer(clean(text), "", "")).value
    return None if value is None else spell(value)


def same_answer(answer: str | None, gold: str | None) -> bool:
    """Whether two spellings are the same number; without numbers, whether the words are equal.

    Args:
        answer: An extracted answer; None is never right.
        gold: A gold string, or a whole GSM8K solution with its `####` line.
    """
    if answer is None or gold is None:
        return False
    left, right = (normalise(text.rsplit("####", 1)[-1]) for text in (answer, gold))
    if left is None or right is None:
        return left is right and bool(answer.strip()) and answer.strip().casefold() == gold.strip().casefold()
    return left == right


def gold_answer(text: str) -> str:
    """The gold number of a GSM8K solution (after its last `####`), or of a plain gold string.

    Raises:
        ConfigError: There is no number; most likely the wrong column was mapped to `answer`.
    """
    value = normalise(text.rsplit("####", 1)[1]) if "####" in text else extract(text).value
    if value is None:
        raise ConfigError(
            "a gold answer holds no number",
            found=text[-80:],
            expected="a number, or a solution that ends with `#### number`",
            next_step="map the right column: data.columns.answer=NAME",
        )
    return value


def _said_in(text: str) -> str:
    said = spoken(text)
    return said if said.strip() else text


def _layers(text: str) -> Extracted:
    for method, statements in (
        ("answer-line", _lines_after(text, _ANSWER_LINE)),
        ("boxed", _boxes(text)),
        ("answer-is", _lines_after(text, _ANSWER_IS)),
    ):
        for statement in statements:
            reading = _read(statement, boxed=method == "boxed")
            if reading.value is not None:
                return Extracted(spell(reading.value), method, statement.span)
            if reading.refused and not statement.seeks:
                return Extracted(None, method, statement.span)
    last = read_last(text)
    if last.value is None:
        return Extracted(None, "last-number" if last.refused else "none")
    return Extracted(spell(last.value), "last-number")


class _StatedAnswer(NamedTuple):
    """One place where a text says what its answer is."""

    span: str
    before: str
    """What stands before its cue, the end of it."""
    after: str
    """What stands after it, the beginning of that."""
    seeks: bool = False
    """Whether it announces a calculation rather than its result."""


def _lines_after(text: str, cue: re.Pattern[str]) -> list[_StatedAnswer]:
    """What stands after each cue on its line, or on the next line that has any text; last cue first."""
    statements = []
    for match in reversed(list(cue.finditer(text))[-MAX_CUES:]):
        cued = match.groupdict()
        stated = text[match.end() : match.end() + 500]
        rest = stated.lstrip(" \t*_")
        start = match.end() + len(stated) - len(rest)
        line, below = rest.split("\n", 1)[0], rest[:1] in ("\n", "\r")
        if below:
            start += len(rest) - len(rest.lstrip())
            line = _BULLET.sub("", rest.lstrip().split("\n", 1)[0])
        announces = cued.get("seeks") or cued.get("heading")
        if cued.get("checks") or (announces and below and "\n" in text[match.end() :].strip()):
            continue
        if cued.get("tag"):
            line = rest.split("</", 1)[0]
        if match.group() == "####" and not _is_gold_line(line):
            continue
        before, after = text[max(0, match.start() - NEAR) : match.start()], text[start + len(line) :][:NEAR]
        statements.append(_StatedAnswer(line, before, after, bool(cued.get("seeks"))))
    return statements


def _is_gold_line(line: str) -> bool:
    """Whether what stands behind `####` is an answer, or else a heading of markdown: `#### 1. First step`."""
    number = _NUMBERED.match(line)
    if not number or _TITLE.match(line):
        return False
    return bool(_AFTER_HASHES.match(line, number.end())) or read_number(line).refused


def _boxes(text: str) -> list[_StatedAnswer]:
    """What each box holds, the last box first."""
    statements = []
    for match in reversed(list(_BOXED.finditer(text))[-MAX_CUES:]):
        depth, end = 1, match.end()
        limit = min(len(text), end + 500)
        while end < limit and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        span = text[match.end() : end - 1 if depth == 0 else end]
        statements.append(
            _StatedAnswer(span, text[max(0, match.start() - NEAR) : match.start()], text[end : end + NEAR])
        )
    return statements


def _read(statement: _StatedAnswer, *, boxed: bool = False) -> Reading:
    """The number of a statement, where nothing in it or around it offers another."""
    inner = next(iter(_boxes(statement.span)), None)
    reading = _read(inner, boxed=True) if inner else read_number(statement.span)
    if boxed and _FACTORIAL.search(statement.span):
        return REFUSED
    if reading.value is None:
        return reading
    before, after = statement.before, statement.after
    contested = is_contested(reading.value, before, after) or (boxed and is_operand(reading.value, before, after))
    return REFUSED if contested else reading
