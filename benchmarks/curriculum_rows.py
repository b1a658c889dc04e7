"""The rows of curriculum.py: which curricula are trained for them, with which configuration and how many steps.

Compute is counted in token-forwards: a forward pass of one token is 1, its backward pass 2, a generated token (or one
of its prompt) 1. So supervised training costs 3 a token, GRPO 1 for generating and 3 for each time it trains on a
token, mining 1. Padding is not counted. Every stage runs through the same NF4 base and about the same adapters, so the
unit is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plyfold.core.config import CurriculumConfig, StageConfig, build_config, config_dict

FULL = "full"
SFT = "sft"
GRPO = "grpo"
BASELINES = (SFT, GRPO)
REWARDS = ("binary", "paper")
SUPERVISED = "reconstruct"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A curriculum that is trained."""

    name: str
    """Its name in the registry."""
    stages: tuple[int, ...]
    """Numbers, ascending."""
    shared: tuple[int, ...] = ()
    """Its first stages that are the full curriculum's, adapters and all: trained once."""
    kind: str = FULL
    """`full`, `sft` or `grpo`; the last two are one stage of as much compute as the full curriculum."""
    rate: float | None = None
    """Learning rate of a baseline."""
    compute: float = 1.0
    """Of a baseline, as a multiple of the full curriculum's."""
    overrides: tuple[str, ...] = ()
    """Of the configuration, as `key=value`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant in the table."""

    key: str
    label: str
    training: Training
    stages: tuple[int, ...]
    """Of the variant; empty is the base."""
    table: str = "main"
    """`main`, `composed` (subsets that were not trained so), `sweep` or `ablation`."""

    @property
    def variant(self) -> str:
        """As `plyfold eval` takes it."""
        return f"{self.training.name}:{'+'.join(map(str, self.stages)) or 'base'}"


def numbers_of(config: CurriculumConfig) -> tuple[int, ...]:
    """The curriculum's stage numbers, ascending."""
    return tuple(sorted(stage.number for stage in config.stages.values()))


def curriculum_rows(config: CurriculumConfig) -> list[Row]:
    """Rows of the curriculum itself, of what it makes without one stage, and of its other subsets; no baselines."""
    numbers = numbers_of(config)
    full = Training(name=FULL, stages=numbers)
    rows = [Row(key="base", label="base", training=full, stages=())]
    for last in range(1, len(numbers) + 1):
        name = "+".join(map(str, numbers[:last]))
        rows.append(Row(key=name, label=f"stages {name}" if last > 1 else f"stage {name}", training=full,
                        stages=numbers[:last]))  # fmt: skip
    for index, left_out in enumerate(numbers[:-1]):
        rest = tuple(number for number in numbers if number != left_out)
        training = Training(name=f"without-{left_out}", stages=rest, shared=numbers[:index])
        name = "→".join(map(str, rest))
        rows.append(Row(key=training.name, label=f"without {left_out}: {name}", training=training, stages=rest))
        if not index and len(rest) > 1:
            rows.append(Row(key=f"only-{rest[0]}", label=f"stage {rest[0]} alone, trained on the base",
                            training=training, stages=rest[:1], table="ablation"))  # fmt: skip
    for subset in _other_subsets(numbers):
        name = "+".join(map(str, subset))
        rows.append(Row(key=f"composed-{name}", label=name, training=full, stages=subset, table="composed"))
    return rows


def reward_rows(config: CurriculumConfig, modes: Sequence[str] = REWARDS) -> list[Row]:
    """The whole curriculum with another reward in its GRPO stages."""
    numbers, shared = numbers_of(config), _supervised_start(config)
    names = [name for name, stage in config.stages.items() if stage.task != SUPERVISED]
    rows = []
    for mode in modes:
        overrides = tuple(f"stages.{name}.reward={{mode: {mode}}}" for name in names)
        training = Training(name=f"{mode}-reward", stages=numbers, shared=shared, overrides=overrides)
        rows.append(Row(key=training.name, label=f"{'+'.join(map(str, numbers))} with {mode} reward",
                        training=training, stages=numbers, table="ablation"))  # fmt: skip
    return rows


def added_row(config: CurriculumConfig, name: str, overrides: Sequence[str]) -> Row:
    """The whole curriculum, every stage trained anew under overrides."""
    training = Training(name=f"add-{name}", stages=numbers_of(config), overrides=tuple(overrides))
    return Row(key=training.name, label=f"{name}: {' '.join(overrides)}", training=training, stages=training.stages,
               table="ablation")  # fmt: skip


def baseline_rows(config: CurriculumConfig, factors: Mapping[str, Sequence[float]]) -> dict[str, list[Row]]:
    """SFT and GRPO alone, each once per learning rate: the rate of the stage like it, times each factor."""
    rows: dict[str, list[Row]] = {}
    for kind, label in ((SFT, "SFT on the teacher's rationales"), (GRPO, "GRPO alone")):
        template = template_stage(config, kind)
        rows[kind] = []
        for factor in factors[kind]:
            rate = float(f"{float(template.trainer['learning_rate']) * factor:.3g}")
            name = f"{kind}-{_exponent(rate)}"
            training = Training(name=name, stages=(template.number,), kind=kind, rate=rate)
            rows[kind].append(
                Row(key=name, label=f"{label}, rate {rate:g}", training=training, stages=(template.number,),
                    table="sweep")
            )  # fmt: skip
    return rows


def extended_row(best: Row, factor: float) -> Row:
    """A baseline at its best rate, given `factor` times the compute of the whole curriculum."""
    training = replace(best.training, name=f"{best.training.name}-x{factor:g}".replace(".", "-"), compute=factor)
    label = f"{best.label.partition(',')[0]}, {factor:g} x the compute"
    return replace(best, key=training.name, label=label, training=training, table="ablation")


def template_stage(config: CurriculumConfig, kind: str) -> StageConfig:
    """The stage whose trainer a baseline takes over: the first supervised one, or the first `complete` one."""
    task = SUPERVISED if kind == SFT else "complete"
    return min((stage for stage in config.stages.values() if stage.task == task), key=lambda stage: stage.number)


def derive(
    config: CurriculumConfig,
    training: Training,
    *,
    seed: int,
    problems: int,
    threads: int | None,
    max_steps: int | None = None,
    num_rows: int | None = None,
) -> CurriculumConfig:
    """The configuration a row is trained and scored with; gates are left out, since a poor row is a result too.

    Args:
        config: The curriculum under test.
        training: What is trained.
        seed: Of data, adapters and samples.
        problems: Held-out problems, the first ones of eval.data; training rows are checked against all of them.
        threads: CPU threads; null leaves it to torch.
        max_steps: Of a baseline.
        num_rows: Rows that supervised training can read; there are then as many copies of them as it takes, since a
            trainer that comes to their end makes a step of what is left.
    """
    values = config_dict(config)
    values |= {"curriculum": training.name, "seed": seed, "threads": threads}
    first = (values["eval"]["data"]["rows"] or [0])[0]
    values["eval"]["data"]["rows"] = [first, first + problems]
    values["stages"] = {name: {**stage, "gate": None} for name, stage in values["stages"].items()
                        if stage["number"] in training.stages}  # fmt: skip
    if training.kind in BASELINES:
        (stage,) = values["stages"].values()
        data = dict(stage["data"] or values["data"])
        ranges = [(item.data or config.data).rows for item in config.stages.values()]
        known = [rows for rows in ranges if rows]  # a stage without a range reads all rows
        whole = len(known) < len(ranges)
        data["rows"] = None if whole else [min(start for start, _ in known), max(stop for _, stop in known)]
        trainer = {**stage["trainer"], "learning_rate": training.rate, "max_steps": max_steps}
        stage |= {"data": data, "unaided_share": 1.0, "epochs": 1, "trainer": trainer}
        if training.kind == SFT and max_steps and num_rows:
            template = template_stage(config, SFT)
            stage["epochs"] = math.ceil(max_steps * completions_a_step(template) / num_rows)
        values["stages"] = {training.kind: stage}
    for override in training.overrides:  # a whole section is replaced, not merged into
        key, _, value = override.partition("=")
        if value.startswith("{"):
            *path, last = key.split(".")
            section = values
            for part in path:
                section = section[part]
            section.pop(last, None)
    return build_config({**values}, training.overrides, where=training.name)


def passes_of(stage: StageConfig) -> int:
    """Token-forwards a processed token costs."""
    if stage.task == SUPERVISED:
        return 3
    iterations = int(stage.trainer.get("num_iterations", 1))
    old = int(iterations > 1)  # log probabilities of the policy that sampled
    reference = int(bool(stage.trainer.get("beta", 0.0)))
    return 1 + 3 * iterations + old + reference


def completions_a_step(stage: StageConfig) -> int:
    """Rows (completions, for GRPO) that one optimiser step trains on."""
    trainer = stage.trainer
    return int(trainer.get("per_device_train_batch_size", 8)) * int(trainer.get("gradient_accumulation_steps", 1))


def processed_tokens(metrics: Sequence[dict[str, Any]]) -> float:
    """Tokens that went through the trainer, prompts and completions, by its running count, which a resume may reset."""
    total = last = 0.0
    for line in metrics:
        if (count := line.get("num_tokens")) is not None:
            total += count - last if count >= last else count
            last = count
    return total


def supervised_steps(compute: float, stage: StageConfig, row_tokens: float) -> int:
    """Steps of supervised training that cost `compute`, to the nearest."""
    return max(1, round(compute / (passes_of(stage) * completions_a_step(stage) * row_tokens)))


def grpo_steps(compute: float, stage: StageConfig, prompt_tokens: float, lengths: Sequence[float]) -> int:
    """Steps of GRPO that cost at least `compute`.

    Args:
        compute: In token-forwards.
        stage: Whose trainer it is.
        prompt_tokens: Mean tokens of a prompt.
        lengths: Mean completion lengths of the curriculum's own GRPO stage, step by step; the last one holds on.
    """
    spent, steps = 0.0, 0
    while spent < compute:
        length = lengths[min(steps, len(lengths) - 1)]
        spent += passes_of(stage) * completions_a_step(stage) * (prompt_tokens + length)
        steps += 1
    return max(1, steps)


def count_prompts(config: CurriculumConfig, tokenize: Callable[[str], int]) -> tuple[float, float, int]:
    """Mean tokens of a bare prompt, and of a bare prompt with the teacher's solution and an end token; rows of these.

    Args:
        config: Of the supervised baseline.
        tokenize: Number of tokens of a text.
    """
    from plyfold.data.dataset import load_rationales
    from plyfold.data.rationale.parse import render_solution
    from plyfold.evaluation.protocols import protocol

    stage = next(iter(config.stages.values()))
    rationales, _ = load_rationales(stage.data or config.data)
    asked = protocol(config.eval.protocol)
    prompts = [tokenize(asked.prompt(rationale.question)) for rationale in rationales]
    solutions = [tokenize(render_solution(rationale)) + 1 for rationale in rationales]
    mean = sum(prompts) / len(prompts)
    return mean, mean + sum(solutions) / len(solutions), len(rationales)


def _exponent(rate: float) -> str:
    """A rate of three digits at most, as a curriculum's name may hold it: 0.0015 is 15e-04."""
    digits, _, power = f"{rate:.2e}".partition("e")
    number, exponent = round(float(digits) * 100), int(power) - 2
    while number % 10 == 0:
        number, exponent = number // 10, exponent + 1
    return f"{number}e{exponent:+03d}"


def _other_subsets(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every subset that is no prefix, the largest first."""
    subsets = [tuple(number for bit, number in enumerate(numbers) if mask >> bit & 1) for mask in
               range(1, 1 << len(numbers))]  # fmt: skip
    others = [subset for subset in subsets if subset != numbers[: len(subset)]]
    return sorted(others, key=lambda subset: (-len(subset), subset))


def _supervised_start(config: CurriculumConfig) -> tuple[int, ...]:
    """Leading stages that no reward reaches."""
    shared: list[int] = []
    for stage in sorted(config.stages.values(), key=lambda stage: stage.number):
        if stage.task != SUPERVISED:
            break
        shared.append(stage.number)
    return tuple(shared)
