"""The registry's record of a composed adapter."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from ..adapters.spec import read_spec
from ..registry.provenance import describe_code
from ..registry.record import Parent, Recipe, Record, Weights
from .base import shared_base

if TYPE_CHECKING:
    from ..merge.compose.write import Composition
    from ..registry.store.store import Entry
    from .variants import Variant


def record_of(composed: Composition, entries: tuple[Entry, ...], variant: Variant, slug: str) -> Record:
    """What the registry says about a composition of its stages, which it names `slug`."""
    plan = composed.prepared.plan
    spec = read_spec(composed.path)
    statistics = composed.prepared.statistics if plan.method == "activation" else None
    return Record(
        kind="merge",
        curriculum=variant.curriculum,
        base=shared_base(entries),
        parents=[
            Parent(role="merge_input", digest=entry.digest, scale=part.weight)
            for entry, part in zip(entries, plan.parts, strict=True)
        ],
        recipe=Recipe(
            details={
                "method": plan.method,
                "settings": {**plan.settings},
                "variant": variant.name,
                "slug": slug,
                "rank": plan.rank,
                "relative_error": composed.certificate.relative,
                **({"statistics": statistics.to_json()} if statistics else {}),
            }
        ),
        code=describe_code(),
        env={
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "machine": platform.machine(),
        },
        weights=Weights(
            digest=composed.digest,
            dtype=spec.dtype,
            r=composed.r,
            alpha=composed.r,
            targets=sorted(spec.config["target_modules"]),
        ),
        licence=", ".join(sorted({entry.record.licence for entry in entries})),
        # The clock would give the same merge another identity each time it is made.
        created=max(entry.record.created for entry in entries),
    )
