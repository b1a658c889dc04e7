"""From variants of a registry to a finished evaluation: materialise, load an engine, score, write, attest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import BaseConfig, EvalConfig
from ..core.console import printable, warn
from ..core.disk.files import refuse_no_folder, sweep_staged
from ..core.disk.links import refuse_link
from ..core.errors import ConfigError
from ..data.answers.reader import normalise
from ..data.problems import Problem
from ..engines.in_turn import InTurn
from ..engines.protocol import BASE, Engine, check_temperature
from ..engines.vllm_options import vllm_version
from ..registry.maintenance.gc import lease
from ..variants import Variant, VariantPlan, check_fits, ground_of, materialise, plan_variant
from .protocols import protocol
from .report import write_evaluation
from .runner import Evaluation, VariantScore, evaluate

if TYPE_CHECKING:
    from ..merge.inputs import BaseWord
    from ..registry.record import DataRef, Metric
    from ..registry.store import Store

ENGINES = ("hf", "vllm")


def check_engine(config: EvalConfig) -> None:
    """Refuse an evaluation that could not be run, before anything is trained or composed for it.

    Raises:
        ConfigError: No such engine.
        NotFoundError: vLLM is asked for and not installed.
    """
    if config.engine not in ENGINES:
        raise ConfigError("no such engine", where="eval.engine", found=config.engine, expected=" or ".join(ENGINES))
    if config.engine == "vllm":
        vllm_version()


def score_variants(
    store: Store,
    variants: Sequence[Variant],
    problems: Sequence[Problem],
    config: EvalConfig,
    *,
    data: DataRef,
    runs: Path = Path("runs"),
    untrained: BaseConfig | None = None,
    base: BaseWord | None = None,
) -> tuple[Evaluation, Path]:
    """Score variants on the twin they were trained on, write every answer and attest what they scored.

    Sampled scores are written but not attested: what the registry shows for a variant is its greedy score.

    Args:
        store: Registry that holds the stages.
        variants: What to score, the baseline first; a variant named twice is scored once.
        problems: Held-out problems.
        config: Protocol, engine and limits; its `data` and `limit` have been used for `problems` already.
        data: The rows the problems are, as records name rows.
        runs: Folder under which `<curriculum>/eval/<time>` is made.
        untrained: The base of a curriculum that has no stage yet. Scores stand beside no adapter of it, and are not
            attested.
        base: The user's word on the base of plain folders, over what they call it.

    Returns:
        The evaluation and the folder it was written to.

    Raises:
        ConfigError: No such engine or protocol, or a temperature below 0.
        NotFoundError: An unknown stage, or no vLLM.
        IncompatibleError, IntegrityError: Stages that do not compose, or damaged bytes.
        DiskFullError: No room; nothing half-written is left.
    """
    asked = protocol(config.protocol)
    check_temperature(config.temperature)
    check_engine(config)
    chosen = list(dict.fromkeys(variants))
    place = runs / chosen[0].curriculum / "eval"
    refuse_no_folder(place)
    for folder in (place.parent, place):
        refuse_link(folder)
    plans = {
        name: VariantPlan(variant=variant, entries=(), composition=None, path=None)
        if untrained is not None and name == BASE
        else plan_variant(store, variant, base=base)
        for name, variant in name_variants(chosen).items()
    }
    ground = ground_of(store, list(plans.values()), word=base, untrained=untrained)
    if ground is not None:
        check_fits(ground.base, list(plans.values()))
    warn_of_golds(problems)
    warn_of_overlaps(store, plans, data)
    used = {entry.digest for plan in plans.values() for entry in plan.entries}
    cached = [plan.path for plan in plans.values() if plan.path]
    if ground is not None and ground.quantisation is not None:
        cached.append(ground.path(store.cache))
    checkpoints = {name: plan.checkpoint for name, plan in plans.items() if plan.checkpoint is not None}
    with lease(store, used, cached):
        adapters = {name: materialise(store, plan).path for name, plan in plans.items() if name not in checkpoints}
        weights = ground.ensure(store.cache) if ground is not None else None
        with closing(_engine(config, weights, adapters, checkpoints, asked.stop)) as engine:
            evaluation = evaluate(problems, engine, list(plans), asked, checkpoints=checkpoints)
    folder = write_evaluation(evaluation, _fresh(place))
    if not config.temperature and untrained is None:
        attest(store, evaluation, {name: plan.variant for name, plan in plans.items()}, data)
    return evaluation, folder


def _engine(
    config: EvalConfig,
    weights: Path | None,
    adapters: Mapping[str, Path | None],
    checkpoints: Mapping[str, Path],
    stop: Sequence[str],
) -> Engine:
    """One engine for what shares a base; with checkpoints, one after the other."""
    if weights is not None and not checkpoints:
        return load_engine(config, weights, adapters, stop)
    adapted = None if weights is None else partial(load_engine, config, weights, adapters, stop)
    return InTurn(
        adapted,
        {name: partial(load_engine, config, folder, {BASE: None}, stop) for name, folder in checkpoints.items()},
    )


def load_engine(config: EvalConfig, twin: Path, adapters: Mapping[str, Path | None], stop: Sequence[str]) -> Engine:
    """The engine a config names, holding all adapters."""
    decoding: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "stop": stop,
        "temperature": config.temperature,
        "seed": config.seed,
    }
    if config.engine == "vllm":
        from ..engines.vllm import VllmEngine

        return VllmEngine(twin, adapters, **decoding)
    from ..engines.hf import HfEngine

    return HfEngine(twin, adapters, batch_size=config.batch_size, **decoding)


def warn_of_golds(problems: Sequence[Problem]) -> None:
    """Say how many gold answers are no number, since no completion is right there."""
    unread = [problem for problem in problems if normalise(problem.gold) is None]
    if unread:
        warn(
            f"{len(unread)} of {len(problems)} gold answers are no number, and no answer to them counts as right; the "
            f"first is {unread[0].id}: {printable(unread[0].gold[:40])}"
        )


def warn_of_overlaps(store: Store, plans: Mapping[str, VariantPlan], data: DataRef) -> None:
    """Say which adapters were trained on the rows that are about to be scored, or may have been."""
    from ..registry.lineage.contamination import overlaps

    digests = dict.fromkeys(entry.digest for plan in plans.values() for entry in plan.entries)
    for overlap in overlaps(store, digests, data):
        warn(f"{overlap}: a score on what a model has seen says little")


def attest(store: Store, evaluation: Evaluation, variants: Mapping[str, Variant], data: DataRef) -> None:
    """Write the scores beside the stages they belong to; merges, folders and other weights than 1 belong to none."""
    from ..registry.lineage.scores import attest_scores

    described = evaluation.to_json()
    details = {key: described[key] for key in ("engine", "problems")}
    details["engine"] = {key: value for key, value in described["engine"].items() if key != "checkpoints"}
    details["problems"]["source"] = data.id
    details["protocol"] = described["protocol"]["digest"]
    details["grader"] = described["grader"]
    for score in evaluation.scores:
        variant = variants[score.variant]
        if variant.is_stages and (variant.weights is None or set(variant.weights) <= {1.0}):
            measured = metrics(score, evaluation.protocol.name)
            attest_scores(store, variant.curriculum, variant.stages, measured, details, data)


def metrics(score: VariantScore, protocol_name: str) -> list[Metric]:
    """A score as a record's metrics: accuracy, tokens, truncated, no_answer."""
    from ..registry.record import Metric

    def metric(name: str, value: float, ci95: tuple[float, float] | None = None) -> Metric:
        return Metric(name=name, value=value, n=score.n, ci95=ci95, protocol=protocol_name)

    return [
        metric("accuracy", score.accuracy, score.accuracy_ci95),
        metric("tokens", score.mean_tokens, score.tokens_ci95),
        metric("truncated", score.truncated_share),
        metric("no_answer", score.no_answer_share),
    ]


def name_variants(variants: Sequence[Variant]) -> dict[str, Variant]:
    """Short names (`1+2`), with the curriculum (`gsm8k:1+2`) where two curricula would share one."""
    shared = Counter(variant.name for variant in variants)
    return {variant.name if shared[variant.name] == 1 else variant.alias: variant for variant in variants}


def _fresh(parent: Path) -> Path:
    """A folder named after the time, not there yet; what killed runs left beside it goes."""
    for leftover in parent.glob(".*.tmp-*"):
        sweep_staged(parent / leftover.name[1:].partition(".tmp-")[0])
    stem = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    taken = {path.name for path in parent.glob(f"{stem}*")}
    return parent / next(name for number in range(len(taken) + 1) if (name := _numbered(stem, number)) not in taken)


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number + 1}" if number else stem
