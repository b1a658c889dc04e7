"""What the registry knows about the stages of a merge: scores, ancestry, and where the selection departs from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.digest import short
from ..core.errors import IntegrityError, NotFoundError
from ..registry.revocation import revocations
from ..registry.scores import scores, variant_name
from ..serving.bases import assumed, shared_base

if TYPE_CHECKING:
    from ..registry.record import Metric
    from ..registry.store import Entry, Store
    from ..serving.variants import Variant


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
    warnings: tuple[str, ...]
    """What a selection of stages leaves out, or mixes."""


def read_lineage(store: Store, variant: Variant, entries: tuple[Entry, ...]) -> Lineage:
    """Look up scores and parents, and say where the selection departs from what was trained."""
    selected = {entry.digest: number for entry, number in zip(entries, variant.stages, strict=True)}
    measured = scores(store, variant.curriculum)
    ancestry, warnings = [], []
    for entry, number in zip(entries, variant.stages, strict=True):
        parents = [parent.digest for parent in entry.record.parents if parent.role == "active_during_training"]
        numbers = []
        for digest in parents:
            below = _number_of(store, digest)
            numbers.append(below)
            name = f"stage {below}" if below else f"an adapter ({short(digest)})"
            if digest in selected:
                continue
            if below in variant.stages:
                now = next(each for each, at in selected.items() if at == below)
                warnings.append(
                    f"stage {number} was trained on another {name} ({short(digest)}) than the one merged here "
                    f"({short(now)}): train it again"
                )
            else:
                warnings.append(
                    f"stage {number} was trained on top of {name}, which is left out: this model was never trained"
                )
        below_numbers = [each for each in numbers if each]
        scored_as = variant_name([*below_numbers, number])
        metrics = measured.get(scored_as) or entry.record.metrics
        ancestry.append(
            Ancestry(
                digest=entry.digest,
                trained_on=variant_name(below_numbers),
                scored_as=scored_as,
                accuracy=_metric(metrics, "accuracy"),
                tokens=_metric(metrics, "tokens"),
            )
        )
    revoked = [item for found in revocations(store, selected).values() for item in found]
    warnings += [f"revoked: {item.label} ({short(item.digest)}): {item.reason}" for item in dict.fromkeys(revoked)]
    warnings += assumed(entries)
    quantisation = shared_base(entries).quantisation or {}
    return Lineage(
        variant=variant.name,
        ancestry=tuple(ancestry),
        licence=", ".join(sorted({entry.record.licence for entry in entries})),
        quantisation=", ".join(f"{key} {value}" for key, value in sorted(quantisation.items())),
        warnings=tuple(warnings),
    )


def _number_of(store: Store, digest: str) -> int | None:
    try:
        stage = store.peek(digest).record.stage
    except (NotFoundError, IntegrityError):
        return None
    return stage.number if stage else None


def _metric(metrics: list[Metric], name: str) -> float | None:
    return next((metric.value for metric in metrics if metric.name == name), None)
