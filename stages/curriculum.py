"""Train a curriculum: every missing or stale stage in order, each published with its lineage as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.base import config_digest, tokenizer_digest
from ..adapters.tensors import tensor_digest
from ..core.config import CurriculumConfig, config_dict
from ..core.console import say, warn
from ..core.digest import short
from ..registry.record import BaseRecord, Parent, Recipe, Record, StageId, Weights, portable
from ..registry.store import Entry, Store
from ..serving.variants import Variant, materialise
from .plan import CurriculumPlan, StagePlan, plan_curriculum
from .provenance import describe_code, describe_environment
from .run import StageRun, run_stage


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What became of one stage."""

    number: int
    name: str
    digest: str | None
    """Its adapter in the registry; None where it is missing and was not asked for."""
    trained: bool
    """Whether this run trained it."""
    run_dir: Path
    details: dict[str, Any]
    """Of the recipe: steps, rows, seconds, last metrics."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {**vars(self), "run_dir": str(self.run_dir)}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished `train`."""

    curriculum: str
    stages: tuple[StageResult, ...]
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "curriculum": self.curriculum,
            "wall_s": self.wall_s,
            "stages": [stage.to_json() for stage in self.stages],
        }


def train(
    config: CurriculumConfig, store: Store, stages: Sequence[int] | None = None, runs_dir: Path = Path("runs")
) -> TrainResult:
    """Train what is missing or stale, and register it.

    Args:
        config: The curriculum.
        store: Where finished stages are published; a stage that is up to date there is left alone.
        stages: Numbers of the stages that may be trained; None allows all.
        runs_dir: Run folders are `runs_dir/<curriculum>/<number>-<name>`.

    Raises:
        As `plan_curriculum` and `run_stage`. What was finished before stays published; a rerun continues.
    """
    start_s = time.monotonic()
    plan = plan_curriculum(config, store, stages)
    store.remember_base(plan.base.repo, plan.base.revision, plan.base.path)
    results: list[StageResult] = []
    for stage in plan.stages:
        run_dir = runs_dir / config.curriculum / f"{stage.number}-{stage.name}"
        digest: str | None = stage.digest
        details: dict[str, Any] = {}
        if stage.will_train:
            digest, details = _train_stage(plan, stage, store, run_dir)
        elif stage.reasons:
            warn(f"stage {stage.number} {stage.name} is {stage.status}: {'; '.join(stage.reasons)}")
        else:
            say(f"stage {stage.number} {stage.name}: up to date ({short(stage.digest or '')})")
        results.append(
            StageResult(
                number=stage.number,
                name=stage.name,
                digest=digest,
                trained=stage.will_train,
                run_dir=run_dir,
                details=details,
            )
        )
    wall_s = round(time.monotonic() - start_s, 1)
    return TrainResult(curriculum=config.curriculum, stages=tuple(results), wall_s=wall_s)


def _train_stage(plan: CurriculumPlan, stage: StagePlan, store: Store, run_dir: Path) -> tuple[str, dict[str, Any]]:
    curriculum = plan.config.curriculum
    skipped = sum(stage.report.skipped.values())
    say(f"stage {stage.number} {stage.name}: {'; '.join(stage.reasons)}; {stage.report.parsed} rows"
        + (f", {skipped} skipped" if skipped else ""))  # fmt: skip
    earlier = tuple(other.number for other in plan.stages if other.number < stage.number)
    entries: tuple[Entry, ...] = ()
    prior = None
    if earlier:
        composed = materialise(store, Variant(curriculum=curriculum, stages=earlier))
        entries, prior = composed.entries, composed.path
    run = run_stage(plan, stage, prior, [entry.digest for entry in entries], run_dir)
    record = _record(plan, stage, entries, run)
    digest = store.publish(run.folder, record)
    store.set_ref(curriculum, stage.number, digest, expected=stage.digest)
    say(f"stage {stage.number} {stage.name}: published as {short(digest)} ({run.steps} steps)")
    return digest, {"steps": run.steps, **run.details}


def _record(plan: CurriculumPlan, stage: StagePlan, parents: Sequence[Entry], run: StageRun) -> Record:
    config, report, adapter = plan.config, stage.report, stage.adapter
    return Record(
        kind="stage",
        curriculum=config.curriculum,
        stage=StageId(number=stage.number, name=stage.name),
        base=BaseRecord(
            repo=plan.base.repo,
            revision=plan.base.revision,
            quantisation=plan.quantisation.to_json(),
            config_digest=config_digest(plan.base.path),
            tokenizer_digest=tokenizer_digest(plan.base.path),
        ),
        parents=[Parent(role="active_during_training", digest=entry.digest) for entry in parents],
        requires=[entry.digest for entry in parents],
        recipe=Recipe(
            config=portable(config_dict(config)),
            config_digest=stage.config_digest,
            seed=config.seed,
            steps=run.steps,
            details=portable(run.details),
        ),
        data=[report.ref()],
        code=describe_code(),
        env=describe_environment(str(run.details.get("device", "cpu"))),
        weights=Weights(
            digest=tensor_digest(run.folder),
            dtype="float32",
            r=adapter.r,
            alpha=adapter.alpha,
            targets=sorted(adapter.targets),
        ),
        licence=config.base.licence,
    )
