"""From a variant's name to what it is made of, looked up in a registry and checked from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.placement import check_sizes
from ..core.disk.digest import digest_json, short
from ..core.errors import BaseMismatchError, ConfigError, NotFoundError
from ..merge.inputs import Part
from ..merge.plan import ComposePlan, plan_compose
from .base import shared_base
from .name import Variant, parse_variant

if TYPE_CHECKING:
    from ..adapters.base.resolve import BaseRef
    from ..registry.store.store import Entry, Store

CACHE_FORMAT = 1
"""Raised when the bytes that composing writes change, so that older cache entries are left alone."""


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """A variant that can be made, decided from headers alone."""

    variant: Variant
    entries: tuple[Entry, ...]
    """The stages' objects in the registry, verified."""
    composition: ComposePlan | None
    """Null for the base."""
    path: Path | None
    """Folder of the composed adapter, made or not; null for the base."""

    @property
    def r(self) -> int:
        """Rank of the composed adapter; 0 for the base."""
        return self.composition.rank if self.composition else 0


def find_variant(store: Store, text: str, curriculum: str) -> Variant:
    """A variant as people write it, or the name of a merge or an imported adapter: `gsm8k-s1.s2-svd16`, `gsm8k:alice`.

    Args:
        store: Registry that names are looked up in.
        text: The name.
        curriculum: Curriculum of a name that does not say one.

    Raises:
        ConfigError: Neither a variant nor a name that the registry has, or one that two curricula have; the known
            names are listed.
    """
    try:
        return parse_variant(text, curriculum)
    except ConfigError as error:
        said, _, name = text.rpartition(":")
        named = {own: store.merges(own) for own in store.curricula() if said in ("", own)}
        owners = [own for own, merges in named.items() if name in merges]
        if curriculum in owners:
            owners = [curriculum]
        if len(owners) == 1:
            return Variant(curriculum=owners[0], merge=name)
        if owners:
            error.next_step = f"say which: {' or '.join(f'{own}:{name}' for own in owners)}"
        elif known := [name for merges in named.values() for name in merges]:
            error.expected = f"{error.expected}, or one of {', '.join(known[:10])}"
        raise


def plan_variant(store: Store, variant: Variant) -> VariantPlan:
    """Look a variant's stages up and check from their headers that they compose. Nothing is written.

    Raises:
        NotFoundError: A stage the curriculum does not have; the known ones are listed.
        IntegrityError: A stage's bytes are damaged.
        BaseMismatchError: The stages were trained on different bases, or quantisations of it; one that does not say
            how its base was quantised fits all.
        IncompatibleError: Shapes that differ, or a feature that cannot be composed.
    """
    entries = _entries(store, variant)
    if not entries:
        store.default_curriculum(variant.curriculum)
        return VariantPlan(variant=variant, entries=(), composition=None, path=None)
    shared_base(entries)
    parts = [
        Part(path=entry.path, weight=weight, label=entry.record.label, digest=entry.digest)
        for entry, weight in zip(entries, variant.weights or (1.0,) * len(entries), strict=True)
    ]
    composition = plan_compose(parts)
    recipe = {
        "format": CACHE_FORMAT,
        "method": composition.method,
        "dtype": composition.dtype,
        "inputs": [[entry.digest, part.weight] for entry, part in zip(entries, parts, strict=True)],
    }
    folder = f"{variant.slug.replace('*', 'x')}-{short(digest_json(recipe), 16)}"
    path = store.cache / "variants" / folder
    return VariantPlan(variant=variant, entries=entries, composition=composition, path=path)


def _entries(store: Store, variant: Variant) -> tuple[Entry, ...]:
    if variant.merge is None:
        return tuple(store.stage(variant.curriculum, number) for number in variant.stages)
    digest = store.merges(variant.curriculum).get(variant.merge)
    if digest is None:
        raise NotFoundError(
            "no such merge", where=variant.curriculum, found=variant.merge, next_step="`plyfold tree` lists them"
        )
    return (store.load(digest),)


def check_fits(base: BaseRef, plans: Sequence[VariantPlan]) -> None:
    """Refuse adapters that are not of this base.

    Raises:
        BaseMismatchError: An adapter's config names another base.
        IncompatibleError: A module that the base does not have.
        ShapeMismatchError: A module whose I or O is not the base's.
    """
    for plan in plans:
        if plan.composition and plan.composition.base_repo != base.repo:
            raise BaseMismatchError(
                "an adapter names another base than its record",
                where=plan.variant.alias,
                expected=base.repo,
                found=plan.composition.base_repo or "(none)",
            )
    sizes = {
        plan.variant.alias: {name: shape[:2] for name, shape in plan.composition.modules.items()}
        for plan in plans
        if plan.composition
    }
    check_sizes(base.path, sizes)
