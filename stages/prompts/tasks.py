"""What each stage shows the model: one row of prompt (and target, or gold answer) a rationale and epoch.

Rows of `reconstruct` carry their target as the completion (supervised). Rows of `complete` and `rewrite` carry none:
their gold answer and the teacher's length travel as columns that only the reward reads. No rollout prompt holds the
target, an answer line, a hidden step, or what the teacher's last calculation comes to: with the answer in sight, a
policy would be paid for copying. Every prompt ends with the evaluation prompt's cue.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import mean
from typing import Any

from ...core.config import CurriculumConfig, MaskingConfig, MiningConfig, RewardConfig, StageConfig
from ...core.errors import ConfigError, IntegrityError, NotFoundError
from ...data.rationale.answer_leaks import hide_answer, marks_answer
from ...data.rationale.number_spans import MASK, cover, find_numbers, find_operators
from ...data.rationale.parse import Rationale, render_solution, render_steps
from ...evaluation.protocols import Protocol
from .masking import draw_mask, draw_order

CUE = "Solution:\n"
TASKS = ("reconstruct", "complete", "rewrite")
SUPERVISED = ("reconstruct",)
"""Tasks trained with SFT; the others with GRPO."""
UNUSED = {"reconstruct": ("reward", "mining"), "complete": ("mining",), "rewrite": ("masking",)}
"""Sections of a stage's config that its task has no use for."""
_DEFAULTS = {"masking": MaskingConfig(), "reward": RewardConfig(), "mining": MiningConfig()}

Row = dict[str, Any]


def check_stage(stage: StageConfig, where: str) -> None:
    """Refuse a task, share or number of epochs that cannot be meant, and values that the task would not use.

    Raises:
        ConfigError: Unknown task, a share outside [0, 1], no epoch, or a section of `UNUSED` that says something.
    """
    if stage.task not in TASKS:
        raise ConfigError("no such task", where=where, found=stage.task, expected=", ".join(TASKS))
    if not 0 <= stage.unaided_share <= 1:
        raise ConfigError("unaided_share is a share", where=where, found=stage.unaided_share, expected="0 to 1")
    if stage.epochs < 1:
        raise ConfigError("epochs has to be positive", where=where, found=stage.epochs)
    for section in UNUSED[stage.task]:
        for name, default in vars(_DEFAULTS[section]).items():
            value = getattr(getattr(stage, section), name)
            if value != default:
                raise ConfigError(
                    f"{section} means nothing where task is {stage.task}",
                    where=f"{where}.{section}.{name}",
                    found=value,
                    next_step=f"leave {name} out (its default is {default})",
                )


def find_stage(config: CurriculumConfig, stage: str) -> str:
    """The name of the stage of that name or number.

    Raises:
        NotFoundError: The config has no such stage.
    """
    for name, known in config.stages.items():
        if stage in (name, str(known.number)):
            return name
    ordered = sorted(config.stages.items(), key=lambda item: item[1].number)
    listed = ", ".join(f"{known.number} {name}" for name, known in ordered)
    raise NotFoundError("the config has no such stage", found=stage, expected=f"one of {listed}")


def make_rows(
    rationales: Sequence[Rationale],
    stage: StageConfig,
    protocol: Protocol,
    seed: int,
    count_tokens: Callable[[str], int],
    typical: Sequence[Rationale] | None = None,
) -> list[Row]:
    """The training rows of a stage: `stage.epochs` freshly drawn copies of the rationales, each copy shuffled.

    Args:
        rationales: What the teacher wrote.
        stage: Task, masking, epochs and the share of unaided prompts.
        protocol: The evaluation protocol, whose bare prompt unaided rows use.
        seed: Draws and order; equal seeds give equal rows.
        count_tokens: Number of tokens of a text, for the teacher's length.
        typical: Whose solutions, on average, a missing one is taken to be as long as; None takes `rationales`.

    Returns:
        Rows `{prompt, completion}` for supervised tasks, `{prompt, gold, teacher_tokens, unaided}` for the others,
        with `teacher_words` and `teacher_steps` where the paper's reward reads them.
        The share of unaided rows is kept over all copies, those without a rationale first (and all of those); what the
        teacher would have written there counts as long as it is on average elsewhere.
    """
    return [row for _, row in draw_rows(rationales, stage, protocol, seed, count_tokens, typical)]


def draw_rows(
    rationales: Sequence[Rationale],
    stage: StageConfig,
    protocol: Protocol,
    seed: int,
    count_tokens: Callable[[str], int],
    typical: Sequence[Rationale] | None = None,
) -> list[tuple[int, Row]]:
    """As `make_rows`, each row with the index of the rationale it was made of."""
    prompts = {"reconstruct": reconstruct_prompt, "complete": complete_prompt, "rewrite": rewrite_prompt}
    rng = random.Random(f"plyfold-{stage.task}-{seed}")
    supervised = stage.task in SUPERVISED
    written = [] if supervised else _measured(rationales, typical or rationales, count_tokens)
    shown = [_shown(rationale, stage.task) for rationale in rationales]
    rows: list[tuple[int, Row]] = []
    for copy in range(stage.epochs):
        order = rng.sample(range(len(rationales)), len(rationales))
        order.sort(key=lambda index: bool(rationales[index].steps))
        whole = round(stage.unaided_share * len(order), 9)  # of few rows every second copy may have one
        num_unaided = int(whole * (copy + 1)) - int(whole * copy)
        for place, index in enumerate(order):
            rationale, unaided = rationales[index], place < num_unaided or not rationales[index].steps
            bare = protocol.prompt(rationale.question)
            prompt = bare if unaided else prompts[stage.task](rationale, shown[index], stage, rng)
            row: Row = {"prompt": prompt}
            if supervised:
                row["completion"] = render_solution(rationale)
            else:
                tokens, words, num_steps = written[index]
                row |= {"gold": rationale.answer, "teacher_tokens": tokens, "unaided": unaided}
                if stage.reward.mode == "paper":
                    row |= {"teacher_words": words, "teacher_steps": num_steps}
            rows.append((index, row))
        rows[-len(order) :] = rng.sample(rows[-len(order) :], len(order))
    return rows


def reconstruct_prompt(rationale: Rationale, steps: Sequence[str], stage: StageConfig, rng: random.Random) -> str:
    """The steps in a wrong order, some hidden; the target is the full solution."""
    masked = _masked(steps, stage.masking, rng)
    lines = [f"- {masked[index]}\n" for index in draw_order(len(masked), rng)]
    return _guard(f"Question: {rationale.question}\nShuffled steps:\n{''.join(lines)}{CUE}", rationale)


def complete_prompt(rationale: Rationale, steps: Sequence[str], stage: StageConfig, rng: random.Random) -> str:
    """The solution in order with steps hidden, and with them what the last one comes to."""
    masked = _masked(steps, stage.masking, rng)
    return _guard(f"Question: {rationale.question}\nPartial solution:\n{render_steps(masked)}{CUE}", rationale)


def rewrite_prompt(rationale: Rationale, steps: Sequence[str], stage: StageConfig, rng: random.Random) -> str:
    """The teacher's whole solution but for what it comes to, to be written again in fewer words."""
    return _guard(f"Question: {rationale.question}\nReference:\n{render_steps(steps)}{CUE}", rationale)


def _measured(
    rationales: Sequence[Rationale], typical: Sequence[Rationale], count_tokens: Callable[[str], int]
) -> list[tuple[int, int, int]]:
    """Tokens, words and steps of each solution; where there is none, of a typical one."""

    def measure(rationale: Rationale) -> tuple[int, int, int]:
        text = render_solution(rationale)
        return count_tokens(text), rationale.words or len(text.split()), len(rationale.steps)

    usual = (0, 0, 0)
    if not all(rationale.steps for rationale in rationales):
        tokens, words, steps = zip(*(measure(rationale) for rationale in typical if rationale.steps), strict=True)
        usual = (round(mean(tokens)), round(mean(words)), round(mean(steps)))
    return [measure(rationale) if rationale.steps else usual for rationale in rationales]


@lru_cache(maxsize=16_384)  # a plan reads prompts for their length, a run makes them again
def _shown(rationale: Rationale, task: str) -> tuple[str, ...]:
    """The steps as a prompt may show them; a supervised row gives its answer away in the target, which is its point."""
    if task in SUPERVISED:
        return rationale.steps
    return hide_answer(rationale.steps, rationale.question, rationale.answer)


def _masked(steps: Sequence[str], config: MaskingConfig, rng: random.Random) -> tuple[str, ...]:
    hidden = draw_mask(len(steps), config, rng)
    return tuple(_mask_step(step, config.hide) if index in hidden else step for index, step in enumerate(steps))


def _mask_step(step: str, hide: str) -> str:
    """A step as a mask shows it: not at all, or without its numbers, or without its operators and their results."""
    if hide == "step":
        return MASK
    spans = [(number.start, number.end) for number in find_numbers(step) if hide == "numbers" or number.is_result]
    masked = cover(step, spans if hide == "numbers" else [*spans, *find_operators(step)])
    return masked if MASK in masked else MASK


def _guard(prompt: str, rationale: Rationale) -> str:
    # The question is the dataset's own and is shown at evaluation too; only what the teacher adds can leak.
    added = prompt.removeprefix(f"Question: {rationale.question}")
    if marks_answer(added, rationale.answer):
        raise IntegrityError(
            "a prompt would say what the answer is",
            where=f"the rationale of: {rationale.question[:80]}",
            expected="steps that state no answer",
            next_step="take the statement out of the rationale, or leave the row out",
        )
    return prompt
