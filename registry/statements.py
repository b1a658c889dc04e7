"""What is said about whether an adapter should be used: statements that travel with it and can only be added.

A statement revokes an adapter, or withdraws earlier revocations by naming them, so that order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..core.digest import PREFIX
from ..core.errors import ConfigError, IntegrityError
from .ledger import Attestation
from .record import check_portable, first_fault
from .store import Store
from .travel import Travelling, in_order, keep, parse

REVOKED = "revoked"
"""Kind of the attestations that revoke."""
WITHDRAWN = "withdrawn"
"""Kind of the attestations that take revocations back."""

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


class Statement(Travelling):
    """One statement about one adapter."""

    kind: Literal["revoked", "withdrawn"]
    payload: Said

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == WITHDRAWN) != bool(self.payload.withdraws):
            raise ValueError("a withdrawal names what it withdraws, a revocation nothing")
        check_portable(self.payload.reason)
        return self


def statements(store: Store, digest: str) -> list[Statement]:
    """All statements known about an adapter, held or not, oldest first.

    Raises:
        IntegrityError: One of them is not readable.
    """
    return in_order(_read(item) for item in store.said(digest) if item.kind in (REVOKED, WITHDRAWN))


def standing(known: Iterable[Statement]) -> list[Statement]:
    """The revocations among statements that no other of them withdraws."""
    said = list(known)
    withdrawn = {name for item in said for name in item.payload.withdraws}
    return [item for item in said if item.kind == REVOKED and item.id not in withdrawn]


def adopt(store: Store, said: Iterable[Statement]) -> list[Statement]:
    """Keep statements, also about adapters that are not held here; return those that were not known."""
    return keep(store, said, lambda digest: statements(store, digest))


def parse_statements(data: bytes, where: object = "") -> list[Statement]:
    """Read statements from untrusted bytes.

    Raises:
        IntegrityError: Too large, not JSON, or not statements this version understands.
    """
    return list(parse(data, Statement, "revocations.json", where))


def _read(item: Attestation) -> Statement:
    try:
        return Statement.model_validate(item.to_json())
    except (ValueError, ConfigError) as error:
        raise IntegrityError(
            "a statement about an adapter is not readable, so whether it is revoked is not known",
            where=f"attest/{item.digest.removeprefix(PREFIX)}",
            found=first_fault(error),
            next_step="remove that file, or fetch the adapter again",
        ) from error
