"""Which grader a score was read with: scores of different graders are not of one scale.

The digest is of behaviour, not of source: it changes when a text of the battery is read otherwise, so a comment or a
faster pattern leaves scores comparable. A change that the battery does not notice has to raise the version.
"""

# ruff: noqa: RUF001

from __future__ import annotations

from functools import cache

from ..core.disk.digest import digest_json, short
from ..data.answers.reader import extract, same_answer

GRADER_VERSION = 3
"""Of the rules in `answers`. 1 read the number that a statement began with, whatever followed it; 2 read bounds, what
is called wrong or struck out and one of the numbers of several things, and refused `10/3 = 3.33`."""

BATTERY = (
    "Answer: 18",
    "Step 1: 9 * 2 = 18\nAnswer: $1,800.00 a day",
    "9 * 2 = 18\n#### 18",
    "So \\boxed{\\frac{3}{4}}.",
    "The answer is 18 dollars, since 9 * 2 = 18.",
    "She makes 18 in 5 days",
    "<think>Answer: 17</think>\nShe has 18.",
    "Answer: 18 or 20",
    "Answer: 18\nor 20",
    "Answer: 18-25",
    "Answer: 18 + 99",
    "Answer: 5:30 pm",
    "Answer: 2 hours 30 minutes",
    "Answer: 1.5 million",
    "Answer: 100 000",
    "Answer: 1,23,456",
    "\\boxed{2x + 3}",
    "\\boxed{\\sqrt{16}}",
    "\\boxed{10^3}",
    "\\boxed{(1, 2)}",
    "\\boxed{18} or \\boxed{20}",
    "Answer: 17, no.\nAnswer: 18",
    "Answer: 18\n\nQuestion: Tom has 5.\nAnswer: 5",
    "#### 18\n\nTom has 3 apples and buys 4 more. How many?\n3+4=7\n#### 7",
    "Answer: 18\nuser\nTom has 5.\nassistant\nAnswer: 5",
    "She makes 18.<end_of_turn>\n<start_of_turn>user\nTom has 3",
    "Die Antwort ist 18. Das sind 3 am Tag.",
    "答案：１８。她有7天。",
    "الجواب: ١٨",
    "Answer: eighteen",
    "Answer: 36 / 2",
    "Answer: 16 - 3 - 4 = 9; 9 * 2 = 18",
    "Answer: 1.5 Million",
    "Answer: 18 R 2",
    "Answer: 17, I mean 18",
    "Answer: minus 18",
    "Answer: >= 18",
    "Answer: at least 18",
    "Answer: 18 or more",
    "Answer: 18 is wrong",
    "Answer: ~~17~~ 18",
    "Answer: Tom 3, Ann 18",
    "18 apples, 5 pears",
    "Answer: 10/3 = 3.33",
    "Antwort: 18 Mio.",
)
"""Texts whose reading tells graders apart."""
_PAIRS = (("0.75", "3/4"), ("18.00", "18"), ("18%", "18"), ("0.3333", "1/3"), ("18", "18 or 20"))


@cache
def grader() -> str:
    """Version and digest of how completions are read and compared: `2:0123456789ab`."""
    read = [[found.value, found.method] for found in map(extract, BATTERY)]
    return f"{GRADER_VERSION}:{short(digest_json([GRADER_VERSION, read, [same_answer(*pair) for pair in _PAIRS]]))}"
