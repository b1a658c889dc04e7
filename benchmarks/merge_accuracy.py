"""How near results on disk are to what they stand for, in float64; nothing of plyfold is used.

    python benchmarks/merge_accuracy.py svd SIZE RANK OUT ADAPTER…
    python benchmarks/merge_accuracy.py folds SIZE BASE OURS PEFT ADAPTER…

A process of its own, since a child's peak memory as the system reports it includes its parent's size at the start.

Shapes: O out_features, I in_features, R stacked rank.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from model_shapes import MODELS
from safetensors import safe_open
from torch import Tensor

LAYERS = (0, 17)
"""Layers looked at: one of each end would do, since all are drawn alike."""
SVD_KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj")
"""Modules small enough for a dense float64 SVD."""


def tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a checkpoint or an adapter."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        file = json.loads(index.read_text())["weight_map"][name]
    else:
        file = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    with safe_open(folder / file, "pt") as tensors:
        return tensors.get_tensor(name).double()


def delta(adapter: str, module: str) -> Tensor:
    """dW_OI of one adapter."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    key = f"base_model.model.{module}"
    B_OR, A_RI = (tensor(Path(adapter), f"{key}.lora_{half}.weight") for half in "BA")
    return config["lora_alpha"] / config["r"] * B_OR @ A_RI


def compare_folds(size: str, base: str, ours: str, peft: str, *adapters: str) -> dict[str, float]:
    """|(result - W) - D| / |D| of each fold, over all modules of some layers."""
    folds = {"plyfold": Path(ours), "peft": Path(peft)}
    lost, total = dict.fromkeys(folds, 0.0), 0.0
    for layer in LAYERS:
        for kind in MODELS[size].linears:
            module = f"model.layers.{layer}.{kind}"
            W_OI = tensor(Path(base), f"{module}.weight")
            D_OI = sum((delta(adapter, module) for adapter in adapters), torch.zeros_like(W_OI))
            total += float(D_OI.square().sum())
            for name, folder in folds.items():
                lost[name] += float((tensor(folder, f"{module}.weight") - W_OI - D_OI).square().sum())
    return {name: math.sqrt(value / total) for name, value in lost.items()}


def compare_svd(size: str, rank: str, out: str, *adapters: str) -> dict[str, float]:
    """Error of a rank-cut adapter against the dense optimum: the largest relative excess over all modules looked at."""
    excess = []
    for layer in LAYERS:
        for kind in (kind for kind in SVD_KINDS if kind in MODELS[size].linears):
            module = f"model.layers.{layer}.{kind}"
            deltas = [delta(adapter, module) for adapter in adapters]
            D_OI = torch.stack(deltas).sum(0)
            optimum = float(torch.linalg.vector_norm(torch.linalg.svdvals(D_OI)[int(rank) :]))
            excess.append(float(torch.linalg.matrix_norm(D_OI - delta(out, module))) / optimum - 1)
    return {"modules": len(excess), "largest_relative_excess": max(excess, key=abs)}


if __name__ == "__main__":
    print(json.dumps({"svd": compare_svd, "folds": compare_folds}[sys.argv[1]](*sys.argv[2:])))
