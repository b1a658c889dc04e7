"""The committed base: its tokenizer comes back exactly, its shape fits NF4 and vLLM, its revision follows its bytes."""

import json

import pytest

from plyfold.adapters.base.resolve import sandbox_folder
from plyfold.sandbox.problems import make_problems

_ODD_TEXTS = (
    "Question: x\nShuffled steps:\n- a\n- [MASK]\nSolution:\n",
    "Step 1: 12*3=<<12*3=36>>36\n\n  Answer: -1,000.50\n",
    "0 1 23 456 7890 +-*/=<> tab\t end ",
    "na\u00efve \u2212 \U0001f34e \u4e2d\u6587\r\n",
)


def test_base_is_small_and_its_licence_free_parts_are_all_there() -> None:
    names = {path.name for path in sandbox_folder().iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in sandbox_folder().iterdir()) < 8_000_000


def test_every_linear_width_fits_nf4_blocks_of_64() -> None:
    config = json.loads((sandbox_folder() / "config.json").read_text())
    head = config["hidden_size"] // config["num_attention_heads"]
    widths = [config["hidden_size"], config["intermediate_size"], head * config["num_key_value_heads"]]
    assert all(width % 64 == 0 for width in [*widths, config["vocab_size"]])
    assert config["model_type"] == "qwen2"
    assert config["tie_word_embeddings"] is True


def test_tokenizer_comes_back_through_auto_tokenizer() -> None:
    transformers = pytest.importorskip("transformers", reason="the train extra is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(sandbox_folder())
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    texts = [f"Question: {row['question']}\nSolution:\n{row['answer']}" for row in make_problems("test", 500)]
    for text in (*texts, *(str(number) for number in range(-200, 2000)), *_ODD_TEXTS):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_vllm_reads_the_same_ids() -> None:
    transformers = pytest.importorskip("transformers", reason="the train extra is not installed")
    # vLLM goes through the same rebuild from the same folder, without remote code and with its fast tokenizer.
    served = transformers.AutoTokenizer.from_pretrained(str(sandbox_folder()), trust_remote_code=False, use_fast=True)
    raw = pytest.importorskip("tokenizers").Tokenizer.from_file(str(sandbox_folder() / "tokenizer.json"))
    for row in make_problems("test", 100):
        assert served(row["question"])["input_ids"] == raw.encode(row["question"]).ids


def test_digits_stand_alone_and_a_prompt_ends_on_its_newline() -> None:
    transformers = pytest.importorskip("transformers", reason="the train extra is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(sandbox_folder())
    assert tokenizer.tokenize("123+45") == ["1", "2", "3", "+", "4", "5"]
    prompt, rest = "Question: 1?\nSolution:\n", "Step 1: 2+3=5\nAnswer: 5"
    assert tokenizer(prompt)["input_ids"] + tokenizer(rest)["input_ids"] == tokenizer(prompt + rest)["input_ids"]
