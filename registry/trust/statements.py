"""What is said about whether an adapter should be used: statements that travel with it and can only be added.

A statement revokes an adapter, or withdraws earlier revocations by naming them, so that order does not matter. Anybody
may revoke; whose withdrawals count is told by `trust`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.disk.digest import PREFIX
from ...core.errors import ConfigError, IntegrityError
from ..record import check_portable, first_fault
from ..store import Store
from ..store.attestations import Attestation
from .shared_statements import Known, SharedStatement, Sort, join_statements, keep, parse
from .trust import Trust, lifts

REVOKED: Final = "revoked"
"""Kind of the attestations that revoke."""
WITHDRAWN: Final = "withdrawn"
"""Kind of the attestations that take revocations back."""

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class _StatementModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RevocationPayload(_StatementModel):
    """What a statement says."""

    reason: _Text
    label: _Text
    """The adapter's name for people, who may not hold it: `gsm8k 1 structure`."""
    withdraws: tuple[_Id, ...] = ()
    """Ids of the revocations it takes back."""


class Statement(SharedStatement):
    """One statement about one adapter."""

    kind: Literal["revoked", "withdrawn"]
    payload: RevocationPayload

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
    return [item.said for item in STATEMENTS.known(store, digest)]


def standing(known: Iterable[Known[Statement]], keys: Collection[str] = ()) -> list[Statement]:
    """The revocations among statements about one adapter that no other of them takes back.

    Args:
        known: The statements.
        keys: Fingerprints of the keys whose withdrawals count; none means that nobody named any.
    """
    kept = list(known)
    taking: dict[str, set[str | None]] = {}
    for each in kept:
        signer = each.signer if each.said.payload.withdraws else None
        for name in each.said.payload.withdraws:
            taking.setdefault(name, set()).add(signer)
    revoked = [each.said for each in kept if each.said.kind == REVOKED]
    if not taking and not any(item.signature for item in revoked):
        return revoked  # as almost always; ids are digests, and take their time
    # Whoever adds a signature of theirs to another's revocation has to take it back as well: every copy counts.
    claims: dict[str, set[str]] = {}
    for item in revoked:
        claims.setdefault(item.id, set()).add(item.claimed)
    once = {item.id: item for item in revoked}
    return [item for name, item in once.items() if not lifts(taking.get(name, ()), claims[name], keys)]


def standing_here(
    store: Store, digest: str, more: Iterable[Statement] = (), trust: Trust | None = None
) -> list[Statement]:
    """The revocations of an adapter that no withdrawal that counts takes back, by what is known here.

    Args:
        store: The registry.
        digest: The adapter, held or not.
        more: Statements about it that are not kept yet.
        trust: The keys that are named; by default those that PLYFOLD_PUBLIC_KEY names.

    Raises:
        IntegrityError: A statement is not readable.
        ConfigError, NotFoundError: A key that is named cannot be used.
    """
    known = STATEMENTS.known(store, digest)
    if news := list(more):
        known = join_statements([*known, *map(Known, news)])
    withdrawn = any(item.said.kind == WITHDRAWN for item in known)  # keys are only looked at where they decide
    return standing(known, (trust or Trust()).keys(store, digest) if withdrawn else ())


def adopt(store: Store, said: Iterable[Statement], *, own: bool = False) -> list[Statement]:
    """Keep statements, also about adapters that are not held here; return those that were not known.

    Args:
        store: The registry.
        said: The statements.
        own: They are made here.
    """
    return keep(store, said, STATEMENTS, own=own)


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


def _rank(known: Sequence[Known[Statement]], keys: Collection[str]) -> list[int]:
    """What keeps an adapter refused goes last, and what was said here or signed by a named key after all the rest."""
    up = {item.id for item in standing(known, keys)}

    def of(item: Known[Statement]) -> int:
        kind = 0 if item.said.id in up else 1 if item.said.kind == WITHDRAWN else 2
        return kind if item.counts(keys) else 3 + kind

    return [of(item) for item in known]


STATEMENTS = Sort(
    kinds=(REVOKED, WITHDRAWN),
    read=_read,
    rank=_rank,
    noun="statements",
    max_kept=50,
    max_bytes=100_000,
    max_heard=16,
    max_heard_bytes=24_000,
)
