"""Kill -9 at random moments of everything that writes into a registry, and look at what is there afterwards.

Four writers race in one registry; one of them is killed and at once replaced, again and again. After every kill a new
process has to set a ref, and what has appeared is read back byte by byte; at the end everything is. Writers are forks
of one process that has everything imported, so that the moments fall into the work; where a writer is, it notes in
memory shared with whoever kills it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plyfold.core.errors import ConflictError, NotFoundError, PlyfoldError
from plyfold.registry.lineage.lockfile import make_lock, read_lock, write_lock
from plyfold.registry.maintenance import gc
from plyfold.registry.maintenance.verify import verify
from plyfold.registry.record import BaseRecord, Code, Record, StageId, Weights
from plyfold.registry.store.objects import TMP_MAX_AGE_S
from plyfold.registry.store.store import LOCK_TIMEOUT_S, Store

NUM_WRITERS = 4
NAMES = ("structure", "brevity", "remedy")
IDLE, AT_WORK, PUBLISHING, LOCKED = range(4)
"""Where a writer is: between two jobs; within one; making an object; holding the store's lock."""
COLUMNS = (
    "kills", "making an object", "holding the lock", "elsewhere", "entries read", "refs, locks, statements read",
    "broken", "lost updates", "stuck locks", "torn log lines", "leftovers", "left after gc",
)  # fmt: skip


@dataclass
class Shared:
    """One slot of 16 bytes per writer, in memory that outlives it: where it is, and how many updates it has seen."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 4096))

    def put(self, slot: int, state: int) -> None:
        self.memory[slot * 16] = state

    def state(self, slot: int) -> int:
        return self.memory[slot * 16]

    def count(self, slot: int) -> None:
        self.memory[slot * 16 + 8 : slot * 16 + 16] = struct.pack("<q", self.counted(slot) + 1)

    def counted(self, slot: int) -> int:
        return int(struct.unpack("<q", self.memory[slot * 16 + 8 : slot * 16 + 16])[0])


@dataclass
class Work:
    """What one writer does it with."""

    store: Store
    root: Path
    slot: int
    shared: Shared
    chance: random.Random


# ---- what writers do, once each time


def publish(work: Work) -> None:
    """Publish the next adapter of a stage and move its ref to it, if nobody else has: a counter that loses nothing."""
    number = 1 + work.chance.randrange(3)
    now = work.store.stages("toy").get(number)
    count = int(work.store.read_record(now).record.env["count"]) if now else 0
    env = {"count": str(count + 1)}
    if work.chance.random() < 0.5:  # else the same object as the other writers make: they race for its name
        env["writer"] = str(work.chance.random())
    digest = work.store.publish(work.root / "source", record_of(number, env))
    try:
        work.store.set_ref("toy", number, digest, expected=now)
    except ConflictError:
        return
    work.shared.count(work.slot)


def publish_beside_gc(work: Work) -> None:
    """The same where objects that nothing leads to are swept at once: one may be gone before it is named."""
    with suppress(NotFoundError):
        publish(work)


def sweep(work: Work) -> None:
    gc.delete(work.store, grace_s=0.0)


def attest(work: Work) -> None:
    digest = work.store.ref("toy", 1 + work.chance.randrange(3))
    work.store.attest(digest, "eval", {"text": "x" * work.chance.randrange(200_000), "n": work.chance.random()})
    work.shared.count(work.slot)


def lock(work: Work) -> None:
    publish_beside_gc(work)
    write_lock(work.root / "curriculum.lock.json", make_lock(work.store, "toy"))


def adopt(work: Work) -> None:
    """Take in an adapter that others take in as well, as a pull does."""
    source = work.chance.choice(sorted((work.root / "made" / "objects" / "sha256").iterdir()))
    with suppress(NotFoundError), work.store.scratch() as folder:
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        work.store.adopt(folder, f"sha256:{source.name}")
        work.store.set_ref("toy", 1, f"sha256:{source.name}")
    gc.delete(work.store, grace_s=0.0)


CAMPAIGNS: dict[str, tuple[int, list[Callable[[Work], None]]]] = {
    "publish, set refs": (200, [publish] * NUM_WRITERS),
    "gc --delete beside publishers": (100, [sweep, *[publish_beside_gc] * (NUM_WRITERS - 1)]),
    "attest": (60, [attest] * NUM_WRITERS),
    "lock, publish": (60, [lock] * NUM_WRITERS),
    "adopt, set ref, gc": (60, [adopt] * NUM_WRITERS),
}
"""Name -> (kills, what each writer does)."""


def record_of(number: int, env: dict[str, str]) -> Record:
    return Record(
        kind="stage",
        curriculum="toy",
        stage=StageId(number=number, name=NAMES[number - 1]),
        base=BaseRecord(repo="acme/tiny", revision="0" * 40),
        code=Code(version="0"),
        env=env,
        weights=Weights(digest=f"sha256:{'1' * 64}", dtype="float32", r=4, alpha=8, targets=["q_proj"]),
        created="2026-01-02T03:04:05Z",
    )


# ---- one campaign


def campaign(root: Path, jobs: list[Callable[[Work], None]], kills: int, seed: int) -> dict[str, Any]:
    """Kill `kills` writers; what was found."""
    chance, found = random.Random(seed), Found(Store(root / "registry"), root)
    make_inputs(root, found.store)
    writers = [start(jobs[slot], found, slot, f"{seed}-{slot}") for slot in range(NUM_WRITERS)]
    try:
        for kill in range(kills):
            time.sleep(chance.uniform(0.0, 0.05))
            slot = chance.randrange(NUM_WRITERS)
            os.kill(writers[slot], signal.SIGKILL)
            _, status = os.waitpid(writers[slot], 0)
            if not os.WIFSIGNALED(status):
                found.faults.append(f"a writer ended by itself with status {status}")
            found.count["kills"] += 1
            place = {PUBLISHING: "making an object", LOCKED: "holding the lock"}.get(
                found.shared.state(slot), "elsewhere"
            )
            found.count[place] += 1
            found.shared.put(slot, IDLE)
            writers[slot] = start(jobs[slot], found, slot, f"{seed}-{slot}-{kill}")
            found.look(everything=False)
    finally:
        for writer in writers:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
    found.look(everything=True)
    found.settle()
    return {**{column: found.count[column] for column in COLUMNS}, "slowest_lock_s": found.slowest_lock_s,
            "updates": sum(map(found.shared.counted, range(NUM_WRITERS))), "faults": found.faults}  # fmt: skip


def make_inputs(root: Path, store: Store) -> None:
    """A folder to publish, and adapters made elsewhere to take in; each stage and a check of the lock have a ref."""
    source = root / "source"
    source.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "rng.safetensors"):
        (source / name).write_bytes(random.Random(0).randbytes(500_000))
    (source / "adapter_config.json").write_text("{}")
    elsewhere = Store(root / "made")
    for index in range(5):
        elsewhere.publish(source, record_of(1, {"count": "0", "made": str(index)}))
    for number in (1, 2, 3):
        store.set_ref("toy", number, store.publish(source, record_of(number, {"count": "0"})))
    for index in range(2):
        checked = record_of(1, {"count": "0", "check": str(index)}).model_copy(update={"curriculum": "check"})
        store.set_ref("check", 1, store.publish(source, checked), f"v{index}")


def start(job: Callable[[Work], None], found: Found, slot: int, seed: str) -> int:
    """A writer in a process of its own, which works until it is killed."""
    child = os.fork()
    if child:
        return child
    try:
        store = Store(found.root / "registry")
        for name, state in (("publish", PUBLISHING), ("adopt", PUBLISHING), ("locked", LOCKED)):
            setattr(store, name, _noted(getattr(store, name), found.shared, slot, state))
        work = Work(store, found.root, slot, found.shared, random.Random(seed))
        while True:
            found.shared.put(slot, AT_WORK)
            job(work)
            found.shared.put(slot, IDLE)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _noted(method: Callable[..., Any], shared: Shared, slot: int, state: int) -> Callable[..., Any]:
    """A method, or one that gives a context manager, that notes where the writer is as long as it lasts."""

    @contextmanager
    def note() -> Iterator[None]:
        before = shared.state(slot)
        shared.put(slot, state)
        yield
        shared.put(slot, before)

    @contextmanager
    def entered(*arguments: Any) -> Iterator[Any]:
        with method(*arguments) as value, note():
            yield value

    def called(*arguments: Any) -> Any:
        with note():
            return method(*arguments)

    return entered if state == LOCKED else called


@dataclass
class Found:
    """What a campaign has found so far."""

    store: Store
    root: Path
    shared: Shared = field(default_factory=Shared)
    count: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_lock_s: float = 0.0
    _known: set[str] = field(default_factory=set)

    def look(self, *, everything: bool) -> None:
        """Read what has appeared since the last look, or everything; what a sweep takes meanwhile is no fault."""
        digests = set(self.store.digests())
        for digest in digests if everything else digests - self._known:
            self._known.add(digest)
            try:
                self.store.load(digest)
                self.count["entries read"] += 1
            except NotFoundError:
                if everything:
                    self._fault("broken", f"{digest} is gone")
            except (PlyfoldError, OSError) as error:
                if (self.store.objects / digest.removeprefix("sha256:")).is_dir():
                    self._fault("broken", f"{digest}: {error}")
        for number, digest in self.store.stages("toy").items():
            self.count["refs, locks, statements read"] += 1
            try:
                self.store.load(digest)
            except (PlyfoldError, OSError) as error:
                if self.store.stages("toy")[number] == digest:
                    self._fault("broken", f"ref {number}: {error}")
        if len(self.store.stages("toy")) != 3:
            self._fault("broken", "a ref is gone")
        if (self.root / "curriculum.lock.json").exists():
            self.count["refs, locks, statements read"] += 1
            try:
                read_lock(self.root / "curriculum.lock.json")
            except PlyfoldError as error:
                self._fault("broken", str(error))
        self._take_the_lock()

    def _take_the_lock(self) -> None:
        """A new process moves a ref of its own."""
        begin_s = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store = Store(self.root / "registry")
                named = {alias: store.ref("check", 1, alias) for alias in ("v0", "v1")}
                now = store.stages("check").get(1)
                store.set_ref("check", 1, named["v1" if now == named["v0"] else "v0"], expected=now)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - begin_s
        self.slowest_lock_s = max(self.slowest_lock_s, seconds)
        if status or seconds > LOCK_TIMEOUT_S:
            self._fault("stuck locks", f"status {status} after {seconds:.1f} s")

    def settle(self) -> None:
        """When all writers are dead: the whole store verifies, nothing counted is lost, a sweep leaves nothing over."""
        self.faults += [str(check.problems[0]) for check in verify(self.store) if check.problems]
        self.count["broken"] += sum(bool(check.problems) for check in verify(self.store))
        for digest in self.store.digests():
            self.count["refs, locks, statements read"] += len(self.store.attestations(digest))
        rows = self.store.log()
        lines = (self.store.root / "log.jsonl").read_bytes().split(b"\n")
        self.count["torn log lines"] = sum(bool(line) for line in lines) - len(rows)
        self._compare_counters()
        leftovers = self._leftovers()
        self.count["leftovers"] = len(leftovers)
        old_s = time.time() - TMP_MAX_AGE_S - 60
        for path in (inside for leftover in leftovers for inside in (*leftover.rglob("*"), leftover)):
            os.utime(path, (old_s, old_s))
        gc.delete(self.store)
        left = self._leftovers()
        self.count["left after gc"] = len(left)
        self.faults += [f"left after gc: {path.name}" for path in left]

    def _leftovers(self) -> list[Path]:
        """What is not under its final name."""
        root = self.store.root
        return [*(root / "tmp").iterdir(), *(root / "refs").rglob(".*"), *(root / "attest").rglob(".*")]

    def _compare_counters(self) -> None:
        """Every move counts one further than the adapter it came from, so a lost one leaves the count short."""
        reached = sum(
            int(self.store.read_record(digest).record.env["count"]) for digest in self.store.stages("toy").values()
        )
        confirmed = sum(self.shared.counted(slot) for slot in range(NUM_WRITERS))
        if reached and reached < confirmed:
            self.count["lost updates"] = confirmed - reached
            self.faults.append(f"the refs count {reached} moves, writers have seen {confirmed}")
        if reached and reached > confirmed + self.count["kills"] + NUM_WRITERS:
            self.faults.append(f"the refs count {reached} moves, more than the {confirmed} seen and one for each kill")

    def _fault(self, column: str, text: str) -> None:
        self.count[column] += 1
        self.faults.append(text)


# ---- the part


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, help="of each campaign; by default 200 of publishers and fewer of others")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every campaign; what was found."""
    rows = {}
    for name, (kills, jobs) in CAMPAIGNS.items():
        with tempfile.TemporaryDirectory(prefix="writers-") as folder:
            begin_s = time.monotonic()
            rows[name] = campaign(Path(folder), jobs, chosen.kills or kills, chosen.seed)
            rows[name]["seconds"] = time.monotonic() - begin_s
            print(f"writers: {name}, {rows[name]['seconds']:.0f} s", file=sys.stderr)
    return {"rows": rows, "faults": [f"{name}: {fault}" for name, row in rows.items() for fault in row["faults"]]}


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [f"| writers | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in found["rows"].items():
        lines.append(f"| {name} | {' | '.join(f'{row[column]:,}' for column in COLUMNS)} |")
    waits = max(row["slowest_lock_s"] for row in found["rows"].values())
    seconds = sum(row["seconds"] for row in found["rows"].values())
    lines += ["", f"{seconds:.0f} s in all. The longest wait of a new process for the lock, beside four writers: "
              f"{waits:.1f} s of the {LOCK_TIMEOUT_S:.0f} s it may wait. Faults: {len(found['faults'])}."]  # fmt: skip
    return "\n".join([*lines, *(f"- {fault}" for fault in found["faults"][:50])])
