"""Records and registries that lie: right, or one clear refusal. `benchmarks/registry.py hostile` does thousands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import IntegrityError, NotFoundError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.references import PullContext
from plyfold.registry.hub.remote import Remote
from plyfold.registry.lineage import scores
from plyfold.registry.lineage.lockfile import make_lock, read_lock, write_lock
from plyfold.registry.maintenance import gc
from plyfold.registry.store import Store

from ..support.hostile_texts import KINDS as TEXTS
from ..support.hostile_verdicts import KINDS

REPOSITORY = Path(__file__).parents[2]
CASES_OF_A_KIND = 1


@pytest.mark.slow
def test_hostile_input_is_right_or_refused_once() -> None:
    command = [sys.executable, "benchmarks/registry.py", "hostile", "--json", "--seed", "700000", "--no-hub"]
    done = subprocess.run(
        [*command, "--num", str(CASES_OF_A_KIND * len(KINDS))], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)["hostile"]
    assert report["faults"] == []
    assert {kind: sum(counts.values()) for kind, counts in report["counts"].items()} == dict.fromkeys(
        KINDS, CASES_OF_A_KIND
    )
    outcomes = {outcome for counts in report["counts"].values() for outcome in counts}
    assert {"right", "IntegrityError"} <= outcomes


@pytest.mark.slow
def test_hostile_texts_are_read_rightly_or_refused_once() -> None:
    command = [sys.executable, "benchmarks/hostile.py", "--texts", "--jobs", "1", "--json", "--seed", "900000"]
    done = subprocess.run(
        [*command, "--num", str(8 * len(TEXTS))], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert {kind: sum(counts.values()) for kind, counts in report["counts"].items()} == dict.fromkeys(TEXTS, 8)


@pytest.fixture
def store(tmp_path: Path, make_record: Any) -> Store:
    store = Store(tmp_path / "store")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(b"x")
    store.set_ref("toy", 1, store.publish(tmp_path / "source", make_record()))
    return store


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("refs/toy/1/latest", lambda store: store.ref("toy", 1)),
        ("log.jsonl", lambda store: store.log()),
        (
            "log.jsonl",
            lambda store: store.publish(store.root / "../source", store.read_record(store.digests()[0]).record),
        ),
        ("locations.json", lambda store: store.base_path("acme/tiny", "0" * 40)),
        ("objects/sha256/{}/lineage.json", lambda store: store.load(store.digests()[0])),
        ("attest/{}/0.json", lambda store: store.attestations(store.digests()[0])),
        ("../curriculum.lock.json", lambda store: read_lock(store.root / "../curriculum.lock.json")),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(store: Store, path: str, ask: Any, make: Any) -> None:
    place = store.root / path.format(store.digests()[0].removeprefix("sha256:"))
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    make(place)
    with pytest.raises(IntegrityError):
        ask(store)


def test_an_object_holds_its_own_record(store: Store, tmp_path: Path) -> None:
    record = store.load(store.digests()[0]).path / "lineage.json"
    record.rename(tmp_path / "elsewhere.json")
    record.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(IntegrityError, match="record"):
        store.load(store.digests()[0])


def test_a_folder_that_is_no_stages_number_names_no_stage(store: Store) -> None:
    for name in ("0", "01", "\u0661", "1000", "9" * 200):
        (store.root / "refs" / "toy" / name).mkdir()
        (store.root / "refs" / "toy" / name / "latest").write_text(f"sha256:{'1' * 64}\n")
    assert store.stages("toy") == {1: store.digests()[0]}
    with pytest.raises(NotFoundError, match="no stage"):
        store.ref("toy", "9" * 5000)


@pytest.mark.slow
def test_a_line_of_the_log_that_does_not_end_is_passed_over_with_all_it_holds(store: Store) -> None:
    path = store.root / "log.jsonl"
    known = store.log()
    hidden = b"x" * 1_000_000 + b'{"event":"ref"}' + b" " * 2_000_000
    path.write_bytes(path.read_bytes() + hidden + b'\n{"event":"last"}\n')
    assert store.log() == [*known, {"event": "last"}]


def test_a_log_beyond_what_is_read_is_refused_before_it_is_read(store: Store) -> None:
    path = store.root / "log.jsonl"
    os.truncate(path, 1 << 30)
    begin_s = time.monotonic()
    for ask in (store.log, lambda: gc.plan_sweep(store)):
        with pytest.raises(IntegrityError, match="log is too large") as refused:
            ask()
        assert refused.value.where == str(path)
    assert time.monotonic() - begin_s < 0.5
    path.rename(path.with_name("log.old"))
    assert not gc.plan_sweep(store, grace_s=0).garbage


def test_what_a_stage_was_at_is_told_by_the_log_whatever_else_it_says(store: Store) -> None:
    log, digest = store.root / "log.jsonl", store.digests()[0]
    log.write_bytes(log.read_bytes() + b'{"curriculum":"toy","stage":1,"digest":[]}\n{"stage":{"a":1}}\n')
    looked = PullContext(store=store, remote=Remote(HubClient()), held={})
    assert digest in looked.came["toy", "1"]
    os.truncate(log, 1 << 30)
    with pytest.raises(IntegrityError, match="log is too large"):
        _ = PullContext(store=store, remote=looked.remote, held={}).came


def test_a_score_by_a_stage_of_five_thousand_digits_is_refused_by_name(store: Store) -> None:
    digest = store.digests()[0]
    base = store.read_record(digest).record.base
    payload = {"curriculum": "toy", "base": f"{base.repo}@{base.revision}", "inputs": {"9" * 5000: digest}}
    store.attest(digest, "eval", payload)
    for ask in (lambda: scores.scored(store, "toy"), lambda: scores.overlapping_scores(store, digest)):
        with pytest.raises(IntegrityError, match="a score is not readable"):
            ask()


def test_a_lock_file_can_be_read_in_one_way_only(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "curriculum.lock.json"
    write_lock(path, make_lock(store, "toy"))
    sound = path.read_text()
    assert read_lock(path).to_json() == json.loads(sound)
    path.write_bytes(sound.encode("utf-16"))
    with pytest.raises(IntegrityError, match="lock file"):
        read_lock(path)
    for old, new in [('"1": {', '"01": {'), ('"stages"', '"stages": {}, "stages"'), ('"schema": 1', '"schema": 1.0')]:
        path.write_text(sound.replace(old, new))
        with pytest.raises(IntegrityError, match="lock file"):
            read_lock(path)
