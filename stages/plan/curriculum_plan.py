"""What `train` would do, decided before anything expensive starts: the base, each stage's rows, and what is stale.

What can be refused without the base is refused here: bad values, unknown trainer fields, missing columns, training rows
among the evaluation rows, a stage for which too few rows fit, another base than the curriculum's, an earlier stage that
does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from ...adapters.base.resolve import BaseRef, Quantisation
from ...core.config import AdapterConfig, BaseConfig, CurriculumConfig, DataConfig, StageConfig
from ...core.console import say, warn
from ...core.disk.digest import digest_json, short
from ...core.errors import BaseMismatchError, ConfigError, IntegrityError, NotFoundError
from ...data.dataset import LoadReport, data_of, held_out_share, require_disjoint, require_train_split
from ...data.rationale.parse import Rationale
from ...evaluation.protocols import protocol
from ...registry.lineage.graph import CHANGED, parent_numbers, stale
from ...registry.record import BaseRecord, first_fault
from ...registry.store import Store
from ..gates import parse_gate
from ..mining.mining import check_mining
from ..mining.sample_log import rows_seed
from ..prompts.masking import check_masking
from ..prompts.tasks import SUPERVISED, check_stage, make_rows
from ..rewards.hierarchical import check_reward
from ..rollouts.validate import check_rollout, check_sampling, plan_rollout
from .at_hand import count_parameters, find_base, find_rationales, held_out_questions
from .memory_estimate import count_adapter, estimate_memory
from .model_shape import ModelShape, find_shape
from .stage_plan import CurriculumPlan, StagePlan
from .staleness import recipe, recipe_digest, what_changed
from .token_budget import (
    TokenCounter,
    fitting_rows,
    longest_prompts,
    require_askable,
    require_batch,
    require_possible,
    require_rows,
    token_counter,
)
from .trl_args import check_trainer, count_steps, trainer_arguments

Rows = tuple[list[Rationale], LoadReport, str]
"""Rows, what became of them, and why they are unknown where they are."""


@dataclass(frozen=True, kw_only=True)
class _PlanContext:
    """What every stage of a plan rests on."""

    config: CurriculumConfig
    base: BaseRef
    base_note: str
    shape: ModelShape | None
    quantisation: Quantisation
    counter: TokenCounter | None
    """Counts prompts; None where the base's tokenizer is not on this disk."""


def plan_curriculum(
    config: CurriculumConfig, store: Store, stages: Sequence[int] | None = None, *, only_show: bool = False
) -> CurriculumPlan:
    """Decide what has to be trained.

    Args:
        config: The curriculum.
        store: Where its stages are registered.
        stages: Numbers of the stages this run may train; None allows all.
        only_show: The plan will not be carried out: a base is not downloaded for it, and where the base or rows are
            not at hand the plan says so.

    Raises:
        ConfigError: A value that cannot be meant, or training rows among the evaluation rows.
        NotFoundError: A stage number the config lacks, or an earlier stage that is neither trained nor selected.
        BaseMismatchError: The registry has this curriculum on another base or quantisation.
    """
    named = sorted(config.stages.items(), key=lambda item: item[1].number)
    selected = _selected(named, stages)
    _check_dtype(config.base)
    check_rollout(config.rollout)
    for name, stage in named:
        _check(name, stage, config.data)
    asked = protocol(config.eval.protocol)
    if any(stage.gate is not None for stage in config.stages.values()):
        from ...evaluation.scores import check_engine

        check_engine(config.eval)
    base, base_note = find_base(config.base, only_show)
    shape, shape_source = find_shape(config.base)
    quantisation = Quantisation.of(config.base)
    if not base_note:
        _check_recordable(config.base, base)
    _check_base(config, store, base, quantisation)
    held_out, scored, eval_note = held_out_questions(config.eval.data, only_show)
    if scored and (said := held_out_share(config.eval.data)):
        say(f"{said}: {len(held_out)} of {scored.id}")
    known = _PlanContext(
        config=config,
        base=base,
        base_note=base_note,
        shape=shape,
        quantisation=quantisation,
        counter=token_counter(config.base),
    )
    loaded: dict[str, Rows] = {}
    plans: list[StagePlan] = []
    for name, stage in named:
        full = replace(stage, data=stage.data or config.data, adapter=stage.adapter or config.adapter)
        assert full.data is not None
        supervised = full.task in SUPERVISED
        key = digest_json([asdict(full.data), supervised])
        if key not in loaded:
            loaded[key] = find_rationales(*data_of(config, name), only_show, bare=not supervised)
            require_disjoint([item.question for item in loaded[key][0]], held_out, f"stages.{name}")
            for column, count in loaded[key][1].unread.items():
                warn(f"stages.{name}: column {column} holds text in {count} rows and is not read; `plyfold data check` "
                     "says how it joins the question")  # fmt: skip
        plans.append(_plan_stage(known, name, full, loaded[key], plans, selected=full.number in selected))
    done = [
        _with_lengths(known, plan, plans[:place]) if only_show or plan.will_train else plan
        for place, plan in enumerate(_with_state(plans, known, store))
    ]
    return CurriculumPlan(
        config=config,
        base=base,
        quantisation=quantisation,
        protocol=asked,
        stages=tuple(done),
        base_note=base_note,
        scored=scored,
        eval_note=eval_note,
        shape_source=shape_source,
        cache=store.cache,
        rollout=plan_rollout(config.rollout, base, quantisation, done),
    )


def _plan_stage(
    known: _PlanContext, name: str, full: StageConfig, rows: Rows, before: Sequence[StagePlan], *, selected: bool
) -> StagePlan:
    """A stage with its data and adapter filled in, as if the registry were empty."""
    config, base, shape = known.config, known.base, known.shape
    rationales, report, unknown = rows
    assert full.data is not None
    assert full.adapter is not None
    _check_adapter(full.adapter, shape, "adapter" if config.stages[name].adapter is None else f"stages.{name}.adapter")
    arguments = trainer_arguments(config, name, Path("."), on_gpu=False)
    if full.task not in SUPERVISED:
        check_sampling(config.rollout, arguments, f"stages.{name}")
    if not unknown:
        require_possible(len(rationales), name, full, arguments, shape.context if shape else None)
    adapter, revision = full.adapter, (base.repo, base.revision)
    return StagePlan(
        name=name,
        stage=full,
        rationales=tuple(rationales),
        report=report,
        steps=count_steps(arguments, (_most_rows(full.data) if unknown else len(rationales)) * full.epochs),
        trainable=_trainable(base, known.base_note, shape, adapter),
        config_digest=recipe_digest(full, config, revision, known.quantisation, report.sha256),
        digest=None,
        reasons=("not trained yet",),
        selected=selected,
        arguments=arguments,
        parents=tuple(plan.number for plan in before),
        prior_rank=sum(plan.adapter.r for plan in before),
        memory=None,
        gate=parse_gate(full.gate, f"stages.{name}.gate") if full.gate is not None else (),
        unknown=unknown,
    )


def _with_lengths(known: _PlanContext, plan: StagePlan, before: Sequence[StagePlan]) -> StagePlan:
    """A stage with its memory, as far as shape and rows are at hand; refuses one for which too few rows fit.

    Reads every prompt, which takes seconds for some thousands.
    """
    if not known.shape:
        return plan
    prompt_tokens = None if plan.unknown or not known.counter else _longest_prompt(known, plan, known.shape.context)
    memory = estimate_memory(
        known.shape,
        known.quantisation,
        plan.stage,
        plan.adapter,
        [earlier.adapter for earlier in before],
        plan.arguments,
        known.config.rollout,
        prompt_tokens,
    )
    return replace(plan, memory=memory)


def _longest_prompt(known: _PlanContext, plan: StagePlan, context: int) -> int | None:
    """Tokens of the longest prompt that is sampled from, None without rollouts; refuses where too few rows fit."""
    assert known.counter is not None
    stage, arguments, rationales = plan.stage, plan.arguments, plan.rationales
    asked, seed = protocol(known.config.eval.protocol), rows_seed(known.config, plan.number)
    if stage.task != "rewrite":
        rows = make_rows(rationales, stage, asked, seed, known.counter.text)
        fitting, limit = fitting_rows(rows, stage, arguments, context, known.counter)
        require_rows(len(fitting), plan.name, stage, arguments, limit)
        return None if stage.task in SUPERVISED else max(known.counter.prompts([row["prompt"] for row in fitting]))
    longest = longest_prompts(rationales, stage, asked, seed, arguments, context, known.counter)
    if not longest[0]:
        require_batch(0, plan.name, stage, arguments, context - int(arguments.max_completion_length))
    require_askable(longest[1], plan.name, stage, context)
    return max(longest)


def _check_adapter(adapter: AdapterConfig, shape: ModelShape | None, where: str) -> None:
    if adapter.r < 1 or adapter.alpha <= 0 or not adapter.targets:
        raise ConfigError(
            "an adapter needs a rank of at least 1, an alpha above 0 and a target",
            where=where,
            found=f"r {adapter.r}, alpha {adapter.alpha:g}, targets {', '.join(adapter.targets) or 'none'}",
        )
    for target in adapter.targets:
        if shape and not shape.targeted([target]):
            raise ConfigError(
                "a target names no linear module of the base's layers",
                where=f"{where}.targets",
                found=target,
                expected=", ".join(name.rpartition(".")[2] for name in shape.linears()),
            )


def _most_rows(data: DataConfig) -> int:
    """Rows at most, by the config alone; 0 where it names no range."""
    return data.rows[1] - data.rows[0] if data.rows and len(data.rows) == 2 else 0


def _trainable(base: BaseRef, base_note: str, shape: ModelShape | None, adapter: AdapterConfig) -> int | None:
    if not base_note:
        return count_parameters(base, adapter)
    return count_adapter(shape, adapter) if shape else None


def _with_state(plans: list[StagePlan], about: _PlanContext, store: Store) -> list[StagePlan]:
    curriculum = about.config.curriculum
    known = store.stages(curriculum)
    outdated = stale(store, curriculum, {plan.number: plan.config_digest for plan in plans if not plan.unknown})
    done: list[StagePlan] = []
    for plan in plans:
        reasons = list(outdated.get(plan.number, [])) if plan.number in known else ["not trained yet"]
        if CHANGED in reasons:
            reasons[reasons.index(CHANGED)] = _changed(plan, about, store, known[plan.number])
        elif plan.number in known and (moved := _other_parents(plan, store, curriculum, known[plan.number])):
            reasons.append(moved)
        again = [str(earlier.number) for earlier in done if earlier.will_train and earlier.digest]
        if again and plan.number in known and not reasons:
            reasons = [f"stage {', '.join(again)} is trained again"]
        if plan.unknown and plan.number in known:
            reasons.append("whether its rows changed cannot be told: they are not at hand")
        plan = replace(plan, digest=known.get(plan.number), reasons=tuple(reasons))
        lacking = [earlier for earlier in done if not earlier.selected and not _held(store, earlier.digest)]
        if plan.will_train and lacking:
            numbers = ",".join(str(earlier.number) for earlier in lacking)
            raise NotFoundError(
                f"stage {plan.number} trains on top of stage {numbers}, which is not in the registry",
                where=f"{curriculum} in {store.root}",
                next_step=f"the same command with --stages {numbers},{plan.number}",
            )
        done.append(plan)
    return done


def _changed(plan: StagePlan, about: _PlanContext, store: Store, digest: str) -> str:
    base = (about.base.repo, about.base.revision)
    wanted = recipe(plan.stage, about.config, base, about.quantisation, plan.report.sha256)
    found = what_changed(store.read_record(digest).record, wanted)
    return f"{CHANGED}: {', '.join(found)}" if found else "another version of plyfold trained it by other rules"


def _other_parents(plan: StagePlan, store: Store, curriculum: str, digest: str) -> str:
    """Why a stage is stale that was trained on other stages than the config now has below it; empty where it is not."""
    try:
        before = parent_numbers(store, curriculum, digest)
    except (NotFoundError, IntegrityError):
        return ""  # told already
    if before is None or before == plan.parents:
        return ""
    was, is_now = (", ".join(map(str, numbers)) or "the base" for numbers in (before, plan.parents))
    return f"it was trained on top of {was}, and the config has {is_now} below it"


def _held(store: Store, digest: str | None) -> bool:
    try:
        return digest is not None and bool(store.read_record(digest))
    except NotFoundError:
        return False


def _selected(named: Sequence[tuple[str, StageConfig]], stages: Sequence[int] | None) -> set[int]:
    known = {stage.number for _, stage in named}
    missing = sorted(set(stages or ()) - known)
    if missing:
        listed = ", ".join(f"{stage.number} {name}" for name, stage in named)
        raise NotFoundError("the config has no such stage", found=missing, expected=f"one of {listed}")
    return known if stages is None else set(stages)


def _check(name: str, stage: StageConfig, data: DataConfig) -> None:
    where = f"stages.{name}"
    check_stage(stage, where)
    check_trainer(stage, name)
    check_masking(stage.masking, where)
    if stage.task not in SUPERVISED:
        check_reward(stage.reward, where)
    if stage.task == "rewrite":
        check_mining(stage.mining, where)
        require_train_split(stage.data or data, where)


def _check_dtype(base: BaseConfig) -> None:
    if base.compute_dtype == "float16":
        raise ConfigError(
            "stages do not train in float16: gradients overflow in it",
            where="base.compute_dtype",
            found="float16",
            expected="bfloat16 or float32",
            next_step="base.compute_dtype=bfloat16, or float32 on cards without it",
        )


def _check_recordable(config: BaseConfig, base: BaseRef) -> None:
    """Refuse a base that no record could name: it would be said after the training."""
    try:
        BaseRecord(repo=base.repo, revision=base.revision)
    except ValidationError as error:
        raise ConfigError(
            "a record cannot name this base",
            where="base",
            found=f"{config.repo}@{config.revision}: {first_fault(error)}",
            expected="a Hub id, and a commit of 40 hex digits or `auto`",
            next_step="base.revision=auto, with base.repo the name it has or would have on the Hub",
        ) from error


def _check_base(config: CurriculumConfig, store: Store, base: BaseRef, quantisation: Quantisation) -> None:
    for number, digest in store.stages(config.curriculum).items():
        try:
            known = store.read_record(digest).record.base
        except NotFoundError:
            continue  # counted as stale
        for what, found, expected in (
            ("base", base.repo, known.repo),
            ("revision of the base", base.revision, known.revision),
            ("quantisation", quantisation.to_json(), known.quantisation or quantisation.to_json()),  # may be unknown
        ):
            if found != expected:
                raise BaseMismatchError(
                    f"this curriculum was trained on another {what}",
                    where=f"{config.curriculum} stage {number} ({short(digest)}) in {store.root}",
                    expected=expected,
                    found=found,
                    next_step="give the curriculum another name (curriculum=NAME), or use another --registry",
                )
