"""Every fault a Hub can have, at every request of push and pull: one commit, the right bytes, or a clear error.

The requests are found by running undisturbed once; then each is broken in each way, once, whenever it is asked again,
or together with everything after it. After the run the Hub heals, the same is run again, and has to end complete.
`done` is complete and right in spite of the fault: one commit per adapter, byte for byte, or the stages the Hub has
now, and never the ones known from before. Errors end with their exit codes: HubBusyError 6, AuthError 7,
HeadMovedError 5, IntegrityError 4, NotFoundError 3, FailedError 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import random
import re
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plyfold.core.errors import PlyfoldError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.push.collection import update_collection
from plyfold.registry.hub.push.push import pull, push
from plyfold.registry.record import BaseRecord, Code, Parent, Record, StageId, Weights
from plyfold.registry.store import Store
from plyfold.registry.trust import statements
from plyfold.registry.trust.revocation import revoke

NAMES = ("structure", "brevity", "remedy")
SPACE = "acme"
SILENCE_S = 0.25
"""The client's timeout, so that hanging servers cost little."""
TIME_LIMIT_S = 30.0
"""A run that takes longer is a fault: some requests are tried five times by the library and five times by plyfold."""
MODES = ("once", "this request always", "everything from here on")
CODES = {
    **dict.fromkeys(("500", "503", "429", "500_after", "503_after", "drop_before", "drop_after", "hang"), (6,)),
    **dict.fromkeys(("401", "403"), (7,)),
    "412": (1, 5, 6),
    "truncate": (1, 3, 4, 6),
    "flip": (1, 2, 3, 4, 5, 6, 7, 8),
}
"""Fault -> exit codes that may be the answer to it."""
WAYS = ("push", "push companions", "pull", "pull what has moved")


@dataclass(frozen=True)
class Case:
    """One run."""

    way: str
    index: int
    """Which request, counted from 0 in the order of an undisturbed run."""
    request: str
    """Its method and path, digests left out."""
    kind: str
    mode: str


class Bench:
    """A Hub and registries in this process, as each run finds them.

    Args:
        root: Folder for all of it.
    """

    def __init__(self, root: Path) -> None:
        from tests.support.hostile_hub import point_at
        from tests.support.hub_server import HubServer

        self.root, self.most = root, 1
        self.hub = HubServer(root / "served")
        point_at(self.hub.url, self.hub.token, self.hub.store.root / "home")
        self.client = HubClient(timeout_s=SILENCE_S, first_wait_s=0.001)
        self.home = make_registry(root / "home")
        self.digests = dict(self.home.stages("toy"))
        self._serve(root / "hub-empty")
        shutil.copytree(self.home.root, root / "revoked")
        self.revoked = Store(root / "revoked")
        revoke(self.revoked, self.digests[2], "trained on test rows")
        shutil.copytree(root / "hub-empty", root / "hub-pushed")
        self._serve(root / "hub-pushed")
        push(self.home, list(self.digests.values()), SPACE, client=self.client)
        shutil.copytree(root / "hub-pushed", root / "hub-revoked")
        self._serve(root / "hub-revoked")
        push(self.revoked, list(self.digests.values()), SPACE, client=self.client)
        self.before = Store(root / "before")
        pull(self.before, f"{SPACE}/toy", client=self.client)
        shutil.copytree(root / "hub-revoked", root / "hub-moved")
        self._serve(root / "hub-moved")
        newer = Store(root / "newer")
        shutil.copytree(self.revoked.root, newer.root, dirs_exist_ok=True)
        self.moved = publish(newer, root / "source", 1, [], seed=9)
        push(newer, [self.moved], SPACE, client=self.client)

    def requests(self, way: str) -> list[str]:
        """Method and path of every request of an undisturbed run."""
        self.prepare(way)
        self.hub.log.clear()
        self.run(way)
        return [re.sub(r"[0-9a-f]{24,}", "[0-9a-f]+", re.escape(str(request))) for request in self.hub.log]

    def prepare(self, way: str) -> None:
        """The Hub and the registry as they are before a run."""
        self.hub.heal()
        self.hub.closing.set()  # lets go of whoever still hangs
        self.hub.closing = threading.Event()
        hubs = {"push": "hub-empty", "push companions": "hub-pushed", "pull": "hub-revoked"}
        run = self.root / "run"
        shutil.rmtree(run, ignore_errors=True)
        self._serve(self.root / hubs.get(way, "hub-moved"), copy=run / "hub" if way.startswith("push") else None)
        stores = {"push": self.revoked, "push companions": self.revoked, "pull what has moved": self.before}
        if way in stores:
            shutil.copytree(stores[way].root, run / "registry")
        self.store = Store(run / "registry")

    def run(self, way: str) -> str:
        """The work itself; what is wrong with what it says is done, or nothing.

        Raises:
            PlyfoldError: It says it is not done.
        """
        if way.startswith("push"):
            done = push(self.store, list(self.digests.values()), SPACE, client=self.client)
            if len(done) != 3 or any(each.status.startswith("would") for each in done):
                return "an adapter is left out"
            if way == "push":
                records = [(each.repo, self.store.read_record(each.digest).record) for each in done]
                found = update_collection(self.client, SPACE, "toy", records, private=True)
                return self.incomplete_hub() or ("" if found.fault or self.collected() else "not all collected")
            return self.incomplete_hub()
        pull(self.store, f"{SPACE}/toy", client=self.client)
        return self.incomplete_registry(way)

    def incomplete_hub(self) -> str:
        """What three pushed stages lack on the Hub, or have twice."""
        for number, digest in self.digests.items():
            repo = f"{SPACE}/toy-s{number:02d}-{NAMES[number - 1]}"
            if repo not in self.hub.store.repos():
                return f"no {repo}"
            brought = [row["id"] for row in self.hub.store.history(repo, "main") if f": {digest}" in row["message"]
                       and row["message"].startswith("adapter-digest")]  # fmt: skip
            if not 1 <= len(brought) <= self.most:
                return f"{len(brought)} commits of stage {number}"
            if not self.holds(repo, "main", digest):
                return f"other bytes of stage {number}"
        said = self.hub.store.files(
            f"{SPACE}/toy-s02-brevity", self.hub.store.resolve(f"{SPACE}/toy-s02-brevity", "main")
        )
        return "" if "revocations.json" in said else "the revocation is left out"

    def holds(self, repo: str, revision: str, digest: str) -> bool:
        path = self.home.read_record(digest).path
        files = [file for file in path.rglob("*") if file.is_file()]
        there = self.hub.store.files(repo, self.hub.store.resolve(repo, revision))
        return all(
            (name := file.relative_to(path).as_posix()) in there
            and self.hub.store.read(repo, revision, name) == file.read_bytes()
            for file in files
        )

    def collected(self) -> bool:
        found = [json.loads(path.read_text()) for path in (self.hub.store.root / "collections").glob("*/*.json")]
        return len(found) == 1 and len(found[0]["items"]) == 3

    def doubled(self) -> str:
        """A commit made twice, or one that holds something else than it says."""
        for number, digest in self.digests.items():
            repo = f"{SPACE}/toy-s{number:02d}-{NAMES[number - 1]}"
            rows = self.hub.store.history(repo, "main") if repo in self.hub.store.repos() else []
            brought = [row["id"] for row in rows if row["message"].startswith(f"adapter-digest: {digest}")]
            if len(brought) > self.most:
                return f"{len(brought)} commits of stage {number}"
            if brought and not self.holds(repo, brought[0], digest):
                return f"a commit of other bytes of stage {number}"
        return ""

    def incomplete_registry(self, way: str) -> str:
        """What three pulled stages lack in the registry, or have wrong."""
        wanted = {**self.digests, **({1: self.moved} if way == "pull what has moved" else {})}
        if self.store.stages("toy") != wanted:
            return "a stage is at another adapter than the Hub has now"
        if not statements.statements(self.store, self.digests[2]):
            return "the revocation did not arrive"
        return self.unsound_registry({})

    def unsound_registry(self, before: dict[int, str]) -> str:
        """What a refused pull may not leave; `before` is what the stages were at."""
        if before and self.store.stages("toy") != before:
            return "names have moved"
        if any((self.store.root / "tmp").iterdir()):
            return "something half-done is left"
        sound = {*self.digests.values(), self.moved}
        for digest in self.store.digests():
            if digest not in sound:
                return "an adapter that is on no Hub"
            self.store.load(digest)
        return ""

    def _serve(self, folder: Path, copy: Path | None = None) -> None:
        """Let the server answer from a folder, or from a copy of it."""
        from tests.support.hub_store import HubStore

        if copy is not None:
            if folder.exists():
                shutil.copytree(folder, copy)
            folder = copy
        self.hub.store = HubStore(folder)


def make_registry(root: Path) -> Store:
    """Three stages, each trained on those before it."""
    store, parents = Store(root), list[str]()
    for number in (1, 2, 3):
        parents.append(publish(store, root.parent / "source", number, parents, seed=number))
        store.set_ref("toy", number, parents[-1])
    return store


def publish(store: Store, source: Path, number: int, parents: list[str], *, seed: int) -> str:
    source.mkdir(exist_ok=True)
    (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/tiny", "r": 4}))
    (source / "adapter_model.safetensors").write_bytes(random.Random(seed).randbytes(30_000))
    record = Record(
        kind="stage",
        curriculum="toy",
        stage=StageId(number=number, name=NAMES[number - 1]),
        base=BaseRecord(repo="acme/tiny", revision="0" * 40),
        parents=[Parent(role="active_during_training", digest=digest) for digest in parents],
        code=Code(version="0"),
        weights=Weights(digest=f"sha256:{seed:064x}", dtype="float32", r=4, alpha=8, targets=["q_proj"]),
        created="2026-01-02T03:04:05Z",
    )
    return store.publish(source, record)


# ---- one case


_bench: list[Bench] = []


def bench() -> Bench:
    """This process's own."""
    if not _bench:
        _bench.append(Bench(Path(tempfile.mkdtemp(prefix="faults-", dir=os.environ.get("FAULTS_FOLDER")))))
    return _bench[0]


def verdict(case: Case) -> tuple[Case, str, float]:
    """Break one request, then heal and run again: `done`, the class of the error, or `FAULT ...`; and seconds."""
    begin_s = time.monotonic()
    try:
        outcome = _verdict(bench(), case)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome = f"FAULT {type(error).__name__}: {str(error)[:150]!r} at {Path(place.filename).name}:{place.lineno}"
    return case, outcome, time.monotonic() - begin_s


def _verdict(here: Bench, case: Case) -> str:
    here.prepare(case.way)
    before = here.store.stages("toy")
    match = case.request if case.mode == MODES[1] else "."
    skip = case.index if case.mode != MODES[1] else 0
    fault = here.hub.fault(match, case.kind, 1 if case.mode == MODES[0] else None, skip=skip)
    begin_s = time.monotonic()
    try:
        wrong = here.run(case.way)
        outcome = "done"
    except PlyfoldError as error:
        outcome, wrong = type(error).__name__, ""
        if error.exit_code not in CODES[case.kind]:
            wrong = f"exit code {error.exit_code}: {str(error)[:200]!r}"
        if here.hub.token in str(error) or not (error.where or error.found):
            wrong = "an error without a place, or with the token"
    seconds = time.monotonic() - begin_s
    # Listings that lie all along make a sound commit look like another: it is made again, and refused in its turn.
    lying = case.kind == "flip" and case.mode != MODES[0]
    again = lying and outcome != "done" and bool(here.doubled())
    here.most = 2 if again else 1
    if not fault.hits:
        return "not met"
    if case.way.startswith("push"):
        wrong = wrong or here.doubled()
    elif outcome != "done":
        wrong = wrong or here.unsound_registry(before)
    if seconds > TIME_LIMIT_S:
        wrong = wrong or f"took {seconds:.0f} s"
    here.hub.heal()
    if not wrong:
        wrong = here.run(case.way)
        wrong = f"after healing: {wrong}" if wrong else ""
    here.most = 1
    return f"FAULT {wrong}" if wrong else f"{outcome}, committed again" if again else outcome


# ---- the part


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=1, help="take only every Nth fault")
    parser.add_argument("--fault", choices=CODES, help="one kind of fault")
    parser.add_argument("--way", choices=WAYS, help="one of the ways faults are met on")


def cases(way: str | None = None) -> list[Case]:
    """Every fault at every request in every mode."""
    found = []
    for each in WAYS if way is None else [way]:
        requests = bench().requests(each)
        first = {request: index for index, request in reversed(list(enumerate(requests)))}
        for index, request in enumerate(requests):
            for kind in CODES:
                for mode in MODES:
                    if mode != MODES[1] or first[request] == index:  # the same request again is the same case
                        found.append(Case(each, index, request, kind, mode))
    return found


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every case; counts by fault and outcome."""
    counts: dict[str, Counter[str]] = {}
    requests: Counter[str] = Counter()
    faults, slowest = [], (0.0, "")
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["FAULTS_FOLDER"] = folder
        todo = cases(chosen.way)
        requests.update({way: len({case.index for case in todo if case.way == way}) for way in WAYS})
        todo = [case for case in todo if chosen.fault in (None, case.kind)]
        todo = random.Random(chosen.seed).sample(todo, len(todo))[:: chosen.every]
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
            for case, outcome, seconds in pool.map(verdict, todo, chunksize=4):
                row = counts.setdefault(f"{case.way}: {case.kind}", Counter())
                row["FAULT" if outcome.startswith("FAULT") else outcome] += 1
                slowest = max(slowest, (seconds, f"{case.way}, {case.kind} {case.mode} at {case.request}"))
                if outcome.startswith("FAULT"):
                    faults.append(f"{case.way}, {case.kind} {case.mode} at {case.index} {case.request}: {outcome[6:]}")
    return {"runs": len(todo), "requests": dict(requests), "counts": counts, "faults": faults, "slowest": slowest,
            "seconds": time.monotonic() - begin_s}  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    total: Counter[str] = sum((Counter(row) for row in found["counts"].values()), Counter())
    outcomes = sorted(total, key=lambda name: (name == "FAULT", name != "done", -total[name]))
    outcomes += ["FAULT"] if "FAULT" not in outcomes else []
    lines = [f"| fault | runs | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 2) + "|"]
    order: Callable[[str], tuple[int, int]] = lambda name: (  # noqa: E731
        WAYS.index(name.partition(": ")[0]),
        list(CODES).index(name.partition(": ")[2]),
    )
    for name in [*sorted(found["counts"], key=order), "**all**"]:
        row = found["counts"].get(name, total)
        cells = [str(row.get(outcome, "") or ("0" if outcome == "FAULT" else "")) for outcome in outcomes]
        lines.append(f"| {name} | {sum(row.values())} | {' | '.join(cells)} |")
    seconds, case = found["slowest"]
    requests = ", ".join(f"{way} {number}" for way, number in found["requests"].items() if number)
    lines += ["", f"{found['runs']:,} runs in {found['seconds']:.0f} s over the requests of a clean run: {requests}. "
              f"The slowest took {seconds:.1f} s ({case}). Faults: {len(found['faults'])}."]  # fmt: skip
    return "\n".join([*lines, *(f"- {fault}" for fault in found["faults"][:60])])
