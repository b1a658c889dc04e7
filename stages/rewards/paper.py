"""The paper's reward for shortness, in words and `Step k:` labels, kept as it is to be compared with.

Its faults stay in: jumps where the word budget ends, and labels that pay without content. Only the answer is read
by plyfold's own extraction, since the original's scores right answers as wrong.

Source: arXiv:2602.17686 and its published training code.
"""

from __future__ import annotations

import re

LEVELS = {"wrong": -2.0, "unformatted": -1.0, "correct": 1.0}
"""Reward before shortness; unformatted lacks an answer line or any `Step k:`."""

WORDS_PER_STEP = 35
"""Words of a teacher's step that are free of charge."""
STEP_BONUS = 0.3
MAX_STEPS_SAVED = 3

_LABEL = re.compile(r"Step \d+:")
_FIRST_ANSWER = {
    "complete": re.compile(r"answer:\s*[^\n]*?\d.*?(?=\n|answer:|\Z)", re.IGNORECASE),
    "rewrite": re.compile(r"answer:\s*\$?[\d,]+(?:\.\d+)?", re.IGNORECASE),
}
_REST = re.compile(r"[^\n]*(?:\s*(?:or|and|maybe|perhaps|possibly|alternatively|otherwise)\b[^\n]*)?", re.IGNORECASE)


def count_labels(text: str) -> int:
    """How often `Step k:` stands in a text."""
    return len(_LABEL.findall(text))


def until_answer(text: str, task: str) -> str:
    """A completion up to the end of its first answer, all that the original judges: its line, or the number alone."""
    first = _FIRST_ANSWER[task].search(text)
    return text[: first.end()].strip() if first else text


def judged(text: str, task: str) -> str:
    """A completion up to the end of the line of its first answer, and one that goes on to offer another: `or 20`.

    The original reads the number of `Answer: 18 or 20` alone, and pays for either.
    """
    first = _FIRST_ANSWER[task].search(text)
    return text[: _REST.match(text, first.end()).end()].strip() if first else text  # type: ignore[union-attr]


def is_formatted(text: str, task: str) -> bool:
    """Whether it has a `Step k:` and an `Answer:`, in whose place a box will do for `complete`."""
    return count_labels(text) > 0 and ("Answer:" in text or (task == "complete" and "\\boxed{" in text))


def completion_bonus(words: int, steps: int, teacher_steps: int) -> float:
    """What stage 2 (`complete`) adds to a right, well-formed solution.

    0.3 * min(steps saved, 3) + t, with the budget B = 35 * teacher_steps words:
    t = max(-0.01 * (words - B), -1) above B; -0.002 * (words - 0.8 B) from 0.8 B to B;
    min(0.001 * (0.8 B - words), 0.2) up to 0.8 B. One word past B pays: t rises from -0.0004 B to -0.01.

    Args:
        words: Of the completion, split at white space.
        steps: `Step k:` labels of the completion; more of them than the teacher's save none and cost none.
        teacher_steps: Steps of the teacher's solution.
    """
    saved = min(max(teacher_steps - steps, 0), MAX_STEPS_SAVED)
    budget, free = WORDS_PER_STEP * teacher_steps, 0.8 * WORDS_PER_STEP * teacher_steps
    if words > budget:
        shortness = max(-0.01 * (words - budget), -1.0)
    elif words > free:
        shortness = -0.002 * (words - free)
    else:
        shortness = min(0.001 * (free - words), 0.2)
    return STEP_BONUS * saved + shortness


def rewrite_bonus(words: int, teacher_words: int) -> float:
    """What stage 3 (`rewrite`) adds to a right, well-formed solution.

    With q = words / teacher_words: -0.5 * min(q - 1, 1) above 1; 0 from 0.8 to 1; 0.5 * (0.8 - q) / 0.3 from 0.5
    to 0.8; 0.5 + 0.3 * min((0.5 - q) / 0.3, 1) up to 0.5. Continuous, with a plateau. The teacher's words are those
    of its text as it was written, thoughts included.
    """
    ratio = words / max(teacher_words, 1)
    if ratio > 1.0:
        return -0.5 * min(ratio - 1.0, 1.0)
    if ratio > 0.8:
        return 0.0
    if ratio > 0.5:
        return 0.5 * (0.8 - ratio) / 0.3
    return 0.5 + 0.3 * min((0.5 - ratio) / 0.3, 1.0)
