"""Persistent failures: train problems that a policy gets wrong in every one of k samples of the bare prompt.

One sample at a time is drawn for all problems that are still unsolved, so solved ones cost nothing further. A problem
without a right answer in k samples has, with 95 % confidence, a pass rate below 1 - 0.05 ** (1 / k). Wrong answers,
cut-off ones and missing ones are counted apart: only the first are hard, the others are a matter of form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..core.config import MiningConfig
from ..core.console import progress
from ..core.errors import ConfigError
from ..evaluation.answers import extract_answer, same_answer
from ..evaluation.protocols import Protocol
from .rationale import Rationale

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Prompts sampled at once."""


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Which problems a policy persistently fails."""

    failures: tuple[int, ...]
    """Indices of the problems, ascending."""
    tried: int
    """Problems tried."""
    samples: int
    """Samples drawn in all."""
    outcomes: dict[str, int]
    """How the failures' samples ended: wrong, truncated, unanswered."""

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {**vars(self), "failures": list(self.failures)}


def check_mining(config: MiningConfig, where: str) -> None:
    """Refuse values that cannot be mined with.

    Raises:
        ConfigError: Fewer than one sample, problem or token, or no temperature.
    """
    for name in ("samples", "max_new_tokens", "minimum", "temperature", "problems"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"mining.{name} has to be positive", where=where, found=value)


def mine(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rationales: Sequence[Rationale],
    config: MiningConfig,
    protocol: Protocol,
    seed: int,
) -> Mined:
    """Sample a policy on problems of the train split and keep those it never solves.

    Args:
        model: The policy; a stage that has not trained yet is its prior (B starts at zero). Its mode and the global
            random state are left as they were.
        tokenizer: Of the base.
        rationales: Problems with their gold answers; the first `config.problems` are tried.
        config: Samples a problem, temperature, longest completion.
        protocol: Whose bare prompt is asked: no mask and no hint.
        seed: Of the samples.
    """
    tried = list(range(len(rationales)))[: config.problems]
    unsolved, outcomes, drawn = tried, dict[int, Counter[str]](), 0
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), progress("mining failures", config.samples * len(tried)) as task:
        torch.manual_seed(seed)
        model.eval()
        for _ in range(config.samples):
            remaining = []
            for start in range(0, len(unsolved), BATCH):
                batch = unsolved[start : start + BATCH]
                prompts = [protocol.prompt(rationales[index].question) for index in batch]
                for index, outcome in zip(
                    batch,
                    _sample(model, tokenizer, prompts, [rationales[index].answer for index in batch], config),
                    strict=True,
                ):
                    outcomes.setdefault(index, Counter())[outcome] += 1
                    if outcome != "right":
                        remaining.append(index)
                drawn += len(batch)
                task.advance(len(batch), f"{len(tried) - len(unsolved) + start + len(batch) - len(remaining)} solved")
            task.advance(len(tried) - len(unsolved))
            unsolved = remaining
    model.train(training)
    ended = sum((outcomes[index] for index in unsolved), Counter[str]())
    return Mined(failures=tuple(unsolved), tried=len(tried), samples=drawn, outcomes=dict(ended))


def _sample(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    golds: Sequence[str],
    config: MiningConfig,
) -> list[str]:
    """One sampled completion of each prompt, judged: right, wrong, truncated or unanswered."""
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    with torch.no_grad():
        ids_BT = model.generate(
            **inputs,
            do_sample=True,
            temperature=config.temperature,
            top_p=1.0,
            top_k=0,
            max_new_tokens=config.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    new_BT = ids_BT[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(new_BT, skip_special_tokens=True)
    ended = (new_BT == tokenizer.eos_token_id).any(dim=1).tolist()
    return [_judge(text, gold, complete) for text, gold, complete in zip(texts, golds, ended, strict=True)]


def _judge(text: str, gold: str, complete: bool) -> str:
    answer = extract_answer(text)
    if answer is not None and same_answer(answer, gold):
        return "right"
    if not complete:
        return "truncated"
    return "unanswered" if answer is None else "wrong"
