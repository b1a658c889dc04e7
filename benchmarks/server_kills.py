"""End one process of a real server at random moments and count what is left ten seconds later.

    cd FOLDER-WITH-A-REGISTRY
    python /path/to/benchmarks/server_kills.py --kills 200 [--variants base 1] [--out kills.json]

Each run starts `plyfold serve`, waits for a random moment of its start or until it is ready, there half of the times
under requests, picks one of its processes and one of SIGKILL, SIGTERM and SIGINT. Within GONE_S every process it ever
had must have ended, and no shared memory of theirs be left. Processes are known by having been seen below the launcher,
and by a variable that all inherit. What is left is named, and ended by its id.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

GONE_S = 10.0
START_TIMEOUT_S = 600.0
MARK = "PLYFOLD_CAMPAIGN"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHARED_MEMORY = Path("/dev/shm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=["base", "1"])
    parser.add_argument("--only", metavar="VICTIM", help="of one kind: launcher, API server, VLLM::Worker, sweeper")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background job inherits it, and hands it on
        signal.signal(signal.SIGINT, signal.default_int_handler)
    draw, usual_s = random.Random(options.seed), 20.0
    counts: Counter[str] = Counter()
    runs: list[dict[str, Any]] = []
    for number in range(options.kills):
        run = one(options.variants, draw, usual_s, options.only)
        usual_s = run.pop("start_s") or usual_s
        runs.append(run)
        counts[f"{run['victim']}, {run['signal']}, {run['moment']}"] += 1
        print(f"{number + 1}/{options.kills}", json.dumps(run), flush=True)
    left = [run for run in runs if run["left"] or run["shared_memory"]]
    slowest_s = max((run["gone_s"] for run in runs if not run["left"]), default=0.0)
    summary = {"kills": len(runs), "left_something": len(left), "slowest_s": slowest_s, "seed": options.seed}
    print(json.dumps(summary))
    if options.out:
        options.out.write_text(json.dumps({**summary, "counts": counts, "faults": left, "runs": runs}, indent=1) + "\n")
    sys.exit(bool(left))


def one(variants: Sequence[str], draw: random.Random, usual_s: float, only: str | None) -> dict[str, Any]:
    """Start, end one process, look after GONE_S."""
    shared = names(SHARED_MEMORY)
    token, port = secrets.token_hex(8), free_port()
    moment = draw.choice(["starting", "ready", "loaded"])
    command = [sys.executable, "-m", "plyfold", "serve", *variants, "--port", str(port), "-q"]
    quiet = subprocess.DEVNULL
    launcher = subprocess.Popen(command, env={**os.environ, MARK: token}, stdin=quiet, stdout=quiet, stderr=quiet)
    started, start_s = time.monotonic(), 0.0
    until_s = draw.uniform(0.5, usual_s) if moment == "starting" else START_TIMEOUT_S
    root, seen = psutil.Process(launcher.pid), {}
    while time.monotonic() < started + until_s:
        look(root, seen)
        if healthy(port):
            start_s = time.monotonic() - started
            break
        assert launcher.poll() is None, "the server did not start: run it by hand"
        time.sleep(0.05)
    stop = threading.Event()
    if moment == "loaded":
        for index in range(4):
            threading.Thread(target=load, args=(port, variants[index % len(variants)], stop), daemon=True).start()
        time.sleep(draw.uniform(0.2, 3))
    look(root, seen)
    alive = [(process, name) for process, name in seen.values() if running(process)]
    victim, name = draw.choice([each for each in alive if only in (None, each[1])] or alive)
    number = draw.choice(SIGNALS)
    sent = time.monotonic()
    victim.send_signal(number)
    left = remaining(seen, token)
    while left and time.monotonic() < sent + GONE_S:
        time.sleep(0.1)
        launcher.poll()
        left = remaining(seen, token)
    gone_s = time.monotonic() - sent
    stop.set()
    if left and number != signal.SIGKILL and running(victim):
        left = ["the signal was ignored: " + name]  # as a sweeper ignores Ctrl-C; nothing ended, so nothing is left
    result = {
        "victim": name, "signal": number.name, "moment": moment, "start_s": start_s, "gone_s": round(gone_s, 1),
        "left": [each for each in left if not each.startswith("the signal")],
        "ignored": any(each.startswith("the signal") for each in left),
        "shared_memory": [] if left else sorted(names(SHARED_MEMORY) - shared),
    }  # fmt: skip
    for process in {**{each.pid: each for each, _ in seen.values()}, **{p.pid: p for p in marked(token)}}.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    launcher.wait()
    return result


def look(root: psutil.Process, seen: dict[int, tuple[psutil.Process, str]]) -> None:
    """Take note of a launcher's processes, by what they are."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                seen[process.pid] = process, kind(process, root)


def kind(process: psutil.Process, root: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if process == root:
        return "launcher"
    if process.name().startswith("VLLM::"):
        return process.name()
    found = {"vllm_main serve": "API server", "resource_tracker": "sweeper", "spawn_main": "an engine that starts"}
    return next((name for word, name in found.items() if word in words), "helper")


def remaining(seen: dict[int, tuple[psutil.Process, str]], token: str) -> list[str]:
    left = {process.pid: name for process, name in seen.values() if running(process)}
    left |= {process.pid: "never seen" for process in marked(token) if process.pid not in left}
    return [f"{name} {pid}" for pid, name in left.items()]


def marked(token: str) -> list[psutil.Process]:
    """Processes that inherited a run's variable."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == token and running(process):
                found.append(process)
    return found


def running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def load(port: int, model: str, stop: threading.Event) -> None:
    body = json.dumps({"model": model, "prompt": "1+1=", "max_tokens": 200, "ignore_eos": True}).encode()
    while not stop.is_set():
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
        )
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=GONE_S) as answer:
            answer.read()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


if __name__ == "__main__":
    main()
