"""The reward's order: right before formatted before short, without jumps in length."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plyfold.adapters.base.resolve import Quantisation
from plyfold.core.config import RewardConfig, StageConfig, load_config
from plyfold.core.errors import ConfigError
from plyfold.data.rationale.parse import Rationale, parse_rationale
from plyfold.evaluation.protocols import protocol
from plyfold.stages.plan.staleness import recipe_digest
from plyfold.stages.prompts.tasks import make_rows
from plyfold.stages.rewards.hierarchical import LEVELS, HierarchicalReward, brevity, check_reward
from plyfold.stages.rewards.paper import completion_bonus, count_labels, rewrite_bonus

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


@pytest.mark.slow
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


HEDGES = ["18 or 20", "20 or 18", "18 + 99", "18-25", "18 or 19 or 20", "18, 20", "18 and 20", "18 (or 20)",
          "between 18 and 20", "18\nor 20", "18 or\nAnswer: 20", "18 or Answer: 20", "2x + 18",
          "18:00", "18 hours 30 minutes"]  # fmt: skip


@pytest.mark.parametrize("mode", ["continuous", "binary", "paper"])
@pytest.mark.parametrize("task", ["complete", "rewrite"])
@pytest.mark.parametrize("hedge", HEDGES)
def test_hedging_is_never_paid(hedge: str, mode: str, task: str) -> None:
    reward = HierarchicalReward(RewardConfig(mode=mode), task)
    for gold in ("18", "20", "25", "19", "117"):
        assert reward.level(f"Step 1: 9+9\nAnswer: {hedge}", gold) == "wrong"


def test_labels_without_content_buy_nothing() -> None:
    few, many = "Step 1: 9+9=18\nAnswer: 18", "Step 1: 9+9\nStep 2: =18\nAnswer: 18"
    assert REWARD.score(few, 30, "18", 60) == REWARD.score(many, 30, "18", 60)


@pytest.mark.slow
@given(st.integers(1, 12), st.sampled_from(["Step {}: ", "{}. ", "", "**Step {}:** "]), tokens, tokens)
def test_labels_and_their_number_never_change_the_reward(steps: int, label: str, num_tokens: int, teacher: int) -> None:
    labelled = "".join(f"{label.format(number)}9+{number}\n" for number in range(1, steps + 1)) + "Answer: 18"
    under_one = "Step 1: " + " ".join(f"9+{number}" for number in range(1, steps + 1)) + "\nAnswer: 18"
    scores = [REWARD.score(text, num_tokens, "18", teacher, 99, 9) for text in (labelled, under_one, "Answer: 18")]
    assert scores[0] == scores[1] == scores[2]


def test_the_papers_reward_is_raised_by_one_label_and_ours_is_not() -> None:
    apart = "\n".join(f"Step {number}: {number}" for number in range(1, 5)) + "\nAnswer: 4"
    under_one = "Step 1: 1 2 3 4 and some\nAnswer: 4"
    paper = HierarchicalReward(RewardConfig(mode="paper"))
    scores = [paper.score(text, 20, "4", 40, 40, 4) for text in (apart, under_one)]
    assert scores[1] - scores[0] > 0.89
    ours = [REWARD.score(text, 20, "4", 40, 40, 4) for text in (apart, under_one)]
    assert ours[0] == ours[1]


@pytest.mark.parametrize(
    ("words", "bonus"),
    [  # five steps: budget 175 words, four fifths of it 140
        (1, 0.139),
        (139, 0.001),
        (140, 0.0),
        (141, -0.002),
        (174, -0.068),
        (175, -0.07),
        (176, -0.01),  # one word too many pays
        (275, -1.0),
        (276, -1.0),
        (2000, -1.0),
    ],
)
def test_the_papers_stage_2_in_words(words: int, bonus: float) -> None:
    assert completion_bonus(words, 5, 5) == pytest.approx(bonus, abs=1e-12)


def test_the_papers_stage_2_pays_for_at_most_three_steps_and_a_fifth() -> None:
    assert [completion_bonus(140, steps, 5) for steps in (7, 5, 4, 3, 2, 1)] == pytest.approx(
        [0.0, 0.0, 0.3, 0.6, 0.9, 0.9], abs=1e-12
    )
    limits = {words: completion_bonus(words, 10, 10) for words in (79, 80, 81)}  # four fifths of 350: 280
    assert limits == {79: pytest.approx(0.2), 80: pytest.approx(0.2), 81: pytest.approx(0.199)}
    for steps in range(2, 13):  # the break points are whole words: no rounding decides them
        assert completion_bonus(28 * steps, steps, steps) == 0.0
        assert completion_bonus(35 * steps, steps, steps) == pytest.approx(-0.014 * steps)


@pytest.mark.parametrize(
    ("words", "bonus"),
    [  # of a teacher's 100
        (0, 0.8),
        (19, 0.8),
        (20, 0.8),
        (21, 0.79),
        (49, 0.51),
        (50, 0.5),
        (51, 0.5 * 0.29 / 0.3),
        (79, 0.5 * 0.01 / 0.3),
        (80, 0.0),
        (81, 0.0),
        (100, 0.0),
        (101, -0.005),
        (199, -0.495),
        (200, -0.5),
        (201, -0.5),
        (900, -0.5),
    ],
)
def test_the_papers_stage_3_in_words(words: int, bonus: float) -> None:
    assert rewrite_bonus(words, 100) == pytest.approx(bonus, abs=1e-12)


@given(st.integers(0, 3000), st.integers(1, 1000))
def test_the_papers_stage_3_never_rises_with_length(words: int, teacher: int) -> None:
    assert rewrite_bonus(words, teacher) >= rewrite_bonus(words + 1, teacher) - 1e-12


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("Step 1: 9+9=17\nAnswer: 17", -2.0),
        ("nothing", -2.0),
        ("9+9=18\nAnswer: 18", -1.0),  # no label
        ("Step 1: 9+9, so 18", -1.0),  # no answer line
        ("Step 1: 9+9=18\nAnswer: 18", "full"),
        ("Step 1: 9+9=18\n**Answer:** $18.00", "full"),  # read as the same number, which the original does not
        ("Step 1: 9+9=18\n#### 18", -1.0),
        ("step 1: 9+9=18\nAnswer: 18", -1.0),
    ],
)
def test_the_papers_levels(completion: str, reward: float | str) -> None:
    config = RewardConfig(mode="paper")
    words = len(completion.split())
    for task, bonus in (("complete", 0.3 + 0.001 * (56 - words)), ("rewrite", rewrite_bonus(words, 10))):
        score = HierarchicalReward(config, task).score(completion, 50, "18", 60, teacher_words=10, teacher_steps=2)
        assert score == pytest.approx(1 + bonus if reward == "full" else reward)
    assert count_labels(completion) == completion.count("Step")


def test_the_paper_takes_a_box_for_an_answer_in_stage_2_alone() -> None:
    config, text = RewardConfig(mode="paper"), "Step 1: 9*2=18\n\\boxed{18}"
    levels = {task: HierarchicalReward(config, task).level(text, "18") for task in ("complete", "rewrite")}
    assert levels == {"complete": "correct", "rewrite": "unformatted"}


@pytest.mark.parametrize("task", ["complete", "rewrite"])
def test_the_paper_judges_nothing_behind_the_first_answer(task: str) -> None:
    reward, text = HierarchicalReward(RewardConfig(mode="paper"), task), "Step 1: 9+9=18\nAnswer: 18"
    for more in ("\nStep 2: and so on", "\n\nQuestion: another?\nStep 1: 1\nAnswer: 5", "\nAnswer: 17"):
        assert reward.score(text + more, 99, "18", 60, 40, 3) == reward.score(text, 9, "18", 60, 40, 3)


def test_the_papers_teacher_is_as_long_as_it_wrote() -> None:
    written = "<think>Well, let me see. It is 9 and 9.</think>\nStep 1: 9+9=18\nStep 2: that is 18\nAnswer: 18"
    stage = StageConfig(number=3, task="rewrite", reward=RewardConfig(mode="paper"))
    (row,) = make_rows([parse_rationale("How many?", written, "18")], stage, protocol("zero-shot"), 0, len)
    assert row["teacher_words"] == len(written.split()) == 19


@given(tokens, tokens)
def test_binary_is_right_or_not(num_tokens: int, teacher: int) -> None:
    binary = HierarchicalReward(RewardConfig(mode="binary"))
    texts = ("Answer: 17", "", "it is 18", "Step 1: 9+9\nAnswer: 18")
    assert [binary.score(text, num_tokens, "18", teacher) for text in texts] == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("mode", ["continuous", "paper", "binary"])
def test_the_components_add_up_to_the_reward(mode: str) -> None:
    reward, logged = HierarchicalReward(RewardConfig(mode=mode), "rewrite"), dict[str, float]()
    texts = ["Step 1: 9+9\nAnswer: 18", "Answer: 17", "18", "Step 1: 9\nStep 2: 18\nAnswer: 18"]
    rewards = reward(
        prompts=[""] * 4,
        completions=texts,
        completion_ids=[[1] * 7] * 4,
        gold=["18"] * 4,
        teacher_tokens=[20] * 4,
        teacher_words=[6] * 4,
        teacher_steps=[3] * 4,
        unaided=[False] * 4,
        log_metric=logged.__setitem__,
    )
    shares = {level: logged[f"reward/share_{level}"] for level in LEVELS}
    assert shares == {"wrong": 0.25, "unformatted": 0.25, "correct": 0.5}
    parts = sum(reward.floors[level] * share for level, share in shares.items()) + logged["reward/brevity"]
    assert parts == pytest.approx(sum(rewards) / 4)
    assert (logged["reward/brevity"] == 0) == (mode == "binary")


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
    third = pytest.approx(1 / 3)
    assert logged == {
        "accuracy": pytest.approx(2 / 3),
        "formatted": third,
        "accuracy_unaided": 0.5,
        "reward/share_wrong": third,
        "reward/share_unformatted": third,
        "reward/share_correct": third,
        "reward/brevity": pytest.approx(0.25 / 3),
    }


@pytest.mark.parametrize(
    "config",
    [
        RewardConfig(wrong=1.0),
        RewardConfig(unformatted=2.0),
        RewardConfig(brevity=-0.1),
        RewardConfig(correct=-2.0),
        RewardConfig(brevity=math.nan),
        RewardConfig(brevity=math.inf),
        RewardConfig(wrong=-math.inf),
        RewardConfig(correct=math.inf),
        RewardConfig(unformatted=math.nan),
    ],
)
def test_an_order_that_is_none_is_refused(config: RewardConfig) -> None:
    with pytest.raises(ConfigError):
        check_reward(config, "stages.x")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (RewardConfig(mode="papre"), "reward.mode"),
        (RewardConfig(mode="paper", wrong=-3.0), "reward.wrong"),
        (RewardConfig(mode="paper", brevity=1.5), "reward.brevity"),
        (RewardConfig(mode="binary", brevity=1.5), "reward.brevity"),
        (RewardConfig(mode="binary", correct=2.0), "reward.correct"),
    ],
)
def test_settings_that_contradict_the_mode_are_refused_by_name(config: RewardConfig, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_reward(config, "stages.x")
    assert f"stages.x.{named}" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        RewardConfig(mode="paper"),
        RewardConfig(mode="paper", wrong=-2.0, unformatted=-1.0),
        RewardConfig(mode="binary"),
        RewardConfig(mode="binary", brevity=0.0),
    ],
)
def test_a_mode_alone_or_with_its_own_values_is_accepted(config: RewardConfig) -> None:
    check_reward(config, "stages.x")


def test_the_rows_carry_what_the_papers_reward_reads() -> None:
    rationale = Rationale(question="How many?", steps=("9+9", "that is 18"), answer="18")
    stage = StageConfig(number=2, task="complete", reward=RewardConfig(mode="paper"))
    (row,) = make_rows([rationale], stage, protocol("zero-shot"), 0, len)
    assert (row["teacher_steps"], row["teacher_words"]) == (2, 10)  # Step 1: 9+9 Step 2: that is 18 Answer: 18


def test_a_new_mode_leaves_what_was_trained_without_one_up_to_date() -> None:
    def digest(reward: RewardConfig) -> str:
        stage = StageConfig(number=2, task="complete", reward=reward)
        return recipe_digest(stage, load_config("sandbox"), ("acme/base", "0" * 40), Quantisation(), "0" * 64)

    assert digest(RewardConfig()) == "sha256:9844a42bf0398e232365ab9a06ac5ddb09ae11e2901ad61962a3a1be6c098eb7"
    assert len({digest(RewardConfig(mode=mode)) for mode in ("continuous", "paper", "binary")}) == 3
