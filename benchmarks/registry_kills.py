"""Kill -9 at random moments of push and pull, one at a time, and look at both sides afterwards.

Each run is a fork of one process that has everything imported, against a Hub in a process of its own. After every kill
what the registry holds is read back byte by byte, then the same command is run again, undisturbed: a pull has to end
with every adapter under its name, a push with one commit per adapter that holds it byte for byte.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.registry_pushes import inspect, make_adapters, serve
from plyfold.core.errors import PlyfoldError
from plyfold.registry.store import Store
from plyfold.registry.store.objects import sweep

NUM_KILLS, NUM_ADAPTERS, RERUNS = 200, 3, 5
COLUMNS = ("kills", "too late", "nothing yet", "in part", "whole", "broken", "left behind", "not finished by a rerun")


class Campaign:
    """A registry, the Hub it is pushed to, and what was found after each kill."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.store = Store(folder / "registry")
        self.count: Counter[str] = Counter()

    def kill(self, job: Callable[[], None], usual_s: float) -> bool:
        """Start a job and kill it at a random moment of its usual time; False where it had ended."""
        child = fork(job)
        time.sleep(self.chance.uniform(0, usual_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        self.count["kills" if killed else "too late"] += 1
        return killed

    def rerun(self, job: Callable[[], None]) -> None:
        """The command again, until it succeeds; a lock of the killed one may be told of once or twice."""
        if not any(_ended(fork(job)) for _ in range(RERUNS)):
            self.count["not finished by a rerun"] += 1

    def pulls(self, kills: int) -> None:
        digests = set(make_adapters(self.store, self.folder, NUM_ADAPTERS))
        for digest in digests:
            _push(self.store, digest)
        root = self.folder / "got"

        def job() -> None:
            from plyfold.registry.hub.pull.pull import pull

            for digest in sorted(digests):
                pull(Store(root), f"hf://acme/toy-s01-structure@{_commit(self.store, digest)}")

        usual_s = _usual(job, lambda: shutil.rmtree(root))
        while self.count["kills"] < kills:
            killed = self.kill(job, usual_s)
            got = Store(root)  # a kill may have come before all of its folders were there
            found = set(got.digests())
            if killed:
                self.count["nothing yet" if not found else "whole" if found == digests else "in part"] += 1
            self.count["broken"] += sum(not _sound(got, digest) for digest in found) + len(found - digests)
            self.rerun(job)
            self.count["broken"] += set(got.digests()) != digests
            self.count["left behind"] += _left(got)
            shutil.rmtree(root)

    def pushes(self, kills: int) -> None:
        digests = make_adapters(self.store, self.folder, 3 * kills)  # some end before their kill
        _push(self.store, digests[0])
        usual_s = _usual(lambda: _push(self.store, digests[1]), lambda: None, times=1)
        for digest in digests[2:] + digests[:2]:
            while self.kill(lambda digest=digest: _push(self.store, digest), usual_s):  # type: ignore[misc]
                there = inspect(self.folder / "hub", self.store, [digest], ["acme"])["present"]
                self.count["whole" if there else "nothing yet"] += 1
                if there or self.count["kills"] >= kills:
                    break
            self.rerun(lambda digest=digest: _push(self.store, digest))  # type: ignore[misc]
            if self.count["kills"] >= kills:
                break
        pushed = [digest for digest in digests if any(a.kind == "location" for a in self.store.attestations(digest))]
        found = inspect(self.folder / "hub", self.store, pushed, ["acme"])
        self.count["broken"] += found["lost"] + found["doubled"] + found["commits with wrong files"]
        self.count["left behind"] += _left(self.store)


def fork(job: Callable[[], None]) -> int:
    """Start a job in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        job()
    except PlyfoldError as error:
        print(error, flush=True)
        os._exit(1)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(2)
    os._exit(0)


def _ended(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def _usual(job: Callable[[], None], clear: Callable[[], None], times: int = 2) -> float:
    """Seconds of an undisturbed run, the last of a few."""
    for _ in range(times):
        begin_s = time.monotonic()
        assert _ended(fork(job))
        seconds = time.monotonic() - begin_s
        clear()
    return seconds


def _push(store: Store, digest: str) -> None:
    from plyfold.registry.hub.push.push import push

    push(Store(store.root), [digest], "acme")


def _commit(store: Store, digest: str) -> str:
    from plyfold.registry.hub.places import locations

    return locations(store, digest)[0].rpartition("@")[2]


def _sound(store: Store, digest: str) -> bool:
    try:
        store.load(digest)
    except PlyfoldError:
        return False
    return True


def _left(store: Store) -> int:
    """What is still in `tmp` once the sweep that every writer makes takes things of any age."""
    sweep(store.root / "tmp", max_age_s=0)
    return len(list((store.root / "tmp").iterdir()))


def campaign(what: str, kills: int, seed: int) -> dict[str, Any]:
    """One row: `pull` or `push`."""
    from tests.support.hostile_hub import point_at

    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=serve, args=(folder / "hub", theirs))
        server.start()
        url, token = ours.recv()
        point_at(url, token, folder / "home")
        try:
            running = Campaign(folder, seed)
            (running.pulls if what == "pull" else running.pushes)(kills)
        finally:
            ours.send("stop")
            server.join()
    return {column: running.count[column] for column in COLUMNS}


# ---- the part


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hub-kills", type=int, default=NUM_KILLS, help="of push and of pull each")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Both campaigns; what was found."""
    rows = {what: campaign(what, chosen.hub_kills, chosen.seed) for what in ("push", "pull")}
    bad = ("broken", "left behind", "not finished by a rerun")
    faults = [f"{name}: {row[column]} {column}" for name, row in rows.items() for column in bad if row[column]]
    return {"rows": rows, "faults": faults}


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(row[column]) for column in COLUMNS)} |"
              for name, row in found["rows"].items()]  # fmt: skip
    return "\n".join([*lines, *(f"- {fault}" for fault in found["faults"])])
