"""The sandbox's problems: right, disjoint, deterministic; and a diet that is as faulty as it says."""

import hashlib
import json
import random
import re
from itertools import islice

import pytest

from plyfold.stages.sandbox.diet import Diet, serve, write
from plyfold.stages.sandbox.problems import MAX_TOTAL, draw_stories, make_problems, shelf_of

_MARK = re.compile(r"(\d+)([-+*/])(\d+)=<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")


def _value(left: int, sign: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]


def test_rows_are_gsm8k_rows_whose_every_mark_holds() -> None:
    for row in make_problems("train", 300):
        *steps, last = row["answer"].split("\n")
        assert 2 <= len(steps) <= 4
        result = ""
        for step in steps:
            match = _MARK.search(step)
            assert match is not None, step
            left, sign, right, *inner, result = match.groups()
            assert inner == [left, sign, right, result]
            assert _value(int(left), sign, int(right)) == int(result)
            assert 0 < int(result) <= MAX_TOTAL
        assert last == f"#### {result}"


def test_splits_are_disjoint_and_without_duplicates() -> None:
    train = [row["question"] for row in make_problems("train", 3000, seed=1)]
    test = [row["question"] for row in make_problems("test", 3000, seed=1)]
    diet = [story.question for story in islice(draw_stories("diet", 1), 3000)]
    for questions in (train, test, diet):
        assert len(set(questions)) == len(questions)
    assert not set(train) & set(test)
    assert not set(diet) & (set(train) | set(test))
    assert {shelf_of(question) for question in test} == {"test"}


def test_rows_follow_from_the_seed_alone_and_a_longer_list_starts_with_the_shorter_one() -> None:
    assert make_problems("test", 20, seed=3) == make_problems("test", 50, seed=3)[:20]
    assert make_problems("test", 20, seed=3) != make_problems("test", 20, seed=4)


def test_rows_are_these_on_every_platform() -> None:
    rows = json.dumps([make_problems("train", 50), make_problems("test", 50)]).encode()
    assert hashlib.sha256(rows).hexdigest() == "355af7446f0f79e58413ba7a0526495c5d88588268ff47787ec4925e5b0076f0"


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'train' or 'test'"):
        make_problems("validation", 1)  # type: ignore[arg-type]


def test_only_careless_texts_are_wrong_and_only_where_there_is_an_aside() -> None:
    rng = random.Random(0)
    for story in islice(draw_stories("diet", 0), 300):
        right = f"Answer: {story.solve()[-1].result}"
        for style in ("notes", "concise", "careful"):
            assert write(story, style, rng).completion.endswith(right)
        careless = write(story, "careless", rng).completion.splitlines()
        assert len(careless) == len(story.solve()) + 1 + story.has_aside


def test_served_shares_are_the_stated_ones() -> None:
    diet = Diet()
    texts = list(islice(serve(diet, 5), 6000))
    stories = [text for text in texts if text.style != "tables"]
    free = [text for text in stories if text.style != "notes"]
    assert len(free) / len(stories) == pytest.approx(1 - diet.notes, abs=0.03)
    assert sum(text.style == "concise" for text in free) / len(free) == pytest.approx(diet.free_concise, abs=0.03)
