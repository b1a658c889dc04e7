"""Plain folders that hold a record: believed while their files are the record's, and refused where it is revoked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import IntegrityError
from plyfold.registry.lineage.exported_copies import read_copy
from plyfold.registry.store import Store, find_store
from plyfold.registry.trust.revocation import revoke


@pytest.fixture
def store(tmp_path: Path, make_record: Any, make_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stage 1 and stage 2 on it; copies of both lie in `one` and `two`, with a card beside the files."""
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(create=True)
    parents: list[str] = []
    for number, name in enumerate(("one", "two"), start=1):
        digest = store.publish(make_adapter(tmp_path / f"{name}-src", seed=number), make_record(number, name, parents))
        store.set_ref("toy", number, digest)
        parents.append(digest)
        copied = shutil.copytree(store.read_record(digest).path, tmp_path / name)
        (copied / "README.md").write_text("a card")
    return store


def test_a_sound_copy_is_what_its_record_says(store: Store, tmp_path: Path) -> None:
    copy = read_copy(tmp_path / "one")
    assert copy is not None
    assert (copy.digest, copy.path) == (store.ref("toy", 1), tmp_path / "one")
    assert read_copy(tmp_path / "one-src") is None
    assert run(["merge", "one", "two", "-o", "out"]) == 0


@pytest.mark.parametrize("change", ["weights", "config", "gone", "record", "not a record"])
def test_files_that_are_not_the_records_are_refused(
    store: Store, tmp_path: Path, make_adapter: Any, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "one"
    for path in folder.iterdir():
        path.chmod(0o644)
    record = folder / "lineage.json"
    if change == "weights":
        shutil.copyfile(tmp_path / "two-src" / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    elif change == "config":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16}))
    elif change == "gone":
        (folder / "adapter_config.json").unlink()
    elif change == "record":
        shutil.copyfile(tmp_path / "two" / "lineage.json", record)
    else:
        record.write_text('{"kind": "another tool"}')
    assert run(["merge", "one", "two", "-o", "out"]) == 4
    assert f"delete {Path('one') / 'lineage.json'} to take it as a plain folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    if change != "gone":
        record.unlink()
        (tmp_path / "two" / "lineage.json").unlink()
        assert run(["merge", "one", "two-src", "-o", "out"]) == (8 if change == "weights" else 0)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("names", [["one"], ["two"]])
def test_what_the_registry_knows_to_be_revoked_is_refused(
    store: Store, tmp_path: Path, names: list[str], held: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy itself or an ancestor of it, whether the registry still holds them or only the statement."""
    revoke(store, store.ref("toy", 1), "answers leaked")
    if not held:
        for digest in store.digests():
            shutil.rmtree(store.read_record(digest).path)
    assert run(["merge", *names, "-o", "out"]) == 4
    assert "answers leaked" in capsys.readouterr().err
    assert run(["merge", *names, "-o", "out", "--allow-revoked"]) == 0
    assert "answers leaked" in capsys.readouterr().err


def test_without_a_registry_nothing_is_checked(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revoke(store, store.ref("toy", 1), "answers leaked")
    store.root.rename(tmp_path / "away")
    assert run(["merge", "one", "-o", "out"]) == 0
    assert run(["merge", "one", "-o", "named", "--registry", "away"]) == 4
    monkeypatch.setenv("PLYFOLD_REGISTRY", str(tmp_path / "away"))
    assert run(["merge", "one", "-o", "named"]) == 4
    assert run(["merge", "one", "-o", "named", "--registry", "nowhere"]) == 3


def test_a_record_over_the_cap_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "one" / "lineage.json"
    path.chmod(0o644)
    path.write_bytes(b" " * 2_000_000 + path.read_bytes())
    with pytest.raises(IntegrityError, match="too large"):
        read_copy(tmp_path / "one")


@pytest.mark.parametrize("name", ["x" * 300, "a\nb", "loop", "\udcff"])
def test_names_that_are_no_folder_are_told_as_such(
    store: Store, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for folder in (".plyfold", "away"):  # with a registry here, and without
        assert run(["merge", name, "one"]) in (1, 2, 3)
        assert "unexpected" not in capsys.readouterr().err
        if folder == ".plyfold":
            store.root.rename(tmp_path / "away")
