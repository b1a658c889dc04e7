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

import torch

from ..plan.stage_plan import CurriculumPlan, StagePlan
from .engine import (
    ROLLOUT_FOLDER,
    Completion,
    Request,
    RolloutEngine,
    Sampling,
    adapter_prefix,
    check_agreement,
    publish_adapter,
)
from .sampling import BATCH, Sample, Sampler, end_ids, hf_sampler, read_sample

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


ENGINE_BATCH = 512
"""Prompts an engine is given at once: more than it answers side by side, so that it is never idle for long."""
COMPARED = 4
"""Completions of the first draw whose log probabilities are compared with the model's own."""


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

    Raises:
        IncompatibleError: At the first draw, before any of it is kept: the engine holds another model.
    """
    mining, stop = stage.stage.mining, plan.protocol.stop
    if engine is None:
        yield hf_sampler(
            model, tokenizer, temperature=mining.temperature, max_new_tokens=mining.max_new_tokens, stop=stop
        )
        return
    name = f"{adapter_prefix(run_dir)}{token_hex(4)}-policy"
    folder = run_dir / ROLLOUT_FOLDER / name
    ends = end_ids(model, tokenizer)
    sampling = Sampling(
        temperature=mining.temperature, max_tokens=mining.max_new_tokens, stop_token_ids=tuple(sorted(ends))
    )
    published = proven = False

    def sample(prompts: Sequence[str], seed: int) -> list[Sample]:
        nonlocal published, proven
        if not published:  # a run that goes on may have every sample already
            publish_adapter(model, plan.base, folder)
            engine.load(name, folder.resolve())
            published = True
        requests = [
            Request(prompt_ids=tuple(ids), n=1, seed=random.Random(f"{seed}:{index}").getrandbits(62))
            for index, ids in enumerate(tokenizer(list(prompts))["input_ids"])
        ]
        drawn = engine.sample(name, requests, sampling)
        if not proven:
            few = list(zip(requests, [completion for (completion,) in drawn], strict=True))[:COMPARED]
            difference = _logp_difference(model, few, sampling.temperature)
            check_agreement(difference, str(model.dtype).removeprefix("torch."), engine.describe())
            proven = True
        return [read_sample(completion.token_ids, ends, tokenizer, stop) for (completion,) in drawn]

    try:
        yield sample
    finally:
        if published:
            engine.unload(name)
            shutil.rmtree(folder, ignore_errors=True)


def _logp_difference(model: PeftModel, drawn: Sequence[tuple[Request, Completion]], temperature: float) -> float:
    """Mean over tokens of |model's - engine's| log probability, in nats."""
    training, differences = model.training, []
    try:
        model.eval()
        for request, completion in drawn:
            ids_1T = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device=model.device)
            with torch.no_grad():
                logits_TV = model(input_ids=ids_1T).logits[0, len(request.prompt_ids) - 1 : -1]
            logps_TV = (logits_TV.float() / temperature).log_softmax(-1)
            logps_T = logps_TV.gather(1, ids_1T[0, len(request.prompt_ids) :, None])[:, 0].cpu()
            differences.append((logps_T - torch.tensor(completion.logprobs)).abs())
    finally:
        model.train(training)
    return torch.cat(differences).mean().item()
