"""The reward's order: right before formatted before short, without jumps in length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plyfold.core.config import RewardConfig
from plyfold.core.errors import ConfigError
from plyfold.stages.rewards import HierarchicalReward, brevity, check_reward

CONFIG = RewardConfig(wrong=-1.0, unformatted=0.0, correct=1.0, brevity=0.5)
REWARD = HierarchicalReward(CONFIG)
tokens = st.integers(1, 2000)


@given(tokens, tokens, tokens, tokens)
def test_correctness_outranks_format_outranks_length(wrong: int, bare: int, right: int, teacher: int) -> None:
    scores = (
        REWARD.score("Step 1: x\nAnswer: 17", wrong, "18", teacher),
        REWARD.score("it is 18", bare, "18", teacher),
        REWARD.score("Step 1: x\nAnswer: 18", right, "18", teacher),
    )
    assert scores[0] == -1.0
    assert scores[1] == 0.0
    assert 1.0 <= scores[2] <= 1.5
    assert list(scores) == sorted(scores)


@given(tokens, tokens)
def test_every_token_less_pays_and_none_pays_a_jump(num_tokens: int, teacher: int) -> None:
    shorter, longer = brevity(num_tokens, teacher), brevity(num_tokens + 1, teacher)
    assert shorter > longer or shorter < 1e-300
    assert shorter - longer <= 0.7 / teacher  # |d 2^-q / dq| <= ln 2


def test_half_at_the_teachers_length() -> None:
    assert brevity(120, 120) == 0.5
    assert REWARD.score("Answer: 18", 120, "18", 120) == 1.25


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        ("", "18", -1.0),
        ("no number at all", "18", -1.0),
        ("Answer: $1,800.00", "1800", "full"),
        ("Answer: -3", "-3", "full"),
        ("Answer: 3", "-3", -1.0),
        ("Answer: 18\nAnswer: 19", "18", -1.0),
        ("Answer: 18\nand so on", "18", 0.0),  # nothing may follow the answer line
        ("so \\boxed{18}", "18", 0.0),
        ("The answer is 18.", "18", 0.0),
        ("Step 1: 9+9=18\nAnswer: 18\n", "18", "full"),
    ],
)
def test_levels(completion: str, gold: str, reward: float | str) -> None:
    score = REWARD.score(completion, 10, gold, 20)
    assert score == (1 + 0.5 * 2**-0.5 if reward == "full" else reward)


def test_labels_without_content_buy_nothing() -> None:
    few, many = "Step 1: 9+9=18\nAnswer: 18", "Step 1: 9+9\nStep 2: =18\nAnswer: 18"
    assert REWARD.score(few, 30, "18", 60) == REWARD.score(many, 30, "18", 60)


def test_a_batch_is_scored_row_by_row_from_generated_tokens() -> None:
    logged: dict[str, float] = {}
    rewards = REWARD(
        prompts=["Answer: 18"] * 3,  # never read
        completions=["Answer: 18", "Answer: 5", "18"],
        completion_ids=[[1] * 10, [1] * 99, [1]],
        gold=["18", "18", "18"],
        teacher_tokens=[10, 10, 10],
        unaided=[True, True, False],
        log_metric=logged.__setitem__,
        trainer_state=None,
    )
    assert rewards == [1.25, -1.0, 0.0]
    assert logged == {"accuracy": pytest.approx(2 / 3), "formatted": pytest.approx(1 / 3), "accuracy_unaided": 0.5}


@pytest.mark.parametrize(
    "config",
    [RewardConfig(wrong=1.0), RewardConfig(unformatted=2.0), RewardConfig(brevity=-0.1), RewardConfig(correct=-2.0)],
)
def test_an_order_that_is_none_is_refused(config: RewardConfig) -> None:
    with pytest.raises(ConfigError):
        check_reward(config, "stages.x")
