r"""The number a completion answers with, and whether two spellings are the same number.

Layers, strongest first, each read from its last occurrence to its first:
  answer-line   `Answer: 18`, `**Final Answer:** $18`, `#### 18`
  boxed         `\boxed{18}`
  answer-is     `the answer is 18`
  last-number   the last number of the text
What is thought aloud before `</think>` (`...done thinking.` in a transcript of Ollama) is passed over where anything is
said after it, and text that runs on after the answer (`\n\nQuestion: ...`, an end token written out) is cut off first.

Comparison is exact on rationals: no tolerance, no rounding. Currency signs, thousands separators, units and `%` are
dropped, so `$1,800.00` equals `1800` and `18%` equals `18`. Numbers in words, exponents and scale words
(`1.5 million`) are not read. Every pattern is linear in the text, since rewards run it too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from ..core.errors import ConfigError

MAX_DIGITS = 400
"""A longer run of digits is noise, not an answer."""
MAX_CUES = 8
"""Answer lines or boxes tried, from the last; bounds the time a degenerate completion takes."""

DIGITS = {start + digit: str(digit) for start in (0x660, 0x6F0, 0x966, 0xFF10) for digit in range(10)}
"""Arabic, Devanagari and full-width digits, for `str.translate`; each is one character, as its translation is."""

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), "\u202f")  # kept apart: they may group digits
_CURRENCIES = dict.fromkeys(map(ord, "\uff04€£¥₹₱₩₦฿₫₺₽₪"), "$")
_MARKS = {ord("\u2044"): "/", ord("\uff1a"): ":", ord("\uff0c"): ",", ord("\uff05"): "%"}
_CHARACTERS = DIGITS | _DASHES | _SPACES | _CURRENCIES | _MARKS

CURRENCY = (
    r"(?:AUD|BDT|BRL|CAD|CHF|CNY|EUR|GBP|GHS|HKD|IDR|INR|JPY|KES|KRW|LKR|MXN|MYR|NGN|NPR|NZD|PHP|PKR|RMB|SGD|THB"
    r"|US|USD|VND|ZAR|Php|RM|Rp|[Rr]s\.?)"
)
"""Pattern of a currency's name as it is written before an amount; `Rs.5` is five."""

_PART = r"(?:\{([^{}\n]*)\}|([0-9]))"
_REWRITTEN: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"<<[^<>\n]*>>"), ""),  # GSM8K's calculator marks
    (re.compile(r"\{,\}|\\,(?=[0-9])"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"(?<=[0-9])\s?(?=\\[cdt]?frac)"), " "),  # 1\frac{1}{2}
    (re.compile(r"(?<=[0-9]) and (?=[0-9]{1,9}/[0-9])"), " "),
    (
        re.compile(rf"\\[cdt]?frac\s?{_PART}\s?{_PART}"),
        lambda found: "/".join(part for part in found.groups() if part is not None),
    ),
    (re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])"), " "),
    (
        re.compile("[\u00bc-\u00be\u2150-\u215e]"),
        lambda found: unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"),
    ),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}\n]*)\}"), r" \1 "),
    (re.compile(r"\\[()\[\];: ]"), " "),
    (re.compile(r"(?<=[A-Za-z}])\s?\^\{?[0-9]+\}?"), ""),  # the exponent of a unit, m^2
    (re.compile("(?<=[0-9])\u202f(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile("\u202f"), " "),
    (re.compile(r"(?<![0-9A-Za-z])(?:A|C|HK|NZ|R|S|US)\s?(?=\$)"), ""),
    (re.compile(rf"(?<![0-9A-Za-z]){CURRENCY}\s?(?=-?[.$]?[0-9])"), "$"),
]

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+"
_VALUE = rf"(?:(?P<whole>[0-9]{{1,9}}) (?=[0-9]{{1,9}}/[0-9]))?(?P<value>{_PLAIN})(?:/(?P<over>{_PLAIN}))?"
# A minus is a sign only where nothing it could subtract from stands before it; `x2` and `^2` are no numbers.
_NUMBER = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])(?P<sign>-))?(?:\$\s?(?P<inner>-)?)?(?<![0-9A-Za-z_^]){_VALUE}")
# At the start of a span markup and a spaced minus may stand before the number.
_LEADING = re.compile(rf"[\s*_\\(\[{{\"'`~≈:>]*(?P<sign>-\s?)?(?:\$\s?){{0,2}}(?P<inner>-)?{_VALUE}")
_EXPRESSION = re.compile(r"(?:[0-9\s.,+\-*/\u00d7\u00f7\u00b7^{}%$()]|\\times|\\cdot|\bof\b|\btimes\b|\bx\b)*")
# With units: `9 eggs x $2`, `36 divided by 2`. Words between two numbers without a sign are prose.
_OPERATOR = r"(?:[-+*/x\u00d7\u00f7\u00b7]|\\times|\\cdot|\\div|times|plus|minus|(?:divided|multiplied)\sby)"
_TERM = rf"[\s$(]*(?:{_PLAIN})[\s%)]*(?:[A-Za-z]+\s+){{0,3}}"
_CALCULATION = re.compile(rf"{_TERM}(?:{_OPERATOR}{_TERM})+")
_SIGN = re.compile(r"[-+*/x\u00d7\u00f7\u00b7^]|\\times|\\cdot")
_GOES_ON = re.compile(r"[\s%)]*(?:[A-Za-z]+\s)?(?:[-+*x\u00d7\u00f7\u00b7^]|\\times|\\cdot)\s*[$(]?\s*[0-9]")

_RUN_ON = re.compile(
    r"\n[ \t]*(?:\*\*|#{1,4} ?)?(?:Question|Problem|Human|User|Instruction|Q)[ \t]?[0-9]{0,4}\s?:"
    r"|(?P<heading>\n[ \t]*(?:#{1,4} ?(?:Question|Problem)[ \t]?[0-9]{0,4}[ \t]*\n|\*\*(?:Question|Problem)\*\*\s?:))"
    r"|<\|(?:im_end|im_start|endoftext|eot_id|end)\|>|</s>",
    re.IGNORECASE,
)
_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>|<thought>|\[THINK\]|<\|begin_of_thought\|>", re.IGNORECASE)
_THOUGHTS_END = re.compile(
    r"</think(?:ing)?>|</thought>|\[/THINK\]|<\|end_of_thought\|>|(?:\.\.\.|\u2026)done thinking\.", re.IGNORECASE
)
_ANSWER_LINE = re.compile(
    r"(?:\b(?:(?P<checks>check|verify)|(?P<seeks>find|calculate|compute|determine|get))(?:ing)?[ \t]{1,3}"
    r"(?:[a-z]{2,7}[ \t]{1,3}){0,3})?\banswer[*_ \t]{0,4}:"
    r"|(?P<heading>^[#*_> \t]{0,8}(?:final[ \t]+)?answer[*_ \t]{0,4}$)|(?P<tag><answer>)|####",
    re.IGNORECASE | re.MULTILINE,
)
"""`find the answer:` and a heading `Answer` state it on their line or a last one below, `check the answer:` never."""
_ANSWER_IS = re.compile(r"\banswer\s{1,3}(?:is|was|equals|=)\b\s?:?", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")
_AFTER_HASHES = re.compile(r"[.\s%*]*[A-Za-z ]{0,40}[.\s*]*(?:[(,;].*)?$")
# A root, a power of a number, or a sum of or with a letter; `5 m/s` and `-3 m` are none.
_ALGEBRA = re.compile(
    r"\\sqrt|\u221a|\\pi\b|\u03c0|[0-9)]\s?\^"
    r"|(?<![A-Za-z\\])[0-9]{0,9}[a-z]\s*[-+*]\s*[0-9(]|[0-9)]\s*[-+*]\s*[0-9.]{0,9}[a-z](?![A-Za-z])"
)
_UNIT = (
    r"(?:h|hours?|hrs?|minutes?|mins?|seconds?|days?|weeks?|months?|years?|feet|foot|ft|inch(?:es)?|yards?|miles?|c?m"
    r"|k?m|pounds?|lbs?|ounces?|oz|dollars?|cents?|quarters?|dimes?|gallons?|quarts?|pints?|cups?|k?g|degrees?)\.?"
)
# All of a text that is a time or a ratio, several numbers, a multiple of a letter, or has a power or a word of scale.
_SEVERAL = re.compile(
    r"\W{0,3}(?:[0-9]+\s?:\s?[0-9]+(?::[0-9]+)?(?:\s?[ap]\.?m\.?)?|[0-9.]+(?:\s*[,;]\s*\$?-?[0-9.]+)+"
    r"|[0-9.]+\s(?:or|and)\s\$?-?[0-9.]+|(?:[a-z]\s*=\s*)?-?[0-9.]+[xyz]|[0-9.]+e[-+]?[0-9]+"
    rf"|[0-9.,]+\s?(?:hundred|thousand|[mb]illion)\b(?!-).*|[0-9.]+\s?{_UNIT}\s(?:and\s)?[0-9.]+\s?{_UNIT})\W*",
    re.IGNORECASE,
)
# Digits behind a blank go on where nothing follows that they could count, or they are zeros (`3 400`, `5 000 g`):
# `5 100 g bags` may be five bags.
_SPACED = re.compile(r"(?<![0-9.,/])[0-9]{1,3}(?:(?: [0-9]{3}){1,4}(?=[\s.*_)\]}$]*\Z)|(?: 000){1,4}(?![0-9]))")
_GROUPED = re.compile(r"\W{0,3}[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?\W*")
_HEADING = re.compile(r"[.):]\s+\S")
_BULLET = re.compile(r"^[-*\u2022]\s+")


@dataclass(frozen=True)
class Extracted:
    """What was read from a completion."""

    value: str | None
    """Canonical number (`18`, `-3`, `0.75`, `1/3`), or None."""
    method: str
    """Layer that found it: answer-line, boxed, answer-is, last-number or none."""
    span: str = field(default="", compare=False)
    """What a statement was read from; of `\\boxed{2x + 3}`, whose value here is 2, `2x + 3`."""


def extract_answer(text: str) -> str | None:
    """The number `text` answers with in canonical spelling, or None."""
    return extract(text).value


def extract(text: str) -> Extracted:
    """The answer of a completion, and the layer that found it."""
    run_on = _run_on(text)
    if run_on:
        found = _layers(_clean(_said_in(text[: run_on.start()])))
        # A heading may as well come before the solution, where the problem is told again.
        if found.span or (found.value is not None and not run_on["heading"]):
            return found
    return _layers(_clean(_said_in(text)))


def extract_solution(text: str) -> tuple[str, Extracted]:
    """What of a teacher's text is its solution, and the answer that is read from it.

    The text without thoughts and without what it runs on to after it has stated an answer: another problem, or the
    same one where all before it was a preamble.
    """
    run_on = _run_on(text)
    if run_on:
        said = spoken(text[: run_on.start()])
        found = _layers(_clean(said))
        if found.span:
            return said, found
    said = spoken(text)
    return said, _layers(_clean(said))


def spoken(text: str) -> str:
    """What a reasoning model says after its thoughts, all of `text` where it holds no end of thoughts."""
    ends = list(_THOUGHTS_END.finditer(text))
    return text[ends[-1].end() :] if ends else text


def normalise(text: str) -> str | None:
    """Canonical spelling of a short answer such as `$1,800.00`, `18 eggs` or `x = -3`.

    None without a number, and for what its first number is not the value of: `2x + 3`, `sqrt{3}`, `3 or 4`, `5:30`.
    """
    several = _SEVERAL.fullmatch(text) and not _GROUPED.fullmatch(text)
    value = None if several or _ALGEBRA.search(text) else _read(_clean(text))
    return None if value is None else _spell(value)


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


def _run_on(text: str) -> re.Match[str] | None:
    """Where a text goes on to another problem, or tells its own once more."""
    plain = text.translate(_CHARACTERS)
    run_on = _RUN_ON.search(plain)
    began, ended = _THOUGHTS_BEGIN.search(text), _THOUGHTS_END.search(text)
    if run_on and ended and run_on.start() < ended.start() and not (began and began.start() > run_on.start()):
        run_on = _RUN_ON.search(plain, ended.end())  # the problem, restated in thought
    return run_on


def _said_in(text: str) -> str:
    said = spoken(text)
    return said if said.strip() else text


def _layers(text: str) -> Extracted:
    for method, spans in (
        ("answer-line", _lines_after(text, _ANSWER_LINE)),
        ("boxed", _boxes(text)),
        ("answer-is", _lines_after(text, _ANSWER_IS)),
    ):
        for span in spans:
            value = _read(span)
            if value is not None:
                return Extracted(_spell(value), method, span)
    last = _last(text)
    return Extracted(None, "none") if last is None else Extracted(_spell(last), "last-number")


def _lines_after(text: str, cue: re.Pattern[str]) -> list[str]:
    """What stands after each cue on its line, or on the next line that has any text; last cue first."""
    spans = []
    for match in reversed(list(cue.finditer(text))[-MAX_CUES:]):
        rest, cued = text[match.end() : match.end() + 500].lstrip(" \t*_"), match.groupdict()
        line, below = rest.split("\n", 1)[0], rest[:1] in ("\n", "\r")
        if below:
            line = _BULLET.sub("", rest.lstrip().split("\n", 1)[0])
        announces = cued.get("seeks") or cued.get("heading")
        if cued.get("checks") or (announces and below and "\n" in text[match.end() :].strip()):
            continue
        if cued.get("tag"):
            line = rest.split("</", 1)[0]
        if match.group() == "####":
            number = _LEADING.match(line)
            after = line[number.end() :] if number else ""
            if not number or not _AFTER_HASHES.match(after) or _HEADING.match(after):
                continue  # a markdown heading: `#### 1. First step`
        spans.append(line)
    return spans


def _boxes(text: str) -> list[str]:
    spans = []
    for match in reversed(list(_BOXED.finditer(text))[-MAX_CUES:]):
        depth, end = 1, match.end()
        limit = min(len(text), end + 500)
        while end < limit and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        spans.append(text[match.end() : end - 1 if depth == 0 else end])
    return spans


def _read(span: str) -> Fraction | None:
    """The number a short span states: its box, what its `=` gives, the number it starts with, or its last."""
    span = _SPACED.sub(lambda grouped: grouped[0].replace(" ", ""), next(iter(_boxes(span)), span))
    leading = _LEADING.match(span)
    head, equals, tail = span.rpartition("=")
    given = equals and (leading is None or _EXPRESSION.fullmatch(head) or _CALCULATION.fullmatch(head))
    result = _LEADING.match(tail) if given else None
    alone = leading and not _SIGN.search(head, leading.end())
    if result and alone and _GOES_ON.match(tail, result.end()):  # `18 = 9 * 2` says how
        result = None
    for match in (result, leading):
        value = _value(match) if match else None
        if value is not None:
            return value
    return _last(span)


def _last(span: str) -> Fraction | None:
    for match in reversed(list(_NUMBER.finditer(span))):
        value = _value(match)
        if value is not None:
            return value
    return None


def _value(match: re.Match[str]) -> Fraction | None:
    parts = [part.replace(",", "") for part in (match["value"], match["over"]) if part]
    if any(len(part) > MAX_DIGITS for part in parts):
        return None
    value = Fraction(parts[0])
    if len(parts) == 2:
        over = Fraction(parts[1])
        if over == 0:
            return None
        value /= over
    if match["whole"]:  # `1 1/2`; of `3 4/2` the first number counts
        value = Fraction(match["whole"]) + (value if value < 1 else 0)
    return -value if match["sign"] or match["inner"] else value


def _spell(value: Fraction) -> str:
    """Shortest exact spelling: an integer, a finite decimal, or `a/b`."""
    places, rest = 0, value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest, places = rest // prime, places + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    whole, fraction = (digits[:-places], digits[-places:].rstrip("0")) if places else (digits, "")
    return f"{'-' if value < 0 else ''}{whole}{'.' if fraction else ''}{fraction}"


def _clean(text: str) -> str:
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text
