"""The rollout engine a config asks for, started where it has to be and closed when its stage ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.base.twin import twin_note
from ...core.environment import meaning
from ..plan.stage_plan import CurriculumPlan, StagePlan
from ..prompts.tasks import SUPERVISED
from ..runtime.distributed import join
from .engine import ROLLOUT_FOLDER, RolloutEngine
from .http import HttpRollouts
from .vllm import VllmRollouts

if TYPE_CHECKING:
    from transformers import TrainingArguments


@contextmanager
def rollout_engine(
    plan: CurriculumPlan,
    stage: StagePlan,
    context: Callable[[], int],
    arguments: TrainingArguments,
    run_dir: Path,
) -> Iterator[RolloutEngine | None]:
    """The engine a config asks for, ready to take adapters and closed when the block ends; None is plain `generate`.

    Args:
        plan: For the twin, which has to be there, and the config.
        stage: The stage that trains.
        context: Longest prompt plus completion that it will be asked for, in tokens; only asked where it matters.
        arguments: TRL's, of the stage.
        run_dir: Its folder of adapters is emptied before and after.

    Raises:
        NotFoundError, FailedError: vLLM is not installed, or does not start.
        OfflineError, IncompatibleError: The server is out of reach, or is not as rollouts need it.
    """
    config, processes, folder = plan.config.rollout, join(), (run_dir / ROLLOUT_FOLDER).resolve()
    if config.engine == "hf" or stage.stage.task in SUPERVISED:
        yield None
        return
    engine: RolloutEngine
    if config.engine == "vllm":
        rank = stage.prior_rank + stage.adapter.r
        engine = VllmRollouts(
            plan.twin, rank=rank, max_model_len=context(), gpu_memory=config.gpu_memory, seed=plan.config.seed
        )
    else:
        engine = HttpRollouts(meaning(config.url or ""), timeout_s=config.timeout_s)
        engine.check(context(), temperature=arguments.temperature, twin=twin_note(plan.base, plan.quantisation))
        if processes.is_first:
            engine.sweep(run_dir)
    try:
        if processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)
        yield engine
    finally:
        engine.close()
        if processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)
