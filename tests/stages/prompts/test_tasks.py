"""Training rows: nothing that gives the answer away is in a prompt, and every share and copy is as configured."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plyfold.core.config import (
    DataConfig,
    MaskingConfig,
    MiningConfig,
    RewardConfig,
    StageConfig,
    build_config,
    load_config,
)
from plyfold.core.errors import ConfigError, IntegrityError
from plyfold.data.dataset import load_rationales
from plyfold.data.rationale.answer_leaks import states_answer
from plyfold.data.rationale.number_spans import MASK
from plyfold.data.rationale.parse import Rationale, parse_rationale, render_solution
from plyfold.evaluation.protocols import protocol
from plyfold.stages.mining.sample_log import rows_seed
from plyfold.stages.prompts.masking import HIDES, MODES
from plyfold.stages.prompts.tasks import CUE, Row, check_stage, draw_rows, make_rows

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


@pytest.mark.slow
@pytest.mark.parametrize("task", STAGES)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_prompt_gives_the_answer_away(task: str, seed: int) -> None:
    for row in _rows(task, RATIONALES, seed=seed, unaided_share=0.25):
        rationale, prompt = _of(row), row["prompt"]
        assert prompt.endswith(CUE)
        assert not states_answer(prompt.removeprefix(f"Question: {rationale.question}"))
        assert rationale.answer not in prompt  # stated nowhere but in the answer line
        assert render_solution(rationale) not in prompt


@pytest.mark.slow
@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_hidden_steps_are_nowhere_in_a_rollout_prompt(seed: int) -> None:
    for row in _rows("complete", RATIONALES, seed=seed):
        rationale = _of(row)
        shown = [step for step in rationale.steps if f": {step}\n" in row["prompt"]]
        hidden = len(rationale.steps) - len(shown)
        assert row["prompt"].count(MASK) == hidden == min(max(3, len(rationale.steps) // 2), len(rationale.steps) - 1)
        assert rationale.steps[-1] not in row["prompt"]


OPERATORS = ("+", "-", "*", "/", "\\times", "\\div")
SPELLINGS = ("{}", "\\${}", "{}.00", "{} eggs", "\\mathbf{{{}}}")
STATEMENTS = (  # what real teachers put into and behind their last step
    "\nAnswer: {}",
    " Answer: {}",
    " **Final Answer:** \\boxed{{{}}}",
    " Final Answer She has \\(\\boxed{{{}}}\\) eggs.\n\nAnswer: {}",
    " \\[ \\boxed{{{} \\text{{ eggs}}}} \\]\nAnswer: {}",
    " Therefore, she has \\boxed{{{}}} eggs.\n#### {}",
    " So the answer is {}.",
    " Hence the answer should be {} eggs.\nAnswer: {}",
)


@st.composite
def taught(draw: st.DrawFn) -> tuple[Rationale, list[str]]:
    """A rationale as it is parsed from a teacher's text, and a word of each step that no other step has."""
    num_steps, gold = draw(st.integers(2, 8)), draw(st.integers(10_000, 99_999))
    words = [f"word{chr(97 + number)}" for number in range(num_steps)]
    lines = []
    for number, word in enumerate(words):
        left, right, result = 100 + 3 * number, 101 + 3 * number, 102 + 3 * number
        if number == num_steps - 1:
            result = gold
        spelt = draw(st.sampled_from(SPELLINGS)).format(
            draw(st.sampled_from([f"{result:,}", f"{result:,}".replace(",", " "), f"{result}"]))
        )
        lines.append(f"Step {number + 1}: {word} \\[ {left} {draw(st.sampled_from(OPERATORS))} {right} = {spelt} \\]")
    if draw(st.booleans()):
        lines[-1] += f" In all she has {gold:,} eggs."
    text = "\n".join(lines) + draw(st.sampled_from(STATEMENTS)).replace("{}", str(gold))
    question = draw(st.sampled_from(["How many eggs?", "3 dozen eggs; how many?"]))
    return parse_rationale(question, text.replace("{{", "{").replace("}}", "}"), str(gold)), words


def _digits(prompt: str) -> set[str]:
    return set(re.findall(r"[0-9]+", re.sub(r"(?<=[0-9])(?:,|\{,\}|\\[!,]| )(?=[0-9]{3}(?![0-9]))", "", prompt)))


@pytest.mark.slow
@pytest.mark.parametrize("hide", HIDES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["complete", "rewrite"])
@settings(max_examples=40, deadline=None)
@given(known=taught(), seed=st.integers(0, 2**32))
def test_rollout_prompts_hold_no_target_no_answer_and_no_hidden_step(
    task: str, mode: str, hide: str, known: tuple[Rationale, list[str]], seed: int
) -> None:
    rationale, words = known
    assert len(rationale.steps) == len(words)
    (row,) = _rows(task, [rationale], seed=seed, masking=MaskingConfig(mode=mode, hide=hide))
    prompt = row["prompt"].removeprefix(f"Question: {rationale.question}")
    assert set(row) == {"prompt", "gold", "teacher_tokens", "unaided"}
    assert rationale.answer not in _digits(prompt)
    assert not re.search(r"(?i)answer|####|boxed", prompt)
    assert render_solution(rationale) not in row["prompt"]
    assert prompt.endswith(CUE)
    lines = prompt.splitlines()[2 : 2 + len(words)]
    if task == "rewrite":
        for word, line, step in zip(words, lines, rationale.steps, strict=True):
            assert word in line
            assert _digits(step) - {rationale.answer, "00"} <= _digits(line)
        return
    several = max(3, len(words) // 2)
    counts = {"one": 1, "keep-ends": min(several, len(words) - 2)}
    masked = [MASK in line for line in lines[:-1]]
    assert sum(masked) + _is_masked(lines[-1], hide) == counts.get(mode, min(several, len(words) - 1))
    for word, line, step, hidden in zip(words, lines, rationale.steps, [*masked, _is_masked(lines[-1], hide)],
                                        strict=True):  # fmt: skip
        if not hidden:
            continue
        assert step not in prompt
        if hide == "step":
            assert line.partition(": ")[2] == MASK
            assert word not in prompt
        elif hide == "numbers":
            assert not _digits(line.partition(": ")[2])
        else:
            assert not any(f" {operator} " in line for operator in OPERATORS)
    assert mode != "keep-ends" or (not masked[0] and not _is_masked(lines[-1], hide))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(known=taught(), seed=st.integers(0, 2**32))
def test_reconstruct_prompts_hide_steps_and_state_no_answer(
    mode: str, known: tuple[Rationale, list[str]], seed: int
) -> None:
    rationale, words = known
    (row,) = _rows("reconstruct", [rationale], seed=seed, masking=MaskingConfig(mode=mode))
    prompt = row["prompt"].removeprefix(f"Question: {rationale.question}")
    assert not re.search(r"(?i)answer|####|boxed", prompt)
    assert render_solution(rationale) not in row["prompt"]
    lines = [line.removeprefix("- ") for line in prompt.splitlines()[2 : 2 + len(words)]]
    several = max(3, len(words) // 2)
    counts = {"one": 1, "keep-ends": min(several, len(words) - 2)}
    assert lines.count(MASK) == counts.get(mode, min(several, len(words) - 1))
    assert sum(word in prompt for word in words) == len(words) - lines.count(MASK)


def _is_masked(last: str, hide: str) -> bool:
    """Whether the last step is, beyond its result, which is always hidden."""
    if hide == "operators":
        return not any(f" {operator} " in last for operator in OPERATORS)
    return "\\[" not in last if hide == "step" else not _digits(last.partition(": ")[2])


def test_parts_of_a_step_are_hidden_where_the_whole_is_not() -> None:
    steps = ("buys 2+3=5 eggs", "no sum here", "sells 5-1=4 eggs, 4 in all")
    rationale = Rationale(question="?", steps=steps, answer="4")
    shown = {}
    for hide in HIDES:
        masking = MaskingConfig(mode="scattered", hide=hide)
        (row,) = _rows("complete", [rationale], masking=masking, seed=1)
        shown[hide] = row["prompt"].splitlines()[2:5]
    last = f"Step 3: sells {MASK}-{MASK}={MASK} eggs, {MASK} in all"
    assert shown["numbers"][2] == last
    assert shown["operators"][2] == f"Step 3: sells 5{MASK}1={MASK} eggs, {MASK} in all"
    assert shown["step"][2] == f"Step 3: {MASK}"
    nothing = [f"Step 2: {MASK}", "Step 2: no sum here"]  # hidden whole where it has neither number nor operator
    assert {line for lines in shown.values() for line in lines[1:2]} <= set(nothing)


def test_reconstruct_hides_parts_of_steps_too() -> None:
    masking = MaskingConfig(mode="consecutive", hide="numbers")
    for row in _rows("reconstruct", RATIONALES, masking=masking):
        rationale = _of(row)
        lines = row["prompt"].split("Shuffled steps:\n")[1].removesuffix(CUE).splitlines()
        count = min(max(3, len(rationale.steps) // 2), len(rationale.steps) - 1)
        assert sum(line == f"- calculation {MASK}-{MASK} gives {MASK}" for line in lines) == count


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
    few = _rows("complete", RATIONALES[:4], unaided_share=0.1, epochs=10)  # 0.4 rows a copy
    assert sum(bool(row["unaided"]) for row in few) == 4


def test_a_second_stage_of_a_task_draws_rows_of_its_own() -> None:
    config = load_config("sandbox")
    config.stages["again"] = replace(config.stages["brevity"], number=4)
    assert [rows_seed(config, number) for number in (1, 2, 3)] == [config.seed] * 3
    assert rows_seed(config, 4) != config.seed


def test_rows_without_a_rationale_are_asked_unaided_and_before_others() -> None:
    bare = [Rationale(question=known.question, steps=(), answer=known.answer) for known in RATIONALES[:10]]
    mixed = [*RATIONALES[10:], *bare]
    usual = round(sum(len(render_solution(known).split()) for known in RATIONALES[10:]) / 30)
    for share, num_unaided in ((0.0, 10), (0.1, 10), (0.5, 20)):
        for task in ("complete", "rewrite"):
            rows = _rows(task, mixed, unaided_share=share)
            alone = [row for row in rows if row["unaided"]]
            assert len(rows) == 40
            assert len(alone) == num_unaided
            assert {known.question for known in bare} <= {_of(row).question for row in alone}
            assert all(row["prompt"] == ZERO_SHOT.prompt(_of(row).question) for row in alone)
            lengths = {_of(row).question: row["teacher_tokens"] for row in rows}
            assert {lengths[known.question] for known in bare} == {usual}
    stage = STAGES["rewrite"]
    mined = make_rows(bare, stage, ZERO_SHOT, 0, lambda text: len(text.split()), mixed)
    assert {row["teacher_tokens"] for row in mined} == {usual}


def test_epochs_are_fresh_copies_and_seeds_decide() -> None:
    rows = _rows("complete", RATIONALES, epochs=2)
    first, second = rows[:40], rows[40:]
    assert sorted(_of(row).question for row in first) == sorted(BY_QUESTION) == sorted(_of(r).question for r in second)
    assert {row["prompt"] for row in first} != {row["prompt"] for row in second}
    assert _rows("complete", RATIONALES) == _rows("complete", RATIONALES)
    assert _rows("complete", RATIONALES) != _rows("complete", RATIONALES, seed=1)


@pytest.mark.slow
def test_sandbox_prompts_are_clean_too() -> None:
    rationales, _ = load_rationales(DataConfig(path="sandbox", rows=[0, 200]))
    for task in STAGES:
        for row in make_rows(rationales, STAGES[task], ZERO_SHOT, 0, len):
            assert not states_answer(row["prompt"])


@pytest.mark.parametrize("changes", [{"task": "guess"}, {"unaided_share": 1.2}, {"epochs": 0}])
def test_meaningless_stages_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        check_stage(StageConfig(**{**vars(STAGES["complete"]), **changes}), "stages.x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "section"),
    [
        ("reconstruct", {"reward": RewardConfig(wrong=-2.0)}),
        ("reconstruct", {"mining": MiningConfig(samples=9)}),
        ("complete", {"mining": MiningConfig(problems=9)}),
        ("rewrite", {"masking": MaskingConfig(mode="keep-ends")}),
    ],
)
def test_a_section_that_the_task_does_not_use_is_refused_by_name(task: str, section: dict[str, Any]) -> None:
    stage = StageConfig(**{**vars(STAGES[task]), **section})
    (name,) = section
    with pytest.raises(ConfigError, match=f"{name} means nothing where task is {task}") as caught:
        check_stage(stage, "stages.x")
    assert caught.value.where.startswith(f"stages.x.{name}.")
    config = load_config("sandbox")
    config.stages = {"x": stage}
    assert build_config(asdict(config)).stages["x"] == stage  # what older records say can still be read


def test_parsed_solutions_survive_their_own_rendering() -> None:
    for rationale in RATIONALES:
        assert parse_rationale(rationale.question, render_solution(rationale), rationale.answer) == rationale


@pytest.mark.parametrize("task", STAGES)
def test_drawn_rows_know_their_rationale(task: str) -> None:
    stage = StageConfig(**{**vars(STAGES[task]), "epochs": 2, "unaided_share": 0.3})
    drawn = draw_rows(RATIONALES, stage, ZERO_SHOT, 0, len)
    assert all(_of(row) == RATIONALES[index] for index, row in drawn)
    assert [row for _, row in drawn] == make_rows(RATIONALES, stage, ZERO_SHOT, 0, len)


@pytest.mark.parametrize(
    "text",
    [
        "40+5=\\boxed{45\n}\nso it is",
        "Step 1: 40+5=\\boxed{45\nStep 2: so } it is",
        "40 is not yet the answer\nthe answer is 40\n+ 5 = 45",
    ],
)
@pytest.mark.parametrize("task", STAGES)
def test_what_one_step_opens_no_other_step_of_a_prompt_closes(task: str, text: str) -> None:
    rationale = parse_rationale("How many?", f"{text}\nAnswer: 45", "45")
    for seed in range(10):
        (row,) = _rows(task, [rationale], seed=seed)
        assert "How many?" in row["prompt"]


def test_a_prompt_that_would_say_the_answer_is_refused_by_the_question_it_is_of() -> None:
    rationale = Rationale(question="How many eggs?", steps=("20+20=40", r"so \boxed{41 eggs}"), answer="41")
    with pytest.raises(IntegrityError, match="say what the answer is") as caught:
        make_rows(
            [rationale],
            StageConfig(number=1, task="reconstruct", masking=MaskingConfig(probability=0.0)),
            ZERO_SHOT,
            0,
            len,
        )
    assert "How many eggs?" in caught.value.where
