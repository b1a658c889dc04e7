"""Every merge that is refused, by name and exit code, with nothing on disk changed. Inputs are two sound adapters and a
base, one of which a row spoils.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.cli.main import run

from ..support.peft_folders import SHAPES, write_adapter_folder, write_base_folder

Q = next(iter(SHAPES))
PREFIX = "base_model.model."
Spoil = Callable[[], object]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    for seed, name in enumerate("ab"):
        write_adapter_folder(tmp_path / name, seed=seed)
    write_base_folder(tmp_path / "base")
    (tmp_path / "p.txt").write_text("a prompt\n")
    return tmp_path


def nothing() -> None: ...


def config(**changes: Any) -> Spoil:
    def spoil() -> None:
        path = Path("b/adapter_config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def again(**options: Any) -> Spoil:
    """Adapter b written anew."""

    def spoil() -> None:
        shutil.rmtree("b")
        write_adapter_folder(Path("b"), seed=7, **options)

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = "b/adapter_model.safetensors") -> Spoil:
    def spoil() -> None:
        values = load_file(file)
        change(values)
        save_file(values, file, metadata={"format": "pt"})

    return spoil


def renamed(old: str, new: str) -> Spoil:
    return tensors(lambda values: values.update({new: values.pop(old)}))


def number(value: float) -> Spoil:
    return tensors(lambda values: values[f"{PREFIX}{Q}.lora_A.weight"][0].fill_(value))


def pickled() -> None:
    Path("b/adapter_model.safetensors").rename("b/adapter_model.bin")


def copied() -> None:
    shutil.rmtree("b")
    shutil.copytree("a", "b")


def convolution(values: dict[str, torch.Tensor]) -> None:
    values[f"{PREFIX}{Q}.lora_A.weight"] = values[f"{PREFIX}{Q}.lora_A.weight"][..., None, None].contiguous()


def quantised() -> None:
    tensors(lambda values: values.update({f"{Q}.weight": torch.zeros(240, 1, dtype=torch.uint8)}), BASE_FILE)()
    path = Path("base/config.json")
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )


BASE_FILE = "base/model.safetensors"
FOLD = ["a", "b", "--into", "model", "--base", "base"]
AB = ["a", "b"]

FOLDERS: dict[str, tuple[Spoil, int, str]] = {
    "DoRA": (config(use_dora=True), 8, "use_dora"),
    "DoRA's tensors": (renamed(f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_magnitude_vector"), 8, "DoRA"),
    "bias inside LoRA": (config(lora_bias=True), 8, "lora_bias"),
    "bias inside LoRA, tensors": (renamed(f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.bias"), 8, "bias"),
    "trained biases": (config(bias="lora_only"), 8, "bias"),
    "modules_to_save": (config(modules_to_save=["lm_head"]), 8, "modules_to_save"),
    "trained tokens": (config(trainable_token_indices=[1]), 8, "trainable_token_indices"),
    "KaSA": (config(kasa_config={"beta": 1}), 8, "kasa_config"),
    **{
        init: (config(init_lora_weights=init), 8, f"init_lora_weights '{init}'")
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
    },
    "another PEFT method": (config(peft_type="ADALORA"), 8, "not a LoRA adapter"),
    "a field of the future": (config(use_nova=True), 8, "use_nova"),
    "an embedding": (renamed(f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_embedding_A"), 8, "embedding"),
    "a convolution": (tensors(convolution), 8, "convolution"),
    "a pickle": (pickled, 4, "pickle"),
    "NaN": (number(float("nan")), 4, "NaN or infinity"),
    "infinity": (number(float("-inf")), 4, "NaN or infinity"),
    "A without B": (tensors(lambda values: values.pop(f"{PREFIX}{Q}.lora_B.weight")), 4, "only one of"),
    "a rank that is not the config's": (config(r=5), 4, "rank"),
    "whole numbers": (tensors(lambda values: values.update({k: v.int() for k, v in values.items()})), 4, "wrong dtype"),
    "another size": (again(shapes={Q: (24, 21)}), 8, "size"),
    "another base": (config(base_model_name_or_path="acme/other"), 8, "different bases"),
    "another revision of the base": (config(revision="1" * 40), 8, "revisions"),
    "the same tensors in another folder": (copied, 8, "given twice"),
    "no weights": (lambda: os.remove("b/adapter_model.safetensors"), 3, "adapter_model.safetensors"),
    "no config": (lambda: os.remove("b/adapter_config.json"), 3, "adapter_config.json"),
}  # fmt: skip
"""Row -> what spoils adapter b, exit code, words of the message."""
SETTLED = ("another base", "another revision of the base")
"""Rows that the user's word on the base settles."""

COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "weights of another count": ([*AB, "--weights", "1,1,1"], 2, "one weight per adapter"),
    "an infinite weight": ([*AB, "--weights", "1,inf"], 2, "not finite"),
    "an empty weight": ([*AB, "--weights", "1,"], 2, "list of numbers"),
    "exact with a rank": ([*AB, "--method", "exact", "--rank", "4"], 2, "exact keeps every rank"),
    "exact with an error": ([*AB, "--method", "exact", "--max-error", "1e-3"], 2, "exact keeps every rank"),
    "svd without a rank": ([*AB, "--method", "svd"], 2, "needs the rank"),
    "a rank and an error": ([*AB, "--rank", "4", "--max-error", "1e-3"], 2, "not both"),
    "rank 0": ([*AB, "--rank", "0"], 2, "not a rank"),
    "error 0": ([*AB, "--max-error", "0"], 2, "not a relative error"),
    "error NaN": ([*AB, "--max-error", "nan"], 2, "not a relative error"),
    "an error that no rank meets": ([*AB, "--max-error", "1e-3", "--dtype", "bf16"], 2, "alone rounds by more"),
    "svd with a density": ([*AB, "--rank", "4", "--density", "0.5"], 2, "svd has no --density"),
    "svd with a seed": ([*AB, "--rank", "4", "--seed", "1"], 2, "svd has no --seed"),
    "ties with a seed": ([*AB, "--method", "ties", "--seed", "1"], 2, "ties has no --seed"),
    "a density above 1": ([*AB, "--method", "ties", "--density", "1.5"], 2, "not a density"),
    "a seed below 0": ([*AB, "--method", "dare_ties", "--seed", "-1"], 2, "not a seed"),
    "knots with PEFT's numbers": ([*AB, "--method", "knots", "--numerics", "peft"], 2, "no --numerics peft"),
    "unknown numbers": ([*AB, "--numerics", "mine"], 2, "no such numerics"),
    "PEFT's numbers with a rank": ([*AB, "--numerics", "peft", "--method", "ties", "--rank", "4"], 2, "keeps the rank"),
    "activation without prompts": ([*AB, "--method", "activation", "--rank", "4"], 2, "--prompts"),
    "prompts that are not there": ([*AB, "--rank", "4", "--prompts", "nowhere.txt"], 3, "nowhere.txt"),
    "prompts for another model": ([*AB, "--method", "ties", "--prompts", "p.txt"], 2, "--prompts is for"),
    "an unknown kind of output": ([*AB, "--into", "gguf"], 2, "gguf"),
    "an unknown dtype of a model": ([*FOLD, "--dtype", "int8"], 2, "no such dtype"),
    "a view of an adapter": ([*AB, "--base-view", "trained"], 2, "--base-view"),
    "an output that exists": ([*AB, "-o", "base"], 5, "exists already"),
    "an output that is a file": ([*AB, "-o", "base/config.json"], 5, "where the output is to go"),
    "a model's output that exists": ([*FOLD, "-o", "a"], 5, "exists already"),
}  # fmt: skip

BASES: dict[str, tuple[Spoil, int, str]] = {
    "a quantised base": (quantised, 8, "quantised"),
    "a module the base lacks": (again(shapes={"model.layers.7.mlp.up_proj": (4, 4)}), 8, "does not have"),
    "a base of another size": (again(shapes={"lm_head": (50, 21)}), 8, "another size"),
    "a base without weights": (lambda: os.remove(BASE_FILE), 3, "weights"),
    "a base without a config": (lambda: os.remove("base/config.json"), 3, "config.json"),
    "a damaged base": (lambda: os.truncate(BASE_FILE, 999), 4, "truncated"),
}


def refused(capsys: pytest.CaptureFixture[str], here: Path, arguments: list[str], code: int, message: str) -> None:
    before = listing(here)
    assert run(["merge", *arguments]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("error[") + shown.err.count("Error: ") == 1
    assert shown.out == ""
    assert listing(here) == before


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.mark.parametrize("row", FOLDERS)
def test_an_adapter(here: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    spoil, code, message = FOLDERS[row]
    spoil()
    ways = [[*AB, "-o", "out"], ["b", "a", "--rank", "3", "-o", "out"], FOLD]
    if row in SETTLED:
        ways.remove(FOLD)  # which names the base
    for arguments in ways:
        refused(capsys, here, arguments, code, message)


@pytest.mark.parametrize("row", COMMANDS)
def test_a_command(here: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    refused(capsys, here, *COMMANDS[row])


@pytest.mark.parametrize("row", BASES)
def test_a_base(here: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    spoil, code, message = BASES[row]
    spoil()
    refused(capsys, here, FOLD, code, message)


def test_no_rank_of_vllm_holds_the_sum(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = {Q: (600, 600)}
    for seed, name in enumerate(("c", "d")):
        write_adapter_folder(here / name, seed=seed, r=300, shapes=wide)
    refused(capsys, here, ["c", "d", "--max-error", "1e-6"], 8, "no rank that vLLM serves")
