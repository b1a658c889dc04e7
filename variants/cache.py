"""Composed adapters in the registry's cache: made once, verified whenever they are used.

They lie under the digest of everything that decides their bytes, so one name never means two things and nothing is
ever rewritten; vLLM re-reads adapter folders while it serves, and keys its prefix cache by path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.console import warn
from ..core.disk.digest import short
from ..core.disk.files import sweep_staged, write_json
from ..core.disk.locks import lock_of, locked
from ..core.reading.strict_json import read_json
from .name import Variant
from .resolve import VariantPlan, plan_variant

if TYPE_CHECKING:
    from ..registry.store import Entry, Store


@dataclass(frozen=True, kw_only=True)
class Materialised:
    """A variant whose adapter lies on disk."""

    variant: Variant
    path: Path | None
    """Immutable PEFT folder; null for the base."""
    r: int
    """Rank; 0 for the base."""
    digest: str | None
    """Digest of its tensors; null for the base."""
    entries: tuple[Entry, ...]


def materialise(store: Store, variant: Variant | VariantPlan) -> Materialised:
    """Make a variant's composed adapter in the store's cache, or take the one that is there.

    The base and a checkpoint have none.

    What is there is verified against the tensor digest noted when it was made, and made again if it differs.

    Raises:
        As `plan_variant`; IntegrityError: An adapter that has changed since it was planned.
        DiskFullError: No room; nothing half-written is left.
    """
    from ..adapters.tensors import tensor_digest
    from ..merge.compose.write import compose

    plan = variant if isinstance(variant, VariantPlan) else plan_variant(store, variant)
    _warn_of_revoked(store, plan)
    for text in plan.composition.warnings if plan.composition else ():
        warn(f"{plan.variant.alias}: {text}")
    if plan.path is None or plan.composition is None:
        return Materialised(variant=plan.variant, path=None, r=0, digest=None, entries=plan.entries)
    note = plan.path.parent / f"{plan.path.name}.json"
    with locked(lock_of(plan.path)):  # one process makes it, others wait
        sweep_staged(plan.path)
        digest = _noted_digest(note) if plan.path.is_dir() else None
        if digest is not None and tensor_digest(plan.path) != digest:
            warn(f"the cached adapter {plan.path} is damaged; it is composed again")
            digest = None
        if digest is None:
            digest = compose(plan.composition, plan.path, replace=plan.path.exists()).digest
            write_json(note, {"schema": 1, "digest": digest})
        else:
            os.utime(plan.path)  # in use: what has long been unused may be swept
    return Materialised(variant=plan.variant, path=plan.path, r=plan.r, digest=digest, entries=plan.entries)


def _warn_of_revoked(store: Store, plan: VariantPlan) -> None:
    from ..registry.lineage.exported_copies import revoked_copies
    from ..registry.trust.revocation import revocations

    if plan.variant.path is not None:
        revoked = revoked_copies(store, plan.entries)
    else:
        found = revocations(store, [entry.digest for entry in plan.entries]).values()
        revoked = list(dict.fromkeys(item for each in found for item in each))
    for item in revoked:
        warn(f"{plan.variant.alias} stands on {item.label} ({short(item.digest)}), revoked: {item.reason}")


def _noted_digest(note: Path) -> str | None:
    try:
        return str(read_json(note)["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a kill between composing and noting: compose again
