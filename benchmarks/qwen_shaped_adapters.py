"""Write PEFT adapters of a Qwen2.5 model's shape: rank 16 on all seven linear modules, seeded random factors.

    python benchmarks/qwen_shaped_adapters.py OUT --size 3B --num 3

Needs only torch and safetensors; nothing of plyfold, so that what reads the folders is tried on foreign files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model_shapes import MODELS, ModelShape
from safetensors.torch import save_file


def write_adapter(folder: Path, *, model: ModelShape, seed: int, r: int, alpha: float, dtype: torch.dtype) -> int:
    """Write one adapter folder; bytes of its weights. A is as PEFT initialises it, B as small as training makes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(model.num_layers):
        for module, (num_out, num_in) in model.linears.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            bound = num_in**-0.5
            A_RI = torch.empty(r, num_in).uniform_(-bound, bound, generator=generator)
            B_OR = torch.empty(num_out, r).normal_(0.0, 0.01, generator=generator)
            tensors[f"{name}.lora_A.weight"] = A_RI.to(dtype)
            tensors[f"{name}.lora_B.weight"] = B_OR.to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": model.repo,
        "revision": model.revision,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": sorted(module.rpartition(".")[2] for module in model.linears),
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
    parser.add_argument("--size", choices=MODELS, default="3B", help="shape of Qwen2.5-SIZE")
    parser.add_argument("--r", type=int, default=16, help="rank")
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for index in range(options.num):
        folder = options.out / f"a{index}"
        size = write_adapter(
            folder,
            model=MODELS[options.size],
            seed=options.seed + index,
            r=options.r,
            alpha=options.alpha,
            dtype=getattr(torch, options.dtype),
        )
        print(f"{folder}  {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
