"""The hierarchical reward: a right answer first, then an answer line that can be read, then shortness.

Length is counted in the tokens the policy produced, against the tokens of the teacher's solution; labels such as
`Step 1:` are tokens like any other. Two other modes are there to be compared with: the paper's formulas, and right or
wrong alone. The reward knows nothing about prompts; it sees only what was generated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from ...core.config import RewardConfig
from ...core.errors import ConfigError
from ...data.answers.reader import extract_answer, same_answer
from ...data.rationale.parse import ANSWER_CUE
from . import paper as paper_reward

LEVELS = ("wrong", "unformatted", "correct")
"""What a completion can be, the worst first: not right; right but out of form; right and in form."""

_FIXED = {
    "paper": paper_reward.LEVELS,
    "binary": {"wrong": 0.0, "unformatted": 1.0, "correct": 1.0, "brevity": 0.0},
}
"""Values that a mode brings with it."""
MODES = ("continuous", *_FIXED)


def check_reward(config: RewardConfig, where: str) -> None:
    """Refuse an unknown mode, values that its mode would not use, and an order that is none.

    Raises:
        ConfigError: No such mode; a value beside `paper` or `binary` that means nothing there; or, in `continuous`,
            levels that are not wrong < unformatted < correct, or a negative brevity, or a value that is not finite.
    """
    if config.mode not in MODES:
        raise ConfigError(
            "no such reward mode", where=f"{where}.reward.mode", found=config.mode, expected=", ".join(MODES)
        )
    if fixed := _FIXED.get(config.mode):
        for name, default in vars(RewardConfig()).items():
            value = getattr(config, name)
            if name != "mode" and value not in (default, fixed.get(name, default)):
                raise ConfigError(
                    f"reward.{name} means nothing where reward.mode is {config.mode}",
                    where=f"{where}.reward.{name}",
                    found=value,
                    next_step=f"leave {name} out (its default is {default}), or set reward.mode to continuous",
                )
    elif not -math.inf < config.wrong < config.unformatted < config.correct < math.inf or not (
        0 <= config.brevity < math.inf
    ):
        raise ConfigError(
            "the reward is not hierarchical",
            where=where,
            expected="finite wrong < unformatted < correct and brevity >= 0",
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
    return last.startswith(ANSWER_CUE) and same_answer(extract_answer(last), gold)


class HierarchicalReward:
    """A TRL reward function over `RewardConfig`; also logs accuracy, format and the reward's components.

    wrong or missing answer: `wrong`; right without ending in an answer line: `unformatted`;
    right with one: `correct + brevity * 2 ** -(tokens / teacher_tokens)`.
    """

    def __init__(self, config: RewardConfig, task: str = "complete") -> None:
        """A reward for rows of `task` (`complete` or `rewrite`), which the paper's formulas depend on."""
        self.config = config
        self.task = task
        self.floors: dict[str, float] = {level: _FIXED.get(config.mode, vars(config))[level] for level in LEVELS}
        self.__name__ = "reward"

    def level(self, completion: str, gold: str) -> str:
        """Which of `LEVELS` a completion reaches."""
        is_paper = self.config.mode == "paper"
        if not same_answer(
            extract_answer(paper_reward.judged(completion, self.task) if is_paper else completion), gold
        ):
            return "wrong"
        if is_paper:
            formatted = paper_reward.is_formatted(paper_reward.until_answer(completion, self.task), self.task)
        else:
            formatted = ends_with_answer(completion, gold)
        return "correct" if formatted else "unformatted"

    def score(
        self,
        completion: str,
        num_tokens: int,
        gold: str,
        teacher_tokens: int,
        teacher_words: int = 0,
        teacher_steps: int = 0,
    ) -> float:
        """Reward of one completion of `num_tokens` tokens; the teacher's words and steps count in mode `paper` only."""
        level = self.level(completion, gold)
        shortness = 0.0
        if level == "correct" and self.config.mode == "continuous":
            shortness = self.config.brevity * brevity(num_tokens, teacher_tokens)
        elif level == "correct" and self.config.mode == "paper":
            completion = paper_reward.until_answer(completion, self.task)
            words = len(completion.split())
            if self.task == "rewrite":
                shortness = paper_reward.rewrite_bonus(words, teacher_words)
            else:
                steps = paper_reward.count_labels(completion)
                shortness = paper_reward.completion_bonus(words, steps, teacher_steps)
        return self.floors[level] + shortness

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        gold: Sequence[str],
        teacher_tokens: Sequence[int],
        unaided: Sequence[bool],
        teacher_words: Sequence[int] | None = None,
        teacher_steps: Sequence[int] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Rewards of a batch, in TRL's calling convention; columns are repeated per completion."""
        lengths = [len(ids) for ids in completion_ids]
        none = [0] * len(lengths)
        columns = (completions, lengths, gold, teacher_tokens, teacher_words or none, teacher_steps or none)
        rewards = [self.score(*row) for row in zip(*columns, strict=True)]
        if log_metric is not None:
            levels = [self.level(text, right) for text, right in zip(completions, gold, strict=True)]
            right = [level != "wrong" for level in levels]
            log_metric("accuracy", fmean(right))
            log_metric("formatted", fmean([level == "correct" for level in levels]))
            if alone := [ok for ok, bare in zip(right, unaided, strict=True) if bare]:
                log_metric("accuracy_unaided", fmean(alone))
            for name in LEVELS:  # with the shortness below they add up to the reward
                log_metric(f"reward/share_{name}", fmean([level == name for level in levels]))
            floors = [self.floors[level] for level in levels]
            log_metric("reward/brevity", fmean([a - b for a, b in zip(rewards, floors, strict=True)]))
        return rewards
