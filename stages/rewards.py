"""The hierarchical reward: a right answer first, then an answer line that can be read, then shortness.

Length is counted in the tokens the policy produced, against the tokens of the teacher's solution. The reward knows
nothing about prompts; it sees only what was generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.config import RewardConfig
from ..core.errors import ConfigError
from ..evaluation.answers import extract_answer, same_answer
from .rationale import ANSWER_CUE


def check_reward(config: RewardConfig, where: str) -> None:
    """Refuse a reward whose order is not wrong < unformatted < correct, or that pays for length.

    Raises:
        ConfigError: The levels are out of order, or brevity is negative.
    """
    if not config.wrong < config.unformatted < config.correct or config.brevity < 0:
        raise ConfigError(
            "the reward is not hierarchical",
            where=where,
            expected="wrong < unformatted < correct and brevity >= 0",
            found=f"{config.wrong}, {config.unformatted}, {config.correct} and {config.brevity}",
        )


def brevity(num_tokens: int, teacher_tokens: int) -> float:
    """How short a solution is: 2 ** -(num_tokens / teacher_tokens), in (0, 1], dimensionless.

    Strictly falling and smooth everywhere, so that being shorter pays at any length (a half at the teacher's): a
    piecewise reward has jumps that a word more or less decides, and plateaus on which nothing pulls.
    """
    return float(2.0 ** -(num_tokens / max(teacher_tokens, 1)))


def ends_with_answer(completion: str, gold: str) -> bool:
    """Whether the last line is `Answer: ` and the right answer: nothing may follow it."""
    last = completion.rstrip().rpartition("\n")[2]
    stated = extract_answer(last)
    return last.startswith(ANSWER_CUE) and stated is not None and same_answer(stated, gold)


class HierarchicalReward:
    """A TRL reward function over `RewardConfig`; also logs accuracy, format and length.

    wrong or missing answer: `wrong`; right without ending in an answer line: `unformatted`;
    right with one: `correct + brevity * 2 ** -(tokens / teacher_tokens)`.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.__name__ = "reward"

    def score(self, completion: str, num_tokens: int, gold: str, teacher_tokens: int) -> float:
        """Reward of one completion of `num_tokens` tokens."""
        stated = extract_answer(completion)
        if stated is None or not same_answer(stated, gold):
            return self.config.wrong
        if not ends_with_answer(completion, gold):
            return self.config.unformatted
        return self.config.correct + self.config.brevity * brevity(num_tokens, teacher_tokens)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        gold: Sequence[str],
        teacher_tokens: Sequence[int],
        unaided: Sequence[bool],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Rewards of a batch, in TRL's calling convention; columns are repeated per completion."""
        rewards = [
            self.score(text, len(ids), right, reference)
            for text, ids, right, reference in zip(completions, completion_ids, gold, teacher_tokens, strict=True)
        ]
        if log_metric is not None:
            right = [reward > self.config.wrong for reward in rewards]
            log_metric("accuracy", _mean(right))
            log_metric("formatted", _mean([reward >= self.config.correct for reward in rewards]))
            if alone := [ok for ok, bare in zip(right, unaided, strict=True) if bare]:
                log_metric("accuracy_unaided", _mean(alone))
        return rewards


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
