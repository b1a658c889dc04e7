"""Statements about adapters: only added, joined in any order, read from strangers with care."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import refuse_revoked, revocations, revoke, withdraw
from plyfold.registry.trust.shared_statements import to_bytes
from plyfold.registry.trust.statements import Statement, adopt, parse_statements, statements

ABSENT = "sha256:" + "a" * 64


@pytest.fixture
def store(tmp_path: Path, make_record: Any, make_adapter: Any) -> Store:
    """Stage 1, and stage 2 trained on it and on an adapter that is not here."""
    store = Store(tmp_path / "store")
    folder = make_adapter(tmp_path / "adapter")
    one = store.publish(folder, make_record(1, "structure", []))
    two = store.publish(folder, make_record(2, "brevity", [one, ABSENT]))
    store.set_ref("toy", 1, one)
    store.set_ref("toy", 2, two)
    return store


def _statement(**changes: Any) -> dict[str, Any]:
    value = {"digest": ABSENT, "kind": "revoked", "created": "2026-11-20T10:00:00Z"}
    return {**value, "payload": {"reason": "leaked", "label": "toy 9 far", "withdraws": []}, **changes}


def _file(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"schema": 1, "statements": list(rows)}).encode()


def test_a_withdrawal_takes_back_what_was_said_before_it_and_nothing_after(store: Store) -> None:
    one, two = store.stages("toy").values()
    revoke(store, one, "bad")
    assert [item.reason for item in withdraw(store, one, "it was another run")] == ["bad"]
    assert revocations(store, [one, two]) == {}
    with pytest.raises(NotFoundError, match="not revoked"):
        withdraw(store, one, "again")
    revoke(store, one, "bad")  # the same words, perhaps within the same second
    with pytest.raises(IntegrityError, match="stands on"):
        refuse_revoked(store, [two])
    assert [item.kind for item in statements(store, one)].count("revoked") == 2
    with pytest.raises(ConfigError, match="reason"):
        withdraw(store, one, " \n ")


def test_any_order_of_arrival_means_the_same(store: Store, tmp_path: Path) -> None:
    one = store.ref("toy", 1)
    revoke(store, one, "bad")
    withdraw(store, one, "no")
    revoke(store, one, "worse")
    said = statements(store, one)
    assert len(said) == 3
    seen = set()
    for number, order in enumerate(itertools.permutations(said)):
        other = Store(tmp_path / f"other{number}")
        for item in order:
            assert adopt(other, parse_statements(to_bytes([item]))) == [item]
        assert adopt(other, said) == []
        seen.add(to_bytes(statements(other, one)))
        assert [item.reason for item in revocations(other, [one])[one]] == ["worse"]
    assert len(seen) == 1


def test_an_adapter_that_is_not_here_is_revoked_by_its_name(store: Store) -> None:
    _, two = store.stages("toy").values()
    adopt(store, parse_statements(_file(_statement())))
    (found,) = revocations(store, [two])[two]
    assert found.mark(two) == "revoked ancestor toy 9 far: leaked"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": 1, "statements": []' + b" " * 1_000_001 + b"}",
        json.dumps({"schema": 2, "statements": []}).encode(),
        _file(_statement(kind="praised")),
        _file(_statement(digest="sha256:../../etc")),
        _file(_statement(created="yesterday")),
        _file(_statement(payload={"reason": "\x1b[2J", "label": "x", "withdraws": []})),
        _file(_statement(payload={"reason": "x" * 2001, "label": "x", "withdraws": []})),
        _file(_statement(payload={"reason": "see /home/me/run", "label": "x", "withdraws": ["a" * 16]})),
        _file(_statement(payload={"reason": "/home/me/run", "label": "x", "withdraws": []})),
        _file(_statement(kind="withdrawn")),
        _file(_statement(more=1)),
    ],
)
def test_what_is_no_file_of_statements_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="is not what this version understands"):
        parse_statements(data, "hf://acme/toy")


def test_a_damaged_statement_is_not_passed_over(store: Store) -> None:
    one, two = store.stages("toy").values()
    adopt(store, [Statement.model_validate(_statement(digest=one))])
    (path,) = (store.root / "attest").glob("*/*.json")
    path.write_text(path.read_text().replace("leaked", ""))
    with pytest.raises(IntegrityError, match="whether it is revoked is not known"):
        revocations(store, [two])


def test_the_command_takes_it_back(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--registry", str(store.root)]
    assert run(["revoke", "1", "--reason", "wrong data", *where]) == 0
    capsys.readouterr()
    assert run(["revoke", "1", "--reason", "right after all", "--withdraw", "--json", *where]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["withdrawn"] is True
    assert [item["reason"] for item in value["revocations"]] == ["wrong data"]
    assert run(["show", "1", *where]) == 0
    assert "wrong data" not in capsys.readouterr().out
    assert run(["revoke", "1", "--reason", "x", "--withdraw", *where]) == 3
