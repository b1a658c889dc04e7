"""Work of curriculum.py as jobs: several at a time, each in the order of what it needs, each process measured."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAST_LINES = 15
"""Lines of a failed process's log that are shown."""


class JobError(Exception):
    """A job's process ended badly; the message says how, and where its log is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work."""

    name: str
    act: Callable[[], str]
    """Does it; what it returns is shown."""
    after: tuple[str, ...] = ()
    """Names of the jobs it needs."""


def run_jobs(jobs: Sequence[Job], workers: int, tell: Callable[[str], None]) -> dict[str, str]:
    """Do every job whose needs are met, the earlier in the list first.

    Args:
        jobs: In order of preference; what one needs is among them.
        workers: Jobs at a time.
        tell: Takes a line of progress at the start and the end of each.

    Returns:
        Failed job -> reason; what needed it failed with it, everything else was done.
    """
    waiting, done, failed = list(jobs), set[str](), dict[str, str]()
    running: dict[Future[str], tuple[Job, float]] = {}
    with ThreadPoolExecutor(workers) as pool:
        while waiting or running:
            for job in list(waiting):
                lacking = [name for name in job.after if name in failed]
                if lacking:
                    failed[job.name] = f"needs {lacking[0]}"
                    waiting.remove(job)
                    tell(f"{job.name}: skipped, {failed[job.name]}")
                elif len(running) < workers and done.issuperset(job.after):
                    waiting.remove(job)
                    running[pool.submit(job.act)] = (job, time.monotonic())
            if not running:
                if waiting:
                    continue
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job, start_s = running.pop(future)
                try:
                    note = future.result()
                except Exception as error:  # one row's failure must not end the others
                    failed[job.name] = str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
                    tell(f"{job.name}: FAILED: {error}")
                    continue
                done.add(job.name)
                left = len(waiting) + len(running)
                tell(f"{job.name}: {note} ({time.monotonic() - start_s:.0f} s; {left} to go)")
    return failed


def measure(command: Sequence[str], log: Path, threads: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one command that prints a JSON object, its other output into a log.

    Args:
        command: What to run.
        log: Where stderr goes, appended.
        threads: Of the process's libraries; null leaves it to them.

    Returns:
        What it printed, and what it cost: wall and processor seconds, peak resident bytes (never below this
        process's own, which Linux hands on to a child).

    Raises:
        JobError: It exited with anything but 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
    answer = log.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}.json")
    start_s = time.monotonic()
    with log.open("a") as errors, answer.open("w") as output:
        before = errors.tell()
        errors.write(f"$ {' '.join(command)}\n")
        errors.flush()
        child = subprocess.Popen(
            command, stdout=output, stderr=errors, env={**os.environ, **limits, "TOKENIZERS_PARALLELISM": "false"}
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    text = answer.read_text()
    answer.unlink()
    if child.returncode:
        last = log.read_bytes()[before:].decode(errors="replace").splitlines()[-LAST_LINES:]
        raise JobError("\n".join([f"exit {child.returncode}, see {log}", *last]))
    cost = {
        "wall_s": round(time.monotonic() - start_s, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * 1024,  # Linux counts kilobytes
    }
    return json.loads(text), cost


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none (yet)."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
