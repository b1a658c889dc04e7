"""One stage trained in its run folder, from a loaded base to an adapter folder; resumed after a kill at any moment.

    runs/<curriculum>/<number>-<name>/
        config.resolved.yaml   run.json (fingerprint)   metrics.jsonl   completions/   checkpoints/
        mined.json and mined.draws.jsonl (rewrite)   adapter/ (when finished)

A run folder belongs to one fingerprint: configuration, rows and parents. A folder of another fingerprint is moved
aside, said aloud, and never resumed from. Knows nothing about the registry.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import save_config
from ..core.console import progress, say
from ..core.digest import digest_json, sha256_bytes, short
from ..core.errors import ConflictError, FailedError, IncompatibleError
from ..core.files import staged_folder, write_json
from .arguments import trainer_arguments
from .fit import askable, fitting_rows, longest_prompts, needed_context, require_rows
from .mishaps import clear_mishaps, clear_sampling
from .plan import CurriculumPlan, StagePlan
from .processes import Processes, join
from .quiet import quiet_libraries
from .rationale import Rationale
from .rollout import rollout_engine, rollout_totals
from .tasks import SUPERVISED, Row, make_rows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from .rollout import RolloutEngine

RUN = "run.json"
ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A finished stage."""

    folder: Path
    """Canonical PEFT folder of the trained adapter."""
    steps: int
    """Optimiser steps."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the record: rows, seconds, device, mined failures, the last metrics, alarms."""


def run_stage(
    plan: CurriculumPlan, stage: StagePlan, prior: Path | None, parents: Sequence[str], run_dir: Path
) -> StageRun:
    """Train a stage, or finish the run that was interrupted.

    Args:
        plan: The curriculum's plan, for base, protocol and config.
        stage: The stage.
        prior: Earlier stages composed into one adapter folder; null for the first.
        parents: Digests of those stages.
        run_dir: The stage's run folder.

    Raises:
        FailedError: A loss that is not finite, no memory left, a lost freeze, or too few mined failures.
        ConfigError: Fewer rows than one generation batch.
        ConflictError: Another run trains in this folder.
        IncompatibleError: The interrupted run was of another number of processes.
    """
    fingerprint = digest_json([stage.config_digest, list(parents)])
    processes = join()
    with ExitStack() as owned:

        def begin() -> StageRun | None:
            owned.enter_context(_owned(run_dir, fingerprint, processes.count))
            save_config(plan.config, run_dir / "config.resolved.yaml")
            return _finished(run_dir)

        finished = processes.on_first(begin)
        if finished is not None:
            say(f"stage {stage.number} {stage.name}: finished in {run_dir}")
            return finished
        with quiet_libraries():
            run = _train(plan, stage, prior, run_dir, fingerprint, processes)
    _give_memory_back()
    return run


def _train(
    plan: CurriculumPlan,
    stage: StagePlan,
    prior: Path | None,
    run_dir: Path,
    fingerprint: str,
    processes: Processes,
) -> StageRun:
    import torch

    from ..adapters.base import ensure_twin, load_nf4, load_tokenizer
    from ..adapters.stack import attach, frozen_digest, save_default
    from .failures import Failures, find_failures
    from .policy import batch_of, policy_sampler
    from .recorder import RunRecorder, last_checkpoint, read_metrics, require_finite

    config = plan.config
    if config.threads:
        torch.set_num_threads(config.threads)
    start_s = time.monotonic()
    tokenizer = load_tokenizer(plan.base.path)
    if config.rollout.engine == "vllm" and stage.stage.task not in SUPERVISED:
        ensure_twin(plan.base, plan.quantisation, plan.cache)  # before the base is there a second time
    model = attach(load_nf4(plan.base, plan.quantisation), stage.adapter, prior, config.seed)
    frozen = frozen_digest(model)
    failures: Failures | None = None
    arguments = trainer_arguments(config, stage.name, run_dir, on_gpu=model.device.type == "cuda")

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    longest = int(model.config.max_position_embeddings)

    def count_given(text: str) -> int:  # as an engine is given it, a first token that some tokenizers add included
        return len(tokenizer(text)["input_ids"])

    def context() -> int:
        prompts = longest_prompts(
            stage.rationales, stage.stage, plan.protocol, config.seed, arguments, longest, count_given
        )
        return needed_context(prompts, stage.stage, arguments, longest)

    with rollout_engine(plan, stage, context, arguments, run_dir) as engine:

        def choose() -> Sequence[Rationale]:
            nonlocal failures
            pool = askable(stage.rationales, stage.stage, plan.protocol, longest, count_given)
            if left := len(stage.rationales) - len(pool):
                say(f"stage {stage.number} {stage.name}: {left} of {len(stage.rationales)} questions leave no room for "
                    f"{stage.stage.mining.max_new_tokens} tokens in a context of {longest}, not mined")  # fmt: skip
            mined = replace(stage, rationales=pool)
            sampling = policy_sampler(plan, mined, model, tokenizer, engine, run_dir)
            with clear_sampling(stage.number, stage.name), sampling as sampler:
                failures = find_failures(plan, mined, prior, sampler, run_dir, batch_of(engine))
            return failures.rationales

        chosen = processes.on_first(choose) if stage.stage.task == "rewrite" else stage.rationales
        rows, too_long = _rows(plan, stage, chosen, count_tokens, arguments, model)
        checkpoint = last_checkpoint(run_dir, fingerprint)
        if checkpoint is not None:
            say(f"stage {stage.number} {stage.name}: continues from {checkpoint.name}")
        with progress(f"stage {stage.number} {stage.name}") as task:
            recorder = RunRecorder(run_dir, task)
            with clear_mishaps(stage.number, stage.name, recorder, arguments):
                trainer = _trainer(plan, stage, model, tokenizer, rows, arguments, fingerprint, recorder, engine)
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if frozen_digest(model) != frozen:
            raise FailedError("frozen weights changed while training", where=f"stage {stage.number} {stage.name}")
        if len(set(processes.gather(_trained_digest(model)))) > 1:
            raise FailedError("the processes trained different adapters", where=f"stage {stage.number} {stage.name}")

        def finish() -> StageRun:
            require_finite(model, int(trainer.state.global_step))
            details: dict[str, Any] = {
                "rows": len(rows),
                "rows_too_long": too_long,
                "device": model.device.type,
                "processes": processes.count,
                "final": _final(read_metrics(recorder.path)),
                "alarms": [alarm.to_json() for alarm in recorder.alarms.raised],
            }
            if spent := rollout_totals(read_metrics(recorder.path)):
                details["rollout"] = spent | (engine.describe() if engine else {"engine": "hf"})
            with staged_folder(run_dir / ADAPTER, replace=True) as staged:
                save_default(model, staged, plan.base.repo, plan.base.revision)
            steps = int(trainer.state.global_step)
            if failures:
                sampling = policy_sampler(plan, stage, model, tokenizer, engine, run_dir)
                with clear_sampling(stage.number, stage.name), sampling as sampler:
                    details["mined"] = failures.report(sampler, run_dir / ADAPTER, steps)
            details["wall_s"] = round(time.monotonic() - start_s, 1)
            note = {"schema": 1, "fingerprint": fingerprint, "processes": processes.count}
            write_json(run_dir / RUN, {**note, "steps": steps, "details": details})
            return StageRun(folder=run_dir / ADAPTER, steps=steps, details=details)

        return processes.on_first(finish)


def _trainer(
    plan: CurriculumPlan,
    stage: StagePlan,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    arguments: TrainingArguments,
    fingerprint: str,
    recorder: Any,
    engine: RolloutEngine | None,
) -> Any:
    from .rewards import HierarchicalReward
    from .trainers import StageGRPOTrainer, StageSFTTrainer

    common: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "rows": rows,
        "tokenizer": tokenizer,
        "base": plan.base,
        "fingerprint": fingerprint,
        "callbacks": [recorder],
    }
    if stage.stage.task in SUPERVISED:
        return StageSFTTrainer(**common)
    reward = HierarchicalReward(stage.stage.reward, stage.stage.task)
    return StageGRPOTrainer(**common, reward=reward, engine=engine)


def _rows(
    plan: CurriculumPlan,
    stage: StagePlan,
    rationales: Sequence[Rationale],
    count_tokens: Callable[[str], int],
    arguments: TrainingArguments,
    model: PeftModel,
) -> tuple[list[Row], int]:
    """The rows that fit, and how many did not: a cut row would lose its answer or its end."""
    rows = make_rows(rationales, stage.stage, plan.protocol, plan.config.seed, count_tokens, stage.rationales)
    context = int(model.config.max_position_embeddings)
    fitting, limit = fitting_rows(rows, stage.stage, arguments, context, count_tokens)
    too_long = len(rows) - len(fitting)
    if too_long:
        say(
            f"stage {stage.number} {stage.name}: {too_long} of {len(rows)} rows are longer than {limit} tokens, skipped"
        )
    require_rows(len(fitting), stage.name, stage.stage, arguments, limit)
    return fitting, too_long


@contextmanager
def _owned(run_dir: Path, fingerprint: str, processes: int) -> Iterator[None]:
    """Hold the run folder for this fingerprint; a folder of another one is moved aside first."""
    from filelock import FileLock, Timeout

    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir.parent / f".{run_dir.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConflictError("another process trains in this folder", where=run_dir) from None
    try:
        for left in [*run_dir.parent.glob(f".{run_dir.name}.tmp-*"), *run_dir.glob(f".{ADAPTER}.*-*")]:
            shutil.rmtree(left, ignore_errors=True)  # what a kill left half-written
        found = _read_run(run_dir).get("fingerprint")
        if run_dir.exists() and found != fingerprint:
            aside = _free_name(run_dir, found)
            run_dir.rename(aside)
            say(f"{run_dir} is a run of another configuration: kept as {aside.name}, starting afresh")
        if not run_dir.exists():
            with staged_folder(run_dir) as staged:
                write_json(staged / RUN, {"schema": 1, "fingerprint": fingerprint, "processes": processes})
        note = _read_run(run_dir)
        if (begun := note.get("processes", 1)) != processes and "steps" not in note:
            raise IncompatibleError(
                "this run was begun with another number of processes, which decides its batches",
                where=run_dir,
                expected=f"{begun} processes",
                found=f"{processes}",
                next_step=f"start {begun} processes to continue, or remove that folder to start afresh",
            )
        yield
    finally:
        lock.release()


def _trained_digest(model: PeftModel) -> str:
    """Of every parameter that trains, in the model's order."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return sha256_bytes(b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in trained))


def _give_memory_back() -> None:
    """A trainer is full of cycles: without this the next model may not fit beside it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_name(run_dir: Path, fingerprint: object) -> Path:
    stem = f"{run_dir.name}.{short(str(fingerprint), 8) if fingerprint else 'unknown'}"
    names = [stem, *(f"{stem}.{count}" for count in range(2, 1000))]
    return next(run_dir.with_name(name) for name in names if not run_dir.with_name(name).exists())


def _finished(run_dir: Path) -> StageRun | None:
    note = _read_run(run_dir)
    if "steps" not in note or not (run_dir / ADAPTER).is_dir():
        return None
    return StageRun(folder=run_dir / ADAPTER, steps=note["steps"], details=note["details"])


def _read_run(run_dir: Path) -> dict[str, Any]:
    try:
        note = json.loads((run_dir / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _final(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of the last ten steps of what people ask for."""
    wanted = ("loss", "mean_token_accuracy", "reward", "accuracy", "accuracy_unaided", "completions/mean_length",
              "completions/clipped_ratio", "kl")  # fmt: skip
    last = [line for line in metrics if "loss" in line][-10:]
    means = {}
    for key in wanted:
        values = [line[key] for line in last if isinstance(line.get(key), (int, float))]
        if values:
            means[key] = round(sum(values) / len(values), 6)
    return means
