"""Write a checkpoint of a Qwen2.5 model's shape: seeded random bf16 weights, some files with an index.

    python benchmarks/qwen_shaped_base.py OUT --size 3B

Needs only torch and safetensors; nothing of plyfold, so that what reads the folder is tried on foreign files.
Memory holds one file at a time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model_shapes import MODELS, ModelShape
from safetensors.torch import save_file


def shapes(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape in the order in which transformers saves them."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocabulary, model.hidden)}
    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}"
        found |= {f"{prefix}.{module}.weight": shape for module, shape in model.linears.items()}
        found |= {
            f"{prefix}.self_attn.{name}_proj.bias": (model.linears[f"self_attn.{name}_proj"][0],) for name in "qkv"
        }
        found |= {f"{prefix}.{name}_layernorm.weight": (model.hidden,) for name in ("input", "post_attention")}
    found["model.norm.weight"] = (model.hidden,)
    return found if model.tied else found | {"lm_head.weight": (model.vocabulary, model.hidden)}


def config(model: ModelShape) -> dict[str, object]:
    """What transformers needs to build the model."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": model.tied,
        "vocab_size": model.vocabulary,
        "dtype": "bfloat16",
    }


def split(found: dict[str, tuple[int, ...]], num_files: int) -> list[list[str]]:
    """Names per file, of about equal bytes, in order."""
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in found.items()}
    files: list[list[str]] = [[] for _ in range(num_files)]
    done, total = 0, sum(sizes.values())
    for name, size in sizes.items():
        files[min(num_files - 1, done * num_files // total)].append(name)
        done += size
    return files


def tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal weights of the spread that trained ones have; norms near 1."""
    if len(shape) == 1:
        return torch.empty(shape).normal_(1.0, 0.1, generator=generator).bfloat16()
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)


def write_base(folder: Path, *, model: ModelShape, seed: int, num_files: int) -> int:
    """Write the folder; bytes of its weights."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    found = shapes(model)
    weight_map, total = {}, 0
    for index, names in enumerate(split(found, num_files)):
        file = f"model-{index + 1:05}-of-{num_files:05}.safetensors"
        tensors = {name: tensor(found[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        total += sum(each.nbytes for each in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
    (folder / "model.safetensors.index.json").write_text(text + "\n")
    (folder / "config.json").write_text(json.dumps(config(model), indent=2, sort_keys=True) + "\n")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--size", choices=MODELS, default="3B", help="shape of Qwen2.5-SIZE")
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size = write_base(options.out, model=MODELS[options.size], seed=options.seed, num_files=options.files)
    print(f"{options.out}  {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
