"""Pretraining of the sandbox base: a tiny Qwen2 model on the diet, on a few CPU cores.

Rows are grouped by length so that little padding is computed; right padding under a causal mask needs no other mask.
Hidden matrices are trained with Muon, everything else with AdamW; the rate warms up, stays and then falls to zero.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .diet import Diet, serve


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast the base is trained."""

    num_steps: int = 2000
    """Optimiser steps."""
    batch_rows: int = 64
    """Texts a step."""
    muon_lr: float = 0.02
    """Peak rate of the hidden matrices (Muon, orthogonal updates)."""
    adam_lr: float = 3e-3
    """Peak rate of embeddings, norms and biases (AdamW)."""
    warmup_steps: int = 40
    """Linear warm-up."""
    decay_share: float = 0.4
    """Last part of the steps, over which the rate falls linearly to zero."""
    prompt_weight: float = 0.1
    """Loss weight of prompt tokens; questions are mostly chance, so they would drown what is to be learnt."""
    seed: int = 0
    """Seed of the weights and of the diet."""

    def rate(self, step: int) -> float:
        """Share of the peak rate at a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.num_steps - step) / max(1.0, self.num_steps * self.decay_share)
        return warm * min(1.0, left)


def new_model(vocab_size: int, eos_id: int, seed: int) -> Any:
    """Make the untrained model: Qwen2.5's architecture, every Linear a multiple of 64 wide so that NF4 blocks fit."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=math.ceil(vocab_size / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        initializer_range=0.02,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=256, bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=eos_id
    )
    return model


def batches(tokenizer: Any, diet: Diet, schedule: Schedule) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (inputs_BT, targets_BT, weights_BT), T a multiple of 32, rows of like length together."""
    import torch

    rng = random.Random(schedule.seed)
    texts = serve(diet, schedule.seed)
    while True:
        chunk = list(islice(texts, 32 * schedule.batch_rows))
        prompts = tokenizer([text.prompt for text in chunk])["input_ids"]
        completions = tokenizer([text.completion for text in chunk])["input_ids"]
        rows = sorted(zip(prompts, completions, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        groups = [rows[k : k + schedule.batch_rows] for k in range(0, len(rows), schedule.batch_rows)]
        rng.shuffle(groups)
        for group in groups:
            width = math.ceil(max(len(p) + len(c) for p, c in group) / 32) * 32
            ids = torch.full((len(group), width + 1), tokenizer.eos_token_id)
            weights = torch.zeros((len(group), width + 1))
            for k, (prompt, completion) in enumerate(group):
                end = len(prompt) + len(completion)
                ids[k, :end] = torch.tensor(prompt + completion)
                weights[k, : len(prompt)] = schedule.prompt_weight
                weights[k, len(prompt) : end + 1] = 1.0
            yield ids[:, :-1], ids[:, 1:], weights[:, 1:]


def pretrain(
    model: Any,
    tokenizer: Any,
    diet: Diet,
    schedule: Schedule,
    *,
    on_progress: Callable[[int, float, float], None],
) -> None:
    """Train the model in place.

    Args:
        model: Qwen2ForCausalLM in float32.
        tokenizer: Its tokenizer.
        diet: Shares of the text.
        schedule: Length and rates.
        on_progress: Called every 50 steps with the step, the mean loss since and the seconds so far.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812

    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(hidden, lr=schedule.muon_lr, weight_decay=0.01, momentum=0.95, nesterov=True),
        torch.optim.AdamW(others, lr=schedule.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [schedule.muon_lr, schedule.adam_lr]
    began, total, model = time.monotonic(), 0.0, model.train()
    for step, (inputs_BT, targets_BT, weights_BT) in enumerate(
        islice(batches(tokenizer, diet, schedule), schedule.num_steps), start=1
    ):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule.rate(step - 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
        losses = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none")
        loss = (losses * weights_BT.flatten()).sum() / weights_BT.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if step % 50 == 0:
            on_progress(step, total / 50, time.monotonic() - began)
            total = 0.0
