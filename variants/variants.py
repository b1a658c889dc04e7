"""Variants: the base with a subset of a curriculum's stages, from a name to one composed adapter on disk.

A variant is a lookup in the registry and an exact composition. Composed adapters lie in the store's cache under the
digest of everything that decides their bytes, so one name never means two things and nothing is ever rewritten; vLLM
re-reads adapter folders while it serves, and keys its prefix cache by path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.console import warn
from ..core.disk.digest import digest_json, short
from ..core.disk.files import sweep_staged, write_json
from ..core.disk.locks import lock_of, locked
from ..core.errors import BaseMismatchError, ConfigError, NotFoundError
from ..core.reading.strict_json import read_json
from ..merge.inputs import Part
from ..merge.plan import ComposePlan, plan_compose
from .base import base_of as base_of
from .base import shared_base
from .base import twin_of as twin_of

if TYPE_CHECKING:
    from ..adapters.base.resolve import BaseRef
    from ..registry.store.store import Entry, Store

BASE = "base"
CACHE_FORMAT = 1
"""Raised when the bytes that composing writes change, so that older cache entries are left alone."""

_CURRICULUM = r"(?P<curriculum>[a-z0-9][a-z0-9-]{0,62})"
_WEIGHT = r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?"
_TERM, _SLUG_TERM = rf"\d{{1,3}}(?:\*{_WEIGHT})?", rf"s\d{{1,3}}(?:[*x]{_WEIGHT})?"
_NAME = re.compile(rf"(?:{_CURRICULUM}:)?(?P<stages>{BASE}|{_TERM}(?:\+{_TERM}){{0,15}})")
_SLUG = re.compile(rf"{_CURRICULUM}-(?P<stages>{BASE}|{_SLUG_TERM}(?:\.{_SLUG_TERM}){{0,15}})")
_READ_TERM = re.compile(rf"s?(?P<stage>\d{{1,3}})(?:[*x](?P<weight>{_WEIGHT}))?")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The base plus some stages of one curriculum, or plus one adapter that is registered beside the stages."""

    curriculum: str
    stages: tuple[int, ...] = ()
    """Ascending stage numbers; empty is the base alone."""
    weights: tuple[float, ...] | None = None
    """One per stage, dimensionless; null weighs every stage 1, which is the model that was trained."""
    merge: str | None = None
    """Name of a registered merge or imported adapter, which has no stages then."""

    @property
    def name(self) -> str:
        """`base`, `1`, `1+2`, or a merge's name; other weights than 1 are spelled out: `1+2*0.5`."""
        if self.merge is not None:
            return self.merge
        if not self.stages:
            return BASE
        return "+".join(self._spelled())

    @property
    def slug(self) -> str:
        """Fit for files and repositories: `gsm8k-s1.s2`; a merge's own name."""
        if self.merge is not None:
            return self.merge
        return f"{self.curriculum}-" + (".".join(f"s{term}" for term in self._spelled()) or BASE)

    @property
    def alias(self) -> str:
        """With its curriculum: `gsm8k:1+2`."""
        return f"{self.curriculum}:{self.name}"

    def terms(self) -> Iterator[tuple[int, float]]:
        """Each stage with its weight."""
        return zip(self.stages, self.weights or (1.0,) * len(self.stages), strict=True)

    def _spelled(self) -> list[str]:
        return [f"{stage}" if weight == 1 else f"{stage}*{_shortest(weight)}" for stage, weight in self.terms()]


def _shortest(weight: float) -> str:
    """`0.5`, `2`: the fewest digits that give the number back."""
    return f"{weight:g}" if float(f"{weight:g}") == weight else repr(weight)


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


def parse_variant(text: str, curriculum: str) -> Variant:
    """Read a variant as people write it: `base`, `1+2`, `1+2*0.5`, `gsm8k:1+2` or `gsm8k-s1.s2`.

    Args:
        text: The name.
        curriculum: Curriculum of a name that does not say one.

    Raises:
        ConfigError: Not such a name, or a stage named twice.
    """
    match = _NAME.fullmatch(text) or _SLUG.fullmatch(text)
    if not match:
        raise ConfigError("not a variant", found=text, expected=f"base, 1, 1+2, {curriculum}:1+2 or {curriculum}-s1.s2")
    terms = [] if match["stages"] == BASE else [*_READ_TERM.finditer(match["stages"])]
    weights = {int(term["stage"]): float(term["weight"] or 1) for term in terms}
    if len(weights) != len(terms):
        raise ConfigError("a stage is named twice", found=text, next_step="name every stage once")
    if 0 in weights:
        raise ConfigError("stages are numbered from 1", found=text, next_step="the base alone is called base")
    stages = tuple(sorted(weights))
    plain = all(weight == 1 for weight in weights.values())
    return Variant(
        curriculum=match["curriculum"] or curriculum,
        stages=stages,
        weights=None if plain else tuple(weights[stage] for stage in stages),
    )


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


def materialise(store: Store, variant: Variant | VariantPlan) -> Materialised:
    """Make a variant's composed adapter in the store's cache, or take the one that is there.

    What is there is verified against the tensor digest noted when it was made, and made again if it differs.

    Raises:
        As `plan_variant`, and DiskFullError: nothing half-written is left.
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
    from ..registry.trust.revocation import revocations

    found = revocations(store, [entry.digest for entry in plan.entries]).values()
    for item in dict.fromkeys(item for each in found for item in each):
        warn(f"{plan.variant.alias} stands on {item.label} ({short(item.digest)}), revoked: {item.reason}")


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


def check_sizes(model: Path, adapters: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """Refuse adapters whose matrices are not a model's: vLLM would copy smaller ones into a corner without a word.

    Args:
        model: Folder with safetensors weights; only their headers are read.
        adapters: Adapter name -> module name -> (O, I).

    Raises:
        IncompatibleError: A module that the model does not have.
        UnsupportedAdapterError: A model whose code stores its weights transposed.
        ShapeMismatchError: A module whose I or O is not the model's.
    """
    from ..adapters.placement import Placement

    placement = Placement.open(model)
    for adapter, modules in adapters.items():
        for name, size in modules.items():
            placement.check(name, size, adapter)


def _noted_digest(note: Path) -> str | None:
    try:
        return str(read_json(note)["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a kill between composing and noting: compose again
