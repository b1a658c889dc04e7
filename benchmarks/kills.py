"""Kill compose and fold with SIGKILL at random moments and count what is found afterwards.

    python benchmarks/kills.py --kills 200

After each kill there must be nothing under the final name, or the whole result; the next run must end with the digest
of an undisturbed one and leave nothing beside it. Some kills hit a run that continues a killed one (`continued`).
Small inputs made here; each run is a fork of one process that has everything imported, so that moments fall into the
work and not into the start of Python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from plyfold.merge.compose.write import compose
from plyfold.merge.fold.fold import fold
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

SHAPES = {
    f"model.layers.{layer}.mlp.{name}": shape
    for layer in range(12)
    for name, shape in (("up_proj", (1408, 512)), ("gate_proj", (1408, 512)), ("down_proj", (512, 1408)))
}
RANK = 16
Run = Callable[[Path, Path], str]
"""Work in a folder to an output folder; its digest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of compose and of fold each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        work = Path(name)
        write_inputs(work)
        columns = ["kills", "too late", "before", "within", "published", "continued", "wrong"]
        print("".join([f"{'':8}", *(f"{column:>11}" for column in columns)]))
        for title, run in (("compose", run_compose), ("fold", run_fold)):
            count = campaign(work, run, options.kills, random.Random(options.seed))
            print("".join([f"{title:8}", *(f"{count[column]:11}" for column in columns)]), flush=True)


def write_inputs(work: Path) -> None:
    """A float32 base of 100 MB and two adapters; numpy only, so that no torch threads exist before the forks."""
    draw = np.random.default_rng(0)
    base = {f"{name}.weight": draw.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    base["model.embed_tokens.weight"] = draw.standard_normal((4000, 512), dtype=np.float32)
    (work / "base").mkdir()
    save_file(base, work / "base" / "model.safetensors", metadata={"format": "pt"})
    (work / "base" / "config.json").write_text(json.dumps({"model_type": "qwen2", "dtype": "float32"}))
    (work / "base" / "tokenizer.json").write_text("{}")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "acme/small", "r": RANK,
              "lora_alpha": 32, "target_modules": ["up_proj", "gate_proj", "down_proj"], "bias": "none"}  # fmt: skip
    for name in "ab":
        tensors = {}
        for module, (num_out, num_in) in SHAPES.items():
            key = f"base_model.model.{module}"
            tensors[f"{key}.lora_A.weight"] = draw.standard_normal((RANK, num_in), dtype=np.float32)
            tensors[f"{key}.lora_B.weight"] = draw.standard_normal((num_out, RANK), dtype=np.float32) * np.float32(0.01)
        (work / name).mkdir()
        save_file(tensors, work / name / "adapter_model.safetensors", metadata={"format": "pt"})
        (work / name / "adapter_config.json").write_text(json.dumps(config))


def run_compose(work: Path, out: Path) -> str:
    return compose(plan_compose([Part(work / "a"), Part(work / "b", 0.5)]), out).digest


def run_fold(work: Path, out: Path) -> str:
    return fold([Part(work / "a"), Part(work / "b", 0.5)], work / "base", out).digest


def campaign(work: Path, run: Run, kills: int, draw: random.Random) -> Counter[str]:
    """Kill `kills` runs; counts of what was found."""
    out, inputs = work / "out", {path.name for path in work.iterdir()}
    expected = finish(work, run, out)
    shutil.rmtree(out)
    started = time.monotonic()
    assert finish(work, run, out) == expected
    usual_s = time.monotonic() - started
    count: Counter[str] = Counter()
    while count["kills"] < kills:
        wipe(work, inputs)
        for _ in range(1 + draw.randrange(2)):  # now and then the run that continues a killed one is killed too
            continues = any(path.name.startswith(".out.") for path in work.iterdir())
            child = fork(work, run, out)
            time.sleep(draw.uniform(0, usual_s))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                count["too late"] += 1
                break
            count["kills"] += 1
            count["continued"] += continues
            left = any(path.name.startswith(".out.") for path in work.iterdir())
            count["published" if out.exists() else "within" if left else "before"] += 1
            if out.exists():
                break
        if out.exists():  # a whole result, or none: made again, it must be the same to the byte
            found = snapshot(out)
            shutil.rmtree(out)
        else:
            found = None
        digest = finish(work, run, out)
        same = found is None or found == snapshot(out)
        left = {path.name for path in work.iterdir()} - inputs - {"out"}
        if digest != expected or not same or left:
            count["wrong"] += 1
            print("wrong:", digest, same, left, flush=True)
    wipe(work, inputs)
    return count


def fork(work: Path, run: Run, out: Path, report: int | None = None) -> int:
    """Start a run in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    try:
        digest = run(work, out)
        if report is not None:
            os.write(report, digest.encode())
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def finish(work: Path, run: Run, out: Path) -> str:
    """Run undisturbed; the digest."""
    reader, writer = os.pipe()
    child = fork(work, run, out, writer)
    os.close(writer)
    digest = os.read(reader, 100).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return digest if status == 0 else f"failed with status {status}"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wipe(work: Path, inputs: set[str]) -> None:
    for path in work.iterdir():
        if path.name not in inputs:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
