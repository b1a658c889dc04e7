"""The tables of `plyfold train --dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...stages.plan.stage_plan import CurriculumPlan, StagePlan

_PARTS = {
    "nf4": "NF4 weights",
    "unquantised": "embeddings, head, norms",
    "prior": "earlier stages (float32)",
    "adapter": "adapter (float32)",
    "gradients": "gradients",
    "optimiser": "AdamW",
    "held": "held, exact",
    "activations": "activations",
    "logits": "a tile of logits",
    "rollout": "rollout's key-value cache",
    "logprobs": "log-probability pass",
    "mining": "mining's key-value cache",
    "total": "peak, estimated",
    "vllm": "vLLM beside, at least",
}


def show_plan(plan: CurriculumPlan, runs: Path, registry: Path, begun: dict[int, int]) -> None:
    """Print the stages, what each is trained with, and the memory each needs.

    Args:
        plan: What would be done.
        runs: Folder of the run folders.
        registry: Folder of the registry.
        begun: Stages that were interrupted -> the step they go on from.
    """
    from ...core.console import print_table

    folder = runs / plan.config.curriculum
    print_table(
        ["stage", "task", "state", "plan", "rows", "steps", "why"],
        [_stage_row(stage, begun.get(stage.number)) for stage in plan.stages],
        title=f"{plan.config.curriculum} on {plan.base.repo}@{plan.base.revision[:12]}",
        right=("rows", "steps"),
        caption="\n".join(_notes(plan)),
    )
    print_table(
        ["stage", "batch", "learning rate", "adapter", "parameters", "on top of", "run folder"],
        [
            [
                f"{stage.number} {stage.name}",
                _batch(stage),
                f"{stage.arguments.learning_rate:g}",
                f"r {stage.adapter.r}, alpha {stage.adapter.alpha}, {len(stage.adapter.targets)} modules",
                "unknown" if stage.trainable is None else f"{stage.trainable:,}",
                f"{', '.join(map(str, stage.parents))} (rank {stage.prior_rank})" if stage.parents else "the base",
                folder / stage.folder,
            ]
            for stage in plan.stages
        ],
        right=("learning rate", "parameters"),
        caption=f"adapters are registered in {registry}",
    )
    _show_memory(plan)


def _stage_row(stage: StagePlan, begun: int | None) -> list[object]:
    skipped, bare = sum(stage.report.skipped.values()), stage.report.bare
    counted = [f"{bare} without rationale"] * bool(bare) + [f"{skipped} skipped"] * bool(skipped)
    rows = "unknown" if stage.unknown else str(stage.report.parsed)
    if counted:
        rows += f" ({', '.join(counted)})"
    if stage.stage.epochs > 1:
        rows += f" x {stage.stage.epochs}"
    steps = f"<= {stage.steps}" if stage.bounded else str(stage.steps)
    kept = "keep" if not stage.reasons else "not asked for"
    act = "train" if not begun else f"train on from step {begun}"
    return [
        f"{stage.number} {stage.name}",
        stage.stage.task,
        stage.status,
        act if stage.will_train else kept,
        rows,
        steps if stage.steps else "unknown",
        "; ".join([*stage.reasons, *(f"{count} rows: {why}" for why, count in stage.report.skipped.items())]),
    ]


def _notes(plan: CurriculumPlan) -> list[str]:
    notes = [f"the base: {plan.base_note}"] if plan.base_note else []
    notes += sorted({f"rows and steps unknown: {stage.unknown}" for stage in plan.stages if stage.unknown})
    notes += [f"{stage.label} has to reach {' and '.join(map(str, stage.gate))} before a later one "
              "trains" for stage in plan.stages if stage.gate]  # fmt: skip
    notes += [f"{stage.label} mines {cost['problems']} problems: at most {cost['mining']} samples, "
              f"and {cost['unaided']} to measure" for stage in plan.stages if (cost := stage.mining)]  # fmt: skip
    if plan.eval_note:
        notes.append(f"training and evaluation rows not compared: {plan.eval_note}")
    if plan.rollout:
        drawn_by = {
            "hf": "plain generate, on the base in training",
            "vllm": f"vLLM {plan.rollout.get('vllm')} beside the trainer, on the twin {plan.twin}",
            "http": f"the vLLM server at {plan.config.rollout.url}",
        }
        notes.append(f"GRPO's completions are drawn by {drawn_by[plan.rollout['engine']]}")
    return notes


def _batch(stage: StagePlan) -> str:
    batch = stage.batch
    times = batch["step"] // batch["device"] // batch["processes"]
    text = f"{batch['device']} x {times}" + (f" x {batch['processes']} processes" if batch["processes"] > 1 else "")
    return f"{text}, groups of {batch['group']}" if "group" in batch else text


def _show_memory(plan: CurriculumPlan) -> None:
    from ...core.console import print_table, show

    estimates = {f"{stage.number} {stage.name}": stage.memory for stage in plan.stages if stage.memory}
    if not estimates:
        show(f"memory: no estimate, {plan.shape_source}")
        return
    values = {name: memory.to_json() for name, memory in estimates.items() if memory}
    print_table(
        ["memory, GB", *values],
        [[label, *(_gb(value[part]) for value in values.values())] for part, label in _PARTS.items()],
        right=tuple(values),
        caption="\n".join(
            [
                f"sizes from {plan.shape_source}",
                "the peak is what is held and the largest of: activations with logits, rollout, log probabilities, "
                "mining; a tile is 32,768 of the vocabulary wide, also where that is smaller",
                *(["vLLM needs more than its row: what it profiles, CUDA's graphs and its key-value cache come on top; "
                   "all of it is rollout.gpu_memory"] if any(value["vllm"] for value in values.values()) else []),
                *(f"{name}: {value['assumption']}; gradient checkpointing the other way: "
                  f"{_gb(value['other_activations'])} of activations; logits of all tokens at once: "
                  f"{_gb(value['full_logits'])}" for name, value in values.items()),
            ]
        ),
    )  # fmt: skip


def _gb(value: int) -> str:
    if not value:
        return ""
    return f"{value / 1e9:.3f}" if value < 1e9 else f"{value / 1e9:.2f}"
