"""From a variant's name to what it is made of, looked up in a registry and checked from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.base.resolve import refuse_quantised, tokenizer_digest
from ..adapters.placement import check_sizes
from ..adapters.spec import CONFIG_NAME
from ..core.disk.digest import PREFIX, digest_json, sha256_file, short
from ..core.errors import BaseMismatchError, ConfigError, IntegrityError, NotFoundError
from ..merge.inputs import BaseWord, Part
from ..merge.plan import ComposePlan, plan_compose
from .base import shared_base
from .name import Variant, parse_variant

if TYPE_CHECKING:
    from ..adapters.base.resolve import BaseRef
    from ..registry.store import Entry, Store

CACHE_FORMAT = 1
"""Raised when the bytes that composing writes change, so that older cache entries are left alone."""


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """A variant that can be made, decided from headers alone."""

    variant: Variant
    entries: tuple[Entry, ...]
    """The adapters' objects in the registry, or the folder that is a copy of one, verified; empty for plain folders."""
    composition: ComposePlan | None
    """Null for the base and for a checkpoint."""
    path: Path | None
    """Folder of the composed adapter, made or not; null for the base and for a checkpoint."""
    checkpoint: Path | None = None
    """Folder of a checkpoint, which stands on no other base."""

    @property
    def r(self) -> int:
        """Rank of the composed adapter; 0 where there is none."""
        return self.composition.rank if self.composition else 0


# ---- names


def find_variant(store: Store, text: str, curriculum: str) -> Variant:
    """A variant as people write it, found in a registry: what one thing is called in several ways is one variant.

    Args:
        store: Registry that names are looked up in.
        text: As for `parse_variant`; also a stage's name, or the start of a digest without `sha256:`.
        curriculum: Curriculum of a name that does not say one.

    Raises:
        ConfigError: Neither a variant nor a name that the registry has (the known names are listed), or a name that
            several things have (how to say which is told).
        NotFoundError: No adapter of that digest.
    """
    variant = parse_variant(text, curriculum)
    if variant.path is not None:
        return variant
    if variant.digest is not None:
        return _by_digest(store, variant.digest)
    found = _adapters_called(store, text, curriculum)
    if variant.is_stages:
        return _stages_or_merge(store, variant, found, text)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise _shared(text, found)
    known = [name for own in store.curricula() for name in store.merges(own)]
    raise ConfigError(
        "not a variant",
        found=text,
        expected=f"base, 1, 1+2, {curriculum}:1+2, {curriculum}-s1.s2, a digest or ./FOLDER"
        + (f", or one of {', '.join(known[:10])}" if known else ""),
        next_step=f"a folder is named with a slash: ./{text}" if Path(text).is_dir() else "`plyfold tree` lists them",
    )


def _adapters_called(store: Store, text: str, curriculum: str) -> dict[str, Variant]:
    """Digest -> variant of all that has a name: merges, imported adapters, stages, and digests that begin so."""
    said, _, name = text.rpartition(":")
    found = {}
    for own in store.curricula():
        if said not in ("", own):
            continue
        for number, digest in store.stages(own).items():
            with suppress(NotFoundError, IntegrityError):  # its own use tells
                stage = store.read_record(digest).record.stage
                if stage and stage.name == name:
                    found[digest] = Variant(curriculum=own, stages=(number,))
        if named := store.merges(own).get(name):
            found[named] = Variant(curriculum=own, merge=name)
    if any(variant.curriculum == curriculum for variant in found.values()):
        found = {digest: variant for digest, variant in found.items() if variant.curriculum == curriculum or said}
    if not said and len(name) >= 4 and set(name) <= set("0123456789abcdef"):
        with suppress(NotFoundError):
            digest = store.resolve(name)
            found[digest] = _by_digest(store, digest)
    return found


def _by_digest(store: Store, digest: str) -> Variant:
    """The adapter of a digest by the name it has now, or by the start of its digest."""
    entry = store.read_record(digest)
    record = entry.record
    if record.stage and store.stages(record.curriculum).get(record.stage.number) == entry.digest:
        return Variant(curriculum=record.curriculum, stages=(record.stage.number,))
    for name, named in store.merges(record.curriculum).items():
        variant = Variant(curriculum=record.curriculum, merge=name)
        if named == entry.digest and parse_variant(variant.name, record.curriculum) == variant:
            return variant
    start = PREFIX + short(entry.digest)
    alone = sum(known.startswith(start) for known in store.digests()) == 1
    return Variant(curriculum=record.curriculum, digest=start if alone else entry.digest)


def _stages_or_merge(store: Store, variant: Variant, found: dict[str, Variant], text: str) -> Variant:
    """Stages; or the merge that bears their slug as its name, where there are no such stages.

    Raises:
        ConfigError: There are, and the merge is of others: of stages that were trained again since, for example.
    """
    merges = {digest: each for digest, each in found.items() if each.merge == text and text != variant.name}
    if not merges:
        return variant
    (digest, merge), *_ = merges.items()
    try:
        digests = [store.ref(variant.curriculum, number) for number in variant.stages]
        if not digests:
            store.default_curriculum(variant.curriculum)
    except NotFoundError:
        return merge
    parents = [(parent.digest, parent.scale) for parent in store.read_record(digest).record.parents]
    if parents == [(each, weight) for each, (_, weight) in zip(digests, variant.terms(), strict=True)]:
        return variant
    raise _shared(text, {"stages": variant, **merges})


def _shared(text: str, found: dict[str, Variant]) -> ConfigError:
    """The error for a name that several things have, with what each alone is called."""

    def alone(digest: str, variant: Variant) -> str:
        here = [each for each in found.values() if each.curriculum == variant.curriculum]
        by_name = variant.is_stages or (variant.merge and len(here) == 1)
        return variant.alias if by_name else PREFIX + short(digest)

    return ConfigError(
        "several things have this name",
        found=text,
        next_step=f"say which: {' or '.join(alone(digest, variant) for digest, variant in found.items())}",
    )


# ---- plans


def plan_variant(store: Store, variant: Variant, *, base: BaseWord | None = None) -> VariantPlan:
    """Look up what a variant is made of and check from headers that it composes. Nothing is written.

    Args:
        store: The registry.
        variant: As `find_variant` gives it.
        base: The user's word on the base of plain folders, over what they call it.

    Raises:
        NotFoundError: A stage the curriculum does not have (the known ones are listed), an adapter or a folder that
            is not there.
        IntegrityError: Damaged bytes, or a folder whose record is not true of it.
        BaseMismatchError: The stages were trained on different bases, or quantisations of it; one that does not say
            how its base was quantised fits all.
        IncompatibleError, UnsupportedAdapterError: Shapes that differ, or a feature that cannot be composed.
    """
    if variant.path is not None:
        return _plan_folder(store, variant, base)
    entries = _entries(store, variant)
    if not entries:
        if variant.curriculum:
            store.default_curriculum(variant.curriculum)
        return VariantPlan(variant=variant, entries=(), composition=None, path=None)
    shared_base(entries)
    parts = [
        Part(path=entry.path, weight=weight, label=entry.record.label, digest=entry.digest)
        for entry, weight in zip(entries, variant.weights or (1.0,) * len(entries), strict=True)
    ]
    composition = plan_compose(parts)
    inputs = [[entry.digest, part.weight] for entry, part in zip(entries, parts, strict=True)]
    return VariantPlan(
        variant=variant, entries=entries, composition=composition, path=_place(store, variant, composition, inputs)
    )


def _entries(store: Store, variant: Variant) -> tuple[Entry, ...]:
    if variant.digest is not None:
        return (store.load(variant.digest),)
    if variant.merge is None:
        return tuple(store.stage(variant.curriculum, number) for number in variant.stages)
    digest = store.merges(variant.curriculum).get(variant.merge)
    if digest is None:
        raise NotFoundError(
            "no such merge", where=variant.curriculum, found=variant.merge, next_step="`plyfold tree` lists them"
        )
    return (store.load(digest),)


def _place(store: Store, variant: Variant, composition: ComposePlan, inputs: list[list[object]]) -> Path:
    """Where the composed adapter lies, by the digest of all that decides its bytes."""
    recipe = {
        "format": CACHE_FORMAT,
        "method": composition.method,
        "dtype": composition.dtype,
        "inputs": inputs,
    }
    folder = f"{variant.slug.replace('*', 'x')}-{short(digest_json(recipe), 16)}"
    return store.cache / "variants" / folder


def _plan_folder(store: Store, variant: Variant, base: BaseWord | None) -> VariantPlan:
    """A PEFT adapter or a checkpoint beside the registry."""
    from ..registry.lineage.exported_copies import read_copy

    assert variant.path is not None
    folder = Path(variant.path)
    if not folder.is_dir():
        raise NotFoundError(
            "no such folder",
            where=variant.path,
            expected="a PEFT adapter, or a checkpoint as `merge --into model` makes",
        )
    if not (folder / CONFIG_NAME).exists() and (folder / "config.json").exists():
        refuse_quantised(folder)
        if tokenizer_digest(folder) is None:
            raise NotFoundError("a checkpoint without a tokenizer", where=variant.path, expected="tokenizer.json")
        return VariantPlan(variant=variant, entries=(), composition=None, path=None, checkpoint=folder)
    copy = read_copy(folder)

    def near(repo: str, revision: str | None) -> Path | None:
        """The base, where it is at hand: modules then have its names."""
        local = Path(repo) if repo and Path(repo).is_dir() else None
        return (base.folder if base else None) or local or (store.base_path(repo, revision) if revision else None)

    composition = plan_compose([Part(path=folder, digest=copy.digest if copy else None)], base=base, find_base=near)
    (spec,) = composition.specs
    digest = copy.digest if copy else digest_json({"config": spec.config, "weights": sha256_file(spec.header.path)})
    inputs: list[list[object]] = [[digest, 1.0], [digest_json(sorted(composition.modules))]]
    return VariantPlan(
        variant=variant,
        entries=(copy,) if copy else (),
        composition=composition,
        path=_place(store, variant, composition, inputs),
    )


def check_fits(base: BaseRef, plans: Sequence[VariantPlan]) -> None:
    """Refuse adapters that are not of this base.

    Raises:
        BaseMismatchError: An adapter's config names another base.
        IncompatibleError: A module that the base does not have.
        ShapeMismatchError: A module whose I or O is not the base's.
    """
    for plan in plans:
        if plan.variant.path is None and plan.composition and plan.composition.base_repo != base.repo:
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
