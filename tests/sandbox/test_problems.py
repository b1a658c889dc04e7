"""The sandbox's problems: right, disjoint, deterministic; and a diet that is as faulty as it says."""

import hashlib
import json
import random
import re
from itertools import islice

import pytest

from plyfold.sandbox.diet import Diet, serve, write_diet
from plyfold.sandbox.problems import MAX_TOTAL, draw_stories, make_problems, shelf_of

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


@pytest.mark.slow
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
    assert hashlib.sha256(rows).hexdigest() == "176e1719b7110f9268ea8a6511ff340a4752ec859264e3b9d70bcb7204ea58dd"


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'train' or 'test'"):
        make_problems("validation", 1)  # type: ignore[arg-type]


def test_only_careless_texts_are_wrong_and_only_where_there_is_an_aside() -> None:
    rng = random.Random(0)
    for story in islice(draw_stories("diet", 0), 300):
        right = f"Answer: {story.solve()[-1].result}"
        for style in ("verbose", "concise"):
            for notes in (False, True):
                assert write_diet(story, style, rng, notes=notes).completion.endswith(right)
                text = write_diet(story, style, rng, careless=True, notes=notes)
                assert text.careless == story.has_aside
                assert len(text.completion.splitlines()) == len(story.solve()) + 1 + story.has_aside


def test_notes_are_by_the_narrator_of_the_text() -> None:
    rng = random.Random(0)
    headings = set()
    for story in islice(draw_stories("diet", 1), 300):
        text = write_diet(story, "verbose", rng, careless=True, notes=True)
        steps = [line.partition(": ")[2] for line in text.completion.splitlines()[:-1]]
        question, heading, *notes, last = text.prompt.splitlines()
        headings.add(heading)
        assert question == f"Question: {story.question}"
        assert last == "Solution:"
        shown = [note.removeprefix("- ") if "Shuffled" in heading else note.partition(": ")[2] for note in notes]
        assert len(shown) == len(steps)
        assert set(shown) <= {*steps, "[MASK]"}
    assert headings == {"Shuffled steps:", "Partial solution:", "Reference:"}


@pytest.mark.slow
@pytest.mark.parametrize("diet", [Diet(), Diet(cued=0.4, careless=0.8)])
def test_served_shares_are_the_stated_ones(diet: Diet) -> None:
    texts = list(islice(serve(diet, 5), 6000))
    stories = [text for text in texts if text.style != "tables"]
    cued = [text for text in stories if text.prompt.endswith("\nCareful solution:\n")]
    bare = [
        text for text in stories if text.prompt.count("\n") == 2 and not text.prompt.endswith("Careful solution:\n")
    ]
    aided = [text for text in stories if text.prompt.count("\n") > 2]
    assert len(stories) / len(texts) == pytest.approx(1 / (1 + diet.tables), abs=0.02)
    assert len(aided) / len(stories) == pytest.approx(diet.notes, abs=0.03)
    assert len(cued) / len(stories) == pytest.approx(diet.cued * (1 - diet.notes), abs=0.03)
    asides = sum(story.has_aside for story in islice(draw_stories("diet", 5), 6000)) / 6000
    for texts, share in ((bare, diet.careless), (aided, diet.careless_notes), (cued, 0.0)):
        if texts:
            assert sum(text.style == "concise" for text in texts) / len(texts) == pytest.approx(diet.concise, abs=0.04)
            assert sum(text.careless for text in texts) / len(texts) == pytest.approx(share * asides, abs=0.04)
