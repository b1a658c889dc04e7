"""Merging, each figure a ratio against a peer or a physical limit on the same files in the same run.

    python benchmarks/merge.py [--work DIR] [--out RESULTS] [PART…]

Parts: compose, svd, fold, accuracy, growth; all by default (an hour, 60 GB of disk, of which the most at 7B's shape).
The files have the shapes of Qwen2.5 models and random weights. Every command runs in a process of its own, measured
from start to exit by the system; a repeated figure is the median. Writes RESULTS.json, and RESULTS.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from merge_report import render
from model_shapes import MODELS

HERE = Path(__file__).parent
PLYFOLD = str(Path(sys.executable).parent / "plyfold")
PARTS = ("compose", "svd", "fold", "accuracy", "growth")


@dataclass
class Run:
    """One command, repeated."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_gb: float = 0.0
    """Largest resident size of any repetition, 10^9 bytes."""
    output: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "wall_s": statistics.median(self.wall_s),
            "wall_s_all": self.wall_s,
            "cpu_s": statistics.median(self.cpu_s),
            "peak_gb": self.peak_gb,
        }


def run(command: list[str], *, repeat: int = 1, clean: Path | None = None, keep: bool = False) -> Run:
    """Run a command `repeat` times; `clean` is removed before each, and after the last unless kept."""
    # This process stays small: the system counts a parent's size at the start of a child into the child's peak.
    done = Run()
    for _ in range(repeat):
        if clean:
            shutil.rmtree(clean, ignore_errors=True)
        os.sync()  # what others have written is not this command's to flush
        with tempfile.TemporaryFile() as output:
            start_s = time.monotonic()
            child = subprocess.Popen(command, stdout=output, cwd=HERE)
            _, status, usage = os.wait4(child.pid, 0)
            done.wall_s.append(time.monotonic() - start_s)
            output.seek(0)
            done.output = output.read().decode()
        if status:
            raise SystemExit(f"failed: {' '.join(command)}\n{done.output}")
        done.cpu_s.append(usage.ru_utime + usage.ru_stime)
        done.peak_gb = max(done.peak_gb, usage.ru_maxrss * 1024 / 1e9)
    if clean and not keep:
        shutil.rmtree(clean, ignore_errors=True)
    print(
        f"  {' '.join(map(_short, command))}: {statistics.median(done.wall_s):.2f} s, {done.peak_gb:.2f} GB", flush=True
    )
    return done


def _short(text: str) -> str:
    return Path(text).name if text.startswith("/") else text


class Files:
    """Adapters and bases, made once in the work folder."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def adapters(self, size: str, num: int) -> list[str]:
        folder = self.work / f"adapters-{size}"
        missing = [index for index in range(num) if not (folder / f"a{index}" / "adapter_config.json").exists()]
        if missing:
            shutil.rmtree(folder, ignore_errors=True)
            make(["qwen_shaped_adapters.py", str(folder), "--size", size, "--num", str(num)])
        return [str(folder / f"a{index}") for index in range(num)]

    def base(self, size: str) -> Path:
        folder = self.work / f"base-{size}"
        if not (folder / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(["qwen_shaped_base.py", str(folder), "--size", size])
        return folder


def make(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], cwd=HERE, check=True, stdout=subprocess.DEVNULL)


def fold_command(adapters: list[str], base: Path, out: Path) -> list[str]:
    return [PLYFOLD, "merge", *adapters, "--into", "model", "--base", str(base), "-o", str(out)]


def accuracy_of(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "merge_accuracy.py", *map(str, arguments)]
    done: dict[str, Any] = json.loads(subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE).stdout)
    return done


def peer(*arguments: object) -> list[str]:
    return [sys.executable, "peft_peer.py", *map(str, arguments)]


def compose(files: Files) -> dict[str, Any]:
    adapters, out = files.adapters("3B", 3), files.work / "out"
    ours = run([PLYFOLD, "merge", *adapters, "-o", str(out)], repeat=5, clean=out)
    imports = run([sys.executable, "-c", "import torch"], repeat=5)
    theirs = run(peer("cat", files.base("3B"), out, *adapters), clean=out)
    bytes_moved = 2 * 3 * 16 * MODELS["3B"].num_sides * 4
    return {
        "plyfold": ours.to_json(),
        "import_torch": imports.to_json(),
        "peft_cat": {**theirs.to_json(), "phases_s": json.loads(theirs.output)},
        "bytes_read_and_written": bytes_moved,
    }


def svd(files: Files) -> dict[str, Any]:
    adapters, out = files.adapters("3B", 3), files.work / "out-svd"
    ours = run([PLYFOLD, "merge", *adapters, "--rank", "16", "-o", str(out)], repeat=3, clean=out, keep=True)
    theirs = run(peer("svd", "3B", *adapters))
    phases = json.loads(theirs.output)
    optimum = accuracy_of("svd", "3B", 16, out, *adapters)
    shutil.rmtree(out)
    return {
        "plyfold": ours.to_json(),
        "peft_svd_one_layer_s": phases,
        "peft_svd_extrapolated_s": {name: MODELS["3B"].num_layers * value for name, value in phases.items()},
        "against_eckart_young": optimum,
    }


def fold(files: Files) -> dict[str, Any]:
    adapters, base, out = files.adapters("3B", 3), files.base("3B"), files.work / "out-fold"
    copy = ["sh", "-c", COPY, str(base), str(files.work / "copy")]
    copied, ours = Run(), Run()
    for _ in range(5):  # in turn, so that both meet the same disk
        for into, command, made in (
            (copied, copy, files.work / "copy"),
            (ours, fold_command(adapters, base, out), out),
        ):
            once = run(command, clean=made)
            into.wall_s += once.wall_s
            into.cpu_s += once.cpu_s
            into.peak_gb = max(into.peak_gb, once.peak_gb)
    theirs = run(peer("fold", base, files.work / "peft-fold", *adapters), clean=files.work / "peft-fold", keep=True)
    rank = 3 * 16
    return {
        "plyfold": ours.to_json(),
        "copy_and_fsync": copied.to_json(),
        "peft_merge_and_unload": {**theirs.to_json(), "phases_s": json.loads(theirs.output)},
        "bytes_of_base": sum(path.stat().st_size for path in base.iterdir()),
        "flop": 2 * rank * MODELS["3B"].num_linear_weights,
    }


COPY = 'cp -rL "$0" "$1" && sync "$1"/*'
"""`sync FILE` flushes each file to disk, as fsync does."""


def accuracy(files: Files) -> dict[str, Any]:
    """How much of D each fold realises; needs what `fold` leaves of PEFT's."""
    adapters, base, out = files.adapters("3B", 3), files.base("3B"), files.work / "out-fold"
    theirs = files.work / "peft-fold"
    if not theirs.exists():
        run(peer("fold", base, theirs, *adapters), clean=theirs, keep=True)
    run(fold_command(adapters, base, out), clean=out, keep=True)
    found = accuracy_of("folds", "3B", base, out, theirs, *adapters)
    shutil.rmtree(out)
    shutil.rmtree(theirs)
    return found


def growth(files: Files) -> dict[str, Any]:
    out = files.work / "out-growth"
    by_number = {}
    for number in (1, 2, 4, 8, 16):
        adapters = files.adapters("3B", 16)[:number]
        by_number[str(number)] = run([PLYFOLD, "merge", *adapters, "-o", str(out)], repeat=3, clean=out).to_json()
    shutil.rmtree(files.work / "adapters-3B")
    by_size: dict[str, dict[str, Any]] = {}
    for size in MODELS:
        adapters = files.adapters(size, 3)
        composed = run([PLYFOLD, "merge", *adapters, "-o", str(out)], repeat=3, clean=out)
        cut = run([PLYFOLD, "merge", *adapters, "--rank", "16", "-o", str(out)], clean=out)
        folded = run(fold_command(adapters, files.base(size), out), clean=out)
        by_size[size] = {"compose": composed.to_json(), "svd": cut.to_json(), "fold": folded.to_json()}
        shutil.rmtree(files.work / f"base-{size}")
    return {"adapters_at_3B": by_number, "three_adapters": by_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "plyfold-merge")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-merge")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    options.work.mkdir(parents=True, exist_ok=True)
    files, target = Files(options.work.resolve()), options.out.with_suffix(".json")
    results = json.loads(target.read_text()) if target.exists() else {}
    for part in options.parts or PARTS:
        print(part, flush=True)
        results[part] = globals()[part](files)
        results["about"] = {
            "command": "python benchmarks/merge.py",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("plyfold", "torch", "peft", "transformers", "safetensors")},
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        options.out.with_suffix(".md").write_text(render(results))
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
