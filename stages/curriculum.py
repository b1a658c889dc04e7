"""Train a curriculum: every missing or stale stage in order, each published with its lineage as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.base.resolve import config_digest, tokenizer_digest
from ..adapters.tensors import tensor_digest
from ..core.config import CurriculumConfig, config_dict
from ..core.console import say, warn
from ..core.disk.digest import short
from ..core.disk.files import refuse_no_folder
from ..core.environment import EnvironmentText
from ..core.errors import BaseMismatchError, IntegrityError, NotFoundError
from ..data.dataset import load_scored
from ..data.readers import is_local_path
from ..evaluation.grader import grader
from ..registry.provenance import describe_code, describe_environment
from ..registry.record import SCORED, BaseRecord, DataRef, Parent, Recipe, Record, StageId, Weights, portable
from ..registry.store import Entry, Store
from ..sandbox import SANDBOX
from ..variants import Variant, materialise
from ..variants.base import digest_of
from .gates import GateMeasurement, check_gate
from .plan.curriculum_plan import plan_curriculum
from .plan.stage_plan import CurriculumPlan, StagePlan
from .runtime.distributed import Processes, join
from .training.curves import write_curves
from .training.run_folder import StageRun
from .training.stage_run import run_stage


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
    """Of the recipe: steps, rows, seconds, last metrics; of an earlier run's where the stage was kept."""
    gate: tuple[GateMeasurement, ...] = ()
    """What it was held against, all of it reached; empty where it has no gate or none was asked for."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {**vars(self), "run_dir": str(self.run_dir), "gate": [item.to_json() for item in self.gate]}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished `train`."""

    curriculum: str
    stages: tuple[StageResult, ...]
    curves: Path | None
    """Page of the runs' curves; None where there are none, as after a pull."""
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "curriculum": self.curriculum,
            "wall_s": self.wall_s,
            "curves": str(self.curves) if self.curves else None,
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
        GateError: A stage misses its gate.
        As `plan_curriculum` and `run_stage`. What was finished before stays published; a rerun continues.
    """
    start_s = time.monotonic()
    processes = join()

    def begin() -> CurriculumPlan:
        refuse_no_folder(runs_dir)
        plan = plan_curriculum(config, store, stages)
        told = config.base.path if isinstance(config.base.path, EnvironmentText) else None
        store.remember_base(plan.base.repo, plan.base.revision, plan.base.path, told)
        _remember_rows(plan, store)
        return with_weights(plan, store) if any(stage.will_train for stage in plan.stages) else plan

    with processes.told_once():
        plan = processes.on_first(begin)
        try:
            results = [_stage(plan, stage, store, runs_dir, processes) for stage in plan.stages]
        finally:
            curves = write_curves(runs_dir / config.curriculum, running=False) if processes.is_first else None
    wall_s = round(time.monotonic() - start_s, 1)
    return TrainResult(curriculum=config.curriculum, stages=tuple(results), curves=curves, wall_s=wall_s)


def with_weights(plan: CurriculumPlan, store: Store) -> CurriculumPlan:
    """The plan with the digest of its base's weights, held against what earlier stages were trained on.

    Raises:
        BaseMismatchError: Stages of this curriculum were trained on other weights of that name.
    """
    weights = digest_of(plan.base.path, store.cache)
    for number, digest in store.stages(plan.config.curriculum).items():
        with suppress(NotFoundError, IntegrityError):  # counted as stale
            known = store.read_record(digest).record.base.weights_digest
            if known not in (None, weights):
                raise BaseMismatchError(
                    "this curriculum was trained on other weights of the base",
                    where=f"{plan.config.curriculum} stage {number} ({short(digest)}) in {store.root}",
                    expected=known,
                    found=f"{weights} in {plan.base.path}",
                    next_step="fetch the base again, or give the curriculum another name (curriculum=NAME)",
                )
    return replace(plan, base=replace(plan.base, weights=weights))


def _remember_rows(plan: CurriculumPlan, store: Store) -> None:
    """Note where files of rows lie: a record keeps their names alone. What the environment names is not noted."""
    read = [(stage.stage.data, stage.report.sha256) for stage in plan.stages]
    read += [(plan.config.eval.data, plan.scored.sha256)] if plan.scored else []
    for data, sha256 in read:
        if data is None or isinstance(data.path, EnvironmentText):
            continue
        if data.path != SANDBOX and is_local_path(data.path):
            store.remember_rows(sha256, Path(data.path))


def _stage(plan: CurriculumPlan, stage: StagePlan, store: Store, runs_dir: Path, processes: Processes) -> StageResult:
    """Train a stage or leave it alone, then hold it against its gate."""
    label, curriculum = stage.label, plan.config.curriculum
    run_dir = runs_dir / curriculum / stage.folder
    digest = stage.digest
    if stage.will_train:
        digest = _train_stage(plan, stage, store, run_dir, processes)
    elif stage.reasons:
        warn(f"{label} is {stage.status}: {'; '.join(stage.reasons)}")
    else:
        say(f"{label}: up to date ({short(stage.digest or '')})")

    def close() -> StageResult:
        recipe = store.read_record(digest).record.recipe if digest else None
        return StageResult(
            number=stage.number,
            name=stage.name,
            digest=digest,
            trained=stage.will_train,
            run_dir=run_dir,
            details={"steps": recipe.steps, **recipe.details} if recipe else {},
            gate=_hold_against_gate(plan, stage, store, runs_dir) if digest else (),
        )

    return processes.on_first(close)


def _hold_against_gate(
    plan: CurriculumPlan, stage: StagePlan, store: Store, runs_dir: Path
) -> tuple[GateMeasurement, ...]:
    """Its outcome; nothing where the run neither asks for the stage nor builds on it."""
    builds_on_it = any(other.will_train and other.number > stage.number for other in plan.stages)
    if not stage.gate or not (stage.selected or builds_on_it):
        return ()
    settings = replace(plan.config.eval, temperature=0.0)
    problems, report = load_scored(settings.data, settings.limit)
    numbers = tuple(other.number for other in plan.stages if other.number <= stage.number)
    where = f"stages.{stage.name}"
    curriculum = plan.config.curriculum
    outcome = check_gate(
        stage.gate, store, curriculum, numbers, settings, problems, DataRef.of(report), runs_dir, where
    )
    for measured in outcome:
        say(f"{stage.label}: gate reached, {measured}")
    return tuple(outcome)


def _train_stage(plan: CurriculumPlan, stage: StagePlan, store: Store, run_dir: Path, processes: Processes) -> str:
    curriculum = plan.config.curriculum
    rows = [f"{stage.report.parsed} rows"]
    rows += [f"{stage.report.bare} of them without rationale, asked unaided"] if stage.report.bare else []
    rows += [f"{count} skipped ({why})" for why, count in stage.report.skipped.items()]
    say(f"{stage.label}: {'; '.join(stage.reasons)}; {', '.join(rows)}")
    earlier = tuple(other.number for other in plan.stages if other.number < stage.number)

    def compose() -> tuple[tuple[Entry, ...], Path | None]:
        if not earlier:
            return (), None
        composed = materialise(store, Variant(curriculum=curriculum, stages=earlier))
        return composed.entries, composed.path

    entries, prior = processes.on_first(compose)
    run = run_stage(plan, stage, prior, [entry.record.weights.digest for entry in entries], run_dir)

    def publish() -> str:
        record = _record(plan, stage, entries, run)
        known = _published(store, record)
        digest = known or store.publish(run.folder, record)
        store.set_ref(curriculum, stage.number, digest, expected=stage.digest)
        say(f"{stage.label}: {'is' if known else 'published as'} {short(digest)} ({run.steps} steps)")
        return digest

    return processes.on_first(publish)


def _published(store: Store, record: Record) -> str | None:
    """The adapter that is this very stage already: a second record of it would make all that was built on it stale."""

    def decides(other: Record) -> object:
        return other.kind, other.curriculum, other.stage, other.parents, other.recipe.config_digest, other.weights

    for digest in store.digests():
        with suppress(NotFoundError, IntegrityError):
            if decides(store.read_record(digest).record) == decides(record):
                return store.load(digest).digest
    return None


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
            weights_digest=plan.base.weights,
        ),
        parents=[Parent(role="active_during_training", digest=entry.digest) for entry in parents],
        requires=[entry.digest for entry in parents],
        recipe=Recipe(
            config=portable(config_dict(config)),
            config_digest=stage.config_digest,
            seed=config.seed,
            steps=run.steps,
            details=portable(
                {**run.details, "grader": grader()}
                | ({SCORED: plan.scored.model_dump(mode="json")} if plan.scored else {})
            ),
        ),
        data=[DataRef.of(report)],
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
