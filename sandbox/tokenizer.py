"""A small byte-level BPE tokenizer that `AutoTokenizer` rebuilds exactly as a Qwen2 tokenizer.

AutoTokenizer turns any folder whose config says `qwen2` into Qwen2's own pipeline (NFC, Qwen2's split pattern, single
digits, byte-level BPE) and silently drops any other; so this one is trained inside that very pipeline.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's own."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a Qwen2 tokenizer.

    Args:
        texts: Training text.
        vocab_size: Number of tokens, the end-of-text token included.

    Returns:
        A `transformers.Qwen2Tokenizer` with `<|endoftext|>` as end and padding token, as Qwen2 has it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    state = json.loads(raw.to_str())["model"]
    vocab: dict[str, int] = dict(state["vocab"])
    merges = [tuple(pair) for pair in state["merges"]]
    vocab[END_OF_TEXT] = len(vocab)
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
    )


def save_tokenizer(tokenizer: Any, out: Path) -> None:
    """Save and refuse a tokenizer that does not come back the same.

    Raises:
        RuntimeError: AutoTokenizer reads another tokenizer than was saved.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(out)
    again = AutoTokenizer.from_pretrained(out)
    sample = "Question: Mia has 12 apples.\nSolution:\nStep 1: [MASK] 12*3=<<36>>\n\n- x\nAnswer: -1,000.50\n"
    if (
        again(sample)["input_ids"] != tokenizer(sample)["input_ids"]
        or again.decode(again(sample)["input_ids"]) != sample
    ):
        raise RuntimeError(f"the tokenizer in {out} does not survive AutoTokenizer: expected equal ids and text")
