"""Training rows that are also evaluation rows: found however they are spelt, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from plyfold.core.config import DataConfig
from plyfold.core.errors import ConfigError
from plyfold.data.contamination import find_shared
from plyfold.data.dataset import load_rows, question_hash, require_disjoint


def test_a_shared_question_is_found_however_it_is_set() -> None:
    assert question_hash("How many  Eggs?") == question_hash("how many eggs")
    with pytest.raises(ConfigError) as caught:
        require_disjoint(["A?", "How many eggs ?"], ["how many  eggs"], "stages.structure")
    assert "1 shared" in caught.value.found
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 12 + 3?", "what is 12+3", True),
        ("What is 12 + 3?", "What is 1 - 23?", False),
        ("Compute 2.5 * 4", "Compute 25/4", False),
        ("Compute 3 + 4", "Compute -3 + 4", False),
        ("Solve x + y = 3", "Solve x - y = 3", False),
        ("Tom has $1,000.", "tom has 1000", True),
        ("Twenty-one eggs and/or nuts, **bold**", "twenty one eggs and or nuts bold", True),
    ],
)
def test_signs_make_another_question_and_punctuation_does_not(one: str, other: str, same: bool) -> None:
    assert (question_hash(one) == question_hash(other)) is same


QUESTION = "Tom pays $2 for 3/4 of a pound of nuts, 12 - 3 times, 5 x 2 each. How much is that?"


@pytest.mark.parametrize(
    "train",
    [
        f"{QUESTION} Please reason step by step, and put your final answer within \\boxed{{}}.",
        f"Solve this.\n\n{QUESTION}",
        QUESTION.removeprefix("Tom pays "),  # the evaluation's rows may carry the instruction, too
        QUESTION.replace("$2", "$2.00"),
        QUESTION.replace("3/4", "\u00be"),
        QUESTION.replace("12 - 3", "12 \u2212 3"),
        QUESTION.replace("12 - 3", "12\u20133"),
        QUESTION.replace("5 x 2", "5 \u00d7 2"),
        QUESTION.replace("5 x 2", "5 * 2"),
    ],
)
def test_no_spelling_and_no_instruction_hides_a_question_of_the_evaluation(train: str) -> None:
    with pytest.raises(ConfigError, match="among the evaluation rows"):
        require_disjoint(["What else?", train], ["Another?", QUESTION], "here")


def test_another_calculation_is_another_question_and_a_short_one_may_stand_in_many() -> None:
    for other in (QUESTION.replace("- 3", "+ 3"), QUESTION.replace("$2", "$2.05"), QUESTION.replace("$2", "$20")):
        require_disjoint([other], [QUESTION], "here")
    require_disjoint(["What is 2 + 2? And twice as much?"], ["What is 2 + 2?"], "here")


def test_gsm8k_shares_no_question_and_every_one_is_found_behind_an_instruction(
    real_data: Callable[[str], Path],
) -> None:
    train, test = (
        [row.question for row in load_rows(DataConfig(path=str(real_data(f"gsm8k/{split}.jsonl"))))]
        for split in ("train", "test")
    )
    assert find_shared(train, test) == []
    asked = [f"Question: {question} Please reason step by step." for question in test]
    assert find_shared(asked, test) == find_shared(test, asked) == list(range(1319))


def test_names_of_questions_on_record_stay() -> None:
    assert question_hash("Tom pays $2.00, 12 \u2013 3 times?") == (
        "sha256:01f1a281cb0c885f71a1541eb5c7863bb2b73efe143178905994281e76a944c9"
    )
