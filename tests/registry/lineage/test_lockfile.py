"""The lock file: the same bytes for the same stages, what `--check` calls a difference, and files that are no lock."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import IntegrityError
from plyfold.registry.lineage.lockfile import lock_differences, make_lock, read_lock, write_lock
from plyfold.registry.store import Store, find_store

AT = f"hf://acme/toy-s01-structure@{'b' * 40}"


@pytest.fixture
def store(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(create=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    one = store.publish(tmp_path / "adapter", make_record(1))
    store.set_ref("toy", 1, one)
    store.set_ref("toy", 2, store.publish(tmp_path / "adapter", make_record(2, "brevity", [one])))
    return store


def retrain(store: Store, make_record: Any) -> str:
    digest = store.publish(store.root.parent / "adapter", make_record(1, created="2026-05-02T03:04:05Z"))
    store.set_ref("toy", 1, digest)
    return digest


def test_it_says_digest_base_and_place(store: Store, tmp_path: Path) -> None:
    one = store.ref("toy", 1)
    store.attest(one, "location", {"location": AT})
    assert run(["lock"]) == 0
    path = tmp_path / "curriculum.lock.json"
    value = json.loads(path.read_text())
    assert (value["schema"], value["curriculum"], sorted(value["stages"])) == (1, "toy", ["1", "2"])
    record = store.read_record(one).record
    assert value["stages"]["1"] == {
        "name": "structure",
        "digest": one,
        "base": {"repo": record.base.repo, "revision": record.base.revision},
        "location": AT,
    }
    assert value["stages"]["2"]["location"] is None
    before = path.read_bytes()
    assert run(["lock"]) == 0
    assert path.read_bytes() == before
    assert read_lock(path) == make_lock(store, "toy")


def test_check_names_what_differs(store: Store, make_record: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old = store.ref("toy", 1)
    assert run(["lock"]) == 0
    assert run(["lock", "--check"]) == 0
    new = retrain(store, make_record)
    capsys.readouterr()
    assert run(["lock", "--check", "--json"]) == 5
    shown = capsys.readouterr()
    assert json.loads(shown.out)["differences"] == [{"stage": 1, "locked": old, "now": new, "what": "another adapter"}]
    assert old in shown.err
    assert read_lock(Path("curriculum.lock.json")).stages[1].digest == old  # a check writes nothing
    assert run(["lock"]) == 0
    assert run(["lock", "--check"]) == 0


def test_what_is_missing_on_either_side_differs(store: Store, make_record: Any, tmp_path: Path) -> None:
    lock = make_lock(store, "toy")
    store.set_ref("toy", 3, store.publish(tmp_path / "adapter", make_record(3, "remedy")))
    shutil.rmtree(store.read_record(store.ref("toy", 2)).path)
    assert [(each.stage, each.what) for each in lock_differences(lock, store)] == [
        (2, "its adapter is not held"),
        (3, "not in the lock"),
    ]
    empty = Store(tmp_path / "empty")
    assert [each.what for each in lock_differences(lock, empty)] == [
        "no such stage here, and its adapter is not held"
    ] * 2  # fmt: skip


def test_a_place_learnt_later_is_no_difference(store: Store) -> None:
    lock = make_lock(store, "toy")
    store.attest(store.ref("toy", 1), "location", {"location": AT})
    assert lock_differences(lock, store) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(schema=2),
        lambda value: value.update(extra=1),
        lambda value: value["stages"]["1"].update(digest="sha256:0"),
        lambda value: value["stages"]["1"].update(location="https://elsewhere.example/x"),
        lambda value: value["stages"].update({"0": value["stages"]["1"]}),
        lambda value: value.update(curriculum="../up"),
    ],
)
def test_a_file_that_is_no_lock_is_refused(store: Store, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "curriculum.lock.json"
    write_lock(path, make_lock(store, "toy"))
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(IntegrityError, match="not a lock file"):
        read_lock(path)
    assert run(["lock", "--check"]) == 4
    assert run(["gc", "--delete"]) == 4  # what it keeps is not known
    for text in ("", "[" * 100_000, "[]", "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(IntegrityError, match="not a lock file"):
            read_lock(path)


def test_no_file_is_not_found(store: Store) -> None:
    assert run(["lock", "--check"]) == 3
