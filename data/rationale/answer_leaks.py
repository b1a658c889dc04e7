r"""What in a teacher's text gives the answer away: statements, which are cut out, and the bare value, which is hidden.

A statement says which number is the answer: `Answer: 45`, `#### 45`, `the answer is 45`, a `Final Answer` section, a
box. Steps are kept without any, for every task; a calculation behind such words stays. An equation loses its box alone:
`\[ 40 + 5 = \boxed{45} \]` becomes `\[ 40 + 5 = 45 \]`; a box that stands by itself, `\[ \boxed{45} \]`, repeats what
was calculated and goes with it.

Without statements the last calculation still ends in the answer, so that a solution shown in a rollout's prompt could
be copied instead of solved. `hide_answer` leaves every calculation and hides what it comes to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from ..answers.reader import ANSWER_IS, ANSWER_NAMES, CURRENCY, normalise, same_answer
from .number_spans import MASK, NUMBER_TEXT, cover, find_digits, find_operators, find_spaced

_ANSWER_LINE = re.compile(
    r"^[\s*#>_-]*(?:(?:the\s+)?(?:final\s+)?answer\b\W{0,6}(?::|\bis\b|$)"
    rf"|(?:{ANSWER_NAMES})[\s*_]{{0,4}}[:\uff1a]|[\[【](?:answer|{ANSWER_NAMES})[\]】])",
    re.IGNORECASE,
)
# Only `Answer: X` to the end of the text is a statement of the answer; "To find the answer: add" is prose.
# A match begins where its blanks and stars begin: tried from each of them, a page of blanks takes seconds.
_ANSWER_TAIL = re.compile(
    r"(?:(?<!\s)\s+\**|(?<![\s*])\**)\b(?:[Ff]inal\s+[Aa]nswer|Answer|ANSWER"
    rf"|{ANSWER_NAMES})\s*\**\s*[:\uff1a]\**(?P<rest>[^\n]*)\Z"
)
_FINAL_SECTION = re.compile(r"(?:\A|\s)(?:-{3,}\s*|[#*]+\s*)?Final Answer\b(?P<rest>.*)\Z", re.DOTALL)
_ANSWER_IS = re.compile(
    r"(?:(?:\b(?:so|thus|hence|therefore|finally|in\s+(?:conclusion|summary)),?\s+)?\b(?:(?:the|our|my)\s+)?(?:final\s+|correct\s+)?answer\s+"
    rf"(?:is|was|equals|=|(?:should|must|would|will)\s+be)|(?:\bdie\s|\bla\s)?(?:{ANSWER_IS}))\s*:?\s*"
    r"(?P<value>[\s*\\(\[{$]*(?:(?:boxed|fbox)\s?\{[\s\\$]*)?"
    rf"(?:[A-Za-z]\s*=\s*)?(?:{CURRENCY}\s?)?(?P<number>{NUMBER_TEXT}))",
    re.IGNORECASE,
)
_MARKED = re.compile(
    rf"\s*(?:####\s*(?:\$|{CURRENCY}\s?)?(?P<hashed>{NUMBER_TEXT})"
    r"|\(\s*(?:the\s+|our\s+)?(?:final\s+)?answer\s*(?::|=|\bis\b)\s*"
    rf"(?:\$|{CURRENCY}\s?)?(?P<bracketed>{NUMBER_TEXT})[^()]*\))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|[。！？।]|\\\]|\\\)(?=\s+[A-Z])|-{3,}")  # noqa: RUF001
_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s?\{)|\{|(?P<closing>\})")
_MATH_BEFORE = re.compile(r"(\\\[|\\\(|\$\$?)\s*\Z")
_MATH_AFTER = re.compile(r"\s*(\\\]|\\\)|\$\$?)")
_CLOSING = {"\\[": "\\]", "\\(": "\\)", "$": "$", "$$": "$$"}
_DANGLING = re.compile(r"[*#_]+|-{3,}")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ONE = re.compile(r"\bone\b(?!\s+(?:of|by|another)\b)", re.IGNORECASE)
_RATIO = re.compile(  # `1/2`, `1 1/2`, `1\frac{1}{2}`, `1½`
    r"(?<![0-9./])(?:[0-9]{1,9}\s)?(?P<own>[0-9]{1,9}\s?/\s?[0-9]{1,9})(?![0-9/]|\.[0-9])"
    r"|(?<![0-9])(?:[0-9]{1,9}\s?)?(?P<mark>\\[cdt]?frac\s?(?:\{[0-9]+\}|[0-9])\s?(?:\{[0-9]+\}|[0-9])"
    r"|[\u00bc-\u00be\u2150-\u215e])"
)
_COUNTS = dict(zip(_WORDS[1:], range(1, 20), strict=True)) | {
    f"{word}{one and '-'}{one}": 20 + 10 * place + ones
    for place, word in enumerate(_TENS)
    for ones, one in enumerate(["", *_WORDS[1:10]])
}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "k": 10**3, "m": 10**6}
_SCALE_WORDS = "|".join(word for word in _SCALES if len(word) > 1)
_WORDED = "|".join(sorted(_COUNTS, reverse=True)).replace("-", r"[\s-]")
_WORD = re.compile(rf"\b(?:{_WORDED})\b", re.IGNORECASE)
_SCALED = re.compile(
    rf"(?<![0-9A-Za-z])(?:(?P<digits>{NUMBER_TEXT})(?:[\s-]?(?P<scale>{_SCALE_WORDS})|(?P<letter>[km]))"
    rf"|(?<!half\s)(?P<words>a|{_WORDED})[\s-](?P<counted>{_SCALE_WORDS}))\b",
    re.IGNORECASE,
)
"""`$2 million`, `two hundred`, `3k`; a word comes after the longer ones that begin with it."""


def states_answer(text: str) -> bool:
    """Whether any line of `text` announces an answer (`Answer: 3`, `**Final answer** 3`, `#### 3`)."""
    return any(_announces(line) or line.lstrip().startswith("####") for line in text.splitlines())


def calculates(text: str) -> bool:
    """Whether `text` is more than a bare value: an equation with an operator in it."""
    return "=" in text and bool(find_operators(text))


def _announces(line: str) -> bool:
    cue = _ANSWER_LINE.match(line)
    if not cue:
        return False
    # "The answer is found by adding: 40 + 5 = 45" is prose about it, and stays so with its numbers or signs masked.
    rest = line[cue.end() :]
    return cue[0][-1:] not in ("s", "S") or not (calculates(rest) or MASK in rest)


def _without_cue(line: str) -> str:
    """A line but for the announcement of an answer, which takes a bare value with it."""
    cue = _ANSWER_LINE.match(line)
    if not cue or not _announces(line):
        return line
    return line[cue.end() :].lstrip(" *_") if calculates(line[cue.end() :]) else ""


def marks_answer(text: str, gold: str) -> bool:
    """Whether a line of `text` announces an answer, or says of a number that is the gold one that it is the answer."""
    return states_answer(text) or any(_line_says(line, gold) for line in text.splitlines())


def _line_says(line: str, gold: str) -> bool:
    # One line at a time: what one step opens, a brace or a sentence, another step of a prompt does not close.
    boxes = (line[start:end] for _, start, end, _ in _boxes(line))
    return any(_tells(content, gold) for content in boxes) or any(
        _says(line[found.start("number") : end], found["number"], gold) for found, _, end in _sentences(line)
    )


def strip_statements(piece: str, gold: str) -> str:
    """A step on one line, without what states the answer in it; empty if it was nothing else."""
    section = _FINAL_SECTION.search(piece)
    if section and "=" not in section["rest"]:  # `Final Answer Calculation: 40 + 5 = 45` is a step
        piece = piece[: section.start()]
    piece = _ANSWER_TAIL.sub(lambda tail: f" {tail['rest']}" if calculates(tail["rest"]) else "", piece)
    text = " ".join(" ".join(map(_without_cue, piece.splitlines())).split())
    text = _MARKED.sub(lambda found: "" if same_answer(found["hashed"] or found["bracketed"], gold) else found[0], text)
    return _without_dangling(_without_boxes(_without_sentences(text, gold), gold))


def _without_dangling(text: str) -> str:
    """Without the bullets, rules and bold marks at its end that what was cut out has left."""
    while True:
        before, _, last = text.rpartition(" ")
        if _DANGLING.fullmatch(last) and (before or last.startswith("---")):
            text = before.rstrip()
        elif text.endswith("**") and text.count("**") % 2:
            text = text.removesuffix("**").rstrip()
        else:
            return text


def answer_at_end(piece: str) -> tuple[str, int]:
    """The calculation part of a piece whose last line states the answer after it, and the first answer line's place.

    Returns:
        What precedes `Answer: X` on the piece's last line (empty where there is no such tail behind a calculation), and
        the number of the first line that announces an answer (-1 for none).
    """
    tail = _ANSWER_TAIL.search(piece)
    inside = bool(tail and tail.start() and "\n" not in tail[0] and not _ANSWER_LINE.match(piece))
    told = (number for number, line in enumerate(piece.splitlines()) if _announces(line))
    return piece[: tail.start()] if tail and inside else "", next(told, -1)


def hide_answer(steps: Sequence[str], question: str, gold: str) -> tuple[str, ...]:
    """Steps in which the gold number is replaced by the mask wherever it would tell the answer.

    Every number of its value is hidden: in digits, whatever touches them (but for the power of a unit, `m^2`), in words
    up to ninety-nine ("one" in the last step alone), as a count of hundreds or dozens and, where it is no integer, as a
    ratio of two integers; in the last step so is a result that is the answer in cents or in the whole. Where the
    question gives that number too, hiding it as a given would tell more than it conceals ("2 dozen" in the question,
    "[MASK] dozen" in a step): then only what a calculation gives is hidden, in the last step all that is no operand.

    Args:
        steps: Of one rationale, in order, without statements of the answer.
        question: The problem.
        gold: Its answer; without a number in it, its words are hidden instead.
    """
    value = normalise(gold)
    if value is None:
        words = re.compile(rf"(?<!\w){re.escape(gold.strip())}(?!\w)", re.IGNORECASE)
        return tuple(words.sub(MASK, step) if gold.strip() else step for step in steps)
    value = value.removeprefix("-")
    given = any(number.value == value for number in [*find_digits(question), *find_spaced(question)])
    given = given or (value != "1" and bool(_in_words(question, value)))
    scaled_given = given or bool(_scaled(question, value))
    ratio_given = any(_ratio_of(match, value) for match in _RATIO.finditer(question))
    hidden = []
    for place, step in enumerate(steps):
        last = place == len(steps) - 1
        spans = [
            (number.start, number.end)
            for number in [*find_digits(step), *find_spaced(step)]
            if (number.value == value and (not given or number.is_result or (last and not number.is_operand)))
            or (last and number.is_result and _is_hundredfold(number.value, value))
        ]
        if last or not (given or value == "1"):
            spans += _in_words(step, value)
        if last or not scaled_given:
            spans += _scaled(step, value)
        if not value.isdecimal() and (last or not ratio_given):
            spans += [span for match in _RATIO.finditer(step) if (span := _ratio_of(match, value))]
        hidden.append(cover(step, spans))
    return tuple(hidden)


def _is_hundredfold(one: str, other: str) -> bool:
    """Whether two numbers are the same in dollars and in cents, or as a share and in per cent."""
    return Fraction(one) in (100 * Fraction(other), Fraction(other) / 100)


def _ratio_of(ratio: re.Match[str], value: str) -> tuple[int, int] | None:
    """Where a ratio is a value, with the whole number before it or without: `1 1/2`, `of the 12 1/2 are left`."""
    own = ratio.start("own") if ratio["own"] else ratio.start("mark")
    starts = (start for start in (ratio.start(), own) if same_answer(ratio.string[start : ratio.end()], value))
    return next(((start, ratio.end()) for start in starts), None)


def _scaled(text: str, value: str) -> list[tuple[int, int]]:
    """Where a count and a word of scale come to a value."""
    found = []
    for match in _SCALED.finditer(text):
        words = match["words"]
        count = normalise(match["digits"]) if words is None else 1 if words in ("a", "A") else _count(words)
        scale = (match["scale"] or match["letter"] or match["counted"]).lower()
        if count is not None and Fraction(count) * _SCALES[scale] == Fraction(value):
            found.append(match.span())
    return found


def _in_words(text: str, value: str) -> list[tuple[int, int]]:
    """Where a whole number up to ninety-nine is spelt out; "one" where it counts."""
    if value == "1":
        return [match.span() for match in _ONE.finditer(text)]
    return [match.span() for match in _WORD.finditer(text) if str(_count(match[0])) == value]


def _count(words: str) -> int:
    return _COUNTS["-".join(re.split(r"[\s-]", words.lower()))]


def _sentences(text: str) -> list[tuple[re.Match[str], int, int]]:
    """Each `the answer is N`, with start and end of its sentence."""
    found = []
    start = looked = stop = 0
    for match in _ANSWER_IS.finditer(text):
        for end in _SENTENCE_END.finditer(text, looked, match.start()):
            start = end.end()
        looked = match.start()
        if stop <= match.end():
            after = _SENTENCE_END.search(text, match.end())
            stop = after.end() if after else len(text)
        found.append((match, start, stop))
    return found


def _says(statement: str, number: str, gold: str) -> bool:
    return same_answer(number, gold) or same_answer(statement, gold)  # `45`, `45 = 40 + 5` or `40 + 5 = 45`


def _without_sentences(text: str, gold: str) -> str:
    """Without sentences that say `the answer is` the gold number; one that calculates it loses these words alone."""
    for match, start, end in reversed(_sentences(text)):
        number = match.start("number")
        if not _says(text[number:end], match["number"], gold):
            continue
        if "=" in text[number:end]:
            start, end = match.start(), match.start("value")
        elif calculates(text[start : match.start()]):  # `9 * 2 = 18, so the answer is 18`
            start = match.start()
        text = f"{text[:start].rstrip(' ,;')} {text[end:].lstrip()}"
    return text.strip()


def _without_boxes(text: str, gold: str) -> str:
    for start, inner, inner_end, end in reversed(_boxes(text)):
        content = text[inner:inner_end].strip()
        if not _tells(content, gold):
            continue
        before, after = text[:start], text[end:]
        opening, closing = _MATH_BEFORE.search(before), _MATH_AFTER.match(after)
        alone = bool(opening and closing and _CLOSING[opening[1]] == closing[1])
        in_math = not alone and _opens_math(before)
        left = (before[: opening.start()] if alone and opening else before).rstrip()
        right = (after[closing.end() :] if alone and closing else after).lstrip()
        ended = not left or left[-1] in ".!?;)]}*-" or left[-1].isdigit()
        if not in_math and ended and not right[:1].islower() and "=" not in content:
            text = f"{left} {right.removeprefix('.').lstrip()}"
        elif in_math or alone or "\\" not in content.replace("\\$", ""):
            text = f"{before}{content}{after}"
        else:
            text = f"{before}\\( {content} \\){after}"
    return text.strip()


def _tells(content: str, gold: str) -> bool:
    """Whether a box states the answer, or a number that is its digits: `60 million`, asked for in millions."""
    value = (normalise(gold) or "").removeprefix("-")
    return same_answer(content, gold) or any(number.value == value for number in find_digits(content))


def _boxes(text: str) -> list[tuple[int, int, int, int]]:
    """Start of each box, start and end of its content, and its end; unclosed and nested ones are left out."""
    found: list[tuple[int, int, int, int]] = []
    opened: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if not brace["closing"]:
            opened.append(brace)
        elif opened and (opening := opened.pop())["box"]:
            while found and found[-1][0] > opening.start():
                found.pop()
            found.append((opening.start(), opening.end(), brace.start(), brace.end()))
    return found


def _opens_math(before: str) -> bool:
    return before.count("\\[") > before.count("\\]") or before.count("\\(") > before.count("\\)")
