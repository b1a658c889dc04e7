"""Racing writers that are killed at any moment: the store holds whole objects and sound names, and nothing is stuck."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from plyfold.registry.maintenance.verify import verify
from plyfold.registry.store import Store, find_store, objects
from plyfold.registry.store.attestations import read_log
from plyfold.registry.store.objects import TMP_MAX_AGE_S

pytestmark = pytest.mark.slow

NUM_KILLS = 40
NUM_WRITERS = 3

WRITERS = """
import itertools, os, sys
from pathlib import Path
from plyfold.core.errors import ConflictError
from plyfold.registry.record import parse_record
from plyfold.registry.store import Store

root, folder, record = map(Path, sys.argv[1:4])
store, record = Store(root), parse_record(record.read_bytes())

def write(name, family):
    for turn in itertools.count():
        if os.getppid() != family:
            os._exit(0)
        # Every second object is one that all writers make, so that they race for the same name.
        env = {"turn": str(turn)} if turn % 2 else {"turn": str(turn), "writer": name}
        digest = store.publish(folder, record.model_copy(update={"env": env}))
        before = store.stages("toy").get(1)
        try:
            store.set_ref("toy", 1, digest, expected=before)
        except ConflictError:
            pass

for life in itertools.count():  # one writer at a time; whoever kills it gets the next
    family = os.getpid()
    writer = os.fork()
    if writer == 0:
        write(f"{sys.argv[4]}-{life}", family)
    print(writer, flush=True)
    os.waitpid(writer, 0)
"""


def start(store: Store, folder: Path, record: Path, name: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITERS, str(store.root), str(folder), str(record), str(name)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def next_writer(family: subprocess.Popen[str]) -> int:
    """Process id of the family's living writer."""
    assert family.stdout is not None
    return int(family.stdout.readline())


def test_killed_writers_leave_whole_objects_and_sound_refs(tmp_path: Path, make_record: Any) -> None:
    store = find_store(tmp_path / ".plyfold", create=True)
    folder, record = tmp_path / "adapter", tmp_path / "record.json"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(random.Random(0).randbytes(200_000))
    (folder / "adapter_config.json").write_text("{}")
    record.write_bytes(make_record().to_bytes())
    chance = random.Random(1)

    families = [start(store, folder, record, name) for name in range(NUM_WRITERS)]
    writers = [next_writer(family) for family in families]
    num_reads = 0
    try:
        for _ in range(NUM_KILLS):
            time.sleep(chance.uniform(0.0, 0.05))
            victim = chance.randrange(NUM_WRITERS)
            os.kill(writers[victim], signal.SIGKILL)
            writers[victim] = next_writer(families[victim])
            for digest in {*store.digests()[:10], *store.stages("toy").values()}:
                store.load(digest)  # raises on anything half-written
                num_reads += 1
    finally:
        for family in families:
            family.kill()  # its writer ends by itself, and with it the pipe
        for family in families:
            family.communicate(timeout=30)

    assert num_reads > NUM_KILLS
    assert not [check for check in verify(store) if check.problems]
    moves = [row for row in read_log(store.root / "log.jsonl") if row["event"] == "ref"]
    assert len(moves) > 1
    gaps = sum(later["previous"] != earlier["digest"] for earlier, later in pairwise(moves))
    assert gaps <= NUM_KILLS + NUM_WRITERS  # a kill between a ref's move and its log line; a lost update has no bound

    leftovers = [*(store.root / "tmp").iterdir()]
    assert leftovers, "no writer was killed inside a publish: the test has shown nothing"
    old_s = time.time() - TMP_MAX_AGE_S - 60
    for path in (store.root / "tmp").rglob("*"):
        os.utime(path, (old_s, old_s))
    before = store.ref("toy", 1)
    digest = store.publish(folder, make_record(env={"after": "all"}))
    store.set_ref("toy", 1, digest, expected=before)  # the lock of a killed writer is not held
    assert not [*(store.root / "tmp").iterdir()]


def test_an_object_that_a_sweep_takes_while_it_is_published_again_is_published(
    tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = find_store(tmp_path / ".plyfold", create=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"x")
    digest = store.publish(tmp_path / "adapter", make_record())
    look, looks = objects._check_existing, []

    def swept(target: Path) -> None:
        looks.append(target)
        if len(looks) == 1:
            target.rename(tmp_path / "taken")  # as gc does, between the look at the record and that at the files
        look(target)

    monkeypatch.setattr(objects, "_check_existing", swept)
    assert store.publish(tmp_path / "adapter", make_record()) == digest
    assert store.load(digest)
    assert len(looks) == 1
