"""Ten thousand broken adapters, each merged with a sound one: a right sum or one clear refusal, and nothing else.

Every case runs in a child process with a limit on its memory and on its time: a case that hangs or eats memory is
ended, counted and named by its seed.

    python benchmarks/mutations.py --num 10000
    python benchmarks/mutations.py --only "config text" --seed 17 --num 1     one case again
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.mutation_verdicts import clear, verdict
from tests.mutations import KINDS

CASE_LIMIT_S = 10.0
MEMORY_LIMIT_BYTES = 2 << 30
"""Address space a case may add to the process it starts in."""
RSS_LIMIT_BYTES = 512 << 20
"""Resident memory the worker may have gained."""


@dataclass
class Tally:
    """What came of all cases."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    peak_bytes: int = 0
    """Most resident memory a worker gained over its start."""

    def add(self, kind: str, seed: int, outcome: str, seconds: float) -> None:
        named = f"{kind} --seed {seed}"
        self.counts.setdefault(kind, Counter())["FAULT" if outcome.startswith("FAULT") else outcome] += 1
        self.slowest = max(self.slowest, (seconds, named))
        if outcome.startswith("FAULT"):
            self.faults.append(f"{named}: {outcome[6:]}")

    def table(self) -> str:
        """Markdown: a row per kind, a column per outcome."""
        total: Counter[str] = sum(self.counts.values(), Counter())
        outcomes = sorted(total, key=lambda name: (name == "FAULT", name != "right", -total[name]))
        outcomes += ["FAULT"] if "FAULT" not in outcomes else []
        lines = [f"| mutation | cases | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 2) + "|"]
        for kind, counts in [*self.counts.items(), ("**all**", total)]:
            cells = [str(counts[name] or "") if name != "FAULT" else str(counts[name]) for name in outcomes]
            lines.append(f"| {kind} | {counts.total()} | {' | '.join(cells)} |")
        return "\n".join(lines)


def campaign(cases: list[tuple[str, int]], folder: Path) -> Tally:
    """Run every case in a worker that is replaced whenever one ends it."""
    tally, position = Tally(), 0
    while position < len(cases):
        position = _worker_life(cases, position, folder, tally)
    return tally


def _worker_life(cases: list[tuple[str, int]], position: int, folder: Path, tally: Tally) -> int:
    """Cases from `position` on until the worker is done or has to be ended; returns the next position."""
    receiving, sending = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(receiving)
        _work(cases[position:], folder, sending)
    os.close(sending)
    buffer = b""
    start_s = time.monotonic()
    try:
        while position < len(cases):
            ready, _, _ = select.select([receiving], [], [], CASE_LIMIT_S)
            data = os.read(receiving, 65536) if ready else b""
            if not data:
                os.kill(worker, signal.SIGKILL)
                seconds = time.monotonic() - start_s
                tally.add(
                    *cases[position], "FAULT died" if ready else f"FAULT still running after {seconds:.0f} s", seconds
                )
                return position + 1
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                outcome, seconds, gained = json.loads(line)
                tally.add(*cases[position], outcome, seconds)
                tally.peak_bytes = max(tally.peak_bytes, gained)
                position, start_s = position + 1, time.monotonic()
    finally:
        os.close(receiving)
        os.waitpid(worker, 0)
    return position


def _work(cases: list[tuple[str, int]], folder: Path, sending: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        start_bytes = _peak_bytes()
        for kind, seed in cases:
            case = folder / f"case-{seed}"
            case.mkdir()
            begin_s, before = time.monotonic(), _peak_bytes()
            outcome = verdict(case, kind, seed)
            seconds = time.monotonic() - begin_s
            if _peak_bytes() - before > RSS_LIMIT_BYTES:
                outcome = f"FAULT took {(_peak_bytes() - before) >> 20} MiB"
            clear(case)
            os.write(sending, json.dumps([outcome, seconds, _peak_bytes() - start_bytes]).encode() + b"\n")
    finally:
        os._exit(0)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def chosen_cases(num: int, seed: int, only: str | None) -> Iterator[tuple[str, int]]:
    kinds = [only] if only else KINDS
    return ((kinds[index % len(kinds)], seed + index) for index in range(num))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, help="cases, spread evenly over the kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one adds 1")
    parser.add_argument("--only", choices=KINDS, metavar="KIND", help="one kind of mutation")
    parser.add_argument("--json", action="store_true", help="counts and faults as one object")
    options = parser.parse_args()
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        tally = campaign(list(chosen_cases(options.num, options.seed, options.only)), Path(folder))
    seconds = time.monotonic() - begin_s
    if options.json:
        print(json.dumps({"counts": tally.counts, "faults": tally.faults, "seconds": seconds}))
    else:
        versions = ", ".join(f"{name} {version(name)}" for name in ("plyfold", "torch", "safetensors"))
        print(tally.table(), end="\n\n")
        print(f"{options.num} cases in {seconds:.0f} s; slowest {tally.slowest[0]:.2f} s ({tally.slowest[1]});")
        print(f"memory: a worker gained {tally.peak_bytes / 1e6:.0f} MB at most over its start.")
        print(f"Faults: {len(tally.faults)}. {versions}, Python {sys.version.split()[0]}.")
        for fault in tally.faults:
            print(f"- {fault}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
