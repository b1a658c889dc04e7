"""Training rows: nothing that gives the answer away is in a prompt, and every share and copy is as configured."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plyfold.core.config import DataConfig, MaskingConfig, StageConfig
from plyfold.core.errors import ConfigError
from plyfold.evaluation.protocols import protocol
from plyfold.stages.data import load_rationales
from plyfold.stages.rationale import Rationale, parse_rationale, render_solution, states_answer
from plyfold.stages.tasks import CUE, MASK, Row, check_stage, draw_rows, make_rows

ZERO_SHOT = protocol("zero-shot")
STAGES = {
    "reconstruct": StageConfig(number=1, task="reconstruct", masking=MaskingConfig(mode="one", probability=0.7)),
    "complete": StageConfig(number=2, task="complete", masking=MaskingConfig(mode="scattered")),
    "rewrite": StageConfig(number=3, task="rewrite"),
}


def _rationale(index: int, num_steps: int) -> Rationale:
    steps = tuple(f"calculation {index}-{number} gives {number * 7}" for number in range(num_steps))
    return Rationale(question=f"Question number {index}?", steps=steps, answer=f"{1000 + index}")


def _rows(task: str, rationales: list[Rationale], *, seed: int = 0, **changes: object) -> list[Row]:
    stage = StageConfig(**{**vars(STAGES[task]), **changes})  # type: ignore[arg-type]
    return make_rows(rationales, stage, ZERO_SHOT, seed, lambda text: len(text.split()))


RATIONALES = [_rationale(index, 2 + index % 7) for index in range(40)]
BY_QUESTION = {rationale.question: rationale for rationale in RATIONALES}


def _of(row: Row) -> Rationale:
    found = re.match(r"Question: (.*)\n", row["prompt"])
    assert found
    return BY_QUESTION[found[1]]


@pytest.mark.parametrize("task", STAGES)
@given(seed=st.integers(0, 2**32))
def test_no_prompt_gives_the_answer_away(task: str, seed: int) -> None:
    for row in _rows(task, RATIONALES, seed=seed, unaided_share=0.25):
        rationale, prompt = _of(row), row["prompt"]
        assert prompt.endswith(CUE)
        assert not states_answer(prompt.removeprefix(f"Question: {rationale.question}"))
        assert rationale.answer not in prompt  # stated nowhere but in the answer line
        assert render_solution(rationale) not in prompt


@given(seed=st.integers(0, 2**32))
def test_hidden_steps_are_nowhere_in_a_rollout_prompt(seed: int) -> None:
    for row in _rows("complete", RATIONALES, seed=seed):
        rationale = _of(row)
        shown = [step for step in rationale.steps if f": {step}\n" in row["prompt"]]
        hidden = len(rationale.steps) - len(shown)
        assert row["prompt"].count(MASK) == hidden == min(max(3, len(rationale.steps) // 2), len(rationale.steps) - 1)
        assert rationale.steps[-1] not in row["prompt"]


def test_rollout_rows_hold_no_target() -> None:
    for task in ("complete", "rewrite"):
        assert set(_rows(task, RATIONALES)[0]) == {"prompt", "gold", "teacher_tokens", "unaided"}


def test_reconstruct_shows_every_step_once_out_of_order() -> None:
    masked = 0
    for row in _rows("reconstruct", RATIONALES, epochs=10):
        rationale = _of(row)
        lines = row["prompt"].split("Shuffled steps:\n")[1].removesuffix(CUE).splitlines()
        shown = [line.removeprefix("- ") for line in lines]
        assert len(shown) == len(rationale.steps)
        assert shown != list(rationale.steps)
        masked += MASK in shown
        assert [step for step in shown if step != MASK] != []
        assert set(shown) - {MASK} <= set(rationale.steps)
        assert row["completion"] == render_solution(rationale)
    assert masked / 400 == pytest.approx(0.7, abs=0.08)


def test_rewrite_shows_the_whole_solution_but_its_answer_line() -> None:
    row = _rows("rewrite", [RATIONALES[3]])[0]
    assert row["prompt"] == (
        f"Question: {RATIONALES[3].question}\nReference:\n"
        + render_solution(RATIONALES[3]).removesuffix(f"Answer: {RATIONALES[3].answer}")
        + CUE
    )
    assert row["gold"] == RATIONALES[3].answer
    assert row["teacher_tokens"] == len(render_solution(RATIONALES[3]).split())


def test_unaided_rows_are_the_evaluation_prompt_in_exactly_their_share() -> None:
    rows = _rows("complete", RATIONALES, unaided_share=0.3, epochs=3)
    bare = [row for row in rows if row["unaided"]]
    assert len(bare) == 36
    assert all(row["prompt"] == ZERO_SHOT.prompt(_of(row).question) for row in bare)
    supervised = _rows("reconstruct", RATIONALES, unaided_share=0.5)
    assert sum(row["prompt"] == ZERO_SHOT.prompt(_of(row).question) for row in supervised) == 20


def test_epochs_are_fresh_copies_and_seeds_decide() -> None:
    rows = _rows("complete", RATIONALES, epochs=2)
    first, second = rows[:40], rows[40:]
    assert sorted(_of(row).question for row in first) == sorted(BY_QUESTION) == sorted(_of(r).question for r in second)
    assert {row["prompt"] for row in first} != {row["prompt"] for row in second}
    assert _rows("complete", RATIONALES) == _rows("complete", RATIONALES)
    assert _rows("complete", RATIONALES) != _rows("complete", RATIONALES, seed=1)


def test_sandbox_prompts_are_clean_too() -> None:
    rationales, _ = load_rationales(DataConfig(path="sandbox", rows=[0, 200]))
    for task in STAGES:
        for row in make_rows(rationales, STAGES[task], ZERO_SHOT, 0, len):
            assert not states_answer(row["prompt"])


@pytest.mark.parametrize("changes", [{"task": "guess"}, {"unaided_share": 1.2}, {"epochs": 0}])
def test_meaningless_stages_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        check_stage(StageConfig(**{**vars(STAGES["complete"]), **changes}), "stages.x")  # type: ignore[arg-type]


def test_parsed_solutions_survive_their_own_rendering() -> None:
    for rationale in RATIONALES:
        assert parse_rationale(rationale.question, render_solution(rationale), rationale.answer) == rationale


@pytest.mark.parametrize("task", STAGES)
def test_drawn_rows_know_their_rationale(task: str) -> None:
    stage = StageConfig(**{**vars(STAGES[task]), "epochs": 2, "unaided_share": 0.3})
    drawn = draw_rows(RATIONALES, stage, ZERO_SHOT, 0, len)
    assert all(_of(row) == RATIONALES[index] for index, row in drawn)
    assert [row for _, row in drawn] == make_rows(RATIONALES, stage, ZERO_SHOT, 0, len)
