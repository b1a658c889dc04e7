"""A problem to be solved and its gold answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with a known answer."""

    id: str
    """Unique within the set, e.g. `test-17`."""
    question: str
    """Question as the model sees it, without any prompt around it."""
    gold: str
    """Right answer; any spelling that `answers.same_answer` reads (`1,000`, `-3`, `18.00`)."""
