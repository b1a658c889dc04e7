"""What a generator of answers is: prompts in, counted completions out, the same whether HF or vLLM runs it.

Every engine decodes greedily, or samples from the whole distribution where a temperature is given, and takes nothing
from the model's `generation_config.json` but its end tokens, so that two engines differ only in arithmetic (and, where
they sample, in their random numbers). It knows neither questions nor answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..adapters.base.model_config import ModelConfig, model_config
from ..core.errors import ConfigError, IntegrityError
from ..variants.name import BASE as BASE

PROBE_TOKENS = 5
"""How many of the likeliest first tokens a probe reports."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One completion."""

    text: str
    """Decoded completion, special tokens dropped, cut before the first stop string."""
    num_tokens: int
    """Tokens the model had to produce: the end token, or the tokens that complete a stop string, count too.

    vLLM counts the same way (`len(CompletionOutput.token_ids)`, `usage.completion_tokens`).
    """
    finish_reason: str
    """`stop` (end token or stop string) or `length` (cut at max_new_tokens)."""


class Engine(Protocol):
    """A generator that holds a base and any number of variants under their names."""

    def generate(self, variant: str, prompts: Sequence[str]) -> list[Generation]:
        """Completions of one variant, in the order of the prompts."""

    def generate_all(self, variants: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Generation]]:
        """Completions of several variants; an engine that batches across adapters submits them all at once."""

    def probe(self, variant: str, prompts: Sequence[str]) -> list[tuple[float, ...]]:
        """Log probabilities of each prompt's PROBE_TOKENS likeliest first tokens, likeliest first.

        Equal to the last bit between the base and a variant means that the variant's adapter does nothing.
        """

    def describe(self) -> dict[str, Any]:
        """What a result needs beside its number: engine, version, dtype, limits."""

    def close(self) -> None:
        """Give memory and processes back; the engine cannot be used afterwards."""


def end_token_ids(twin: Path) -> tuple[int, ...]:
    """Ids that end a completion, from `generation_config.json` and `config.json` of a model folder, sorted.

    Raises:
        IntegrityError: One of them is no JSON object, or names no token ids.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if not (twin / name).is_file():
            continue
        values = ModelConfig.read(twin) if name == "config.json" else model_config(twin, name)
        ids = values.get("eos_token_id")
        each = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(token) is int and token >= 0 for token in each):
            raise IntegrityError(
                "eos_token_id is malformed", where=twin / name, found=str(ids)[:200], expected="a token id, or several"
            )
        found.update(each)
    return tuple(sorted(found))


def check_temperature(temperature: float) -> float:
    """The temperature, if one can decode with it.

    Raises:
        ConfigError: Below 0, or not a finite number.
    """
    if not 0 <= temperature < math.inf:
        raise ConfigError("not a temperature", where="eval.temperature", found=temperature, expected="0, or above")
    return temperature


def describe_decoding(temperature: float, seed: int) -> dict[str, Any]:
    """What a result says about how its tokens were chosen; nothing of a seed where none is used."""
    return {"temperature": temperature, "seed": seed} if temperature else {"temperature": 0.0}
