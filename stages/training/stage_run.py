"""One stage trained in its run folder, from a loaded base to an adapter folder; resumed after a kill at any moment.

Knows nothing about the registry.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.config import save_config
from ...core.console import progress, say
from ...core.disk.digest import sha256_bytes
from ...core.disk.files import staged_folder
from ...core.errors import FailedError
from ...data.rationale.parse import Rationale
from ..mining.sample_log import draw_seed, rows_seed
from ..plan.stage_plan import CurriculumPlan, StagePlan
from ..plan.token_budget import (
    TokenCounter,
    askable,
    fitting_rows,
    longest_prompts,
    needed_context,
    require_askable,
    require_rows,
)
from ..plan.trl_args import generation_cycle, trainer_arguments
from ..prompts.tasks import SUPERVISED, Row, make_rows
from ..rollouts.factory import rollout_engine
from ..runtime.distributed import Processes, join
from ..runtime.library_logging import quiet_libraries
from ..runtime.metrics import final_means, read_metrics, rollout_totals
from .checkpoints import last_checkpoint, sweep_checkpoints
from .errors import translate_loading_errors, translate_sampling_errors, translate_training_errors
from .reports import own_report
from .run_folder import ADAPTER, RunFolder, StageRun, fingerprint

if TYPE_CHECKING:
    from peft import PeftModel

    from ..mining.hard_problems import Failures
    from ..rollouts.engine import RolloutEngine
    from .recorder import RunRecorder


def run_stage(
    plan: CurriculumPlan, stage: StagePlan, prior: Path | None, parents: Sequence[str], run_dir: Path
) -> StageRun:
    """Train a stage, or finish the run that was interrupted.

    Args:
        plan: The curriculum's plan, for base, protocol and config.
        stage: The stage.
        prior: Earlier stages composed into one adapter folder; null for the first.
        parents: Digests of those stages' weights.
        run_dir: The stage's run folder.

    Raises:
        FailedError: A loss that is not finite, no memory left, a lost freeze, or too few mined failures.
        ConfigError: Fewer rows than one generation batch.
        ConflictError: Another run trains in this folder.
        IncompatibleError: The interrupted run was of another number of processes.
    """
    processes = join()
    folder = RunFolder(path=run_dir, fingerprint=fingerprint(stage, parents), processes=processes.count)
    with ExitStack() as held:

        def begin() -> StageRun | None:
            held.enter_context(folder.held())
            save_config(plan.config, run_dir / "config.resolved.yaml")
            return folder.finished()

        if (finished := processes.on_first(begin)) is not None:
            say(f"{stage.label}: finished in {run_dir}")
            return finished
        with quiet_libraries():
            run = _train(plan, stage, prior, folder, processes)
    _give_memory_back()
    return run


def _train(
    plan: CurriculumPlan, stage: StagePlan, prior: Path | None, folder: RunFolder, processes: Processes
) -> StageRun:
    training = _StageRunner(plan, stage, prior, folder, processes)
    with rollout_engine(plan, stage, training.needed_context, training.arguments, folder.path) as engine:
        chosen: Sequence[Rationale] = stage.rationales
        if stage.stage.task == "rewrite":
            chosen = processes.on_first(lambda: training.mine(engine))
        steps = training.fit(chosen, engine)
        training.check()
        return processes.on_first(lambda: training.finish(steps, engine))


class _StageRunner:
    """A stage on its base: what its acts share, in the order they are called."""

    recorder: RunRecorder
    """Of the fit."""

    def __init__(
        self, plan: CurriculumPlan, stage: StagePlan, prior: Path | None, folder: RunFolder, processes: Processes
    ) -> None:
        import torch

        from ...adapters.base.load import load_nf4, load_tokenizer
        from ...adapters.base.twin import ensure_twin
        from ...adapters.stack import attach, frozen_digest

        self._start_s = time.monotonic()
        self.plan, self.stage, self.prior, self.folder, self.processes = plan, stage, prior, folder, processes
        config = plan.config
        if config.threads:
            torch.set_num_threads(config.threads)
        self.tokenizer = load_tokenizer(plan.base.path)
        self.counter = TokenCounter(self.tokenizer)
        if config.rollout.engine == "vllm" and stage.stage.task not in SUPERVISED:
            ensure_twin(plan.base, plan.quantisation, plan.cache)  # before the base is there a second time
        seed = draw_seed(config.seed, f"A of stage {stage.number}")
        with translate_loading_errors(stage.number, stage.name):
            self.model = attach(load_nf4(plan.base, plan.quantisation), stage.adapter, prior, seed)
        self.context = int(self.model.config.get_text_config().max_position_embeddings)
        self.frozen = frozen_digest(self.model)
        self.arguments = trainer_arguments(config, stage.name, folder.path, on_gpu=self.model.device.type == "cuda")
        self._rows_seed = rows_seed(config, stage.number)
        self.failures: Failures | None = None
        self.num_rows = self.num_too_long = 0

    def needed_context(self) -> int:
        """Longest prompt plus completion, in tokens, that a rollout engine will be asked for."""
        stage, plan = self.stage, self.plan
        prompts = longest_prompts(
            stage.rationales, stage.stage, plan.protocol, self._rows_seed, self.arguments, self.context, self.counter
        )
        return needed_context(prompts, stage.stage, self.arguments, self.context)

    def mine(self, engine: RolloutEngine | None) -> Sequence[Rationale]:
        """The persistent failures, drawn or read back; for one process alone."""
        from ..mining.hard_problems import find_failures
        from ..rollouts.samplers import batch_of, policy_sampler

        plan, stage = self.plan, self.stage
        pool = askable(stage.rationales, stage.stage, plan.protocol, self.context, self.counter)
        if left := len(stage.rationales) - len(pool):
            say(f"{stage.label}: {left} of {len(stage.rationales)} questions leave no room for "
                f"{stage.stage.mining.max_new_tokens} tokens in a context of {self.context}, not mined")  # fmt: skip
        require_askable(len(pool), stage.name, stage.stage, self.context)
        mined = replace(stage, rationales=pool)
        sampling = policy_sampler(plan, mined, self.model, self.tokenizer, engine, self.folder.path)
        with translate_sampling_errors(stage.number, stage.name), sampling as sampler:
            self.failures = find_failures(plan, mined, self.prior, sampler, self.folder.path, batch_of(engine))
        return self.failures.rationales

    def fit(self, chosen: Sequence[Rationale], engine: RolloutEngine | None) -> int:
        """Train on rows of `chosen`, from the last sound checkpoint if there is one; the optimiser steps made."""
        from .recorder import RunRecorder
        from .stopping import StopAfterStep

        stage = self.stage
        rows = self._rows(chosen)
        checkpoint = last_checkpoint(self.folder.path, self.folder.fingerprint)
        self.processes.on_first(lambda: sweep_checkpoints(self.folder.path, checkpoint))
        if checkpoint is not None:
            say(f"{stage.label}: continues from {checkpoint.name}")
        with progress(stage.label) as task:
            self.recorder = RunRecorder(self.folder.path, task, self._start_s)
            stop = StopAfterStep(generation_cycle(self.arguments))
            # Several processes would stop at different steps; and vLLM beside the trainer ends with the same Ctrl-C.
            alone = self.processes.count == 1 and (engine is None or self.plan.config.rollout.engine != "vllm")
            with (
                translate_training_errors(stage.number, stage.name, self.recorder, self.arguments),
                stop.listening() if alone else nullcontext(),
                own_report(self.arguments, self.plan.config.curriculum),
            ):
                trainer = self._trainer(rows, engine, [self.recorder, stop])
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        steps, planned = int(trainer.state.global_step), int(trainer.state.max_steps)
        if steps < planned:  # whatever ended it, half a stage must not pass for a whole one
            raise FailedError(
                "training ended before its last step",
                where=stage.label,
                found=f"step {steps} of {planned}",
                next_step="run the same command again; it continues from the last checkpoint",
            )
        return steps

    def check(self) -> None:
        """Refuse an adapter beside which anything else moved, or that the processes do not agree on.

        Called before a checkpoint is kept, too: a rerun would take it up on a sound base and see nothing.

        Raises:
            FailedError: One of them.
        """
        from ...adapters.stack import frozen_digest

        if frozen_digest(self.model) != self.frozen:
            raise FailedError("frozen weights changed while training", where=self.stage.label)
        if len(set(self.processes.gather(_trained_digest(self.model)))) > 1:
            raise FailedError("the processes trained different adapters", where=self.stage.label)

    def finish(self, steps: int, engine: RolloutEngine | None) -> StageRun:
        """Write the adapter, measure what became of the failures, and close the run; for one process alone."""
        from ...adapters.stack import save_default
        from ..rollouts.samplers import policy_sampler
        from .recorder import require_finite

        plan, stage, run_dir = self.plan, self.stage, self.folder.path
        require_finite(self.model, steps)
        metrics = read_metrics(self.recorder.path)
        details: dict[str, Any] = {
            "rows": self.num_rows,
            "rows_too_long": self.num_too_long,
            "device": self.model.device.type,
            "processes": self.processes.count,
            "final": final_means(metrics),
            "alarms": [alarm.to_json() for alarm in self.recorder.alarms.raised],
        }
        if spent := rollout_totals(metrics):
            details["rollout"] = spent | (engine.describe() if engine else {"engine": "hf"})
        with staged_folder(run_dir / ADAPTER, replace=True) as staged:
            save_default(self.model, staged, plan.base.repo, plan.base.revision)
        if self.failures:
            sampling = policy_sampler(plan, stage, self.model, self.tokenizer, engine, run_dir)
            with translate_sampling_errors(stage.number, stage.name), sampling as sampler:
                details["mined"] = self.failures.report(sampler, run_dir / ADAPTER, steps)
        details["wall_s"] = round(self.recorder.wall_s(), 1)
        return self.folder.finish(steps, details)

    def _rows(self, chosen: Sequence[Rationale]) -> list[Row]:
        """The rows that fit: a cut row would lose its answer or its end."""
        plan, stage, arguments = self.plan, self.stage, self.arguments
        rows = make_rows(
            chosen, stage.stage, plan.protocol, self._rows_seed, self.counter.text, typical=stage.rationales
        )
        fitting, limit = fitting_rows(rows, stage.stage, arguments, self.context, self.counter)
        self.num_rows, self.num_too_long = len(fitting), len(rows) - len(fitting)
        if self.num_too_long:
            say(f"{stage.label}: {self.num_too_long} of {len(rows)} rows are longer than {limit} tokens, skipped")
        require_rows(len(fitting), stage.name, stage.stage, arguments, limit)
        return fitting

    def _trainer(self, rows: list[Row], engine: RolloutEngine | None, callbacks: list[Any]) -> Any:
        from ..rewards.hierarchical import HierarchicalReward
        from .trainers import StageGRPOTrainer, StageSFTTrainer

        stage = self.stage.stage
        common: dict[str, Any] = {
            "model": self.model,
            "args": self.arguments,
            "rows": rows,
            "tokenizer": self.tokenizer,
            "base": self.plan.base,
            "fingerprint": self.folder.fingerprint,
            "check": self.check,
            "callbacks": callbacks,
        }
        if stage.task in SUPERVISED:
            return StageSFTTrainer(**common)
        return StageGRPOTrainer(**common, reward=HierarchicalReward(stage.reward, stage.task), engine=engine)


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
