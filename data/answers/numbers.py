r"""The one number that a short text states, exactly, or that it states none.

A text is read only where it leaves no choice: `$1,800.00`, `18 eggs`, `x = -3`, `9 * 2 = 18`, `3\frac{1}{2}`. What
holds a number and is not one number is refused, not read in part: `18 or 20`, `18-25`, `18 + 99`, `2x + 3`,
`\sqrt{16}`, `10^3`, `5:30`, `2 hours 30 minutes`, `1.5 million`, `(1, 2)`, `at least 18`, `Tom 3, Ann 18`,
`18 is wrong`. Nothing is calculated but a fraction.

Numbers are rationals: no tolerance, no rounding. Every pattern is linear in the text, since rewards run it too.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

MAX_NUMBER_DIGITS = 400
"""A longer run of digits is noise, not an answer."""
NEAR = 120
"""Characters around a number in which what belongs to it is looked for; bounds the time a long line takes."""

_ZEROS = [
    0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0, 0xF20,
    0x1040, 0x1090, 0x17E0, 0x1810, 0xFF10, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6,
]  # fmt: skip
DIGITS = {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
"""Decimal digits of other scripts, full-width and mathematical ones, for `str.translate`; one character each."""

_WIDE = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), "\u202f")  # kept apart: they may group digits
_CURRENCIES = dict.fromkeys(map(ord, "\uff04€£¥₹₱₩₦฿₫₺₽₪"), "$")
_MARKS = {
    0x2044: "/", 0x2215: "/", 0x2236: ":", 0x066A: "%", 0x066B: ".", 0x066C: ",", 0x060C: ";", 0x3001: ";", 0xFF64: ";",
    0x061B: ";", 0x3000: " ", 0x301C: "~", 0xFF5E: "~", 0x2217: "*", 0x22C5: "·", 0x30FB: "·", 0x2248: "=", 0x2245: "=",
    0x2192: "=", 0x21D2: "=", 0x27F9: "=",
}  # fmt: skip
CHARACTERS = _WIDE | DIGITS | _DASHES | _SPACES | _CURRENCIES | _MARKS
"""Other scripts' spellings of what numbers are written with, for `str.translate`; each stays one character."""
_UNSEEN = dict.fromkeys([0xAD, 0x61C, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])

CURRENCY = (
    r"(?:AUD|BDT|BRL|CAD|CHF|CNY|EUR|GBP|GHS|HKD|IDR|INR|JPY|KES|KRW|LKR|MXN|MYR|NGN|NPR|NZD|PHP|PKR|RMB|SGD|THB"
    r"|US|USD|VND|ZAR|Php|RM|Rp|[Rr]s\.?)"
)
"""Pattern of a currency's name as it is written before an amount; `Rs.5` is five."""

_PART = r"(?:\{([^{}\n]*)\}|([0-9]))"
_REWRITTEN: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"<<[^<>\n]*>>"), ""),  # GSM8K's calculator marks
    # What is struck out is not said.
    (
        re.compile(
            r"(?<!\w)~~(?=\S)[^~\n]{1,200}~~|<(s|del|strike)>[^<>\n]{1,200}</\1>|\\(?:[bx]?cancel|sout|phantom)\s?\{[^{}\n]*\}",
            re.IGNORECASE,
        ),
        " ",
    ),
    (re.compile(r"\{,\}|\\,(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<![-=<])(?:-{1,2}|={1,2})>"), "="),  # an arrow
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:approx|Longrightarrow|Rightarrow|rightarrow|to|implies|equiv)(?![A-Za-z])"), "="),
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
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s?\{([^{}\n]*)\}"), r" \1 "),
    (re.compile(r"\\[()\[\];: ,]|\\q?quad(?![A-Za-z])|\\(?:left|right)(?![A-Za-z])"), " "),
    # The exponent of a unit.
    (
        re.compile(r"(?<![A-Za-z\\])((?:[cdkm]?m|ft|in|yd|mi|feet|inch(?:es)?|meters?|yards?|units?)) ?\^\{?[23]\}?"),
        r"\1",
    ),
    (re.compile("(?<=[0-9])\u202f(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile("\u202f"), " "),
    (re.compile(r"(?<![0-9A-Za-z])(?:A|C|HK|NZ|R|S|US)\s?(?=\$)"), ""),
    (re.compile(rf"(?<![0-9A-Za-z]){CURRENCY}\s?(?=-?[.$]?[0-9])"), "$"),
]

# Thousands by threes, and as in India.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+)"
_PLAIN = rf"{_WHOLE}(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+"
_VALUE = (
    rf"(?:(?P<whole>[0-9]{{1,9}}) (?=[0-9]{{1,9}}/[0-9]))?(?P<value>{_PLAIN})"
    rf"(?:\s?/\s?(?P<below>-)?(?P<over>{_PLAIN}))?"
)
# A minus is a sign only where nothing it could subtract from stands before it; `x2` and `^2` are no numbers.
_NUMBER = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])(?P<sign>-))?(?:\$\s?(?P<inner>-)?)?(?<![0-9A-Za-z_^]){_VALUE}")
# At the start of a span markup and a spaced minus may stand before the number.
_LEADING = re.compile(rf"[\s*_\\(\[{{\"'`~:]*(?P<sign>-\s?)?(?:\$\s?){{0,2}}(?P<inner>-)?{_VALUE}")
_DIGIT = re.compile(r"[0-9]")
_EXPRESSION = re.compile(r"(?:[0-9\s.,+\-*/\u00d7\u00f7\u00b7^{}%$()=;]|\\times|\\cdot|\\div|\bof\b|\btimes\b|\bx\b)*")
# With units: `9 eggs x $2`, `36 divided by 2`. Words between two numbers without a sign are prose.
_OPERATOR = r"(?:[-+*/x\u00d7\u00f7\u00b7]|\\times|\\cdot|\\div|times|plus|minus|(?:divided|multiplied)\sby)"
_TERM = rf"[\s$(]*(?:{_PLAIN})[\s%)]*(?:[A-Za-z]+\s+){{0,3}}"
_CALCULATION = re.compile(rf"{_TERM}(?:{_OPERATOR}{_TERM})+")
_SIGN = re.compile(r"[-+*/x\u00d7\u00f7\u00b7^]|\\times|\\cdot")
_GOES_ON = re.compile(r"[\s%)]*(?:[A-Za-z]+\s)?(?:[-+*x\u00d7\u00f7\u00b7^/]|\\times|\\cdot)\s*[$(]?\s*[0-9]")
_TAG = re.compile(r"</?[A-Za-z]{1,12}>")
# Digits behind a blank go on where nothing follows that they could count, or they are zeros (`3 400`, `5 000 g`):
# `5 100 g bags` may be five bags.
_SPACED = re.compile(r"(?<![0-9.,/])[0-9]{1,3}(?:(?: [0-9]{3}){1,4}(?=[\s.*_)\]}$]*\Z)|(?: 000){1,4}(?![0-9]))")
_BAGS = re.compile(r"[0-9]+ [A-Za-z]+ [A-Za-z]+")
_SCALES = (
    r"(?i:dozens?|hundred|thousand|(?:m|b|tr)illion|mil|mn|bn|mio|mrd|tsd|lakhs?|lacs?|crores?"
    r"|tausend|hundert|million\w{1,3}|mill[oó]n(?:es)?|milh(?:ão|ões)|milion[ie]|mille|mila|cento|cien(?:to)?s?|тысяч\w*|тыс|миллион\w*|млн|हज़ार|हजार|लाख|करोड़|ألف|آلاف|مليون)"
)
_WRONG = r"(?:wrong|incorrect|false|impossible)"
_DENIED = (
    rf"(?:is|was|seems|looks|(?:must|would|could)\sbe)\s(?:[a-z]+ly\s|an?\s|the\s)?{_WRONG}"
    r"|(?:(?:is|was)(?:n.t|\snot)|can(?:.t|not)\sbe)\s(?:[a-z]+\s){0,2}?(?:right|correct|true|possible|answer)"
)
_BEHIND = re.compile(
    rf"""
    \s?[kK](?![A-Za-z]) | [MB](?![A-Za-z])                            # $3k, $1.5M
    | [\x00-\x08\x0e-\x1f\x7f-\x9f\u0300-\u036f\u20d0-\u20ff\ufe00-\ufe0f]  # what cannot be seen, or strikes it out
    | \u2030 | [oCP][0-9]                                               # 18\u2030, 0o22, 18C2
    | [eE][-+]?[0-9] | [.,'_][0-9] | \.[\\(] | [\u00b2\u00b3\u00b9\u2070-\u207f]   # 1e3, 1.2.3, 1,5, 5'6, 0.(3)
    | ,?\s?[-+]?(?:\\infty|∞) | \((?:[^()\s]{{0,9}}\s?[-+*/]|[a-z]\))           # (2,\infty), 3(x+1)
    | [abinxyz](?![A-Za-z]) | [abnxyz][0-9(^]                         # 2x, 3i
    | (?:%|\s?per\s?cent)\sof\s(?:the\s)?\$?[0-9]          # 10% of 180
    | \s?(?:remainder|[Rr]\.?)\s?[0-9] | _\{{?[0-9] | \sbase\s[0-9]   # 18 R 2, 12_{16}
    | (?:\s[A-Za-z]{{1,20}})?\sand\s(?:an?|one|two|three)[\s-](?:half|third|quarter|fourth|fifth|eighth)s?\b
    | (?:\s[A-Za-z]{{1,20}})?\s?(?:\bor|\bto|\band|[-+/~])[\s.]*\Z
    | (?:\s[A-Za-z]{{1,20}})?,?\s(?:(?:or|and)\s(?:more|less|fewer|above|below|over|under|up|higher|lower)
        |at\s(?:least|most))\b
    | [\s*_$`"'\u2019)}}\]]{{0,6}}(?i:[-,.;:!?(]\s{{0,2}}(?:no|{_WRONG})\s?(?:[.,;!)]|\Z)  # 18, wrong
        |(?:[,.;(]\s{{0,2}}(?:that|this|it|which)\s)?(?:{_DENIED})\b)
    | [\s)}}\]$`_]{{0,4}}(?:
        -?(?:{_SCALES})(?![\w-]) | [百千万萬億亿십백천만억]             # 1.5 million
        | \^ | \*\*\s?[0-9(] | [√π±×÷] | \\(?:sqrt|pi|pm|times|cdot|div|log|ln|sin|cos|tan|over|choose|overline|bmod)
        | [-+*/]\s?[$(]?[0-9.]{{0,9}}(?:[bnxyz](?![A-Za-z])|\\[a-z]|[√π])   # 3 + x
        | (?<=\s)(?:squared|cubed|factorial)\b(?!\s(?:feet|inches|[cdk]?m\b|(?:kilo|centi)?met|miles|yards|units))
        | (?<=\s)(?:raised\s)?to\sthe\s(?:power|[0-9a-z]{{1,9}}\spower)\b
    )""",
    re.VERBOSE,
)
"""What makes the number before it a part of something else."""
_AHEAD = re.compile(
    r"""(?:
    [√∛π±∓≤≥≠] | (?<![-=<>])[<>]=? | !=
    | \\(?:sqrt(?:\[[0-9]*\])?|pi|pm|mp|log|ln|exp|sin|cos|tan|binom|overline|[lg](?:e|eq|t)|neq?)
    | (?<![A-Za-z])(?:(?:square|cube)\sroot\sof|sqrt|log|ln|half|twice|thrice|double|triple)(?:\sof)?
    | (?<![A-Za-z])(?:half|thirds?|quarters?|fifths?)\sof(?:\sthe)?
    | (?<![A-Za-z])(?:not|never|isn.t|except|anything\sbut|minus|negative)
    | (?<![A-Za-z])(?:(?:more|less|fewer|greater|larger|smaller)\sthan|at\s(?:least|most)|over|under|above|below)
    | (?<![A-Za-z])(?:mindestens|höchstens|mehr\sals|weniger\sals|au\s(?:moins|plus)|al\smenos) | 至少|最多|不超过
    | (?<!dd\s)(?<!s\s)(?<![A-Za-z])up\sto                   # but `adds up to`
    | [0-9A-Za-z)}]\s?\^ | [\w)}%]\s?\+ | [A-Za-z)}]\s?(?:[/×÷·]|\\times|\\cdot|\\div) | [bnxyz)}]\s?\* | [A-Za-z]\s\*\s
    | (?<![A-Za-z\\])[0-9]{0,9}[bnxyz]\s?-
    )[\s${(\[|]{0,6}\Z""",
    re.VERBOSE | re.IGNORECASE,
)
"""What makes the number behind it a part of something else."""

_WORD = r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)?\.?"
_WORDS = rf"(?:[%\u00b0]\s?)?(?:{_WORD}(?:\s{_WORD}){{0,2}}\s?)?"
_EITHER = (
    r"or|nor|oder|bzw\.?|ou|o|ó|oppure|u|eller|lub|albo|nebo|vagy|sau|veya|ya\sda|atau|hoặc|или|або|또는|혹은|या|أو"
)
_AND = r"and(?:\s?/\s?or)?|und|et|y|e|и|та|i|en|och|og|ja|és|și|ve|dan|và|와|과|और|و|as\swell\sas"
_RANGE = r"to|through|thru|until|till|up\sto|bis|à|a|al|hasta|até|до|에서|से|إلى|tot|do|til|till|hingga"
_MAYBE = (
    r"maybe|perhaps|possibly|probably|even|also|else|then|about|around|approximately|roughly|alternatively|just|only"
    r"|it(?:'s|\sis)|(?:it\s)?(?:could|might|may)(?:\salso)?\sbe|vielleicht|quizás|peut-être|forse|talvez|возможно|可能|也许"
)
_BY_WORD = (
    r"x|plus|minus|times|over|mod|versus|vs\.?|cdot|div|pm|mp|mid|sim|[lc]?dots|choose|lor|vee|land|wedge"
    r"|(?:divided|multiplied)\sby|added\sto|to\sthe\spower\sof"
)
_BY_SIGN = r"\+\s?/\s?-|[<>\u2264\u2265\u2260]=?|!=|[-+*/\u00d7\u00f7\u00b7^~|&\u00b1\u2213:@]|\.\.+|\u2026"
_BY_SIGN += r"|或者?|或是|または|もしくは|か|หรือ|או|至|到|から|和|与|及|と"
_JOINS = re.compile(
    rf"{_WORDS}[,;(/]?\s?(?:(?<!\w)(?:{_EITHER}|{_AND}|{_RANGE}|{_BY_WORD}|{_MAYBE})|{_BY_SIGN})"
    rf"(?:[\s,]+(?:{_MAYBE}|the|a|at))*[\s:(,]*"
    rf"|{_WORDS}[.?!]*\s?(?:{_MAYBE})[\s,:.]*|[,;/|.?!]+",
    re.IGNORECASE,
)
"""All that stands between two numbers of which neither is stated alone: `or`, `eggs - `, `, maybe`, `,`."""
_OR = re.compile(
    r"(?<!\w)(?:or|oder|ou|oppure|или|或|或者|または|또는|أو|या)(?!\w)(?!\s(?:more|less|fewer|so|later|above|below|older)\b)"
    rf"(?:,[^0-9=.\n]{{0,40}}|[\s,:(*$\\]*(?:(?:{_MAYBE}|[A-Za-z]\s?=)[\s,:*$\\]*){{0,3}})(?P<other>[-$]{{0,2}}[0-9])",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?:h|hours?|hrs?|minutes?|mins?|s|seconds?|secs?|days?|weeks?|months?|years?|feet|foot|ft|inch(?:es)?|yards?|miles?"
    r"|[ckm]?m|met(?:er|re)s?|pounds?|lbs?|ounces?|oz|dollars?|cents?|quarters?|dimes?|nickels?|gallons?|quarts?|pints?|cups?"
    r"|k?g|degrees?|°|'|\u2032|stunden?|minuten|heures?|horas?|minutos?|ore|minuti|часа?|часов|минут|小时|小時|时|時|時間|分|分钟|分鐘"
    r"|元|角|시간|분|घंटे|मिनट|ساعة|ساعات|دقيقة)\.?,?",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    rf"{_WORDS}[-,;:/.!?\s]*(?:no|wait|actually|sorry|rather|correction|oops|i\smeant?|(?:scratch|strike|make)\sthat)\b"
    r"[^0-9]{0,20}",
    re.IGNORECASE,
)
_OTHERWISE = re.compile(rf"{_WORDS}[,(]?\s?(?<!\w)(?:{_EITHER})", re.IGNORECASE)
_SAME_UNIT = re.compile(rf"(?P<unit>{_WORD})\s?[,;]")
_REMARK = re.compile(r"[0-9][0-9.,]*%?\s(?:more|less|fewer|left|of|per|each|in|for|from|times|percent)\b")
_NAME = r"[A-Za-z][A-Za-z0-9_{}]{0,9}"
_NAMED = re.compile(
    rf"(?:\A|[,;({{\s]){_NAME}\s?=\s?[-$]?[0-9][0-9.,]{{0,20}}\s?(?:[,;]|and\b|or\b)\s?(?:and\s|or\s)?{_NAME}\s?\Z"
)
_UNSOLVED = re.compile(
    r"(?<![A-Za-z\\])(?:[0-9]{1,9}[a-z]|[0-9]{0,9}[bnxyz]\s?[-+*/^\u00b2\u00b3])(?![A-Za-z])|[-+*/]\s?[0-9]{0,9}[bnxyz](?![A-Za-z])"
    r"|\\sqrt|\u221a|[|!]\s?\Z"
)
_FIGURE = r"\$?[0-9](?:[0-9.,/]*[0-9])?%?"
_ITEM = (
    r"(?!(?:i[nf]|on|at|by|after|before|for|of|since|from|with|so|step|day|total|altogether|answer)\b)"
    rf"{_WORD}VERB(?:\s?[:=])?\s?{_FIGURE}(?:\s{_WORD})?"
    r"(?:[,;]\s(?:(?:and|but)\s)?|\s(?:and|but)\s|\s(?=[a-z]=)|[\s.*)}]*\Z)"
)
_THINGS = rf"{_FIGURE}(?:\s{_WORD}){{1,2}}"
_LISTED = re.compile(
    rf"[\s*#({{]*(?:{_ITEM.replace('VERB', '(?P<verb>(?: [a-z]+)?)')}(?:{_ITEM.replace('VERB', '(?P=verb)')})+"
    rf"|{_THINGS}(?:[,;]\s(?:and\s)?(?!{_REMARK.pattern}){_THINGS})+)[\s.*)}}]*",
    re.IGNORECASE,
)
"""The same said of several: `Tom 3, Ann 18`, `x=3 y=18`, `Tom has 3 and Ann has 18`; `18 apples, 5 pears`."""
_SENTENCES = re.compile(r"[,;]\s|(?<![A-Z][a-z])\.\s")
_CLAUSES = re.compile(r"[,;=]\s|[.:]\s|=|\b(?:so|then|thus|hence|therefore)\b")
_MARKUP = re.compile(r"\*\*|__|\\(?:boxed|fbox)|[\s$`{}\\\"\[\]]+")
_FOLLOWING = re.compile(
    r"[\s,.;:*]*(?:(?:or|alternatively|maybe|perhaps|possibly|otherwise|no|wait|actually|sorry|correction)\b[^0-9\n=]{0,60}?"
    r"|and\s)[-$]*(?P<other>[0-9])(?![0-9.,]*\s?(?:[A-Za-z]+\s)?[-+*/=x\u00d7])",
    re.IGNORECASE,
)
_PRECEDING = re.compile(
    r"(?P<other>[0-9][0-9.,]*)[^0-9.=]{0,40}\b(?:or|oder|ou|или|或)\b[^0-9.]{0,40}\Z", re.IGNORECASE
)
_SHARE = re.compile(r"\sof\s(?:the\s)?\$?[0-9]")
_MINUS = re.compile(r"(?:=|\A|[({\[$:])\s*-\s*\Z")
_AMOUNT = re.compile(rf"(?P<sign>-)?\$?(?P<inner>-)?{_VALUE}")
_ENDS = re.compile(r"(?P<number>[0-9][0-9.,/]*)(?P<gap>[^0-9]*)\Z")


class Reading(NamedTuple):
    """What a short text states."""

    value: Fraction | None
    """The number, where it is one."""
    refused: bool = False
    """Whether there are numbers that do not come to one."""


NOTHING, REFUSED = Reading(None), Reading(None, refused=True)


def clean(text: str) -> str:
    """`text` with numbers, signs and LaTeX spelt in one way; what cannot be seen is left out."""
    text = text.translate(CHARACTERS).translate(_UNSEEN)
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def read_number(span: str) -> Reading:
    """The number that a short cleaned text states: what its `=` gives, the number it starts with, or its last."""
    span = _SPACED.sub(lambda grouped: grouped[0].replace(" ", ""), _TAG.sub(" ", span))
    clauses = [clause for clause in _SENTENCES.split(span) if clause.strip(" .")]
    if _lists(span):
        return REFUSED
    if len(clauses) > 1 and all("=" in clause for clause in clauses) and not _NAMED.search(span.rpartition("=")[0]):
        return read_number(clauses[-1])  # `16 - 7 = 9; 9 * 2 = 18`
    head, equals, tail = span.rpartition("=")
    if head[-1:] in ("<", ">", "!"):  # `>= 18` is a bound
        return REFUSED
    leading = _LEADING.match(span)
    given = equals and (leading is None or _EXPRESSION.fullmatch(head) or _CALCULATION.fullmatch(head))
    result = _LEADING.match(tail) if given else None
    if result and leading and not _SIGN.search(head, leading.end()):
        if _GOES_ON.match(tail, result.end()):  # `18 = 9 * 2` says how
            result = None
        elif not (
            _DIGIT.search(head, leading.end())
            or _is_same(_value(leading), _value(result))
            or (leading["over"] and _is_rounded(_value(leading), _value(result)))
        ):
            return REFUSED  # `18 = 20`
    if result and (_NAMED.search(head) or _UNSOLVED.search(_CLAUSES.split(head)[-1]) or not _is_worked(head)):
        return REFUSED  # `x = 4, y = 5`, `x + 3 = 7`, `18, 20 = 20`
    if result and leading and _value(leading) == _value(result) is not None:
        reading = Reading(_value(result))  # `18 (9 * 2 = 18, 7 left)`
    elif result or leading:
        reading = _alone(tail, result, leads=True) if result else _alone(span, leading, leads=True)
    else:
        reading = read_last(span)
    return REFUSED if reading.value is not None and _offers_other(span, reading.value) else reading


def read_last(text: str) -> Reading:
    """The last number of a cleaned text, unless it is a part of something else on its line."""
    last = None
    for found in _NUMBER.finditer(text):
        if _value(found) is not None:
            last = found
    if last is None:
        return NOTHING
    line = text[max(0, last.start() - NEAR) : last.end() + NEAR]
    line = line[line.rfind("\n", 0, min(NEAR, last.start())) + 1 :].partition("\n")[0]
    return REFUSED if _lists(line) else _alone(text, last)


def is_contested(value: Fraction, before: str, after: str) -> bool:
    """Whether the text around a statement offers another number: `18 or Answer: 20`, or a next line `or 20`.

    Args:
        value: What the statement says.
        before: Cleaned text before its cue.
        after: Cleaned text after its line.
    """
    preceding = _PRECEDING.search(before[-NEAR:])
    following = _FOLLOWING.match(after[:NEAR])
    return any(
        found is not None and _other(found.string, found.start("other")) != value for found in (preceding, following)
    )


def is_operand(value: Fraction, before: str, after: str) -> bool:
    """Whether what stands around a box makes the number in it a part of something else, as `2 +` does.

    Args:
        value: What the box holds.
        before: Cleaned text before it.
        after: Cleaned text after it.
    """
    before, after = before[-NEAR:].rpartition("\n")[2], after[:NEAR].partition("\n")[0]
    if _BEHIND.match(after) or _AHEAD.search(before) or _MINUS.search(before):
        return True
    follows, precedes = _DIGIT.search(after), _ENDS.search(before)
    if follows and _joined(
        after[: follows.start()], value, _other(after, follows.start()), after[follows.start() :], leads=True
    ):
        return True
    gap = precedes["gap"] if precedes else " "
    apart = _MARKUP.sub(" ", gap).strip() in ("", ",", ";", ".") and gap != "" and "}" not in gap
    return not apart and _joined(gap, value, None, "", leads=False)


def spell(value: Fraction) -> str:
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


def _value(match: re.Match[str]) -> Fraction | None:
    parts = [part.replace(",", "") for part in (match["value"], match["over"]) if part]
    if any(len(part) > MAX_NUMBER_DIGITS for part in parts):
        return None
    value = Fraction(parts[0])
    if len(parts) == 2:
        over = Fraction(parts[1])
        if over == 0:
            return None
        value /= -over if match["below"] else over
    if match["whole"]:  # `1 1/2`; of `3 4/2` the first number counts
        value = Fraction(match["whole"]) + (value if value < 1 else 0)
    return -value if match["sign"] or match["inner"] else value


def _alone(text: str, match: re.Match[str] | None, *, leads: bool = False) -> Reading:
    """A number of a text, unless what stands beside it makes it a part of something else."""
    value = _value(match) if match else None
    if match is None or value is None:
        return NOTHING
    before = text[max(0, match.start() - NEAR) : match.start()].rpartition("\n")[2]
    after = text[match.end() : match.end() + NEAR].partition("\n")[0]
    if match["over"] and _SHARE.match(after):  # 3/4 of 24
        return REFUSED
    if _BEHIND.match(after) or (not leads and _AHEAD.search(before)):
        return REFUSED
    follows = _DIGIT.search(after)
    if follows and _joined(
        after[: follows.start()], value, _other(after, follows.start()), after[follows.start() :], leads=leads
    ):
        return REFUSED
    precedes = None if leads else _ENDS.search(before)
    if precedes and _joined(
        precedes["gap"], value, _other(precedes["number"], 0), text[match.start() : match.end() + NEAR], leads=False
    ):
        return REFUSED
    return Reading(value)


def _joined(gap: str, value: Fraction, other: Fraction | None, follows: str, *, leads: bool) -> bool:
    """Whether two numbers with nothing but `gap` between them are one statement, so that neither is one.

    Args:
        gap: Between them.
        value: Of the one that is read.
        other: Of the other one.
        follows: From the second number on.
        leads: Whether the first one begins its text.
    """
    bare = _MARKUP.sub(" ", gap).strip()
    if not bare:
        return not _BAGS.match(follows)
    if not leads and bare in (":", ".") and gap[-1:].isspace():  # `Day 2: 18`, `2. 18`
        return False
    if bare == "(":
        closed = re.match(r"[0-9][0-9.,/]*\s?\)", follows)
        return bool(closed) and other != value
    if gap[-1].isascii() and gap[-1].isalpha() and not _UNIT.fullmatch(bare) and bare[-1] not in "xX":
        return False  # a name, `group A5`
    if bare == "," and _REMARK.match(follows):
        return False  # `18, 2 more than before`
    if other == value and _OTHERWISE.fullmatch(bare):
        return False  # `3/4 or 0.75`
    if leads and _TAKEN_BACK.fullmatch(bare):
        return True  # `17, no, 18`
    same = _SAME_UNIT.fullmatch(bare)
    if same and re.match(rf"[0-9.,$]+\s?{re.escape(same['unit'])}\b", follows):
        return True
    return bool(_JOINS.fullmatch(bare) or _UNIT.fullmatch(bare))


def _offers_other(span: str, value: Fraction) -> bool:
    """Whether a text says `or` another number."""
    for found in _OR.finditer(span):
        precedes = _ENDS.search(span[max(0, found.start() - 60) : found.start()])
        if _other(span, found.start("other")) != value:
            return True
        if precedes and not set("=.") & set(precedes["gap"]) and _other(precedes["number"], 0) != value:
            return True
    return False


def _other(text: str, start: int) -> Fraction | None:
    found = _AMOUNT.match(text, start)
    return _value(found) if found else None


def _lists(text: str) -> bool:
    """Whether a text is nothing but one number after another, each of something else."""
    values = {_value(found) for found in _NUMBER.finditer(text)}
    return len(values) > 1 and _LISTED.fullmatch(" ".join(text.split())) is not None


def _is_same(one: Fraction | None, other: Fraction | None) -> bool:
    """Whether two numbers are the same, also as a share and in per cent."""
    return one is not None and other is not None and (one == other or one == 100 * other or other == 100 * one)


def _is_rounded(exact: Fraction | None, result: Fraction | None) -> bool:
    """Whether a decimal is another number rounded up or down to its last place, `10/3 = 3.33`."""
    if exact is None or result is None or 0 in (exact, result):
        return False
    places = len(spell(result).partition(".")[2])
    return abs(exact - result) < Fraction(1, 10**places)


def _is_worked(text: str) -> bool:
    """Whether each of several clauses of numbers but the last is an equation."""
    clauses = re.split(r"[;,]\s", text)[:-1]
    return all("=" in clause or not re.fullmatch(r"[-$\s]*[0-9.,]+\s?", clause) for clause in clauses)
