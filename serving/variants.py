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
from ..core.digest import digest_json, short
from ..core.errors import BaseMismatchError, ConfigError, IncompatibleError, ShapeMismatchError
from ..core.files import sweep_staged, write_json
from ..core.locks import lock_of, locked
from ..core.strict_json import read_json
from ..merge.parts import Part
from ..merge.plan import ComposePlan, plan_compose
from .bases import base_of as base_of
from .bases import shared_base
from .bases import twin_of as twin_of

if TYPE_CHECKING:
    from ..adapters.base import BaseRef
    from ..registry.store import Entry, Store

BASE = "base"
CACHE_FORMAT = 1
"""Raised when the bytes that composing writes change, so that older cache entries are left alone."""

_CURRICULUM = r"(?P<curriculum>[a-z0-9][a-z0-9-]{0,62})"
_NAME = re.compile(rf"(?:{_CURRICULUM}:)?(?P<stages>{BASE}|\d{{1,3}}(?:\+\d{{1,3}}){{0,15}})")
_SLUG = re.compile(rf"{_CURRICULUM}-(?P<stages>{BASE}|s\d{{1,3}}(?:\.s\d{{1,3}}){{0,15}})")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The base plus some stages of one curriculum."""

    curriculum: str
    stages: tuple[int, ...]
    """Ascending stage numbers; empty is the base alone."""
    weights: tuple[float, ...] | None = None
    """One per stage, dimensionless; null weighs every stage 1, which is the model that was trained."""

    @property
    def name(self) -> str:
        """`base`, `1`, `1+2`; other weights than 1 are spelled out: `1+2*0.5`."""
        if not self.stages:
            return BASE
        weights = self.weights or (1.0,) * len(self.stages)
        terms = (f"{stage}" if weight == 1 else f"{stage}*{weight:g}" for stage, weight in self.terms(weights))
        return "+".join(terms)

    @property
    def slug(self) -> str:
        """Fit for files and repositories: `gsm8k-s1.s2`."""
        stages = self.name.split("+")
        return f"{self.curriculum}-" + (BASE if not self.stages else ".".join(f"s{stage}" for stage in stages))

    @property
    def alias(self) -> str:
        """With its curriculum: `gsm8k:1+2`."""
        return f"{self.curriculum}:{self.name}"

    def terms(self, weights: Sequence[float] | None = None) -> Iterator[tuple[int, float]]:
        """Each stage with its weight."""
        return zip(self.stages, weights or self.weights or (1.0,) * len(self.stages), strict=True)


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
    """Read a variant as people write it: `base`, `1+2`, `gsm8k:1+2` or `gsm8k-s1.s2`.

    Args:
        text: The name.
        curriculum: Curriculum of a name that does not say one.

    Raises:
        ConfigError: Not such a name, or a stage named twice.
    """
    match = _NAME.fullmatch(text) or _SLUG.fullmatch(text)
    if not match:
        raise ConfigError("not a variant", found=text, expected=f"base, 1, 1+2, {curriculum}:1+2 or {curriculum}-s1.s2")
    numbers = [] if match["stages"] == BASE else [int(number) for number in re.findall(r"\d+", match["stages"])]
    if len(set(numbers)) != len(numbers):
        raise ConfigError("a stage is named twice", found=text, next_step="name every stage once")
    if 0 in numbers:
        raise ConfigError("stages are numbered from 1", found=text, next_step="the base alone is called base")
    return Variant(curriculum=match["curriculum"] or curriculum, stages=tuple(sorted(numbers)))


def plan_variant(store: Store, variant: Variant) -> VariantPlan:
    """Look a variant's stages up and check from their headers that they compose. Nothing is written.

    Raises:
        NotFoundError: A stage the curriculum does not have; the known ones are listed.
        IntegrityError: A stage's bytes are damaged.
        BaseMismatchError: The stages were trained on different bases, or quantisations of it; one that does not say
            how its base was quantised fits all.
        IncompatibleError: Shapes that differ, or a feature that cannot be composed.
    """
    entries = tuple(store.stage(variant.curriculum, number) for number in variant.stages)
    if not entries:
        store.default_curriculum(variant.curriculum)
        return VariantPlan(variant=variant, entries=(), composition=None, path=None)
    shared_base(entries)
    parts = [
        Part(path=entry.path, weight=weight, label=entry.record.label, digest=entry.digest)
        for entry, (_, weight) in zip(entries, variant.terms(), strict=True)
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


def materialise(store: Store, variant: Variant | VariantPlan) -> Materialised:
    """Make a variant's composed adapter in the store's cache, or take the one that is there.

    What is there is verified against the tensor digest noted when it was made, and made again if it differs.

    Raises:
        As `plan_variant`, and DiskFullError: nothing half-written is left.
    """
    from ..adapters.tensors import tensor_digest
    from ..merge.compose import compose

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
    from ..registry.revocation import revocations

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
        ShapeMismatchError: A module whose I or O is not the model's.
    """
    from ..adapters.base import check_weights
    from ..adapters.header import read_header

    tensors = {name: entry for file in check_weights(model) for name, entry in read_header(file).tensors.items()}
    for adapter, modules in adapters.items():
        for name, size in modules.items():
            weight = tensors.get(f"{name}.weight")
            if weight is None:
                raise IncompatibleError("an adapter changes a module the base lacks", where=f"{adapter} {name}")
            if weight.shape != size:
                raise ShapeMismatchError(
                    "an adapter does not fit its base",
                    where=f"{adapter} {name}",
                    expected=f"(O, I) = {weight.shape}",
                    found=size,
                )


def _noted_digest(note: Path) -> str | None:
    try:
        return str(read_json(note)["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a kill between composing and noting: compose again
