"""PEFT adapter folders and base checkpoints written by hand, so that what reads them is checked by other code."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BASE_REPO = "acme/tiny"
BASE_REVISION = "0" * 40
SHAPES = {
    "model.layers.0.self_attn.q_proj": (24, 20),
    "model.layers.0.self_attn.k_proj": (6, 20),
    "model.layers.0.mlp.down_proj": (20, 40),
}
"""Module -> (O, I); k_proj is smaller than the stacked ranks of three adapters."""


@dataclass(frozen=True)
class Written:
    """An adapter folder and what it means: dW_OI = scale * B_OR @ A_RI, per module."""

    path: Path
    factors: dict[str, tuple[Tensor, Tensor, float]]

    def delta(self, module: str) -> Tensor:
        """dW_OI in float64; zero where the adapter has none."""
        if module not in self.factors:
            return torch.zeros(SHAPES[module], dtype=torch.float64)
        A_RI, B_OR, scale = self.factors[module]
        return scale * B_OR.double() @ A_RI.double()


def write_adapter_folder(
    path: Path,
    *,
    seed: int,
    r: int = 4,
    alpha: float = 8,
    shapes: dict[str, tuple[int, int]] = SHAPES,
    rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    zero: bool = False,
    size: float = 0.1,
    **config: Any,
) -> Written:
    """Write random factors as PEFT would; patterns are by the module's last name."""
    generator = torch.Generator().manual_seed(seed)
    tensors, factors = {}, {}
    for name, (num_out, num_in) in shapes.items():
        last = name.rpartition(".")[2]
        rank, numerator = (rank_pattern or {}).get(last, r), (alpha_pattern or {}).get(last, alpha)
        A_RI = torch.randn(rank, num_in, generator=generator).to(dtype)
        B_OR = (size * torch.randn(num_out, rank, generator=generator)).to(dtype)
        B_OR = B_OR.zero_() if zero else B_OR
        tensors[f"base_model.model.{name}.lora_A.weight"] = A_RI
        tensors[f"base_model.model.{name}.lora_B.weight"] = B_OR
        factors[name] = (A_RI, B_OR, numerator / (math.sqrt(rank) if rslora else rank))
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_REPO,
        "revision": BASE_REVISION,
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "rank_pattern": rank_pattern or {},
        "alpha_pattern": alpha_pattern or {},
        "target_modules": sorted({name.rpartition(".")[2] for name in shapes}),
        "init_lora_weights": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_dora": False,
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(fields))
    return Written(path, factors)


def read_result(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A composed folder's (A, B) by module, float64, with alpha / r checked to be 1."""
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert not config["use_rslora"]
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    tensors = load_file(path / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
    result = {}
    for name in names:
        A_RI = tensors[f"base_model.model.{name}.lora_A.weight"]
        B_OR = tensors[f"base_model.model.{name}.lora_B.weight"]
        assert A_RI.shape[0] == B_OR.shape[1] == config["r"]
        result[name] = (A_RI.double(), B_OR.double())
    return result


def write_base_folder(
    path: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
    shards: int = 1,
    shapes: dict[str, tuple[int, int]] = SHAPES,
    seed: int = 99,
    **config: Any,
) -> dict[str, Tensor]:
    """Write a checkpoint with one weight per module, an embedding, a norm, a bias and the files around them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    tensors["model.embed_tokens.weight"] = torch.randn(50, 20, generator=generator).to(dtype)
    tensors["model.norm.weight"] = torch.ones(20, dtype=dtype)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.randn(24, generator=generator).to(dtype)
    if not tied:
        tensors["lm_head.weight"] = torch.randn(50, 20, generator=generator).to(dtype)
    path.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        names = sorted(tensors)
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            own = names[shard::shards]
            save_file({name: tensors[name] for name in own}, path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(own, file)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    fields = {"model_type": "qwen2", "tie_word_embeddings": tied, "dtype": str(dtype).removeprefix("torch."), **config}
    (path / "config.json").write_text(json.dumps(fields))
    (path / "generation_config.json").write_text('{ "temperature": 0.7,\n"do_sample": false }')
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}\n')
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "README.md").write_text("the base's own card")
    return tensors


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by its index where it has one."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return load_file(path / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    loaded = {file: load_file(path / file) for file in set(weight_map.values())}
    return {name: loaded[file][name] for name, file in weight_map.items()}
