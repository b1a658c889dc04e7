"""What a card tells beside the record: where the ancestors lie, what was measured later, who revoked the adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ....adapters.spec import COMPOSITION_FILE
from ....core.reading.strict_json import MalformedJSONError, read_json
from ...lineage.scores import EVAL, Scores, read_score, scored, side_by_side
from ...lineage.shared_scores import SharedScore
from ...record import MAX_RECORD_BYTES, DataRef, Metric, Record
from ...store import Entry, Store
from ...trust.revocation import Revocation
from ...trust.trust import Trust


@dataclass(frozen=True, kw_only=True)
class RelatedAdapter:
    """An adapter that a record names."""

    name: str
    """Curriculum and label: `gsm8k 1 structure`."""
    stage: int | None = None
    """Its number in the same curriculum."""
    r: int = 0
    """Rank."""
    location: str | None = None
    """`hf://org/repo@commit`, where that is known."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about an adapter that its record does not hold."""

    kin: Mapping[str, RelatedAdapter] = field(default_factory=dict)
    """Digest -> adapter that the record names."""
    metrics: tuple[Metric, ...] = ()
    """Scores attested after it was made."""
    data: DataRef | None = None
    """Rows they were measured on, where that is on record."""
    variant: str = ""
    """What was scored, when that is more than this adapter: `1+2`."""
    terms: str = ""
    """What they were measured on and with, and by whom where that was somebody else."""
    apart: tuple[str, ...] = ()
    """What was scored on other terms, which says nothing beside those scores."""
    composition: Mapping[str, Any] = field(default_factory=dict)
    """`composition.json` of a merge."""
    revocations: tuple[Revocation, ...] = ()
    """Those that reach it, nearest first."""


def facts_of(
    store: Store,
    entry: Entry,
    kin: Mapping[str, RelatedAdapter],
    revocations: tuple[Revocation, ...] = (),
    evaluations: Iterable[SharedScore] = (),
) -> Facts:
    """Gather what is known about an adapter of a registry.

    Args:
        store: The registry.
        entry: The adapter.
        kin: Digest -> adapter that the record names.
        revocations: Those that reach it.
        evaluations: What others measured of it.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    found, together = _scores(store, entry, evaluations)
    best = next(iter(found.shown.values()), None)
    return Facts(
        kin=kin,
        metrics=tuple(best.metrics) if best else (),
        data=best.data if best else None,
        variant=best.variant if best and together > 1 else "",
        terms=f"{best.terms}{', measured elsewhere' if best.heard else ''}" if best else "",
        apart=tuple(score.apart_from(found.terms) for others in found.apart.values() for score in others),
        composition=_composition(entry),
        revocations=revocations,
    )


def is_plain_sum(record: Record) -> bool:
    """Is a merge the exact sum of its inputs, so that it scores as they do together?"""
    exact = record.recipe.details.get("method") == "exact"
    return exact and bool(record.parents) and all(parent.scale == 1.0 for parent in record.parents)


def _scores(store: Store, entry: Entry, others: Iterable[SharedScore]) -> tuple[Scores, int]:
    """The scores of just the adapters that are active when this one is used as made; how many these are."""
    record, trust = entry.record, Trust()
    if record.kind == "merge":
        together = {parent.digest for parent in record.parents} if is_plain_sum(record) else set()
    else:
        together = {entry.digest, *(item.digest for item in record.parents if item.role == "active_during_training")}
    base = f"{record.base.repo}@{record.base.revision}"
    said = [item for digest in together & set(store.digests()) for item in store.attestations(digest, EVAL)]
    said += [item.to_attestation() for item in others if item.is_about(entry.digest, record)]
    known = [read_score(item) for item in said if item.payload.get("base") == base and trust.believes(item)]
    fit = (score for score in known if score and set(score.inputs.values()) == together)
    return side_by_side(fit, scored(store, record.curriculum).terms), len(together)


def _composition(entry: Entry) -> Mapping[str, Any]:
    """`composition.json`, or nothing where it is missing or of another shape: the card then tells less."""
    if entry.record.kind != "merge" or all(item.path != COMPOSITION_FILE for item in entry.record.files):
        return {}
    try:
        value = read_json(entry.path / COMPOSITION_FILE, max_bytes=MAX_RECORD_BYTES)
    except (OSError, MalformedJSONError):
        return {}
    return value if isinstance(value, dict) else {}
