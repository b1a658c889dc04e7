"""What the registry knows about the stages of a merge: scores, ancestry, and where the selection departs from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.disk.digest import short
from ..core.errors import IntegrityError, NotFoundError
from ..registry.lineage.contamination import overlaps
from ..registry.lineage.scores import Scores, scored, variant_name
from ..registry.store import Snapshot
from ..registry.trust.revocation import revocations
from .base import assumed, shared_base

if TYPE_CHECKING:
    from ..registry.lineage.contamination import Overlap
    from ..registry.record import Metric
    from ..registry.store import Entry, Store
    from .name import Variant


@dataclass(frozen=True, kw_only=True)
class Ancestry:
    """One stage's place in its curriculum."""

    digest: str
    trained_on: str
    """Variant below it while it trained: `base`, `1`, `1+2`."""
    scored_as: str
    """Variant it completes, which its scores are of."""
    accuracy: float | None
    """Fraction."""
    tokens: float | None
    """Mean output tokens."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What the registry knows about the parts."""

    variant: str
    ancestry: tuple[Ancestry, ...]
    licence: str
    quantisation: str
    terms: str
    """What the scores of `ancestry` were measured on and with; empty where there are none."""
    apart: tuple[str, ...]
    """Scores on other terms, which cannot be compared with those."""
    warnings: tuple[str, ...]
    """What a selection of stages leaves out, or mixes."""


def read_lineage(store: Store, variant: Variant, entries: tuple[Entry, ...]) -> Lineage:
    """Look up scores and parents, and say where the selection departs from what was trained and measured."""
    store = Snapshot.of(store)
    selected = {entry.digest: number for entry, number in zip(entries, variant.stages, strict=True)}
    measured = scored(store, variant.curriculum)
    ancestry: list[Ancestry] = []
    warnings: list[str] = []
    apart: list[str] = []
    heard: list[str] = []
    for entry, number in zip(entries, variant.stages, strict=True):
        trained_on = [item.digest for item in entry.record.parents if item.role == "active_during_training"]
        needed = {digest: _number_of(store, digest, variant) for digest in [*trained_on, *entry.record.requires]}
        scored_as = variant_name([*filter(None, needed.values()), number])
        score = measured.shown.get(scored_as)
        metrics = score.metrics if score else []
        apart += [f"{scored_as}: {other.apart_from(measured.terms)}" for other in measured.apart.get(scored_as, ())]
        heard += [scored_as] if score and score.heard else []
        own = Ancestry(
            digest=entry.digest,
            trained_on=variant_name([below for digest in trained_on if (below := needed[digest])]),
            scored_as=scored_as,
            accuracy=_metric(metrics, "accuracy"),
            tokens=_metric(metrics, "tokens"),
        )
        ancestry.append(own)
        warnings += _departures(selected, number, needed, own)
        if score and score.data:
            warnings += _overlap(number, overlaps(store, selected, score.data))
    revoked = [item for found in revocations(store, selected).values() for item in found]
    warnings += [f"revoked: {item.label} ({short(item.digest)}): {item.reason}" for item in dict.fromkeys(revoked)]
    warnings += assumed(entries)
    quantisation = shared_base(entries).quantisation or {}
    return Lineage(
        variant=variant.name,
        ancestry=tuple(ancestry),
        licence=", ".join(sorted({entry.record.licence for entry in entries})),
        quantisation=", ".join(f"{key} {value}" for key, value in sorted(quantisation.items())),
        terms=_said(measured, heard) if any(own.accuracy is not None for own in ancestry) else "",
        apart=tuple(dict.fromkeys(apart)),
        warnings=tuple(warnings),
    )


def _said(measured: Scores, heard: Sequence[str]) -> str:
    pulled = f"; {', '.join(heard)} measured elsewhere, pulled" if heard else ""
    return f"{measured.terms}{pulled}"


def _overlap(number: int, found: Sequence[Overlap]) -> Iterator[str]:
    """That a stage's score is of rows that some of the selection were trained on, in one line."""
    if found:
        more = f"; so were {', '.join(item.label for item in found[1:])}" if found[1:] else ""
        yield f"the score of stage {number} says little: {found[0]}{more}"


def _departures(
    selected: Mapping[str, int], number: int, needed: Mapping[str, int | None], own: Ancestry
) -> Iterator[str]:
    """What a stage was trained on, or needs to mean what was measured, and the selection does not have."""
    left_out = []
    for digest, below in needed.items():
        now = next((each for each, at in selected.items() if at == below), None)
        if digest in selected:
            continue
        if now:
            yield (
                f"stage {number} was trained on another stage {below} ({short(digest)}) than the one merged here "
                f"({short(now)}): train it again"
            )
        else:
            left_out.append(f"stage {below}" if below else f"an adapter ({short(digest)})")
    if left_out:
        score = f", where it scored {100 * own.accuracy:.1f} %" if own.accuracy is not None else ""
        yield (
            f"stage {number} was trained and measured as {own.scored_as}{score}; "
            f"without {' and '.join(left_out)} this is a model that was never trained"
        )


def _number_of(store: Store, digest: str, variant: Variant) -> int | None:
    """The stage of the variant's curriculum that an adapter is or was."""
    try:
        record = store.read_record(digest).record
    except (NotFoundError, IntegrityError):
        return None
    return record.stage.number if record.stage and record.curriculum == variant.curriculum else None


def _metric(metrics: list[Metric], name: str) -> float | None:
    return next((metric.value for metric in metrics if metric.name == name), None)
