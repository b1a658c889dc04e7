"""What lies beside an adapter in its repository: nothing said is dropped, and a signature is not replaced unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import IntegrityError
from plyfold.registry.hub.sidecars import EVALUATIONS_FILE, REVOCATIONS_FILE, companions
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import revocations, revoke, withdraw
from plyfold.registry.trust.statements import Statement, adopt, parse_statements


def _heard(store: Store, files: dict[str, bytes]) -> list[Statement]:
    return adopt(store, parse_statements(files[REVOCATIONS_FILE]))


@pytest.fixture
def stores(tmp_path: Path, make_record: Any, make_adapter: Any) -> tuple[Store, Store, str]:
    """Two registries that hold the same adapter."""
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    folder, record = make_adapter(tmp_path / "adapter"), make_record(1, "structure", [])
    digest = here.publish(folder, record)
    assert there.publish(folder, record) == digest
    return here, there, digest


def test_an_adapter_of_which_nothing_is_said_has_none(stores: tuple[Store, Store, str]) -> None:
    here, _, digest = stores
    assert companions(here, digest, {}, "acme/toy") == {}


def test_two_who_revoke_end_with_both_reasons(stores: tuple[Store, Store, str]) -> None:
    here, there, digest = stores
    revoke(here, digest, "leak")
    revoke(there, digest, "wrong base")
    first = companions(here, digest, {}, "acme/toy")
    second = companions(there, digest, first, "acme/toy")
    assert set(first) == set(second) == {REVOCATIONS_FILE}
    assert companions(here, digest, second, "acme/toy") == second  # nothing new to say
    assert [item.payload.reason for item in _heard(here, second)] == ["wrong base"]
    _heard(there, second)
    assert revocations(here, [digest]) == revocations(there, [digest])
    withdraw(here, digest, "it was another run")
    _heard(there, companions(here, digest, second, "acme/toy"))
    assert revocations(there, [digest]) == {}


def test_what_cannot_be_read_there_is_never_overwritten(stores: tuple[Store, Store, str]) -> None:
    here, _, digest = stores
    revoke(here, digest, "leak")
    for name in (REVOCATIONS_FILE, EVALUATIONS_FILE):
        with pytest.raises(IntegrityError):
            companions(here, digest, {name: b"{}"}, "acme/toy")
