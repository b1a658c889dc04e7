"""The store: objects appear whole or not at all, are verified on load, and names move by compare-and-swap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base.resolve import content_revision, sandbox_folder
from plyfold.core.errors import (
    ConfigError,
    ConflictError,
    IncompatibleError,
    IntegrityError,
    NotFoundError,
)
from plyfold.registry.record import RECORD_FILE
from plyfold.registry.store import Store, find_store
from plyfold.registry.store import store as store_module
from plyfold.sandbox import BASE_REPO

NOWHERE = f"sha256:{'f' * 64}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "extra").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "extra" / "note.txt").write_text("note")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return find_store(tmp_path / ".plyfold", create=True)


def leftovers(store: Store) -> list[Path]:
    return [*store.root.joinpath("tmp").iterdir()]


class TestPublish:
    def test_an_object_is_the_folder_plus_its_record(self, store: Store, folder: Path, make_record: Any) -> None:
        digest = store.publish(folder, make_record())
        entry = store.load(digest)
        assert entry.digest == digest == entry.record.digest()
        assert entry.path == store.objects / digest.removeprefix("sha256:")
        assert [item.path for item in entry.record.files] == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "extra/note.txt",
        ]
        for item in entry.record.files:
            assert (entry.path / item.path).read_bytes() == (folder / item.path).read_bytes()
            assert not (entry.path / item.path).stat().st_mode & 0o222
        assert (entry.path / RECORD_FILE).read_bytes() == entry.record.to_bytes()
        assert not leftovers(store)
        assert not (folder / RECORD_FILE).exists()

    def test_the_same_again_is_the_same_object(self, store: Store, folder: Path, make_record: Any) -> None:
        first = store.publish(folder, make_record())
        inode = store.load(first).path.stat().st_ino
        assert store.publish(store.load(first).path, make_record()) == first  # its old lineage.json is no payload
        assert store.digests() == [first]
        assert store.load(first).path.stat().st_ino == inode
        assert not leftovers(store)

    def test_other_bytes_or_another_record_are_another_object(
        self, store: Store, folder: Path, make_record: Any
    ) -> None:
        first = store.publish(folder, make_record())
        second = store.publish(folder, make_record(licence="mit"))
        (folder / "adapter_config.json").write_text("{ }")
        third = store.publish(folder, make_record())
        assert len({first, second, third}) == 3

    def test_a_damaged_object_is_reported_not_repaired(self, store: Store, folder: Path, make_record: Any) -> None:
        digest = store.publish(folder, make_record())
        change(store.load(digest).path / "adapter_config.json", b"[]")
        with pytest.raises(IntegrityError, match="already, but damaged"):
            store.publish(folder, make_record())
        assert not leftovers(store)

    def test_what_is_no_plain_file_is_refused(self, store: Store, folder: Path, make_record: Any) -> None:
        (folder / "link").symlink_to("/etc/hostname")
        with pytest.raises(ConfigError, match="plain files"):
            store.publish(folder, make_record())
        (folder / "link").unlink()
        os.mkfifo(folder / "pipe")
        with pytest.raises(ConfigError, match="plain files"):
            store.publish(folder, make_record())
        (folder / "pipe").unlink()
        (folder / "back\\slash").write_text("")
        with pytest.raises(ConfigError, match="payload file"):
            store.publish(folder, make_record())
        assert not store.digests()

    def test_a_record_too_large_to_read_back_is_refused(self, store: Store, folder: Path, make_record: Any) -> None:
        with pytest.raises(ConfigError, match="too large"):
            store.publish(folder, make_record(env={"log": "x" * 1_000_000}))
        assert not store.digests()

    def test_nothing_to_publish_is_an_error(self, store: Store, tmp_path: Path, make_record: Any) -> None:
        with pytest.raises(NotFoundError):
            store.publish(tmp_path / "none", make_record())
        (tmp_path / "empty").mkdir()
        with pytest.raises(NotFoundError):
            store.publish(tmp_path / "empty", make_record())

    def test_an_interrupt_at_any_flush_leaves_all_or_nothing(
        self, store: Store, folder: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, outcomes = os.fsync, []
        for moment in range(100):
            left = iter(range(moment))

            def fsync(descriptor: int, left: Any = left) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                real(descriptor)

            monkeypatch.setattr(os, "fsync", fsync)
            record = make_record(env={"try": str(moment)})
            before = store.digests()
            try:
                store.publish(folder, record)
            except KeyboardInterrupt:
                outcomes.append("interrupted")
            else:
                outcomes.append("published")
            assert not leftovers(store)
            for digest in store.digests():
                store.load(digest)
            if outcomes[-1] == "published":
                assert len(store.digests()) == len(before) + 1
                break
        assert outcomes.count("interrupted") >= 6  # each file, the record, the folders, the log
        assert outcomes[-1] == "published"

    def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
        self, store: Store, folder: Path, make_record: Any, tmp_path: Path
    ) -> None:
        """The kernel refuses to write past 1,000 bytes, in the middle of the weights."""
        record = tmp_path / "record.json"
        record.write_bytes(make_record().to_bytes())
        code = (
            "import resource, sys\nfrom pathlib import Path\n"
            "from plyfold.core.errors import DiskFullError\n"
            "from plyfold.registry.record import parse_record\nfrom plyfold.registry.store.store import Store\n"
            "root, folder, record = map(Path, sys.argv[1:])\n"
            "store, record = Store(root), parse_record(record.read_bytes())\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try:\n    store.publish(folder, record)\nexcept DiskFullError as error:\n    print('full:', error.what)\n"
        )
        command = [sys.executable, "-c", code, str(store.root), str(folder), str(record)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("full: no space left")
        assert not store.digests()
        assert not leftovers(store)
        assert store.load(store.publish(folder, make_record()))

    def test_only_old_leftovers_are_swept(self, store: Store, folder: Path, make_record: Any) -> None:
        tmp, old_s = store.root / "tmp", time.time() - 3700
        for name in ("old", "young", "busy"):
            (tmp / f"publish-{name:_<8}").mkdir()
            (tmp / f"publish-{name:_<8}" / "weights").write_text("")
        partial = store.root / "refs" / "toy" / ".latest.part-0123456789ab"
        partial.parent.mkdir()
        partial.write_text("sha")
        others = [store.root / "refs" / "toy" / ".notes.markdown", tmp / "publish-notes.md", tmp / ".env"]
        for path in others:
            path.write_text("somebody's")
        old, busy = tmp / "publish-old_____", tmp / "publish-busy____"
        aged = [old / "weights", old, busy, partial, *others]
        for path in aged:
            os.utime(path, (old_s, old_s))
        store.publish(folder, make_record())
        assert not old.exists()
        assert busy.is_dir()
        assert (tmp / "publish-young___").is_dir()
        assert all(path.read_text() == "somebody's" for path in others)
        assert not partial.exists()


def change(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "same size": lambda path: change(path / "adapter_config.json", b"[]"),
    "truncated": lambda path: change(path / "adapter_model.safetensors", b"x"),
    "missing": lambda path: (path / "adapter_config.json").unlink(),
    "extra": lambda path: (path / "adapter_model.bin").write_bytes(b"pickle"),
    "extra below": lambda path: (path / "extra" / "more").write_bytes(b""),
    "link": lambda path: [
        (path / "adapter_config.json").rename(path.parent.parent / "moved"),
        (path / "adapter_config.json").symlink_to(path.parent.parent / "moved"),
    ],
    "record changed": lambda path: change(
        path / RECORD_FILE, (path / RECORD_FILE).read_bytes().replace(b'"other"', b'"mit"')
    ),
    "record missing": lambda path: (path / RECORD_FILE).unlink(),
    "record huge": lambda path: change(path / RECORD_FILE, b" " * 2_000_000),
}


class TestLoad:
    @pytest.mark.parametrize("name", list(DAMAGE))
    def test_every_damage_is_found_before_anything_is_used(
        self, store: Store, folder: Path, make_record: Any, name: str
    ) -> None:
        digest = store.publish(folder, make_record())
        path = store.load(digest).path
        DAMAGE[name](path)
        with pytest.raises(IntegrityError) as caught:
            store.load(digest)
        assert str(path) in caught.value.where
        assert caught.value.next_step

    def test_a_prefix_is_enough_if_it_is_unambiguous(self, store: Store, folder: Path, make_record: Any) -> None:
        digest = store.publish(folder, make_record())
        for given in (digest, digest[7:], digest[:17], digest[7:15]):
            assert store.load(given).digest == digest
        twin = store.objects / f"{digest[7:23]}{'0' * 48}"
        twin.mkdir()
        with pytest.raises(ConfigError, match="ambiguous"):
            store.load(digest[:15])
        for nothing in (NOWHERE, "0000000"):
            with pytest.raises(NotFoundError):
                store.load(nothing)
        for nonsense in ("", "xyz", "../../etc", "sha256:", "sha256:../" + "0" * 61):
            with pytest.raises(ConfigError, match="not a digest"):
                store.load(nonsense)


class TestRefs:
    def test_a_stage_is_found_by_number_and_name(self, store: Store, folder: Path, make_record: Any) -> None:
        one = store.publish(folder, make_record(1, "structure"))
        two = store.publish(folder, make_record(2, "brevity", [one]))
        store.set_ref("toy", "brevity", two)
        store.set_ref("toy", 1, one)
        assert store.stages("toy") == {1: one, 2: two}
        assert store.ref("toy", 2) == store.ref("toy", "2") == store.ref("toy", "brevity") == two
        assert store.stage("toy", "structure").digest == one
        assert store.curricula() == ["toy"]
        with pytest.raises(NotFoundError) as caught:
            store.stage("toy", "remedy")
        assert caught.value.expected == "one of 1 (structure), 2 (brevity)"
        with pytest.raises(NotFoundError):
            store.ref("toy", 3)
        with pytest.raises(NotFoundError, match="no alias"):
            store.ref("toy", 1, "best")

    def test_compare_and_swap(self, store: Store, folder: Path, make_record: Any) -> None:
        first = store.publish(folder, make_record())
        second = store.publish(folder, make_record(licence="mit"))
        store.set_ref("toy", 1, first, expected=None)
        with pytest.raises(ConflictError) as caught:
            store.set_ref("toy", 1, second, expected=None)
        assert caught.value.found == first
        with pytest.raises(ConflictError):
            store.set_ref("toy", 1, second, expected=second)
        assert store.ref("toy", 1) == first
        store.set_ref("toy", 1, second, expected=first)
        store.set_ref("toy", 1, first, "v1")
        assert (store.ref("toy", 1), store.ref("toy", 1, "v1")) == (second, first)
        moves = [(row["alias"], row["previous"]) for row in store.log() if row["event"] == "ref"]
        assert moves == [("latest", None), ("latest", first), ("v1", None)]

    def test_a_merge_has_a_name_of_its_own(self, store: Store, folder: Path, make_record: Any) -> None:
        merge = store.publish(folder, make_record(None, parents=[NOWHERE]))
        store.set_ref("toy", "merges", merge, "toy-s1.s2*0.5")
        assert store.merges("toy") == {"toy-s1.s2*0.5": merge}
        assert store.stages("toy") == {}

    def test_a_ref_cannot_name_what_is_not_its_own(self, store: Store, folder: Path, make_record: Any) -> None:
        digest = store.publish(folder, make_record())
        for curriculum, stage in (("toy", 2), ("toy", "merges"), ("other", 1)):
            with pytest.raises(IncompatibleError):
                store.set_ref(curriculum, stage, digest)
        for alias in ("", "../x", ".hidden", "a/b", "a\n"):
            with pytest.raises(ConfigError):
                store.set_ref("toy", 1, digest, alias)
        with pytest.raises(NotFoundError):
            store.set_ref("toy", 1, NOWHERE)
        assert store.curricula() == []

    def test_a_garbled_ref_is_an_integrity_error(self, store: Store, folder: Path, make_record: Any) -> None:
        store.set_ref("toy", 1, store.publish(folder, make_record()))
        (store.root / "refs" / "toy" / "1" / "latest").write_bytes(b"\xff\xff")
        with pytest.raises(IntegrityError, match="not a digest"):
            store.ref("toy", 1)

    def test_the_default_curriculum(self, store: Store, folder: Path, make_record: Any) -> None:
        with pytest.raises(NotFoundError, match="empty"):
            store.default_curriculum()
        store.set_ref("toy", 1, store.publish(folder, make_record()))
        assert store.default_curriculum() == store.default_curriculum("toy") == "toy"
        store.set_ref("other", 1, store.publish(folder, make_record(curriculum="other")))
        with pytest.raises(ConfigError) as caught:
            store.default_curriculum()
        assert caught.value.expected == "one of other, toy"
        with pytest.raises(NotFoundError) as missing:
            store.default_curriculum("third")
        assert "as other;" in missing.value.next_step

    def test_a_held_lock_is_a_conflict_and_ends_with_its_holder(
        self, store: Store, folder: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = store.publish(folder, make_record())
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom plyfold.core.disk.locks import locked\n"
            "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
        )
        command = [sys.executable, "-c", code, str(store.root / "locks" / "refs.lock")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            monkeypatch.setattr(store_module, "LOCK_TIMEOUT_S", 0.2)
            with pytest.raises(ConflictError, match="another plyfold process"):
                store.set_ref("toy", 1, digest)
            holder.kill()
        store.set_ref("toy", 1, digest)
        assert store.ref("toy", 1) == digest


class TestFindStore:
    def test_explicit_then_environment_then_upward(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
        inside = tmp_path / "project" / "deep" / "er"
        inside.mkdir(parents=True)
        monkeypatch.chdir(inside)
        with pytest.raises(NotFoundError, match="no registry") as caught:
            find_store()
        assert "plyfold train" in caught.value.next_step
        with pytest.raises(NotFoundError):
            find_store(tmp_path / "named")
        above = find_store(tmp_path / "project" / ".plyfold", create=True)
        assert find_store().root == find_store(create=True).root == above.root
        other = find_store(tmp_path / "environment", create=True)
        monkeypatch.setenv("PLYFOLD_REGISTRY", str(other.root))
        assert find_store().root == other.root
        assert find_store(above.root).root == above.root

    def test_a_new_store_is_made_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
        monkeypatch.chdir(tmp_path)
        assert find_store(create=True).root == tmp_path.resolve() / ".plyfold"


class TestLedger:
    def test_attestations_are_kept_in_order_and_by_kind(self, store: Store, folder: Path, make_record: Any) -> None:
        digest = store.publish(folder, make_record())
        for number in range(3):
            store.attest(digest[:20], "eval", {"number": number})
        store.attest(digest, "note", {"text": "x"})
        assert [item.payload["number"] for item in store.attestations(digest, "eval")] == [0, 1, 2]
        assert len(store.attestations(digest)) == 4
        assert store.load(digest).digest == digest  # the object itself has not changed

    def test_an_attestation_is_portable_and_speaks_of_its_object(
        self, store: Store, folder: Path, make_record: Any
    ) -> None:
        digest = store.publish(folder, make_record())
        for payload in ({"path": "/home/ann/x"}, {"x": float("nan")}, {"x": "y" * 1_100_000}):
            with pytest.raises(ConfigError):
                store.attest(digest, "eval", payload)
        with pytest.raises(NotFoundError):
            store.attest(NOWHERE, "eval", {})
        path = store.attest(digest, "eval", {})
        path.write_text(json.dumps({**json.loads(path.read_text()), "digest": NOWHERE}))
        with pytest.raises(IntegrityError):
            store.attestations(digest)

    def test_a_torn_log_line_is_left_out_and_closed(self, store: Store, folder: Path, make_record: Any) -> None:
        first = store.publish(folder, make_record())
        log = store.root / "log.jsonl"
        with log.open("ab") as file:
            file.write(b'{"event": "publ')
        second = store.publish(folder, make_record(licence="mit"))
        assert [row["digest"] for row in store.log()] == [first, second]

    def test_a_log_that_has_another_name_leaves_what_is_under_it(
        self, store: Store, folder: Path, make_record: Any, tmp_path: Path
    ) -> None:
        first = store.publish(folder, make_record())
        os.link(store.root / "log.jsonl", tmp_path / "copy")
        before = (tmp_path / "copy").read_bytes()
        second = store.publish(folder, make_record(licence="mit"))
        assert [row["digest"] for row in store.log()] == [first, second]
        assert (tmp_path / "copy").read_bytes() == before

    def test_bases_are_remembered_while_they_exist(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        store.remember_base("a/b", "0" * 40, tmp_path / "base")
        store.remember_base("c/d", "1" * 40, tmp_path / "gone")
        assert store.base_path("a/b", "0" * 40) == (tmp_path / "base").resolve()
        assert store.base_path("c/d", "1" * 40) is None
        assert store.base_path("e/f", "0" * 40) is None

    def test_the_embedded_base_lies_where_plyfold_does(self, store: Store, tmp_path: Path) -> None:
        revision = content_revision(sandbox_folder())
        store.remember_base(BASE_REPO, revision, tmp_path / "where plyfold lay before")
        assert store.base_path(BASE_REPO, revision) == sandbox_folder()
        assert store.base_path(BASE_REPO, "0" * 40) is None
