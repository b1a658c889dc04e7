"""Which training rows fit into the base's context, and whether they are enough: a cut row would lose its answer.

Also finds the base's tokenizer and context where they are on this disk, without its weights and without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...adapters.base.load import load_tokenizer
from ...adapters.base.model_config import ModelConfig
from ...adapters.base.resolve import TOKENIZER_FILES
from ...core.config import BaseConfig, StageConfig
from ...core.errors import ConfigError
from ...data.rationale.parse import Rationale
from ...evaluation.protocols import Protocol
from ..prompts.tasks import SUPERVISED, Row, make_rows
from .model_shape import local_file
from .trl_args import count_micro_steps, prompts_per_generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments


_AT_ONCE = 1024
"""Texts a tokenizer is given at a time."""


class TokenCounter:
    """Counts the tokens of texts under one tokenizer, as trainers and engines are given them; each text once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[str, int] = {}
        self._prompts: dict[str, int] = {}

    def text(self, text: str) -> int:
        """Of a text that follows another, or is generated: without what a tokenizer puts around a prompt."""
        if text not in self._texts:
            self._texts[text] = len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return self._texts[text]

    def prompts(self, texts: Sequence[str]) -> list[int]:
        """Of texts that a sequence begins with, a first token that some tokenizers add included."""
        new = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        for start in range(0, len(new), _AT_ONCE):
            some = new[start : start + _AT_ONCE]
            tokens = self._tokenizer(some, verbose=False)["input_ids"]
            self._prompts.update(zip(some, map(len, tokens), strict=True))
        return [self._prompts[text] for text in texts]


def fitting_rows(
    rows: Sequence[Row],
    stage: StageConfig,
    arguments: TrainingArguments,
    context: int,
    counter: TokenCounter,
) -> tuple[list[Row], int]:
    """The rows that are not too long, and the limit they were held to.

    Args:
        rows: As `make_rows` makes them.
        stage: Their stage.
        arguments: Its TRL arguments.
        context: Positions of the base, in tokens.
        counter: Of the base's tokenizer.

    Returns:
        Rows whose prompt and target are shorter than the limit (one token is the end), or whose prompt is within it
        and leaves room for a completion; the limit in tokens.
    """
    if stage.task in SUPERVISED:
        limit = min(arguments.max_length or context, context)
        lengths = counter.prompts([row["prompt"] + row["completion"] for row in rows])
        return [row for row, tokens in zip(rows, lengths, strict=True) if tokens < limit], limit
    limit = context - arguments.max_completion_length
    lengths = counter.prompts([row["prompt"] for row in rows])
    return [row for row, tokens in zip(rows, lengths, strict=True) if tokens <= limit], limit


def longest_prompts(
    rationales: Sequence[Rationale],
    stage: StageConfig,
    protocol: Protocol,
    seed: int,
    arguments: TrainingArguments,
    context: int,
    counter: TokenCounter,
) -> tuple[int, int]:
    """Tokens of the longest prompt that is trained on, and of the longest that is mined with (0 without mining).

    Args:
        rationales: All that the stage reads; which of them are failures need not be known.
        stage: A stage with rollouts.
        protocol: Whose bare prompt mining asks.
        seed: Of its rows.
        arguments: Its TRL arguments.
        context: Positions of the base, in tokens.
        counter: Of the base's tokenizer.
    """
    mined = stage.task == "rewrite"
    asked = replace(stage, unaided_share=0.0, epochs=1) if mined else stage  # failures may be aided, whichever they are
    rows = make_rows(rationales, asked, protocol, seed, counter.text)
    fitting, _ = fitting_rows(rows, asked, arguments, context, counter)
    pool = askable(rationales, stage, protocol, context, counter) if mined else ()
    return (
        max(counter.prompts([row["prompt"] for row in fitting]), default=0),
        max(counter.prompts([protocol.prompt(rationale.question) for rationale in pool]), default=0),
    )


def needed_context(prompts: tuple[int, int], stage: StageConfig, arguments: TrainingArguments, context: int) -> int:
    """Longest prompt plus completion, in tokens, that a stage can ask of what samples for it, mining included.

    Args:
        prompts: Its `longest_prompts`.
        stage: A stage with rollouts.
        arguments: Its TRL arguments.
        context: Positions of the base, in tokens; never exceeded.
    """
    trained, mined = prompts
    sampled = mined + stage.mining.max_new_tokens if mined else 0
    return min(max(trained + int(arguments.max_completion_length), sampled), context)


def askable(
    rationales: Sequence[Rationale],
    stage: StageConfig,
    protocol: Protocol,
    context: int,
    counter: TokenCounter,
) -> tuple[Rationale, ...]:
    """The problems whose bare prompt leaves room in the context for a sample of mining."""
    limit = context - stage.mining.max_new_tokens
    lengths = counter.prompts([protocol.prompt(item.question) for item in rationales])
    return tuple(item for item, tokens in zip(rationales, lengths, strict=True) if tokens <= limit)


def require_askable(num_problems: int, name: str, stage: StageConfig, context: int) -> None:
    """Refuse a stage that no problem can be mined for.

    Raises:
        ConfigError: There is none whose prompt leaves room for a sample.
    """
    if not num_problems:
        raise ConfigError(
            "not one question leaves room in the base's context for a sample of mining",
            where=f"stages.{name}.mining.max_new_tokens",
            found=stage.mining.max_new_tokens,
            expected=f"well below {context}",
        )


def require_possible(
    num_rows: int, name: str, stage: StageConfig, arguments: TrainingArguments, context: int | None
) -> None:
    """Refuse what cannot train however short its prompts and however many of its problems are failures.

    Args:
        num_rows: Rows that the stage reads.
        name: Of the stage.
        stage: Its config.
        arguments: Its TRL arguments.
        context: Positions of the base, in tokens; null where they are not known.

    Raises:
        ConfigError: Completions as long as the context, fewer problems to mine than failures to train on, or fewer
            rows than one generation batch takes.
    """
    mined = stage.task == "rewrite"
    lengths = {} if stage.task in SUPERVISED else {"trainer.max_completion_length": arguments.max_completion_length}
    lengths |= {"mining.max_new_tokens": stage.mining.max_new_tokens} if mined else {}
    for key, tokens in lengths.items():
        if context is not None and tokens >= context:
            raise ConfigError(
                "a completion as long as the base's context leaves no room for a prompt",
                where=f"stages.{name}.{key}",
                found=tokens,
                expected=f"well below {context}",
            )
    tried = min(num_rows, stage.mining.problems or num_rows) if mined else num_rows
    if mined and tried < stage.mining.minimum:
        raise ConfigError(
            "fewer problems to mine than failures to train on",
            where=f"stages.{name}.mining",
            found=f"{tried} problems",
            expected=f"mining.minimum, which is {stage.mining.minimum}, or more",
            next_step="more rows or a larger mining.problems, or a smaller mining.minimum",
        )
    require_batch(tried * stage.epochs, name, stage, arguments)


def require_batch(
    num_rows: int, name: str, stage: StageConfig, arguments: TrainingArguments, limit: int | None = None
) -> None:
    """Refuse a stage without a row, or with fewer than one generation batch takes.

    Args:
        num_rows: Rows, of all epochs; as many as there can be at most, where that is all that is known.
        name: Of the stage.
        stage: Its config.
        arguments: Its TRL arguments.
        limit: Tokens that they were held to; null where they were not.

    Raises:
        ConfigError: There are too few.
    """
    supervised = stage.task in SUPERVISED
    needed = 1 if supervised else prompts_per_generation(arguments)
    if num_rows >= needed:
        return
    longer = "max_length" if supervised else "max_completion_length"
    room = f"a {'larger' if supervised else 'smaller'} stages.{name}.trainer.{longer}, or a longer context"
    more = f"more data or epochs, or a smaller stages.{name}.trainer.generation_batch_size"
    raise ConfigError(
        "too few rows for one generation batch" if needed > 1 else "no row fits",
        where=f"stages.{name}",
        found=f"{num_rows} rows" + (f" of at most {limit} tokens" if limit is not None else ""),
        expected=f"{needed} or more",
        next_step=more if num_rows else room,
    )


def require_rows(num_rows: int, name: str, stage: StageConfig, arguments: TrainingArguments, limit: int) -> None:
    """Refuse rows as `require_batch` does, and rows that GRPO cannot go through again.

    Raises:
        ConfigError: Too few of them fit, or `max_steps` asks for a second pass that starts within a cycle.
    """
    require_batch(num_rows, name, stage, arguments, limit)
    if stage.task in SUPERVISED:
        return
    micro_steps, times = count_micro_steps(arguments, num_rows), arguments.gradient_accumulation_steps
    if micro_steps % times and arguments.max_steps > -(-micro_steps // times):
        raise ConfigError(
            "max_steps goes through the rows more than once, which a generation cycle does not divide: the run could "
            "not be resumed exactly",
            where=f"stages.{name}.trainer.max_steps",
            found=arguments.max_steps,
            expected=f"{-(-micro_steps // times)} or less",
            next_step=f"a larger stages.{name}.epochs, or steps_per_generation={times}",
        )


def token_counter(config: BaseConfig) -> TokenCounter | None:
    """Counts under the base's tokenizer; None where that is not on this disk."""
    file = next((file for name in TOKENIZER_FILES[:2] if (file := local_file(config, name))), None)
    if file is None:
        return None
    return TokenCounter(load_tokenizer(file.parent))


def context_tokens(config: BaseConfig) -> int | None:
    """Positions of the base; None where its config is not on this disk or has none."""
    file = local_file(config, "config.json")
    return ModelConfig.read(file.parent).count("max_position_embeddings", 0) or None if file else None
