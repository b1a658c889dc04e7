"""What `plyfold merge` is to do: adapters from the registry or from folders, the options, and the plans they give.

Joins three rooms: the registry knows which adapter a stage is, merge plans the algebra, serving knows the twin.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.console import warn
from ...core.disk.digest import short
from ...core.disk.files import expanded
from ...core.errors import BaseMismatchError, ConfigError, NotFoundError
from ..options import parse_stages

if TYPE_CHECKING:
    from ...merge.fold.fold import FoldPlan
    from ...merge.inputs import BaseWord, Part
    from ...merge.plan import ComposePlan
    from ...registry.store.store import Entry, Store
    from ...variants.variants import Variant


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is merged, and where it comes from."""

    parts: tuple[Part, ...]
    store: Store | None = None
    """The registry, for stages."""
    variant: Variant | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """The command line, parsed."""

    weights: str | None
    method: str | None
    rank: int | None
    max_error: float | None
    density: float | None
    seed: int | None
    numerics: str
    prompts: Path | None
    dtype: str | None
    base: str | None
    base_view: str | None
    into: str
    out: Path | None
    verify_logits: Path | None
    html: Path | None
    dry_run: bool


def from_folders(
    paths: tuple[Path, ...],
    weights: str | None,
    *,
    curriculum: str | None = None,
    registry: Path | None = None,
    allow_revoked: bool = False,
) -> Inputs:
    """Plain PEFT folders, with one weight each; what is no folder is looked up in the registry by its name."""
    from ...merge.inputs import Part
    from ...registry.lineage.exported_copies import read_copy, refuse_revoked_copies, revoked_copies

    factors = _weights(weights, len(paths))
    store = _registry_if_any(registry)
    folders = [_folder_of(path, store, curriculum) for path in paths]
    copies = [copy for folder in folders if (copy := read_copy(folder))]
    if store is not None and allow_revoked:
        for item in revoked_copies(store, copies):
            warn(f"revoked: {item.label} ({short(item.digest)}): {item.reason}")
    elif store is not None:
        refuse_revoked_copies(store, copies)
    names = [Part(path).name for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return Inputs(
        parts=tuple(Part(path, weight, label) for path, weight, label in zip(folders, factors, labels, strict=True))
    )


def _registry_if_any(registry: Path | None) -> Store | None:
    """The registry that is named or found here; plain folders need none."""
    from ...registry.store.store import find_store

    try:
        return find_store(registry)
    except NotFoundError:
        if registry is not None:
            raise
        return None


def _folder_of(path: Path, store: Store | None, curriculum: str | None) -> Path:
    """The folder itself, or that of the adapter which has this name in the registry."""
    from ...registry.lineage.graph import find

    if store is None or os.path.lexists(path) or len(path.parts) != 1:
        return path
    try:
        return find(store, str(path), curriculum).path
    except (NotFoundError, ConfigError) as error:
        raise NotFoundError(
            "neither a folder nor an adapter of the registry",
            where=path,
            expected="a PEFT folder, CURRICULUM:STAGE, CURRICULUM:NAME or the start of a digest",
            found=error.what,
            next_step="`plyfold tree` lists what is registered",
        ) from error


def from_registry(stages: str, weights: str | None, curriculum: str | None, registry: Path | None) -> Inputs:
    """Stages of a curriculum, with one weight each."""
    from ...registry.store.store import find_store
    from ...variants.variants import Variant, plan_variant

    numbers = parse_stages(stages)
    factors = _weights(weights, len(numbers))
    store = find_store(registry)
    chosen = sorted(zip(numbers, factors, strict=True))
    variant = Variant(
        curriculum=store.default_curriculum(curriculum),
        stages=tuple(number for number, _ in chosen),
        weights=tuple(weight for _, weight in chosen) if weights else None,
    )
    planned = plan_variant(store, variant)
    assert planned.composition is not None
    return Inputs(parts=planned.composition.parts, store=store, variant=variant, entries=planned.entries)


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        weights = [float(item) for item in text.split(",")]
    except ValueError as error:
        raise ConfigError("not a list of numbers", where="--weights", found=text, expected="as 1,0.7,-0.5") from error
    if len(weights) != count:
        raise ConfigError(
            "there is not one weight per adapter", where="--weights", found=f"{len(weights)}", expected=f"{count}"
        )
    return weights


def plan(inputs: Inputs, wanted: MergeOptions) -> ComposePlan:
    """Check adapters and options; the sum itself where it goes into a model, which rounds once."""
    from ...merge.calibrate.prompts import read_prompts
    from ...merge.plan import check_dtype, plan_compose

    if wanted.dtype is not None:
        check_dtype(wanted.dtype)
    for option, given in (("--base-view", wanted.base_view), ("--verify-logits", wanted.verify_logits)):
        if given and wanted.into != "model":
            raise ConfigError(f"{option} goes with --into model", found="--into adapter")
    if wanted.base_view == "trained" and inputs.store is None:
        raise ConfigError(
            "how the base was quantised is not on record for plain folders",
            where="--base-view",
            found="trained",
            next_step="leave --base-view out: the original base is used",
        )
    for prompts in filter(None, (wanted.prompts, wanted.verify_logits)):
        read_prompts(prompts)  # refused now rather than after the work
    planned = plan_compose(
        inputs.parts,
        method=wanted.method,
        rank=wanted.rank,
        max_error=wanted.max_error,
        dtype=(wanted.dtype or "fp32") if wanted.into == "adapter" else "fp32",
        density=wanted.density,
        seed=wanted.seed,
        numerics=wanted.numerics,
        base=_base(inputs, wanted),
        find_base=lambda repo, revision: _base_near(inputs, wanted, repo, revision),
    )
    _check_prompts(planned, wanted)
    return planned


def _check_prompts(plan: ComposePlan, wanted: MergeOptions) -> None:
    """Prompts belong to methods that stand for the sum: what others do to outputs, adapters left apart cannot tell."""
    if plan.method == "activation" and wanted.prompts is None:
        raise ConfigError("activation needs prompts to go by", next_step="add --prompts FILE")
    for option, given in (("--prompts", wanted.prompts), ("--verify-logits", wanted.verify_logits)):
        if given and not plan.approximates:
            raise ConfigError(
                f"{option} is for methods that stand for the sum of the deltas",
                found=plan.method,
                next_step="leave it out",
            )


def _base(inputs: Inputs, wanted: MergeOptions) -> BaseWord | None:
    """`--base` for plain folders; for stages it is on record, and `--base` can only say where its files lie.

    Raises:
        NotFoundError: No such folder.
        BaseMismatchError: A Hub id that is not the one on record for stages.
    """
    from ...merge.inputs import parse_base

    word = None if wanted.base is None else parse_base(wanted.base)
    if word is None or inputs.store is None:
        return word
    base = inputs.entries[0].record.base
    if word.repo and word.folder is None and (word.repo, word.revision or base.revision) != (base.repo, base.revision):
        raise BaseMismatchError(
            "the stages were not trained on this base",
            where="--base",
            expected=f"{base.repo}@{base.revision}, as their records say",
            found=str(word),
            next_step="leave --base out, or name the folder that the base lies in",
        )
    return None


def _base_folder(wanted: MergeOptions) -> Path | None:
    folder = expanded(wanted.base or "")
    return folder if wanted.base and folder.is_dir() else None


def plan_into_model(plan: ComposePlan, inputs: Inputs, wanted: MergeOptions) -> FoldPlan:
    """Check that the base has every weight the sum changes."""
    from ...merge.fold.fold import plan_fold

    return plan_fold(plan, base_of_fold(plan, inputs, wanted), dtype=wanted.dtype)


def _base_near(inputs: Inputs, wanted: MergeOptions, repo: str, revision: str | None) -> Path | None:
    """The base that adapters' names are checked against: where a fold goes, or what lies on this disk anyway."""
    from ...adapters.base.resolve import check_weights, resolve_base
    from ...core.config import BaseConfig
    from ...core.errors import PlyfoldError

    folder = _base_folder(wanted)
    if folder or (wanted.into == "model" and inputs.store is None):
        return folder or _fetched_base(repo, revision)
    try:  # only what costs nothing: an adapter is composed without its base
        folder = base_at_hand(inputs, wanted) or (Path(repo) if repo and Path(repo).is_dir() else None)
        if folder is None:
            return resolve_base(BaseConfig(repo=repo, revision=revision or "main"), local_only=True).path
        check_weights(folder)
        return folder
    except PlyfoldError:
        return None


def base_of_fold(plan: ComposePlan, inputs: Inputs, wanted: MergeOptions) -> Path:
    """The weights a sum goes into, or that prompts run on: the twin for stages, the original base for folders."""
    from ...variants.base import check_folder, shared_base

    if inputs.store is not None and wanted.base_view != "original":
        return _twin(inputs, wanted)
    folder = base_at_hand(inputs, wanted) or _fetched_base(plan.base_repo, plan.base_revision)
    if inputs.store is not None:
        check_folder(folder, shared_base(inputs.entries), inputs.store.cache)
    return folder


def _twin(inputs: Inputs, wanted: MergeOptions) -> Path:
    """The dequantised base that stages were trained on; for a dry run the base itself, where there is no twin yet."""
    from dataclasses import replace

    from ...adapters.base.resolve import ensure_twin, twin_path
    from ...variants.base import base_of, check_folder, shared_base

    assert inputs.store is not None
    assert inputs.variant is not None
    ref, quantisation = base_of(inputs.store, [inputs.variant], told=lambda text: None)  # the report tells it
    if folder := _base_folder(wanted):
        check_folder(folder, shared_base(inputs.entries), inputs.store.cache)
        ref = replace(ref, path=folder)
    if not wanted.dry_run:
        return ensure_twin(ref, quantisation, inputs.store.cache)
    twin = twin_path(ref, quantisation, inputs.store.cache)
    return twin if twin.is_dir() else ref.path


def _fetched_base(repo: str, revision: str | None) -> Path:
    """The base by the name the adapters have for it: a folder, the Hub cache or the Hub."""
    from ...adapters.base.resolve import resolve_base
    from ...core.config import BaseConfig

    if not repo:
        raise ConfigError("the adapters do not say which base they belong to", next_step="add --base DIR or REPO")
    if Path(repo).is_dir():
        return Path(repo)
    return resolve_base(BaseConfig(repo=repo, revision=revision or "main")).path


def base_at_hand(inputs: Inputs, wanted: MergeOptions) -> Path | None:
    """The original base where it lies on this disk."""
    folder = _base_folder(wanted)
    if folder or inputs.store is None:
        return folder
    base = inputs.entries[0].record.base
    return inputs.store.base_path(base.repo, base.revision)
