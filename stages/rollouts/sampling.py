"""Sampled completions of bare prompts: what mining asks of a policy, and the plain `generate` that answers it.

Anything that takes prompts and a seed will do, a rollout engine among them. Knows neither questions nor answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Prompts sampled at once."""


class Sample(NamedTuple):
    """One completion."""

    text: str
    """Without special tokens, cut before the first stop string."""
    complete: bool
    """Whether it ended by itself, with an end token or a stop string, and was not cut off."""


class Sampler(Protocol):
    """A policy to draw from."""

    def __call__(self, prompts: Sequence[str], seed: int) -> list[Sample]:
        """One sampled completion of each prompt, in their order; equal prompts and seed give equal completions.

        A prompt that is there several times is sampled as often, each time anew.
        """


def hf_sampler(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> Sampler:
    """Draw by transformers' `generate`, from the whole distribution.

    Args:
        model: The policy. Its mode and the global random state are left as they were.
        tokenizer: Of the base.
        temperature: Above 0.
        max_new_tokens: Longest completion, in tokens; where the context ends earlier, it ends there.
        stop: Strings that end a completion, as at evaluation.
    """
    context = int(model.config.get_text_config().max_position_embeddings)

    def sample(prompts: Sequence[str], seed: int) -> list[Sample]:
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
        width = int(inputs["input_ids"].shape[1])
        devices = [model.device] if model.device.type == "cuda" else []
        training = model.training
        try:
            model.eval()
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                ids_BT = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=temperature,
                    top_p=1.0,
                    top_k=0,
                    repetition_penalty=1.0,  # a base's own settings would be taken otherwise
                    max_new_tokens=max(1, min(max_new_tokens, context - width)),
                    pad_token_id=tokenizer.pad_token_id,
                    use_cache=True,
                    **({"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}),
                )
        finally:
            model.train(training)
        ends = end_ids(model, tokenizer)
        return [read_sample(ids, ends, tokenizer, stop) for ids in ids_BT[:, width:].tolist()]

    return sample


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a completion."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    return {tokenizer.eos_token_id, *([ids] if isinstance(ids, int) else ids or [])} - {None}


def read_sample(ids: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Sample:
    """Cut new tokens at the end token or the first stop string; what follows is padding."""
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    text = tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True)
    assert isinstance(text, str)
    cut = min((place for string in stop if (place := text.find(string)) >= 0), default=None)
    return Sample(text=text[:cut], complete=end is not None or cut is not None)
