"""Eight processes push adapters to the same Hub at the same time: what of it is there in the end, how often.

Each process pushes with the settings users have. Where a push ends with a conflict, as when another adapter came to the
same repository meanwhile, the same push is run again, which is what its message says; both are counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from plyfold.core.errors import ConflictError, PlyfoldError
from plyfold.registry.record import BaseRecord, Code, Record, StageId, Weights
from plyfold.registry.store import Store

NUM_PROCESSES, NUM_EACH = 8, 25
REPO = "acme/toy-s01-structure"
MAX_RUNS = 200
COLUMNS = (
    "pushes", "pushed", "already there", "conflicts", "other errors", "pushes run again", "adapters", "present", "lost",
    "doubled", "commits with wrong files", "seconds",
)  # fmt: skip
TABLES = {
    "200 adapters to one repository": (False, False),
    "the same 25 adapters to one repository": (True, False),
    "the same 25 adapters to a repository each": (True, True),
}
"""Name -> (do all push the same adapters?, each to a repository of its own?)."""


def serve(root: Path, end: Connection) -> None:
    """A Hub in a process of its own, until the other end says so."""
    from tests.support.hub_server import HubServer

    with HubServer(root) as hub:
        end.send((hub.url, hub.token))
        end.recv()


def push_all(url: str, token: str, root: Path, digests: list[str], namespace: str, seed: int, end: Connection) -> None:
    """Push one adapter after the other, each until it is there; what came of every run."""
    from huggingface_hub import constants

    from plyfold.registry.hub.client import HubClient
    from plyfold.registry.hub.push.push import push

    for name, value in {"ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_DISABLE_XET": True}.items():
        setattr(constants, name, value)
    os.environ |= {"HF_ENDPOINT": url, "HF_TOKEN": token, "NO_PROXY": "*"}
    store, chance, client = Store(root), random.Random(seed), HubClient()
    end.send("ready")
    end.recv()
    count: Counter[str] = Counter()
    for digest in digests:
        for run in range(MAX_RUNS):
            count["pushes"] += run == 0
            count["pushes run again"] += run > 0
            try:
                (done,) = push(store, [digest], namespace, client=client)
            except ConflictError as error:
                count["conflicts"] += 1
                if error.exit_code != 5 or not error.next_step:
                    count["other errors"] += 1
                time.sleep(chance.uniform(0, 0.2))
            except PlyfoldError as error:
                count["other errors"] += 1
                print(error, flush=True)
            else:
                count[done.status] += 1
                break
    end.send(dict(count))


def race(folder: Path, *, same: bool, apart: bool) -> dict[str, Any]:
    """One table row."""
    spawn = multiprocessing.get_context("spawn")
    store = Store(folder / "registry")
    digests = make_adapters(store, folder, NUM_EACH if same else NUM_EACH * NUM_PROCESSES)
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=serve, args=(folder / "hub", theirs))
    server.start()
    url, token = ours.recv()
    ends, processes = [], []
    for index in range(NUM_PROCESSES):
        mine, its = spawn.Pipe()
        own = digests if same else digests[index * NUM_EACH : (index + 1) * NUM_EACH]
        chosen = random.Random(index).sample(own, len(own))
        namespace = f"w{index}" if apart else "acme"
        processes.append(spawn.Process(target=push_all, args=(url, token, store.root, chosen, namespace, index, its)))
        ends.append(mine)
        processes[-1].start()
    for end in ends:
        end.recv()
    begin_s = time.monotonic()
    for end in ends:
        end.send("go")
    count: Counter[str] = sum((Counter(end.recv()) for end in ends), Counter())
    seconds = time.monotonic() - begin_s
    ours.send("stop")
    for process in [*processes, server]:
        process.join()
    namespaces = [f"w{index}" for index in range(NUM_PROCESSES)] if apart else ["acme"]
    found = inspect(folder / "hub", store, digests, namespaces)
    return {**{column: count[column] for column in COLUMNS}, **found, "seconds": seconds}


def make_adapters(store: Store, folder: Path, num: int) -> list[str]:
    """As many adapters of one stage as are pushed, which differ in their seed and weights."""
    source, digests = folder / "source", []
    source.mkdir()
    for seed in range(num):
        (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/tiny", "r": 4}))
        (source / "adapter_model.safetensors").write_bytes(random.Random(seed).randbytes(100_000))
        record = Record(
            kind="stage",
            curriculum="toy",
            stage=StageId(number=1, name="structure"),
            base=BaseRecord(repo="acme/tiny", revision="0" * 40),
            code=Code(version="0"),
            env={"seed": str(seed)},
            weights=Weights(digest=f"sha256:{seed:064x}", dtype="float32", r=4, alpha=8, targets=["q_proj"]),
        )
        digests.append(store.publish(source, record))
    return digests


def inspect(root: Path, store: Store, digests: list[str], namespaces: list[str]) -> dict[str, int]:
    """What the repositories' histories say, and what every commit holds, read from the Hub's own files."""
    from tests.support.hub_store import HubStore

    hub, brought, wrong = HubStore(root), Counter[tuple[str, str]](), 0
    for namespace in namespaces:
        repo = f"{namespace}/toy-s01-structure"
        for commit in hub.history(repo, "main") if repo in hub.repos() else ():
            for line in commit["message"].splitlines():
                if line.startswith("adapter-digest: "):
                    digest = line.removeprefix("adapter-digest: ").strip()
                    brought[namespace, digest] += 1
                    wrong += not holds(hub, repo, commit["id"], store, digest)
    wanted = {(namespace, digest) for namespace in namespaces for digest in digests}
    return {
        "adapters": len(wanted),
        "present": len(wanted & set(brought)),
        "lost": len(wanted - set(brought)),
        "doubled": sum(number - 1 for number in brought.values()) + len(set(brought) - wanted),
        "commits with wrong files": wrong,
    }


def holds(hub: Any, repo: str, sha: str, store: Store, digest: str) -> bool:
    """Does a commit hold an adapter byte for byte?"""
    path = store.read_record(digest).path
    return all(
        hub.read(repo, sha, file.relative_to(path).as_posix()) == file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=TABLES, help="one of the tables of pushes")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every race; what was found."""
    rows = {}
    for name, (same, apart) in TABLES.items():
        if chosen.table in (None, name):
            with tempfile.TemporaryDirectory(prefix="pushes-") as folder:
                rows[name] = race(Path(folder), same=same, apart=apart)
    bad = ("other errors", "lost", "doubled", "commits with wrong files")
    faults = [f"{name}: {row[column]} {column}" for name, row in rows.items() for column in bad if row[column]]
    return {"rows": rows, "faults": faults}


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [f"| 8 processes push | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in found["rows"].items():
        lines.append(f"| {name} | {' | '.join(f'{row[column]:,.0f}' for column in COLUMNS)} |")
    return "\n".join([*lines, *(f"- {fault}" for fault in found["faults"])])
