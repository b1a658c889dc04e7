"""Scores that travel with an adapter: what was attested about it, joined with what others measured.

Like revocations, evaluations can only be added, and two sides are joined by taking the union. They are claims of those
who measured; an adapter's own record never depends on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ...core.config import CURRICULUM_NAME
from ...core.errors import ConfigError
from ..record import DataRef, Digest, Metric, Record, check_portable
from ..store import Store
from ..store.attestations import Attestation
from ..trust.shared_statements import Known, SharedStatement, Sort, join_statements, keep, parse
from .scores import EVAL


class _SharedMetrics(BaseModel):
    """What an evaluation has to say; more may stand beside it, such as the engine."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    curriculum: str = Field(pattern=CURRICULUM_NAME)
    variant: str = Field(pattern=r"^(base|\d{1,3}(\+\d{1,3})*)$", max_length=200)
    base: str = Field(pattern=r"^[\w./-]{1,200}@[0-9a-f]{40}$")
    inputs: dict[str, Digest]
    data: DataRef | None = None
    metrics: list[Metric] = Field(min_length=1, max_length=100)


class SharedScore(SharedStatement):
    """One measurement of a variant, kept with its last stage (the base's with the first stage)."""

    kind: Literal["eval"] = "eval"
    payload: dict[str, JsonValue]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _SharedMetrics.model_validate(self.payload)
        check_portable(self.payload)
        for text in _texts(self.payload):
            if not text.isprintable() or len(text) > 2000:
                raise ValueError("a text of more than a line, or 2,000 characters")
        return self

    def is_about(self, digest: str, record: Record) -> bool:
        """Is it of this adapter, on the base and with no other adapters than those its record names?"""
        measured = _SharedMetrics.model_validate(self.payload)
        named = {digest, *(parent.digest for parent in record.parents), *record.requires}
        fits = measured.base == f"{record.base.repo}@{record.base.revision}" and set(measured.inputs.values()) <= named
        return self.digest == digest and fits

    def to_attestation(self) -> Attestation:
        """The same as the registry keeps what came over the Hub."""
        return Attestation(
            digest=self.digest,
            kind=self.kind,
            created=self.created,
            payload=dict(self.payload),
            own=False,
            travels=True,
            signature=self.signature.model_dump() if self.signature else None,
        )


def evaluations(store: Store, digest: str) -> list[SharedScore]:
    """The evaluations kept with an adapter that can travel, oldest first; those of other tools stay where they are.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    return [item.said for item in EVALUATIONS.known(store, digest)]


def adopt_evaluations(store: Store, said: Iterable[SharedScore], *, own: bool = False) -> list[SharedScore]:
    """Keep evaluations; return those that were not known.

    Args:
        store: The registry.
        said: The evaluations.
        own: They were measured here.
    """
    return keep(store, said, EVALUATIONS, own=own)


def parse_evaluations(data: bytes, where: object = "") -> list[SharedScore]:
    """Read evaluations from untrusted bytes.

    Raises:
        IntegrityError: Too large, not JSON, or not evaluations this version understands.
    """
    return list(parse(data, SharedScore, "evaluations.json", where))


def _read(item: Attestation) -> SharedScore | None:
    try:
        return SharedScore.model_validate(item.to_json())
    except (ValidationError, ConfigError):
        return None  # another tool's


def _rank(known: Sequence[Known[SharedScore]], keys: Collection[str]) -> list[int]:
    """Others' oldest go first."""
    age = {item.name: number for number, item in enumerate(reversed(join_statements(known)))}
    return [age.get(item.name, len(known)) + (0 if item.counts(keys) else len(known)) for item in known]


EVALUATIONS = Sort(
    kinds=(EVAL,),
    read=_read,
    rank=_rank,
    noun="scores",
    max_kept=500,
    max_bytes=600_000,
    max_heard=12,
    max_heard_bytes=12_000,
)


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
