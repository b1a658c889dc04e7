"""Revocation: it reaches every descendant, is shown wherever the lineage is, and stops a merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import ConfigError, IntegrityError
from plyfold.registry.lineage.graph import tree
from plyfold.registry.store import Store, find_store
from plyfold.registry.trust.revocation import descendants, refuse_revoked, revocations, revoke


@pytest.fixture
def store(tmp_path: Path, make_record: Any, make_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stages 1, 2 (on 1), 3 (on 1 and 2), and a merge of 2 and 3."""
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(create=True)
    parents: list[str] = []
    for number, name in enumerate(("structure", "brevity", "remedy"), start=1):
        folder = make_adapter(tmp_path / f"adapter{number}", seed=number)
        parents.append(store.publish(folder, make_record(number, name, parents)))
        store.set_ref("toy", number, parents[-1])
    store.set_ref("toy", "merges", store.publish(folder, make_record(None, parents=parents[1:])), "toy-s2.s3")
    return store


def test_it_reaches_what_was_made_from_it_and_nothing_else(store: Store) -> None:
    one, two, three = store.stages("toy").values()
    (merge,) = store.merges("toy").values()
    revoke(store, two, "answers leaked\ninto the data")
    assert set(descendants(store, two)) == {three, merge}
    found = revocations(store, [one, two, three, merge])
    assert {digest: [item.digest for item in items] for digest, items in found.items()} == {
        two: [two],
        three: [two],
        merge: [two],
    }
    assert found[merge][0].reason == "answers leaked into the data"
    refuse_revoked(store, [one])
    for digest in (two, three, merge):
        with pytest.raises(IntegrityError, match="answers leaked"):
            refuse_revoked(store, [one, digest])
    revoke(store, one, "older")
    assert [item.digest for item in revocations(store, [merge])[merge]] == [two, one]  # nearest first


def test_it_outlives_the_object(store: Store) -> None:
    one, _, three = store.stages("toy").values()
    revoke(store, one, "bad")
    shutil.rmtree(store.read_record(one).path)
    assert [item.digest for item in revocations(store, [three])[three]] == [one]


def test_a_requirement_carries_it_too(store: Store, make_record: Any, tmp_path: Path) -> None:
    one = store.ref("toy", 1)
    needy = store.publish(tmp_path / "adapter1", make_record(4, "needy", requires=[one]))
    revoke(store, one, "bad")
    assert needy in revocations(store, [needy])
    assert needy in descendants(store, one)


def test_saying_it_twice_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store.ref("toy", 1)
    first = revoke(store, one, "bad")
    monkeypatch.setattr("plyfold.registry.store.attestations.utc_now", lambda: "2099-01-01T00:00:00Z")
    assert revoke(store, one, " bad ") == first
    assert len(store.attestations(one)) == 1
    with pytest.raises(ConfigError, match="needs a reason"):
        revoke(store, one, "  ")


def test_an_unreadable_statement_is_no_permission(store: Store) -> None:
    one, three = store.ref("toy", 1), store.ref("toy", 3)
    revoke(store, one, "bad")
    (path,) = (store.root / "attest" / one.removeprefix("sha256:")).iterdir()
    path.write_text("{")
    with pytest.raises(IntegrityError):
        refuse_revoked(store, [three])


def test_tree_log_and_show_mark_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["revoke", "1", "--reason", "wrong data", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["digest"] == store.ref("toy", 1)
    assert set(value["reaches"]) == {*store.stages("toy").values(), *store.merges("toy").values()} - {value["digest"]}
    (base,) = tree(store, "toy").children
    (first,) = base.children
    assert first.marks[0] == "revoked: wrong data"
    assert first.children[0].marks[0] == "revoked ancestor 1 structure: wrong data"
    assert run(["tree"]) == 0
    assert "revoked ancestor 1 structure: wrong data" in " ".join(capsys.readouterr().out.split())
    assert run(["log", "2"]) == 0
    shown = capsys.readouterr().out
    assert "toy 1 structure  revoked: wrong data" in shown
    assert run(["log", "2", "--json"]) == 0
    chain = json.loads(capsys.readouterr().out)["chain"]
    assert [[item["reason"] for item in link["revoked"]] for link in chain] == [["wrong data"], ["wrong data"]]
    assert run(["show", "2"]) == 0
    assert "revoked ancestor 1 structure: wrong data" in capsys.readouterr().out


def test_merge_refuses_it_unless_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["revoke", "1", "--reason", "wrong data"]) == 0
    before = store.digests()
    assert run(["merge", "--stages", "2,3"]) == 4  # stage 1 itself is not among them
    shown = capsys.readouterr().err
    assert "2 brevity adapter stands on a revoked adapter" in shown
    assert "wrong data" in shown
    assert "--allow-revoked" in shown
    assert store.digests() == before
    assert run(["merge", "--stages", "2,3", "--allow-revoked", "--dry-run"]) == 0
    assert "revoked: 1 structure" in capsys.readouterr().err


def test_a_variant_warns(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    from plyfold.variants import Variant, materialise

    revoke(store, store.ref("toy", 1), "wrong data")
    materialise(store, Variant(curriculum="toy", stages=(2,)))
    shown = " ".join(capsys.readouterr().err.split())
    assert "toy:2 stands on 1 structure" in shown
    assert "revoked: wrong data" in shown
