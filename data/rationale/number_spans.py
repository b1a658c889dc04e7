"""Numbers, results and operators inside a step, in plain text or LaTeX, and how they are covered by the mask.

Knows nothing about rationales or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..answers.reader import DIGITS, normalise

MASK = "[MASK]"
"""Stands for what is hidden, a step or a part of one."""

_GROUP = r"(?:,|\{,\}|,?\\[!,;:]|[\u2009\u202f~_'])"  # 1,000  1{,}000  1,\!000  1\,000  1~000
_WHOLE = rf"(?:[0-9]{{1,3}}(?:{_GROUP}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
NUMBER_TEXT = rf"{_WHOLE}|(?<![0-9])\.[0-9]+"
"""Pattern of a number without sign, currency or unit."""
# A cross, a command of LaTeX and a currency touch an operand that is no part of a name: `16x8`, `\times5`, `Rs45`.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z_^])|(?<=[0-9]x)|(?<=\\times)|(?<=\\cdot)|(?<=\\div)|(?<=\\pm)|(?<=\\approx)"
    r"|(?<=Rs)|(?<=Rp)|(?<=RM))(?<![0-9]\.)"
    rf"(?:{NUMBER_TEXT})(?![0-9])"
)
_SPACED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?(?![0-9])")
# Whatever touches it; but the full stop of `Rs.45` is no decimal point, and the 2 of `m^2` tells the unit alone.
_DIGITS = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?<![A-Za-z}]\^)(?<![A-Za-z}]\^\{)"
    rf"(?:{_WHOLE}|(?<![0-9A-Za-z])\.[0-9]+)(?![0-9])"
)
_MARKUP = r"(?:[\s&~*$({\[]|\\[$()\[\],;:! ]|\\(?:text|textbf|mathbf|mathrm|boxed)\s?\{|-)*"
_EQUALS = re.compile(rf"(?:=|≈|≃|\\approx|\\equiv)\s?{_MARKUP}\Z")
_SIGN = r"(?:[+*×÷−·∗⁄]|(?<=\s)–(?=\s)|/(?!\s*[A-Za-z])|\\(?:times|cdot|div|pm)(?![A-Za-z]))"  # noqa: RUF001
_OPERATOR_AFTER = re.compile(rf"(?:\s|\\?%|\\[,;! ]|\}}|\))*(?:{_SIGN}|\^|-\s*[0-9\\$(]|x\s*\$?[0-9])")
_OPERATOR_BEFORE = re.compile(rf"(?:{_SIGN}|\^\{{?|[0-9)}}\]%A-Za-z]\s*-|[0-9]\s*x)\s*(?:[\s${{(]|\\[$,! ])*\Z")
_OPERATOR = re.compile(
    rf"(?<=[0-9A-Za-z)}}\]%])\s*(?P<sign>{_SIGN}|(?<=\s)-(?=\s)|-(?=\s*[0-9\\$(]))(?=\s*[-0-9\\$(\[{{.])"
    r"|(?<=[0-9])\s*(?P<cross>x)(?=\s*\$?[0-9])|(?P<over>\\[dt]?frac)(?=\s*\{)"
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{[^{}]*(?:\}\s?\{[^{}]*)?\Z")


@dataclass(frozen=True)
class Number:
    """A number of a text."""

    text: str
    """What it is a number of."""
    start: int
    end: int
    value: str
    """Canonical spelling, without sign (`1000`, `0.5`)."""

    @property
    def is_result(self) -> bool:
        """Whether an equals sign gives it and nothing is calculated with it any more."""
        return bool(_EQUALS.search(self._before)) and not _OPERATOR_AFTER.match(self._after)

    @property
    def is_operand(self) -> bool:
        """Whether an operator stands before or after it, or it is part of a fraction."""
        before = self._before
        return bool(_OPERATOR_AFTER.match(self._after) or _OPERATOR_BEFORE.search(before) or _FRACTION.search(before))

    @property
    def _before(self) -> str:
        return self.text[max(0, self.start - 60) : self.start]

    @property
    def _after(self) -> str:
        return self.text[self.end : self.end + 30]


def find_numbers(text: str) -> list[Number]:
    """The numbers of a text in order; parts of names and exponents (`x2`, `m^2`) are none."""
    return [Number(text, match.start(), match.end(), _value(match[0])) for match in _NUMBER.finditer(text)]


def find_digits(text: str) -> list[Number]:
    r"""As `find_numbers`, with those that a word, a command or a power touches (`Rs45`, `\approx45`, `2^4`)."""
    plain = text.translate(DIGITS)
    return [Number(plain, match.start(), match.end(), _value(match[0])) for match in _DIGITS.finditer(plain)]


def find_spaced(text: str) -> list[Number]:
    """Numbers whose digits are grouped by blanks (`3 400`), which may as well be several numbers."""
    plain = text.translate(DIGITS)
    return [
        Number(plain, match.start(), match.end(), _value(match[0].replace(" ", "")))
        for match in _SPACED.finditer(plain)
    ]


def find_operators(text: str) -> list[tuple[int, int]]:
    r"""Where operators stand between operands (`+`, `-`, `*`, `/`, `x`, `\times`, `\frac`); hyphens are none."""
    return [match.span(match.lastgroup or 0) for match in _OPERATOR.finditer(text)]


def cover(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """`text` with the mask in place of each span; spans that overlap count as one."""
    pieces, done = [], 0
    for start, end in sorted(spans):
        if start >= done:
            pieces += [text[done:start], MASK]
        done = max(done, end)
    return "".join([*pieces, text[done:]])


def _value(digits: str) -> str:
    if digits.isdecimal() and digits[0] != "0":
        return digits
    plain = re.sub(_GROUP, "", digits)
    return normalise(plain) or plain
