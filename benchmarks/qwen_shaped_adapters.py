"""Write PEFT adapters of Qwen2.5-3B's shape: 36 layers, rank 16 on all seven linear modules, seeded random factors.

    python benchmarks/qwen_shaped_adapters.py OUT --num 3

Needs only torch and safetensors; nothing of plyfold, so that what reads the folders is tried on foreign files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, KEY_VALUE, INTERMEDIATE = 2048, 256, 11008
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
"""Module of a layer -> (out_features, in_features)."""
BASE = {
    "base_model_name_or_path": "Qwen/Qwen2.5-3B",
    "revision": "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b",
}


def write_adapter(folder: Path, *, seed: int, num_layers: int, r: int, alpha: float, dtype: torch.dtype) -> int:
    """Write one adapter folder; bytes of its weights. A is as PEFT initialises it, B as small as training makes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(num_layers):
        for module, (num_out, num_in) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            bound = num_in**-0.5
            A_RI = torch.empty(r, num_in).uniform_(-bound, bound, generator=generator)
            B_OR = torch.empty(num_out, r).normal_(0.0, 0.01, generator=generator)
            tensors[f"{name}.lora_A.weight"] = A_RI.to(dtype)
            tensors[f"{name}.lora_B.weight"] = B_OR.to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        **BASE,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": sorted(module.rpartition(".")[2] for module in SHAPES),
        "init_lora_weights": True,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return (folder / "adapter_model.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make adapters a0, a1, … in")
    parser.add_argument("--num", type=int, default=3, help="how many")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--r", type=int, default=16, help="rank")
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for index in range(options.num):
        folder = options.out / f"a{index}"
        size = write_adapter(
            folder,
            seed=options.seed + index,
            num_layers=options.layers,
            r=options.r,
            alpha=options.alpha,
            dtype=getattr(torch, options.dtype),
        )
        print(f"{folder}  {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
