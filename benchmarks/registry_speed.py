"""How long the registry's questions take over a thousand adapters, and how fast bytes are verified.

Commands are whole processes, from the start of Python to the last line; the median of several runs, page cache warm.
Bytes are verified against what two other programs take to hash the same files, and `cat` to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plyfold.registry.hub.places import attest_location
from plyfold.registry.lineage.scores import EVAL, variant_name
from plyfold.registry.lineage.shared_scores import SharedScore, adopt_evaluations
from plyfold.registry.record import BaseRecord, Code, Metric, Parent, Record, StageId, Weights
from plyfold.registry.store import Store
from plyfold.registry.trust.statements import REVOKED, WITHDRAWN, RevocationPayload, Statement, adopt
from plyfold.registry.trust.trust import Signer

NUM_ADAPTERS = 1000
RUNS = 5
BYTES = 4_000_000_000
COMMIT = "1" * 40


def adapter(store: Store, source: Path, curriculum: str, before: dict[int, str], size: int = 1000) -> str:
    """The next stage after `before`, trained on all of it, with a name, a score and a place on the Hub."""
    number = max(before, default=0) + 1
    source.mkdir(exist_ok=True)
    (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/tiny", "r": 4}))
    (source / "adapter_model.safetensors").write_bytes(random.Random(f"{curriculum}{number}").randbytes(size))
    name, accuracy = f"s{number}", Metric(name="accuracy", value=0.5, n=100)
    record = Record(
        kind="stage",
        curriculum=curriculum,
        stage=StageId(number=number, name=name),
        base=BaseRecord(repo="acme/tiny", revision="0" * 40),
        parents=[Parent(role="active_during_training", digest=digest) for digest in before.values()],
        requires=list(before.values()),
        code=Code(version="0"),
        metrics=[accuracy],
        weights=Weights(digest=f"sha256:{number:064x}", dtype="float32", r=4, alpha=8, targets=["q_proj"]),
    )
    digest = store.publish(source, record)
    store.set_ref(curriculum, number, digest)
    attest_location(store, digest, f"hf://acme/{curriculum}-s{number:02d}-{name}@{COMMIT}")
    inputs = {**before, number: digest}  # the variant that it completes, as `tree` shows it
    score = {"variant": variant_name(list(inputs)), "inputs": {str(key): value for key, value in inputs.items()}}
    score |= {"curriculum": curriculum, "base": f"acme/tiny@{'0' * 40}", "metrics": [accuracy.model_dump(mode="json")]}
    store.attest(digest, EVAL, score)
    return digest


def chained(root: Path) -> Store:
    """One curriculum of 999 stages, each trained on the one before; and one stage of another."""
    store, before = Store(root / "chain"), dict[int, str]()
    for number in range(1, NUM_ADAPTERS):
        before = {number: adapter(store, root / "source", "toy", before)}
    adapter(store, root / "source", "other", {})
    return store


def spread(root: Path) -> Store:
    """Fifty curricula of twenty stages, each trained on all before it."""
    store = Store(root / "spread")
    for curriculum in range(50):
        before: dict[int, str] = {}
        for number in range(1, 21):
            before[number] = adapter(store, root / "source", f"toy-{curriculum}", before)
    return store


def timed(arguments: list[object], cwd: Path, runs: int = RUNS) -> tuple[float, str]:
    """Median seconds of whole runs, and what the last one wrote."""
    command, seconds, done = [*map(str, arguments)], [], None
    for _ in range(runs):
        begin_s = time.monotonic()
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        seconds.append(time.monotonic() - begin_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    assert done is not None
    return statistics.median(seconds), done.stdout


def commands(root: Path) -> list[dict[str, Any]]:
    """Seconds of each command over a thousand adapters."""
    plyfold = Path(sys.executable).with_name("plyfold")
    stores = {"a chain of 999 stages": chained(root), "50 curricula of 20 stages": spread(root)}
    asked: dict[str, list[list[str]]] = {
        "a chain of 999 stages": [
            ["tree", "toy"], ["tree", "toy", "--json"], ["log", "toy:999"], ["log", "toy:999", "--json"],
            ["show", "toy:500"], ["verify"], ["gc"],
        ],
        "50 curricula of 20 stages": [
            ["tree"], ["tree", "--json"], ["tree", "toy-7"], ["log", "toy-7:20"], ["show", "toy-7:s9"],
            ["verify"], ["gc"],
        ],
    }  # fmt: skip
    rows = []
    for title, store in stores.items():
        for arguments in asked[title]:
            seconds, out = timed([plyfold, *arguments, "--registry", store.root], root)
            rows.append(
                {"registry": title, "command": " ".join(arguments), "seconds": seconds, "lines": out.count("\n")}
            )
    start, _ = timed([plyfold, "--version"], root)
    bare, _ = timed([sys.executable, "-c", "pass"], root)
    rows += [{"registry": "", "command": "--version", "seconds": start, "lines": 1},
             {"registry": "", "command": "(python -c pass)", "seconds": bare, "lines": 0}]  # fmt: skip
    digest = stores["50 curricula of 20 stages"].ref("toy-7", 9)
    code = "import sys,time\nfrom pathlib import Path\nfrom plyfold.registry.store.store import Store\n"
    code += (
        "from plyfold.registry.lineage.graph import find\nstore = Store(Path(sys.argv[1]))\nbegin = time.monotonic()\n"
    )
    code += "for _ in range(20): find(store, sys.argv[2])\nprint((time.monotonic() - begin) / 20)"
    for name, ref in (("find('toy-7:s9')", "toy-7:s9"), ("find('sha256:' + 12 digits)", digest[:19])):
        _, out = timed([sys.executable, "-c", code, stores["50 curricula of 20 stages"].root, ref], root)
        rows.append({"registry": "50 curricula of 20 stages", "command": name, "seconds": float(out), "lines": 0})
    return rows


def flooded(root: Path) -> list[dict[str, Any]]:
    """Seconds of `tree` before and after a repository has filled its share of what is kept of each adapter.

    All registries are asked in turn, so that their ratio holds on a busy machine too.
    """
    clean = spread(root)
    signed = _signed_flood(Store(Path(shutil.copytree(clean.root, root / "signed"))), root)
    hostile = Store(Path(shutil.copytree(clean.root, root / "hostile")))
    for entry in list(hostile.entries()):
        record, digest = entry.record, entry.digest
        adopt(hostile, [
            Statement(digest=digest, kind=REVOKED, created=f"2026-01-01T00:00:{number:02}Z",
                      payload=RevocationPayload(reason=f"{number}{'x' * 1900}", label="y" * 1900))
            for number in range(10)
        ])  # fmt: skip
        measured = {
            "curriculum": record.curriculum, "variant": "1", "base": f"acme/tiny@{'0' * 40}", "data": None,
            "inputs": {str(record.stage.number if record.stage else 1): digest},
            "metrics": [Metric(name="accuracy", value=0.5, n=100).model_dump(mode="json")],
        }  # fmt: skip
        adopt_evaluations(hostile, [
            SharedScore(digest=digest, created="2026-01-01T00:00:00Z", payload={**measured, "note": number})
            for number in range(100)
        ])  # fmt: skip
    plyfold = Path(sys.executable).with_name("plyfold")
    stores = {"clean": clean, "hostile": hostile, "hostile, signed": signed}
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(RUNS):
        for name, store in stores.items():
            seconds[name].append(timed([plyfold, "tree", "--registry", store.root], root, 1)[0])
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return [
        {"registry": name, "bytes": _attested_bytes(stores[name]), "seconds": each, "ratio": each / medians["clean"]}
        for name, each in medians.items()
    ]


def _signed_flood(store: Store, root: Path) -> Store:
    """A registry after a repository has revoked each of 600 adapters 25 times and taken it back, all of it signed."""
    from tests.support.key_files import write_key

    write_key(root, "stranger")
    signer = Signer(key=root / "stranger.pem")
    for digest in store.digests()[:600]:
        said: list[Statement] = []
        for number in range(25):
            created, of = f"2026-01-01T00:00:{number:02}Z", {"label": "x", "reason": f"{number}"}
            bad = Statement(digest=digest, kind=REVOKED, created=created, payload=RevocationPayload(**of))
            back = RevocationPayload(**of, withdraws=(bad.id,))
            said += [bad, Statement(digest=digest, kind=WITHDRAWN, created=created, payload=back)]
        adopt(store, [item.signed(signer) for item in said])
    return store


def _attested_bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in (store.root / "attest").rglob("*.json"))


def verified(root: Path) -> list[dict[str, Any]]:
    """GB/s of verifying some gigabytes of objects, and of other programs over the same files."""
    store = Store(root / "large")
    for number in range(1, 1 + BYTES // 125_000_000):
        adapter(store, root / "source", f"toy-{number}", {}, 125_000_000)
    shutil.rmtree(root / "source")
    files = [path for path in store.objects.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    plyfold = Path(sys.executable).with_name("plyfold")
    listed, cores = root / "files", os.cpu_count()
    listed.write_bytes(b"\0".join(os.fsencode(path) for path in files))
    rows = []
    for name, command in {
        "plyfold verify": [plyfold, "verify", "--registry", store.root],
        "sha256sum": ["sh", "-c", f"xargs -0 sha256sum < {listed} > /dev/null"],
        f"sha256sum, {cores} at once": ["sh", "-c", f"xargs -0 -n 4 -P {cores} sha256sum < {listed} > /dev/null"],
        "openssl dgst -sha256": ["sh", "-c", f"xargs -0 openssl dgst -sha256 < {listed} > /dev/null"],
        "cat > /dev/null": ["sh", "-c", f"xargs -0 cat < {listed} > /dev/null"],
    }.items():
        seconds, _ = timed(list(command), root, 3)
        rows.append({"program": name, "bytes": size, "seconds": seconds, "gb_s": size / seconds / 1e9})
    return rows


def warm_pull(root: Path) -> list[dict[str, Any]]:
    """Requests and seconds of a pull by commit, before and after the adapter is in the registry."""
    from tests.support.hostile_hub import point_at
    from tests.support.hub_server import HubServer

    plyfold, rows = Path(sys.executable).with_name("plyfold"), []
    with HubServer(root / "hub") as hub:
        point_at(hub.url, hub.token, hub.store.root / "home")
        from plyfold.registry.hub.push.push import push

        store = Store(root / "pushed")
        digest = adapter(store, root / "source", "toy", {}, 60_000_000)
        (done,) = push(store, [digest], "acme")
        for name in ("cold", "warm", "warm again"):
            hub.log.clear()
            begin_s = time.monotonic()
            command = [plyfold, "pull", done.location, "--registry", root / "pulled", "--json"]
            ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, cwd=root)
            seconds = time.monotonic() - begin_s
            status = json.loads(ran.stdout)["pulled"][0]["status"]
            rows.append({"pull": name, "status": status, "requests": len(hub.log), "seconds": seconds})
    return rows


# ---- the part


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only-speed", choices=("commands", "flooded", "verified", "warm_pull"), help="one part of speed"
    )


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every table."""
    found: dict[str, Any] = {"faults": []}
    for part in (commands, flooded, verified, warm_pull):
        if chosen.only_speed in (None, part.__name__):
            with tempfile.TemporaryDirectory(prefix="speed-") as folder:
                found[part.__name__] = part(Path(folder))
    asked = [row for row in found.get("commands", ()) if row["command"].startswith(("tree", "log"))]
    asked += [{**row, "command": "tree"} for row in found.get("flooded", ())]
    slow = [row for row in asked if row["seconds"] > 1]
    found["faults"] += [f"{row['command']} over {row['registry']} took {row['seconds']:.2f} s" for row in slow]
    found["faults"] += [f"{row['gb_s']:.2f} GB/s" for row in found.get("verified", ())[:1] if row["gb_s"] < 1]
    found["faults"] += [f"{row['requests']} requests" for row in found.get("warm_pull", ())[1:] if row["requests"]]
    return found


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    if rows := found.get("commands"):
        lines += ["| registry of 1,000 adapters | command | seconds | lines |", "|---|---|---|---|"]
        for row in rows:
            lines.append(f"| {row['registry']} | `{row['command']}` | {row['seconds']:.3f} | {row['lines'] or ''} |")
    if rows := found.get("flooded"):
        lines += [
            "",
            "| `tree` over 1,000 adapters | attested MB | seconds | over the clean one |",
            "|---|---|---|---|",
        ]
        for row in rows:
            lines.append(
                f"| {row['registry']} | {row['bytes'] / 1e6:.1f} | {row['seconds']:.3f} | {row['ratio']:.2f} |"
            )
    if rows := found.get("verified"):
        lines += ["", f"| {rows[0]['bytes'] / 1e9:.1f} GB of objects | seconds | GB/s | plyfold's time over this |"]
        lines += ["|---|---|---|---|"]
        for row in rows:
            ratio = rows[0]["seconds"] / row["seconds"]
            lines.append(f"| {row['program']} | {row['seconds']:.2f} | {row['gb_s']:.2f} | {ratio:.2f} |")
    if rows := found.get("warm_pull"):
        lines += ["", "| `plyfold pull hf://org/repo@commit` | result | requests | seconds |", "|---|---|---|---|"]
        for row in rows:
            lines.append(f"| {row['pull']} | {row['status']} | {row['requests']} | {row['seconds']:.2f} |")
    return "\n".join([*lines, "", *(f"- {fault}" for fault in found["faults"])])
