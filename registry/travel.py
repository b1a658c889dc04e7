"""What is said about adapters and travels with them over the Hub: it can only be added.

A set of such things means the same in whatever order it arrived, and two sides are joined by taking the union.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ..core.digest import PREFIX, canonical_json, digest_json, short
from ..core.errors import ConfigError, IntegrityError
from ..core.files import disk_errors, write_json
from ..core.strict_json import parse_json
from .record import UTC_TIME, Digest, first_fault
from .store import Store

MAX_TRAVEL_BYTES = 1_000_000
"""Largest file of what is said, written or read."""


class Travelling(BaseModel):
    """One thing said about one adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Digest
    kind: str
    created: str = Field(pattern=UTC_TIME)
    """UTC, to the second."""

    @property
    def id(self) -> str:
        """First 16 hex digits of the digest of what it says."""
        return short(digest_json(self.model_dump(mode="json")), 16)


T = TypeVar("T", bound=Travelling)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    statements: list[JsonValue] = Field(max_length=10_000)


def in_order(said: Iterable[T]) -> list[T]:
    """Each once, oldest first."""
    return sorted({item.id: item for item in said}.values(), key=lambda item: (item.created, item.id))


def keep(store: Store, said: Iterable[T], known: Callable[[str], Iterable[T]]) -> list[T]:
    """Keep in the registry what it does not know; return that.

    Args:
        store: The registry; the adapters need not be held.
        said: What to keep.
        known: What the registry knows of a digest.
    """
    given = {(item.digest, item.id): item for item in said}
    there = {digest: {item.id for item in known(digest)} for digest in {digest for digest, _ in given}}
    new = [item for (digest, name), item in given.items() if name not in there[digest]]
    for item in new:
        path = store.root / "attest" / item.digest.removeprefix(PREFIX) / f"{item.kind}-{item.id}.json"
        with disk_errors(path.parent):
            write_json(path, {"schema": 1, **item.model_dump(mode="json")})
    return new


def to_bytes(said: Iterable[Travelling]) -> bytes:
    """As it travels: canonical JSON, equal sets giving equal bytes."""
    return canonical_json({"schema": 1, "statements": [item.model_dump(mode="json") for item in in_order(said)]})


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
            next_step="ask its owner what was meant; a newer plyfold may read it",
        ) from error
