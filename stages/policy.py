"""The policy that mining and its measurements draw from, sampled by whatever samples the stage's rollouts.

They ask for tens of thousands of samples on a dataset of GSM8K's size, so they go where the rollouts go.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from .rollout import FOLDER, Request, RolloutEngine, Sampling, publish_adapter
from .sampling import BATCH, Sample, Sampler, end_ids, hf_sampler, read_sample
from .stage_plan import CurriculumPlan, StagePlan

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


ENGINE_BATCH = 512
"""Prompts an engine is given at once: more than it answers side by side, so that it is never idle for long."""


def batch_of(engine: RolloutEngine | None) -> int:
    """Prompts to sample at once."""
    return BATCH if engine is None else ENGINE_BATCH


@contextmanager
def policy_sampler(
    plan: CurriculumPlan,
    stage: StagePlan,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    engine: RolloutEngine | None,
    run_dir: Path,
) -> Iterator[Sampler]:
    """Draws from `model` as it is at the first draw, as the stage's mining says; for one process alone.

    Args:
        plan: For the base and the protocol.
        stage: Whose mining it is.
        model: The policy.
        tokenizer: Of the base.
        engine: Holds the twin and takes the adapter; None is plain `generate`.
        run_dir: Where the adapter lies for the engine to read.
    """
    mining, stop = stage.stage.mining, plan.protocol.stop
    if engine is None:
        yield hf_sampler(
            model, tokenizer, temperature=mining.temperature, max_new_tokens=mining.max_new_tokens, stop=stop
        )
        return
    name = f"{run_dir.resolve().name}-{token_hex(4)}-policy"
    folder = run_dir / FOLDER / name
    ends = end_ids(model, tokenizer)
    sampling = Sampling(
        temperature=mining.temperature, max_tokens=mining.max_new_tokens, stop_token_ids=tuple(sorted(ends))
    )
    published = False

    def sample(prompts: Sequence[str], seed: int) -> list[Sample]:
        nonlocal published
        if not published:  # a run that goes on may have every sample already
            publish_adapter(model, plan.base, folder)
            engine.load(name, folder.resolve())
            published = True
        requests = [
            Request(prompt_ids=tuple(ids), n=1, seed=random.Random(f"{seed}:{index}").getrandbits(62))
            for index, ids in enumerate(tokenizer(list(prompts))["input_ids"])
        ]
        drawn = engine.sample(name, requests, sampling)
        return [read_sample(completion.token_ids, ends, tokenizer, stop) for (completion,) in drawn]

    try:
        yield sample
    finally:
        if published:
            engine.unload(name)
            shutil.rmtree(folder, ignore_errors=True)
