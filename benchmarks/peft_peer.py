"""What PEFT does for the same job on the same files; run by merge.py, each in a process of its own.

    python benchmarks/peft_peer.py cat BASE OUT ADAPTER…      add_weighted_adapter(combination_type="cat"), saved
    python benchmarks/peft_peer.py fold BASE OUT ADAPTER…     merge_and_unload one after another, saved
    python benchmarks/peft_peer.py svd SIZE ADAPTER…          combination_type="svd" on the modules of one layer

Prints one JSON object: seconds of each phase.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

seconds: dict[str, float] = {}


@contextmanager
def phase(name: str) -> Iterator[None]:
    start_s = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start_s


def load(base: str) -> Any:
    from transformers import AutoModelForCausalLM

    with phase("load base"):
        return AutoModelForCausalLM.from_pretrained(base, dtype="auto")


def cat(base: str, out: str, *adapters: str) -> None:
    from peft import PeftModel

    model = load(base)
    names = [f"a{index}" for index in range(len(adapters))]
    with phase("load adapters"):
        model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
        for name, path in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(path, adapter_name=name)
    with phase("combine"):
        model.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type="cat")
    with phase("save"):
        model.save_pretrained(out, selected_adapters=["merged"])


def fold(base: str, out: str, *adapters: str) -> None:
    from peft import PeftModel

    model = load(base)
    for path in adapters:
        with phase("load adapters"):
            wrapped = PeftModel.from_pretrained(model, path)
        with phase("merge"):
            model = wrapped.merge_and_unload()
    with phase("save"):
        model.save_pretrained(out)


def svd(size: str, *adapters: str) -> None:
    """The first layer's seven modules alone: a whole model would take an hour."""
    import torch
    from model_shapes import MODELS
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, (num_out, num_in) in MODELS[size].linears.items():
                setattr(self, name.rpartition(".")[2], nn.Linear(num_in, num_out, bias=False))

    names = [f"a{index}" for index in range(len(adapters))]
    kinds = [name.rpartition(".")[2] for name in MODELS[size].linears]
    config = json.loads((Path(adapters[0]) / "adapter_config.json").read_text())
    lora = LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=kinds)
    model = get_peft_model(Layer(), lora, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora)
    for name, path in zip(names, adapters, strict=True):
        with safe_open(Path(path) / "adapter_model.safetensors", "pt") as file, torch.no_grad():
            for full in MODELS[size].linears:
                layer = getattr(model.base_model.model, full.rpartition(".")[2])
                key = f"base_model.model.model.layers.0.{full}"
                layer.lora_A[name].weight.copy_(file.get_tensor(f"{key}.lora_A.weight"))
                layer.lora_B[name].weight.copy_(file.get_tensor(f"{key}.lora_B.weight"))
    for combination in ("svd", "svd, reduced"):
        with phase(combination):
            model.add_weighted_adapter(
                names,
                [1.0] * len(names),
                f"merged-{len(seconds)}",
                combination_type="svd",
                svd_rank=config["r"],
                svd_full_matrices=combination == "svd",
            )


if __name__ == "__main__":
    {"cat": cat, "fold": fold, "svd": svd}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(seconds))
