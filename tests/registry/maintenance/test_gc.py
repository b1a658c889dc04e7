"""What gc takes and what it never takes: named, required, locked, pinned, leased or young objects."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import IntegrityError, NotFoundError
from plyfold.registry.lineage.lockfile import make_lock, write_lock
from plyfold.registry.maintenance.garbage import take_cached
from plyfold.registry.maintenance.gc import delete, lease, plan_sweep
from plyfold.registry.maintenance.pins import pin, pins, unpin
from plyfold.registry.store import Store, find_store
from plyfold.registry.store.ancestor_records import keep_record

OLD_S = 30 * 86400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    return path


@pytest.fixture
def store(tmp_path: Path, folder: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stage 1 and stage 2 on it, then both trained again: old 1 and old 2 have no name, the new ones have."""
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(create=True)
    for created in ("2026-01-02T03:04:05Z", "2026-02-02T03:04:05Z"):
        one = store.publish(folder, make_record(1, created=created))
        store.set_ref("toy", 1, one)
        store.set_ref("toy", 2, store.publish(folder, make_record(2, "brevity", [one], created=created)))
    age(store)
    return store


def age(store: Store) -> None:
    """Make everything look a month old: folders, and the events of the log."""
    then = time.time() - OLD_S
    for path in store.objects.iterdir():
        os.utime(path, (then, then))
    log = store.root / "log.jsonl"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(then))
    rows = [{**json.loads(line), "time": stamp} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))


def unnamed(store: Store) -> tuple[str, str]:
    """Old stage 1 and old stage 2."""
    old = [entry for entry in store.entries() if entry.record.created.startswith("2026-01")]
    one, two = sorted(old, key=lambda entry: entry.record.stage.number if entry.record.stage else 0)
    return one.digest, two.digest


def names(store: Store, **options: Any) -> set[str]:
    return {item.name for item in plan_sweep(store, **options).garbage}


def test_takes_what_nothing_leads_to(store: Store) -> None:
    one, two = unnamed(store)
    plan = plan_sweep(store)
    assert {item.name for item in plan.garbage} == {one, two}
    assert plan.num_kept == 2
    assert plan.size_bytes == sum(
        file.stat().st_size for name in (one, two) for file in store.read_record(name).path.iterdir()
    )
    assert len(store.digests()) == 4  # a plan changes nothing
    done = delete(store)
    assert {item.name for item in done.garbage} == {one, two}
    assert set(store.digests()) == set(store.stages("toy").values())
    assert not list((store.root / "tmp").iterdir())
    assert [row["digest"] for row in store.log() if row["event"] == "gc"] == sorted((one, two))


def test_an_alias_keeps_a_whole_chain(store: Store) -> None:
    _, two = unnamed(store)
    store.set_ref("toy", 2, two, "v1")
    age(store)
    assert names(store) == set()


def test_a_requirement_keeps(store: Store, folder: Path, make_record: Any) -> None:
    one, two = unnamed(store)
    store.set_ref("toy", 3, store.publish(folder, make_record(3, "remedy", requires=[one])))
    age(store)
    assert names(store) == {two}


def test_the_record_of_an_ancestor_that_is_not_held_leads_on(store: Store, folder: Path, make_record: Any) -> None:
    one, two = unnamed(store)
    between = make_record(2, "brevity", [one], created="2026-05-02T03:04:05Z")
    store.set_ref("toy", 3, store.publish(folder, make_record(3, "remedy", [between.digest()])))
    age(store)
    assert names(store) == {one, two}
    keep_record(store, between.digest(), between.to_bytes())
    assert names(store) == {two}


def test_a_lock_file_keeps(store: Store, tmp_path: Path) -> None:
    now = store.stages("toy")
    for number, digest in zip((1, 2), unnamed(store), strict=True):
        store.set_ref("toy", number, digest)
    write_lock(tmp_path / "elsewhere.json", make_lock(store, "toy"))
    for number, digest in now.items():
        store.set_ref("toy", number, digest)
    age(store)
    assert len(names(store)) == 2
    assert names(store, lock_files=[tmp_path / "elsewhere.json"]) == set()
    with pytest.raises(NotFoundError):
        delete(store, lock_files=[tmp_path / "missing.json"])
    assert len(store.digests()) == 4


def test_a_pin_keeps(store: Store) -> None:
    one, two = unnamed(store)
    assert pin(store, one[:20], "cited in\n a paper") == pin(store, one, "cited in a paper")
    assert [(each.digest, each.reason) for each in pins(store)] == [(one, "cited in a paper")]
    assert names(store) == {two}
    pin(store, one)
    pin(store, two)
    assert names(store) == set()
    store.attest(one, "eval", {"metrics": []})
    assert [each.reason for each in unpin(store, one)] == ["cited in a paper", ""]
    assert [each.digest for each in pins(store)] == [two]
    assert [item.kind for item in store.attestations(one)] == ["eval"]
    with pytest.raises(NotFoundError, match="no pin"):
        unpin(store, one)
    unpin(store, two)
    assert names(store) == set()  # both are in their grace again
    age(store)
    assert names(store) == {one, two}


def test_the_pin_command_is_seen_in_show_and_gc(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    one = unnamed(store)[0]
    assert run(["pin", one[:20], "--reason", "cited"]) == 0
    assert "toy 1 structure  pinned: cited" in capsys.readouterr().out
    assert run(["show", one[:20]]) == 0
    assert '"cited"' in capsys.readouterr().out
    assert run(["gc"]) == 0
    assert "pinned 20" in (shown := capsys.readouterr().out)
    assert ": cited" in shown
    assert run(["gc", "--json"]) == 0
    assert [each["digest"] for each in json.loads(capsys.readouterr().out)["pins"]] == [one]
    assert run(["pin", one, "--remove", "--reason", "no"]) == 2
    capsys.readouterr()
    assert run(["pin", one, "--remove", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["pinned"], value["removed"][0]["reason"]) == (False, "cited")
    assert run(["pin", one, "--remove"]) == 3
    assert run(["pin", "7"]) == 3


@pytest.mark.slow
def test_a_living_lease_keeps_and_a_dead_one_does_not(store: Store) -> None:
    one, two = unnamed(store)
    with lease(store, [two]):
        assert names(store) == set()  # stage 2 leads to stage 1
    assert names(store) == {one, two}
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom plyfold.registry.maintenance.gc import lease\n"
        "from plyfold.registry.store.store import Store\n"
        "with lease(Store(Path(sys.argv[1])), [sys.argv[2]]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store.root), two], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"held\n"
        assert delete(store).garbage == []
        server.kill()
    assert list((store.root / "locks" / "leases").iterdir())  # what a kill leaves behind
    assert names(store) == {one, two}


@pytest.mark.parametrize("by", ["publish", "ref moved away", "published again"])
def test_the_young_stay(store: Store, folder: Path, make_record: Any, by: str) -> None:
    one, two = unnamed(store)
    if by == "publish":
        fresh = store.publish(folder, make_record(1, created="2026-03-02T03:04:05Z"))
        assert fresh not in names(store)
    elif by == "ref moved away":
        now = store.ref("toy", 1)
        store.set_ref("toy", 1, one)
        store.set_ref("toy", 1, now)
        assert names(store) == {two}
    else:
        store.publish(folder, store.read_record(one).record.model_copy(update={"files": []}))
        assert names(store) == {two}
    plan = plan_sweep(store)
    assert plan.num_young == 1
    time.sleep(0.01)
    assert len(names(store, grace_s=0.0)) == (3 if by == "publish" else 2)


def test_a_damaged_record_that_is_needed_stops_everything(store: Store) -> None:
    path = store.read_record(store.ref("toy", 2)).path / "lineage.json"
    path.chmod(0o644)
    path.write_text("{}")
    with pytest.raises(IntegrityError):
        delete(store)
    assert len(store.digests()) == 4


@pytest.mark.slow
def test_publishing_beside_it_loses_nothing(store: Store, folder: Path, make_record: Any) -> None:
    """One thread publishes and names old objects over and over, another deletes: every name leads somewhere."""
    one, _ = unnamed(store)
    record = store.read_record(one).record.model_copy(update={"files": []})
    stop = threading.Event()
    sweeps = []

    def sweeping() -> None:
        while not stop.is_set():
            age_one = store.objects / one.removeprefix("sha256:")
            if age_one.is_dir() and len(sweeps) % 2:
                os.utime(age_one, (0, 0))
            sweeps.append(delete(store, grace_s=0.0))

    published = 0
    with ThreadPoolExecutor(1) as pool:
        sweeper = pool.submit(sweeping)
        end = time.monotonic() + 2
        try:
            while time.monotonic() < end and not sweeper.done():
                try:
                    store.set_ref("toy", 1, store.publish(folder, record), "v1")
                except (NotFoundError, IntegrityError):
                    continue  # swept between the two calls, and said so
                published += 1
                assert store.load(store.ref("toy", 1, "v1")).digest == one
                (store.root / "refs" / "toy" / "1" / "v1").unlink()
        finally:
            stop.set()
        sweeper.result()
    assert published
    assert any(item.name == one for done in sweeps for item in done.garbage)


def test_an_object_taken_during_the_look_at_it_is_published_again(
    store: Store, folder: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record(1, created="2026-03-02T03:04:05Z")
    digest = store.publish(folder, record)
    path = store.objects / digest.removeprefix("sha256:")
    taken = []

    def scandir(where: Any, *, real: Any = os.scandir) -> Any:
        if where == path and not taken:
            taken.append(path.rename(store.root / "tmp" / "gc-taken"))
        return real(where)

    monkeypatch.setattr(os, "scandir", scandir)
    assert store.publish(folder, record) == digest
    assert taken
    assert store.load(digest).digest == digest


def test_the_command_shows_first_and_deletes_when_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gc"]) == 0
    shown = capsys.readouterr().out
    assert "toy 1 structure" in shown
    assert "2 would go" in shown
    assert len(store.digests()) == 4
    assert run(["gc", "--delete", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["deleted"]
    assert len(value["garbage"]) == 2
    assert value["size_bytes"] > 0
    assert len(store.digests()) == 2
    assert run(["gc"]) == 0
    assert "0 would go" in capsys.readouterr().out


def test_leftovers_of_kills_go_after_an_hour(store: Store) -> None:
    old, young = store.root / "tmp" / "publish-old_____", store.root / "tmp" / "publish-young___"
    for path in (old, young):
        path.mkdir()
        (path / "part").write_bytes(b"12345")
    then = time.time() - 3700
    for path in (old / "part", old):
        os.utime(path, (then, then))
    staged = store.cache / "twins" / ".base-0123456789ab.tmp-0123456789ab"
    staged.mkdir(parents=True)
    os.utime(staged, (then, then))
    assert [(item.name, item.size_bytes) for item in plan_sweep(store).garbage if item.kind == "leftover"] == [
        ("publish-old_____", 5),
        ("twins/.base-0123456789ab.tmp-0123456789ab", 0),
    ]
    owner = os.open(staged, os.O_RDONLY)
    fcntl.flock(owner, fcntl.LOCK_EX)  # as who stages it does
    delete(store)
    assert not old.exists()
    assert young.exists()
    assert staged.exists()
    os.close(owner)
    delete(store)
    assert not staged.exists()


class TestTheCache:
    """Whatever is in the cache can be made again; what nobody has used for the time of grace goes."""

    @pytest.fixture
    def entries(self, store: Store) -> dict[str, Path]:
        found = {}
        for name in ("twins/base-0123456789ab", "variants/toy-s1-0123456789abcdef", "serve/8000.log"):
            path = found[name] = store.cache / name
            path.parent.mkdir(parents=True)
            if path.suffix == ".log":
                path.write_bytes(b"12345")
            else:
                path.mkdir()
                (path / "model.safetensors").write_bytes(b"12345")
                path.with_name(f"{path.name}.json").write_text("{}")
            self.unused(path)
        return found

    def unused(self, path: Path) -> None:
        os.utime(path, (time.time() - OLD_S,) * 2)

    def listed(self, store: Store, **options: Any) -> list[tuple[str, int]]:
        return [(item.name, item.size_bytes) for item in plan_sweep(store, **options).garbage if item.kind == "cache"]

    def test_the_unused_goes(self, store: Store, entries: dict[str, Path]) -> None:
        assert self.listed(store) == [(name, 5) for name in entries]
        assert all(path.exists() for path in entries.values())
        delete(store)
        assert not [path for folder in store.cache.iterdir() for path in folder.glob("[!.]*")]
        assert not list((store.root / "tmp").iterdir())

    @pytest.mark.parametrize("name", ["twins/base-0123456789ab", "variants/toy-s1-0123456789abcdef", "serve/8000.log"])
    def test_the_used_and_the_leased_stay(self, store: Store, entries: dict[str, Path], name: str) -> None:
        with lease(store, [], [entries[name]]):
            assert name not in dict(self.listed(store, grace_s=0.0))
            delete(store, grace_s=0.0)
            assert entries[name].exists()
        os.utime(entries[name])
        assert self.listed(store) == []
        assert [each for each, _ in self.listed(store, grace_s=0.0)] == [name]

    def test_what_is_being_made_or_was_just_used_stays(self, store: Store, entries: dict[str, Path]) -> None:
        from plyfold.core.disk.locks import locked

        name = "variants/toy-s1-0123456789abcdef"
        (item,) = [item for item in plan_sweep(store).garbage if item.name == name]
        with locked(entries[name].parent / ".toy-s1-0123456789abcdef.lock"):
            assert name not in {each.name for each in delete(store).garbage}
        assert entries[name].is_dir()
        os.utime(entries[name])
        assert take_cached(store, item, 60.0) is None  # used after the look
        assert entries[name].is_dir()

    def test_taking_a_variant_or_a_twin_makes_it_young(self, make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
        from plyfold.variants import materialise, parse_variant, twin_of

        store = make_store(tmp_path / "toy", tiny_base(dtype="float32"), stages=1)
        variant = parse_variant("1", "tiny")
        for _ in range(2):
            paths = [materialise(store, variant).path, twin_of(store, [variant])]
            assert self.listed(store) == []
            for path in paths:
                self.unused(path)
        assert len(self.listed(store)) == 2
