"""What is said about whether an adapter should be used: statements that travel with it and can only be added.

A statement revokes an adapter, or withdraws earlier revocations by naming them. A set of statements therefore means
the same in whatever order it arrived, and two sides are joined by taking the union.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.digest import PREFIX, canonical_json, digest_json, short
from ..core.errors import ConfigError, IntegrityError
from ..core.files import disk_errors, write_json
from .ledger import Attestation
from .record import Digest, check_portable
from .store import Store

REVOKED = "revoked"
"""Kind of the attestations that revoke."""
WITHDRAWN = "withdrawn"
"""Kind of the attestations that take revocations back."""
MAX_STATEMENTS_BYTES = 1_000_000
"""Largest file of statements read or written."""

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Said(_Part):
    """What a statement says."""

    reason: _Text
    label: _Text
    """The adapter's name for people, who may not hold it: `gsm8k 1 structure`."""
    withdraws: tuple[_Id, ...] = ()
    """Ids of the revocations it takes back."""


class Statement(_Part):
    """One statement about one adapter."""

    digest: Digest
    kind: Literal["revoked", "withdrawn"]
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    """UTC, to the second."""
    payload: Said

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == WITHDRAWN) != bool(self.payload.withdraws):
            raise ValueError("a withdrawal names what it withdraws, a revocation nothing")
        check_portable(self.payload.reason)
        return self

    @property
    def id(self) -> str:
        """First 16 hex digits of the digest of what it says."""
        return short(digest_json(self.model_dump(mode="json")), 16)


class _File(_Part):
    schema_: Literal[1] = Field(alias="schema")
    statements: list[Statement] = Field(max_length=10_000)


def statements(store: Store, digest: str) -> list[Statement]:
    """All statements known about an adapter, held or not, oldest first.

    Raises:
        IntegrityError: One of them is not readable.
    """
    found = (_read(item) for item in store.said(digest) if item.kind in (REVOKED, WITHDRAWN))
    return sorted(found, key=lambda item: (item.created, item.id))


def standing(known: Iterable[Statement]) -> list[Statement]:
    """The revocations among statements that no other of them withdraws."""
    said = list(known)
    withdrawn = {name for item in said for name in item.payload.withdraws}
    return [item for item in said if item.kind == REVOKED and item.id not in withdrawn]


def adopt(store: Store, said: Iterable[Statement]) -> list[Statement]:
    """Keep statements, also about adapters that are not held here; return those that were not known."""
    given = {(item.digest, item.id): item for item in said}
    known = {digest: {item.id for item in statements(store, digest)} for digest in {digest for digest, _ in given}}
    new = [item for (digest, name), item in given.items() if name not in known[digest]]
    for item in new:
        path = store.root / "attest" / item.digest.removeprefix(PREFIX) / f"{item.kind}-{item.id}.json"
        with disk_errors(path.parent):
            write_json(path, {"schema": 1, **item.model_dump(mode="json")})
    return new


def to_bytes(said: Iterable[Statement]) -> bytes:
    """As they travel: canonical JSON, equal sets giving equal bytes."""
    rows = sorted({item.id: item for item in said}.values(), key=lambda item: (item.created, item.id))
    return canonical_json({"schema": 1, "statements": [item.model_dump(mode="json") for item in rows]})


def parse_statements(data: bytes, where: object = "") -> list[Statement]:
    """Read statements from untrusted bytes.

    Raises:
        IntegrityError: Too large, not JSON, or not statements this version understands.
    """
    try:
        if len(data) > MAX_STATEMENTS_BYTES:
            raise ValueError("too large")
        return _File.model_validate(json.loads(data)).statements
    except (ValueError, RecursionError, ConfigError) as error:
        raise IntegrityError(
            "not a file of revocations this version understands",
            where=where,
            expected="schema 1 of revocations.json",
            found=_fault(error),
            next_step="ask its owner what was meant; a newer plyfold may read it",
        ) from error


def _read(item: Attestation) -> Statement:
    try:
        return Statement.model_validate(item.to_json())
    except (ValueError, ConfigError) as error:
        raise IntegrityError(
            "a statement about an adapter is not readable, so whether it is revoked is not known",
            where=f"attest/{item.digest.removeprefix(PREFIX)}",
            found=_fault(error),
            next_step="remove that file, or fetch the adapter again",
        ) from error


def _fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)[:80]
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
