"""A teacher's worked solution as steps and an answer, and how it is written back.

Reads three shapes: one step a line, as in GSM8K or a numbered list; text with `Step 1:` headings, of which only the
last numbered run counts; and one paragraph, whose sentences are the steps. What a reasoning model thinks aloud is
dropped, LaTeX stays as it is.
Knows nothing about masking or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ...core.errors import ConfigError
from ..answers.reader import extract, extract_solution, gold_answer, normalise, same_answer
from .answer_leaks import answer_at_end, calculates, marks_answer, strip_statements

MIN_STEPS = 2
"""A rationale with fewer steps can be neither shuffled nor partly hidden."""
ANSWER_CUE = "Answer:"
"""Starts the last line of every rendered solution."""

_STEP = re.compile(
    r"^(?:[^\w\n]|_)*(?:\d{1,2}[.)][^\w\n]*)?(?:\\textbf\{)?Step[ \t]*#?(?P<number>\d+)(?:[ \t]*(?:/|of\b)[ \t]*\d+)?"
    r"[ \t]*[*_]*[ \t]*(?:[:.)]\}?[*_]*|[-–—]+(?=\s)|$|(?=\([^()\n]{1,60}\)[*_]*:))[ \t]*",  # noqa: RUF001
    re.MULTILINE | re.IGNORECASE,
)
_ITEM = re.compile(r"[ \t*#>(\[-]*(?P<number>\d{1,2})\\?[.):\]]\**[ \t]+(?=\S)")
_STOP = re.compile(r"(?<=[.!?])\s+(?=(?P<sign>[-+(\[{$£€~≈\\ ]{0,4})(?P<next>[^\W_]))|(?<=[。！？।])\s*(?=\S)")  # noqa: RUF001
# Not behind `Mr.` or `Mrs.`, nor behind a name as short as these.
_SHORT_NAME = re.compile(r"\b[A-Z][a-z]{1,2}\.\Z")
# What goes before a number with a full stop of its own, `No. 5`; in `5 ft. 3 in.` it goes between two.
_BEFORE_NUMBER = re.compile(
    r"(?:\.\.|\b(?:nos?|vs|approx|figs?|eqs?|pp?|ca|cf|e\.g|i\.e|vol|ch|sec|sect|st|mt|ex|art|max|min|avg|est|rs|inr|usd|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|fri|sat|sun)\.)\Z",
    re.IGNORECASE,
)
_UNIT = r"(?:ft|in|yd|oz|lbs?|hrs?|mins?|secs?|mi|km|cm|mm|kg|sq|gal|qt|pt)"
_COMPOUND = re.compile(rf"\b{_UNIT}\.\Z", re.IGNORECASE), re.compile(rf"\d[\d.,]*\s?{_UNIT}\b", re.IGNORECASE)
LONGEST_END = 40
"""Characters of a sentence's end that tell whether it is one."""
_LIST_NUMBER = re.compile(r"(?:\A|(?<=[.!?])\s+|(?<=[0-9])\s+|(?<=:)\s+(?=1\.))[*_#(\[]{0,3}[0-9]{1,2}\.\Z")
_MARK = re.compile(r"<<[^<>\n]*>>")
_MARKUP = re.compile(
    r"^[ \t]*```\w*[ \t]*$|</?think(?:ing)?>|<\|(?:begin|end)_of_solution\|>|^[ \t]*thinking(?:\.\.\.|\u2026)[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
_TAG = re.compile(
    r"""</?(?:[A-Za-z][\w:-]{1,40}|[bipsu])(?:\s+[\w:-]{1,40}=(?:"[^"<>\n]{0,200}"|'[^'<>\n]{0,200}'|[\w-]{1,40}))*\s*/?>|<\|[\w-]{1,40}\|>"""
)
_LINE_TAG = re.compile(r"<br\s{0,9}/?>|</?(?:p|li|div)(?:\s[^<>\n]{0,200})?>|</step>", re.IGNORECASE)
_CODE = re.compile(
    r"</?\|?(?:llm[-_]code|code|python|py|tool|function|execut|interpreter|invoke|program|jupyter|gadget|calculator"
    r"|bash|sql|repl)[\w-]*[\s|>]"
    r"|\[/?TOOL_(?:CALLS?|RESULTS?)\]"
    r"|^[ \t]*(?:```+|~~~+)[ \t]*\{?\.?(?:i?python[0-9.]*|py|output|tool\w*|code\w*|console|bash|sh|shell|cpp|c"
    r"|c\+\+|c#|java|javascript|js|typescript|ts|r|sql|julia|go|rust|ruby|matlab|json)\b"
    r"|^[ \t]*(?:def \w+\(.{0,200}\).{0,40}:|import [a-z][\w.]*(?: as \w+)?|from [a-z][\w.]* import .{1,200}"
    r"|(?:print|console\.log)\(.{0,200}\);?|#include *<.{1,60}>|(?:Action Input|Observation):.{0,400})[ \t]*$"
    r"|^[ \t]*\{\s*\"name\":\s*\"[\w.-]{1,80}\",\s*\"(?:arguments|parameters)\":",
    re.MULTILINE | re.IGNORECASE,
)
"""Programs, calls of tools and what these printed: what such a solution calculates does not stand in its words."""
# What is left of a command whose backslash was read as an escape: `\frac` as a form feed and `rac`.
_TORN_LATEX = re.compile(
    "\f(?:rac|box|lat|orall)|\b[a-z]"
    "|\t(?:imes|ext\\w*|frac|heta|riangle|herefore|binom|ilde)(?![a-z])|\r(?:ightarrow|ight|ho)(?![a-z])"
    "|\n(?:abla|otin)(?![a-z])|\v(?:ec|ert|arphi|dots)(?![a-z])|\a(?:lpha|pprox|ngle)(?![a-z])"
)
TORN_LATEX = "LaTeX that lost its backslashes"
"""A reason for which rows are left out."""
CODE = "the rationale calculates in code"
"""Another."""
OTHER_ANSWER = "the rationale's answer is not the gold one"
"""Another: one of the two is wrong, and no reading of the row says which."""
# An answer on the line after its cue, or in a tag, as one line that says so.
_BELOW = re.compile(
    r"(?P<cue>\banswer\s+(?:is|was)\s*:?)[*_ \t]*\n\s*(?=[^\n=]{1,200}\s*\Z)"
    r"|^[#*_> \t]*(?:final[ \t]+)?answer[*_: \t]*\n\s*(?:[-*\u2022]\s+)?(?=[^\n=]{1,200}\s*\Z)",
    re.MULTILINE | re.IGNORECASE,
)
_TAGGED = re.compile(r"(?<!\s)\s*<answer>\s*(?P<answer>[^<\n]*?)\s*(?:</answer>|\Z)", re.IGNORECASE)
# Displayed mathematics is one line however many it is written on, with the line that introduces it.
_DISPLAY = re.compile(
    r"(?P<cue>[:,][ \t]*\n\s*)?"
    r"(?P<math>\\\[.{0,2000}?\\\]|\$\$.{0,2000}?\$\$|\\begin\{(?P<name>\w+\*?)\}.{0,2000}?\\end\{(?P=name)\})",
    re.DOTALL,
)
_WORKED = re.compile(r"\n|=[^=]*=")
"""A text that is more than a short answer: several lines, or several equations."""
_VERIFIES = re.compile(r"\b(?:verif|check\b|confirm)", re.IGNORECASE)
_HASHED = re.compile(r"^[ \t]*####(?P<rest>.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """One problem with the teacher's solution."""

    question: str
    """The problem, whitespace stripped."""
    steps: tuple[str, ...]
    """The calculations in order, one line each, without number, answer line or calculator marks; empty where only the
    gold answer is known."""
    answer: str
    """Gold answer as the dataset writes it."""
    words: int = field(default=0, compare=False)
    """Of the teacher's text as it was written, split at white space; 0 where that is not known."""


class UnusableRationale(ValueError):  # noqa: N818 - a reason for skipping a row, caught and counted, never shown
    """A row that cannot be taught from; the message is the reason rows are counted under."""


@lru_cache(maxsize=16_384)  # stages of a curriculum read the same rows
def parse_rationale(question: str, text: str, answer: str, *, bare: bool = False) -> Rationale:
    """Split a teacher's text into steps and check it against the gold answer.

    Args:
        question: The problem.
        text: The teacher's solution; it has to state an answer of its own, after whatever it thought aloud.
        answer: Gold answer (`18`, `1,000`), or a GSM8K solution that ends with `#### 18`.
        bare: Whether a row without any text will do, as it does where a reward reads the gold answer alone.

    Returns:
        The rationale; `answer` is the gold one.

    Raises:
        UnusableRationale: No question, no gold answer or one that is no number, no text (unless `bare`), no stated
            answer or a wrong one, code, LaTeX that a wrong escape has torn, or fewer than two steps.
    """
    if is_torn(question, text, answer):
        raise UnusableRationale(TORN_LATEX)
    question, gold = question.strip(), read_gold(answer)
    if not question:
        raise UnusableRationale("no question")
    if not gold:
        raise UnusableRationale("no gold answer")
    if normalise(gold) is None:  # no completion could be right
        raise UnusableRationale("the gold answer is no number")
    if not text.strip():
        if bare:
            return Rationale(question=question, steps=(), answer=gold)
        raise UnusableRationale("no rationale")
    words = len(text.split())
    text, stated = extract_solution(text)
    # A last number in mid-calculation states nothing: a cut-off solution must not pass for a right one.
    if not stated.span:
        raise UnusableRationale("the rationale states no answer")
    if not same_answer(stated.value, gold):
        raise UnusableRationale(OTHER_ANSWER)
    if _CODE.search(text):
        raise UnusableRationale(CODE)
    pieces, numbered = _pieces(text)
    steps = _steps(_without_numbers(pieces), gold)
    if len(steps) < MIN_STEPS and not numbered:
        steps = _steps(_without_numbers([sentence for piece in pieces for sentence in _sentences(piece)]), gold)
    if len(steps) < MIN_STEPS:
        raise UnusableRationale(f"fewer than {MIN_STEPS} steps")
    if any(marks_answer(step, gold) for step in steps):
        raise UnusableRationale("a step states the answer")
    return Rationale(question=question, steps=steps, answer=gold, words=words)


def is_torn(*texts: str) -> bool:
    """Whether a text holds what is left of a LaTeX command whose backslash was read as an escape."""
    return any(map(_TORN_LATEX.search, texts))


@lru_cache(maxsize=16_384)
def read_gold(answer: str) -> str:
    """The gold answer of a dataset's answer column: what a worked solution states, or a short answer as it is.

    Empty for a worked solution that states none: its first number, or its last, would be a guess.
    """
    if "####" not in answer:
        found, text = extract(answer), answer.strip()
        if not found.span:
            return "" if _WORKED.search(text) else text
        return found.span.strip() if normalise(found.span) is None else str(found.value)  # an expression stays one
    try:
        return gold_answer(answer)
    except ConfigError:  # callers count such rows, or name the row they refuse
        return ""


def stated_answer(text: str) -> str:
    """The number that a worked solution says is its answer; empty where the last one of all is all there is."""
    _, found = extract_solution(text)
    return str(found.value) if found.span else ""


def render_steps(steps: Sequence[str]) -> str:
    """`Step 1: ...` lines, each with its final newline."""
    return "".join(f"Step {number}: {step}\n" for number, step in enumerate(steps, start=1))


def render_solution(rationale: Rationale) -> str:
    """The full solution as a model is taught to write it, ending with the answer line."""
    return f"{render_steps(rationale.steps)}{ANSWER_CUE} {rationale.answer}"


def answer_in_step(text: str, gold: str) -> bool:
    """Whether a step of a teacher's text states the answer, which `parse_rationale` strips from it.

    An answer line of its own at the end of the text is where an answer belongs, and none of this.
    """
    pieces, numbered = _pieces(extract_solution(text)[0])
    for place, piece in enumerate(map(_unmarked, _without_numbers(pieces))):
        calculation, told = answer_at_end(piece)
        if calculation or (numbered and told >= 0 and (place < len(pieces) - 1 or told == 0)):
            return True
        lines = piece.splitlines()[: told if told >= 0 else None]
        if any(strip_statements(line, gold) != " ".join(line.split()) and marks_answer(line, gold) for line in lines):
            return True
    return False


def _steps(pieces: Sequence[str], gold: str) -> tuple[str, ...]:
    steps = (strip_statements(_unmarked(piece), gold) for piece in pieces)
    return tuple(step for step in steps if any(map(str.isalnum, step)))  # rules and lone brackets are no steps


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a paragraph, such as begin with a capital, a digit or a letter of a script without case."""
    start = 0
    for stop in _STOP.finditer(text):
        before = text[max(start, stop.start() - LONGEST_END) : stop.start()]
        number = _LIST_NUMBER.search(before)
        if number and not _BEFORE_NUMBER.search(before[: number.start()]):  # it belongs to what follows
            begin = stop.start() - len(number[0].lstrip())
            if text[start:begin].strip():
                yield text[start:begin].rstrip()
                start = begin
        elif _ends_sentence(before, stop):
            yield text[start : stop.start()]
            start = stop.end()
    yield text[start:]


def _ends_sentence(before: str, stop: re.Match[str]) -> bool:
    first, sign = stop["next"] or "", stop["sign"] or ""
    if first.isdecimal():
        unit, amount = _COMPOUND
        return not (_BEFORE_NUMBER.search(before) or (unit.search(before) and amount.match(stop.string, stop.end())))
    return not (sign.strip() or first.islower() or _SHORT_NAME.search(before))


def _pieces(text: str) -> tuple[list[str], bool]:
    """The texts of the last numbered run of steps, or else the lines, and whether they are headed `Step 1:`."""
    text = _LINE_TAG.sub("\n", text)
    text = _TAGGED.sub(lambda tag: f"\n{ANSWER_CUE} {tag['answer']}", _without_verification(text))
    text = _BELOW.sub(lambda below: f"{below['cue'] or ANSWER_CUE} ", text)
    headings = list(_STEP.finditer(text))
    if not headings:
        return _DISPLAY.sub(_on_one_line, text).splitlines(), False
    # Without a first step, the numbers went on from those of the thoughts.
    first = max((index for index, heading in enumerate(headings) if heading["number"] == "1"), default=0)
    run = headings[first:]
    ends = [heading.start() for heading in run[1:]] + [len(text)]
    pieces = []
    for heading, end in zip(run, ends, strict=True):
        piece = text[heading.end() : end]
        pieces.append(piece.replace("**", "", 1) if heading[0].count("**") == 1 else piece)  # **Step 1: Title**
    return pieces, True


def _without_verification(text: str) -> str:
    """Without the numbered run that only verifies what was solved: the solution is the run before it."""
    starts = [heading.start() for heading in _STEP.finditer(text) if heading["number"] == "1"]
    for start in reversed(starts[1:]):
        before = text[:start].rstrip()
        cut = before.rfind("\n") + 1
        if not _VERIFIES.search(before[cut:]) or _STEP.match(before[cut:]):  # `Step 3: Verify` is of the run before
            continue
        if stated_answer(before[:cut]) or len(_STEP.findall(before[:cut])) >= MIN_STEPS:
            text = before[:cut]
    return text


def _on_one_line(display: re.Match[str]) -> str:
    cue, line = display["cue"], " ".join(display["math"].split())
    return f"{cue.rstrip()} {line}" if cue else line


def _without_numbers(lines: list[str]) -> list[str]:
    """Steps without numbers of their own, which would give away their order."""
    items = [_ITEM.match(line) for line in lines]
    levels: list[int] = []  # a list inside an item starts anew and lets the outer one go on
    for number in (int(item["number"]) for item in items if item):
        while number > 1 and levels and levels[-1] != number - 1:
            levels.pop()
        if number > 1 and not levels:
            return lines
        if number > 1:
            levels.pop()
        levels.append(number)
    return [line[item.end() :] if item else line for item, line in zip(items, lines, strict=True)]


def _unmarked(piece: str) -> str:
    """Without calculator marks, fences and GSM8K's gold line; a heading of the same look loses its hashes alone."""
    text = _TAG.sub(_gap, _MARKUP.sub("", _MARK.sub("", piece)))
    return _HASHED.sub(lambda line: line["rest"] if calculates(line["rest"]) else "", text).rstrip()


def _gap(tag: re.Match[str]) -> str:
    """A blank where a tag alone kept two words or numbers apart."""
    before, after = tag.string[: tag.start()][-1:], tag.string[tag.end() :][:1]
    return " " if before.isalnum() and after.isalnum() else ""
