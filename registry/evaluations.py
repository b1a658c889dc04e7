"""Scores that travel with an adapter: what was attested about it, joined with what others measured.

Like revocations, evaluations can only be added, and two sides are joined by taking the union. They are claims of those
who measured; an adapter's own record never depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ..core.digest import PREFIX, canonical_json, digest_json, short
from ..core.errors import ConfigError, IntegrityError
from ..core.files import disk_errors, write_json
from .ledger import Attestation, read_attestations
from .record import CURRICULUM_NAME, DataRef, Digest, Metric, Record, check_portable
from .scores import EVAL
from .store import Store

MAX_EVALUATIONS_BYTES = 1_000_000
"""Largest file of evaluations read or written."""


class _Measured(BaseModel):
    """What an evaluation has to say; more may stand beside it, such as the engine."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    curriculum: str = Field(pattern=CURRICULUM_NAME)
    variant: str = Field(pattern=r"^(base|\d{1,3}(\+\d{1,3})*)$", max_length=200)
    base: str = Field(pattern=r"^[\w./-]{1,200}@[0-9a-f]{40}$")
    inputs: dict[str, Digest]
    data: DataRef | None = None
    metrics: list[Metric] = Field(min_length=1, max_length=100)


class Evaluation(BaseModel):
    """One measurement of a variant, kept with its last stage (the base's with the first stage)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Digest
    kind: Literal["eval"] = "eval"
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    """UTC, to the second."""
    payload: dict[str, JsonValue]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _Measured.model_validate(self.payload)
        check_portable(self.payload)
        for text in _texts(self.payload):
            if not text.isprintable() or len(text) > 2000:
                raise ValueError("a text of more than a line, or 2,000 characters")
        return self

    @property
    def id(self) -> str:
        """First 16 hex digits of the digest of what it says."""
        return short(digest_json(self.model_dump(mode="json")), 16)

    def is_about(self, digest: str, record: Record) -> bool:
        """Is it of this adapter, on the base and with no other adapters than those its record names?"""
        measured = _Measured.model_validate(self.payload)
        named = {digest, *(parent.digest for parent in record.parents), *record.requires}
        fits = measured.base == f"{record.base.repo}@{record.base.revision}" and set(measured.inputs.values()) <= named
        return self.digest == digest and fits

    def to_attestation(self) -> Attestation:
        """The same as the registry keeps it."""
        return Attestation(digest=self.digest, kind=self.kind, created=self.created, payload=dict(self.payload))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    evaluations: list[Evaluation] = Field(max_length=10_000)


def evaluations(store: Store, digest: str) -> list[Evaluation]:
    """The evaluations kept with an adapter that can travel, oldest first; those of other tools stay where they are.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    folder = store.root / "attest"
    if not (folder / digest.removeprefix(PREFIX)).is_dir():
        return []
    found = []
    for item in read_attestations(folder, digest):
        if item.kind == EVAL:
            try:
                found.append(Evaluation.model_validate(item.to_json()))
            except (ValidationError, ConfigError):
                continue
    return sorted(found, key=lambda item: (item.created, item.id))


def adopt_evaluations(store: Store, said: Iterable[Evaluation]) -> list[Evaluation]:
    """Keep evaluations; return those that were not known."""
    new = [item for item in {item.id: item for item in said}.values() if item not in evaluations(store, item.digest)]
    for item in new:
        path = store.root / "attest" / item.digest.removeprefix(PREFIX) / f"{EVAL}-{item.id}.json"
        with disk_errors(path.parent):
            write_json(path, {"schema": 1, **item.model_dump(mode="json")})
    return new


def evaluations_to_bytes(said: Iterable[Evaluation]) -> bytes:
    """As they travel: canonical JSON, equal sets giving equal bytes; of thousands, the newest that a file may hold."""
    rows = sorted({item.id: item for item in said}.values(), key=lambda item: (item.created, item.id))
    while True:
        data = canonical_json({"schema": 1, "evaluations": [item.model_dump(mode="json") for item in rows]})
        if len(data) <= MAX_EVALUATIONS_BYTES:
            return data
        rows = rows[len(rows) // 4 or 1 :]


def parse_evaluations(data: bytes, where: object = "") -> list[Evaluation]:
    """Read evaluations from untrusted bytes.

    Raises:
        IntegrityError: Too large, not JSON, or not evaluations this version understands.
    """
    try:
        if len(data) > MAX_EVALUATIONS_BYTES:
            raise ValueError("too large")
        return _File.model_validate(json.loads(data)).evaluations
    except (ValueError, RecursionError, ConfigError) as error:
        first = error.errors(include_url=False, include_input=False)[0] if isinstance(error, ValidationError) else None
        raise IntegrityError(
            "not a file of evaluations this version understands",
            where=where,
            expected="schema 1 of evaluations.json",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)[:80],
            next_step="ask its owner what was meant; a newer plyfold may read it",
        ) from error


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
