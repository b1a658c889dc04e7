"""What is said about adapters and travels with them over the Hub: it can only be added.

A set of such things means the same in whatever order it arrived, and two sides are joined by taking the union. All that
is known of one adapter is one file, `attest/<hex>/statements.json`, and bounded: a repository can fill its share, but
push nothing out that was said here, was signed by a key that was named, or was known before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ...core.console import warn
from ...core.disk.digest import PREFIX, canonical_json, digest_json, short
from ...core.disk.files import disk_errors
from ...core.errors import ConfigError, IntegrityError
from ...core.reading.strict_json import parse_json
from ..record import UTC_TIME, Digest, first_fault, utc_now
from ..store import Store
from ..store.attestations import TRAVELLING_FILE, Attestation, read_attestations, travelling_alone, write_together
from .trust import NAMED_KEYS, Signature, Signer, can_verify, named_before, sign_bytes, signer_of

MAX_TRAVEL_BYTES = 1_000_000
"""Largest file of what is said, written or read."""
MEND_FILE = (
    "a newer plyfold may read it; else its owner puts what is known in its place: plyfold push --replace-statements"
)
"""The next step where a repository's file of statements cannot be read."""


class SharedStatement(BaseModel):
    """One thing said about one adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Digest
    kind: str
    created: str = Field(pattern=UTC_TIME)
    """UTC, to the second."""
    signature: Signature | None = None
    """By whoever says it, over all the rest."""

    @property
    def id(self) -> str:
        """First 16 hex digits of the digest of what it says, signed or not."""
        return short(digest_json(self.model_dump(mode="json", exclude={"signature"})), 16)

    @property
    def signer(self) -> str | None:
        """`sha256:` of the key that signed it, verified; None where nobody did, or it cannot be verified here."""
        return signer_of(self._body(), self.signature) if self.signature else None

    @property
    def claimed(self) -> str:
        """`sha256:` of the key that is said to have signed it; empty where none is."""
        return self.signature.claimed if self.signature else ""

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=None if self.signature else {"signature"})

    def signed(self, signer: Signer) -> Self:
        """The same, signed.

        Raises:
            NotFoundError, ConfigError, AuthError: No such key, or one that cannot be used.
        """
        return self.model_copy(update={"signature": sign_bytes(self._body(), signer)})

    def sound(self) -> Self:
        """Itself; without its signature where that is not of its key."""
        false = self.signature and can_verify() and not self.signer
        return self.model_copy(update={"signature": None}) if false else self

    def _body(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))


T = TypeVar("T", bound=SharedStatement)


@dataclass(frozen=True)
class Known(Generic[T]):
    """Something said, and whether it was said here."""

    said: T
    own: bool = False
    verified: bool = False
    """Its signature was verified when it was kept."""

    @cached_property
    def name(self) -> tuple[str, str]:
        """What it says, and who is said to have signed it."""
        return self.said.id, self.said.claimed

    @property
    def signer(self) -> str | None:
        """As of what is said; verified once, since a strange curve takes a millisecond."""
        return self.said.claimed if self.verified else self.said.signer

    def counts(self, keys: Collection[str]) -> bool:
        """Was it said here, or signed by one of these keys?"""
        return self.own or (self.said.claimed in keys and self.signer is not None)

    def sound(self) -> Known[T]:
        """Itself, its signature verified; without that where it is not of its key."""
        if self.verified or not self.said.signature or not can_verify():
            return self
        said = self.said.sound()
        return replace(self, said=said, verified=said.signature is not None)


@dataclass(frozen=True)
class Sort(Generic[T]):
    """One sort of what travels."""

    kinds: tuple[str, ...]
    """Of the attestations that hold it."""
    read: Callable[[Attestation], T | None]
    """None for what another tool attested."""
    rank: Callable[[Sequence[Known[T]], Collection[str]], list[int]]
    """What goes last where there is too much of it: a number for each, the lowest kept first; given the keys.

    What was said here or is signed by one of the keys comes before all the rest.
    """
    noun: str
    """What a message calls several of it."""
    max_kept: int
    max_bytes: int
    """Most of one adapter that is kept, or sent."""
    max_heard: int
    max_heard_bytes: int
    """Of that, most of what neither was said here nor is signed by a named key: every question reads all of it."""

    def known(self, store: Store, digest: str) -> list[Known[T]]:
        """All that is known of an adapter, held or not, oldest first."""
        return self._of(store.attestations_of(digest))

    def _of(self, attested: Iterable[Attestation]) -> list[Known[T]]:
        chosen = [item for item in attested if item.kind in self.kinds]
        known = [Known(said, item.own, item.verified) for item in chosen if (said := self.read(item)) is not None]
        # The one file holds each once; what was attested here may stand in it again, signed.
        return known if all(item.travels for item in chosen) else join_statements(known)

    def bounded(self, known: Sequence[Known[T]], keys: Collection[str]) -> list[Known[T]]:
        """As much as one adapter may have, in the order given; equal ranks keep what comes first."""
        ranked = sorted(zip(self.rank(known, keys), range(len(known)), strict=True))
        kept, room, heard, heard_room = list[int](), self.max_bytes, 0, self.max_heard_bytes
        for _, index in ranked:
            counts = known[index].counts(keys)
            if len(kept) == self.max_kept or (not counts and heard == self.max_heard):
                break  # what counts was ranked first
            size = len(canonical_json(known[index].said.to_json()))
            if size <= (room if counts else min(room, heard_room)):
                kept.append(index)
                room -= size
                heard += not counts
                heard_room -= 0 if counts else size
        return [known[index] for index in sorted(kept)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    statements: list[JsonValue] = Field(max_length=10_000)


def join_statements(known: Iterable[Known[T]]) -> list[Known[T]]:
    """Each once by each who signed it, unsigned only where nobody did; oldest first."""
    found: dict[tuple[str, str], Known[T]] = {}
    for item in known:
        there = found.setdefault(item.name, item)
        if item.own and not there.own:
            found[item.name] = replace(there, own=True)
    signed = {name for name, signer in found if signer}
    rows = [item for (name, signer), item in found.items() if signer or name not in signed]
    return sorted(rows, key=lambda item: (item.said.created, item.said.id, item.said.claimed))


def in_order(said: Iterable[T]) -> list[T]:
    """Each once, oldest first."""
    return [item.said for item in join_statements(Known(each) for each in said)]


def keep(store: Store, said: Iterable[T], sort: Sort[T], *, own: bool = False) -> list[T]:
    """Keep in the registry what it does not know, as far as there is room; return that, and warn of what is left out.

    Args:
        store: The registry; the adapters need not be held.
        said: What to keep.
        sort: What it is.
        own: It was said here.

    Raises:
        IntegrityError: What is known of one of the adapters is not readable.
        NotAllowedError: This user may not write to the registry.
    """
    given: dict[str, list[Known[T]]] = {}
    for item in said:
        given.setdefault(item.digest, []).append(Known(item, own))
    new, left_out = list[T](), dict[str, int]()
    for digest, items in given.items():
        if not fresh(items, sort.known(store, digest)):
            continue
        with store.locked():
            kept, left_out[digest] = _keep(store, digest, sort, items)
        new += kept
    _say_left_out(sort, left_out)
    return new


def sign_own(store: Store, digest: str, signer: Signer, *sorts: Sort[Any]) -> None:
    """Sign what was said and measured here about an adapter, and is not signed by this key yet.

    What was heard stays as it is: signing it would make another's word that of the key.

    Raises:
        NotFoundError, ConfigError, AuthError: No such key, or one that cannot be used.
        IntegrityError: What is known of the adapter is not readable.
    """
    for sort in sorts:
        known = sort.known(store, digest)
        fresh_ones = [item.said.signed(signer) for item in known if item.own]
        there = {item.name for item in known}
        keep(store, [item for item in fresh_ones if Known(item).name not in there], sort, own=True)


def compact(store: Store, digest: str, *sorts: Sort[Any]) -> None:
    """Make one file of what an older registry has in many, bounded as one's own: all of it counted so far."""
    with store.locked():
        for sort in sorts:
            roomy = replace(sort, max_heard=sort.max_kept, max_heard_bytes=sort.max_bytes)
            _say_left_out(sort, {digest: _keep(store, digest, roomy, [])[1]})


def remember_keys(store: Store, digest: str, keys: Collection[str]) -> None:
    """Note with which keys an adapter was pulled: only what they sign lifts something of it from then on."""
    if named_before(store.attestations_of(digest)) != frozenset(keys):
        with store.locked():
            attested = [item for item in _attested(store, digest) if item.kind != NAMED_KEYS]
            payload = {"keys": sorted(keys)}
            _write(store, [*attested, Attestation(digest=digest, kind=NAMED_KEYS, created=utc_now(), payload=payload)])


def _say_left_out(sort: Sort[Any], counted: Mapping[str, int]) -> None:
    """Warn of what was not kept; adapter -> how much of it."""
    if of := [digest for digest, count in counted.items() if count]:
        more = f" and {len(of) - 1:,} more adapters" if len(of) > 1 else ""
        warn(
            f"{sum(counted.values()):,} {sort.noun} about {short(of[0])}{more} were left out: at most "
            f"{sort.max_kept} are kept of one adapter, of others {sort.max_heard} in {sort.max_heard_bytes:,} bytes"
        )


def _keep(store: Store, digest: str, sort: Sort[T], items: Iterable[Known[T]]) -> tuple[list[T], int]:
    """What is new, and how many were left out; under the store's lock."""
    attested, alone = _attested(store, digest), travelling_alone(store.layout.attest, digest)
    before, keys = sort._of(attested), named_before(attested)
    names = {item.name for item in before}
    every = [*before, *fresh(join_statements(items), before)]
    chosen = sort.bounded(every, keys)
    both = join_statements(item.sound() for item in chosen)
    rows = [
        Attestation(
            digest=digest,
            kind=item.said.kind,
            created=item.said.created,
            payload=item.said.model_dump(mode="json")["payload"],
            own=item.own,
            signature=item.said.signature.model_dump() if item.said.signature else None,
            verified=item.verified,
        )
        for item in both
    ]
    others = [item for item in attested if item.kind not in sort.kinds]
    _write(store, [*others, *rows])
    for path in alone:
        if path.name.partition("-")[0] in sort.kinds:
            path.unlink(missing_ok=True)
    return [item.said for item in both if item.name not in names], len(every) - len(chosen)


def fresh(items: Iterable[Known[T]], before: Iterable[Known[T]]) -> list[Known[T]]:
    """What is not known yet, or not yet as said here."""
    own = {item.name: item.own for item in before}
    known = own.keys() | {(name, "") for name, _ in own}
    return [item for item in items if item.name not in known or (item.own and not own.get(item.name, True))]


def _attested(store: Store, digest: str) -> list[Attestation]:
    """What is in the one file of an adapter, and what an older registry has beside it."""
    folder = store.layout.attest
    return [item for item in read_attestations(folder, digest) if item.travels]


def _write(store: Store, attested: Sequence[Attestation]) -> None:
    if not attested:
        return
    digest = attested[0].digest
    path = store.layout.attest / digest.removeprefix(PREFIX) / TRAVELLING_FILE
    with disk_errors(path.parent):
        write_together(path, digest, attested)


def to_bytes(said: Iterable[SharedStatement]) -> bytes:
    """As it travels: canonical JSON, equal sets giving equal bytes."""
    return canonical_json({"schema": 1, "statements": [item.to_json() for item in in_order(said)]})


def parse(data: bytes, kind: type[T], file: str, where: object) -> Sequence[T]:
    """Read what `to_bytes` wrote from untrusted bytes.

    Args:
        data: The bytes.
        kind: Of each thing said.
        file: The file's usual name, for messages.
        where: Where it came from.

    Raises:
        IntegrityError: Too large, not JSON, or not what this version understands.
    """
    try:
        file_read = _File.model_validate(parse_json(data, max_bytes=MAX_TRAVEL_BYTES))
        return [kind.model_validate(item) for item in file_read.statements]
    except (ValueError, ConfigError) as error:
        raise IntegrityError(
            f"{file} is not what this version understands",
            where=where,
            expected=f"schema 1 of {file}",
            found=first_fault(error),
            next_step=MEND_FILE,
        ) from error
