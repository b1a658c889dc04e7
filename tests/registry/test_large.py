"""Large registries: chains of any length, every record read once, and the same text with and without rich."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core import console
from plyfold.core.disk.digest import sha256_bytes
from plyfold.core.errors import IntegrityError, NotFoundError
from plyfold.registry.lineage.graph import MAX_DEPTH, TreeNode, chain, tree
from plyfold.registry.record import FileEntry, Record
from plyfold.registry.store import Entry, Snapshot, Store, find_store, objects
from plyfold.registry.trust.revocation import revocations, revoke

CONFIG = b"{}"


def put(store: Store, record: Record, name: str | None = None) -> str:
    """Publishes without waiting for the disk, which takes a thousand publishes a minute."""
    file = FileEntry(path="adapter_config.json", size=len(CONFIG), sha256=sha256_bytes(CONFIG))
    data = record.model_copy(update={"files": [file]}).to_bytes()
    digest = sha256_bytes(data)
    folder = store.objects / digest.removeprefix("sha256:")
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(CONFIG)
    (folder / "lineage.json").write_bytes(data)
    if name:
        ref = store.root / "refs" / record.curriculum / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(f"{digest}\n")
    return digest


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return find_store(tmp_path / ".plyfold", create=True)


def stages(store: Store, make_record: Any, count: int, curriculum: str = "toy") -> list[str]:
    """Every stage trained on the one before it."""
    digests: list[str] = []
    for number in range(1, count + 1):
        record = make_record(number, f"s{number}", digests[-1:], curriculum=curriculum)
        digests.append(put(store, record, f"{number}/latest"))
    return digests


def walk(node: TreeNode, depth: int = 0) -> list[tuple[str, int]]:
    return [(node.label, depth), *(item for child in node.children for item in walk(child, depth + 1))]


class TestChains:
    @pytest.mark.slow
    def test_longer_than_python_recurses(self, store: Store, make_record: Any) -> None:
        digests: list[str] = []
        for _ in range(1100):
            digests.append(put(store, make_record(None, parents=digests[-1:])))
        assert [link.digest for link in chain(store, digests[-1])] == digests[::-1]

    def test_a_store_that_claims_a_cycle_ends(self, store: Store, make_record: Any) -> None:
        one, two = (f"sha256:{fill * 64}" for fill in "12")
        snapshot = Snapshot(store.root)
        for digest, parent in ((one, two), (two, one)):
            record = make_record(None, parents=[parent])
            snapshot._entries[digest] = Entry(digest=digest, path=store.root, record=record)
        assert [link.digest for link in chain(snapshot, one)] == [one, two]

    def test_a_shared_ancestor_comes_after_all_that_name_it(self, store: Store, make_record: Any) -> None:
        one = put(store, make_record(None))
        two, three = (put(store, make_record(None, parents=[one], licence=text)) for text in ("mit", "bsd"))
        four = put(store, make_record(None, parents=[one, two, three]))
        assert [link.digest for link in chain(store, four)] == [four, three, two, one]

    def test_a_deep_tree_is_drawn_to_a_depth(
        self, store: Store, make_record: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stages(store, make_record, MAX_DEPTH + 20)
        drawn = walk(tree(store, "toy"))
        assert [label for label, _ in drawn[2:]] == [f"{number} s{number}" for number in range(1, MAX_DEPTH + 21)]
        assert max(depth for _, depth in drawn) == MAX_DEPTH + 1
        assert run(["tree", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["curricula"][0]["label"] == "toy"


class TestSnapshot:
    def test_every_record_is_read_once(
        self, store: Store, make_record: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        digests = [*stages(store, make_record, 3), *stages(store, make_record, 3, "other")]
        put(store, make_record(None, parents=digests[:2]), "merges/toy-s1.s2")
        revoke(store, digests[0], "wrong rows")
        read: list[Path] = []
        original = objects.read_record
        monkeypatch.setattr(objects, "read_record", lambda path: (read.append(path), original(path))[1])
        for command, count in ((["tree"], 7), (["log", "toy:3"], 3)):
            read.clear()
            assert run(command) == 0
            assert len(read) == len(set(read)) == count, command

    def test_it_answers_like_the_store(self, store: Store, make_record: Any) -> None:
        digests = stages(store, make_record, 3)
        put(store, make_record(None, parents=digests), "merges/all")
        revoke(store, digests[1], "wrong rows")
        store.attest(digests[0], "note", {"text": "x"})
        snapshot = Snapshot.of(store)
        assert Snapshot.of(snapshot) is snapshot
        for _ in range(2):
            assert snapshot.digests() == store.digests()
            assert (snapshot.curricula(), snapshot.stages("toy")) == (store.curricula(), store.stages("toy"))
            assert snapshot.read_record(digests[0][:20]) == store.read_record(digests[0])
            assert revocations(snapshot, digests) == revocations(store, digests)
            assert snapshot.attestations(digests[0], "note") == store.attestations(digests[0], "note")
            assert snapshot.attestations(digests[0], "eval") == snapshot.attestations(digests[2]) == []
            for missing in (f"sha256:{'e' * 64}", "ffff"):
                with pytest.raises(NotFoundError):
                    snapshot.read_record(missing)

    @pytest.mark.parametrize("change", ["extra", "missing", "size", "folder", "link"])
    def test_it_sees_what_names_and_sizes_show(self, store: Store, make_record: Any, change: str) -> None:
        entry = store.read_record(stages(store, make_record, 1)[0])
        file = entry.path / "adapter_config.json"
        assert Snapshot.of(store).damage(entry) == []
        if change == "extra":
            (entry.path / "surprise").write_text("")
        elif change == "size":
            file.write_text("{ }")
        else:
            file.unlink()
            file.mkdir() if change == "folder" else file.symlink_to("x") if change == "link" else None
        expected = objects.find_problems(entry.path, entry.record, hashes=False)
        assert expected
        assert Snapshot.of(store).damage(entry) == expected

    def test_a_damaged_record_stays_damaged(self, store: Store, make_record: Any) -> None:
        digest = stages(store, make_record, 1)[0]
        (store.objects / digest.removeprefix("sha256:") / "lineage.json").write_text("{}")
        snapshot = Snapshot.of(store)
        for _ in range(2):
            with pytest.raises(IntegrityError):
                snapshot.read_record(digest)


class TestLongOutput:
    @pytest.fixture(autouse=True)
    def some(self, store: Store, make_record: Any) -> None:
        digests = stages(store, make_record, 3)
        put(store, make_record(None, parents=digests[:2]), "merges/toy-s1.s2")
        stages(store, make_record, 2, "other")
        revoke(store, digests[0], "wrong [red]rows")

    def test_a_tree_is_the_same_without_rich(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run(["tree"]) == 0
        with_rich = capsys.readouterr().out
        assert "revoked: wrong [red]rows" in with_rich
        monkeypatch.setattr("plyfold.cli.records.lineage.LONG_TABLE", 0)
        assert run(["tree"]) == 0
        assert [line.rstrip() for line in with_rich.splitlines()] == capsys.readouterr().out.splitlines()

    def test_a_table_is_the_same_without_rich(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [["a", 1, "x"], ["äöü 漢字", 2222, "[red]"], ["\x1b[31m", 3, ""]]
        shown = []
        for limit in (3, 2):
            monkeypatch.setattr(console, "LONG_TABLE", limit)
            console.print_table(["name", "n", "note"], rows, right=["n"], title="T", caption="C")
            shown.append([line.rstrip() for line in capsys.readouterr().out.splitlines()])
        assert shown[0] == shown[1]
        assert len(shown[0]) == 9
        assert "\x1b" not in "".join(shown[0])

    def test_large_json_is_one_line(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        assert run(["tree", "--json"]) == 0
        indented = capsys.readouterr().out
        assert indented.count("\n") > 10
        monkeypatch.setattr(console, "LONG_JSON", 100)
        assert run(["tree", "--json"]) == 0
        line = capsys.readouterr().out
        assert line.count("\n") == 1
        assert json.loads(line) == json.loads(indented)
