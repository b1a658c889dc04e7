"""Many hostile cases, each in a child process with a limit on its memory and its time.

A case that hangs, eats memory or kills its process is ended, counted and named by its seed; the next one runs in a new
process.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Verdict = Callable[[Path, str, int], str]
"""Run one case (empty folder, kind, seed): `right`, the name of the error that refused it, or `FAULT ...`."""

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


def campaign(
    cases: list[tuple[str, int]], folder: Path, verdict: Verdict, clear: Callable[[Path], None] = shutil.rmtree
) -> Tally:
    """Run every case in a worker that is replaced whenever one ends it."""
    tally, position = Tally(), 0
    while position < len(cases):
        position = _worker_life(
            cases, position, lambda rest, sending: _work(rest, folder, sending, verdict, clear), tally
        )
    return tally


def _worker_life(
    cases: list[tuple[str, int]], position: int, work: Callable[[list[tuple[str, int]], int], None], tally: Tally
) -> int:
    """Cases from `position` on until the worker is done or has to be ended; returns the next position."""
    receiving, sending = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(receiving)
        work(cases[position:], sending)
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


def _work(
    cases: list[tuple[str, int]], folder: Path, sending: int, verdict: Verdict, clear: Callable[[Path], None]
) -> None:
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


def chosen_cases(kinds: Sequence[str], num: int, seed: int) -> Iterator[tuple[str, int]]:
    """`num` cases, spread evenly over the kinds."""
    return ((kinds[index % len(kinds)], seed + index) for index in range(num))
