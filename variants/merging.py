"""A merge: what goes into it, from a registry or from folders, how it is to be done, and the base it stands on.

`stage_inputs` or `folder_inputs`, then `plan_merge`, `prepare_merge`, and `publish.publish_merge` or
`publish.fold_merge`: what `plyfold merge` does, in order. The registry knows which adapter a stage is, `merge` the
algebra; this joins them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..core.console import progress, warn
from ..core.disk.digest import short
from ..core.disk.files import expanded
from ..core.errors import BaseMismatchError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from ..merge.calibrate.logits import BaseViewReport, LogitReport
    from ..merge.calibrate.moments import Statistics
    from ..merge.compose.prepare import Prepared
    from ..merge.fold.fold import FoldPlan
    from ..merge.inputs import BaseWord, Part
    from ..merge.plan import ComposePlan
    from ..registry.store import Entry, Store
    from .name import Variant


@dataclass(frozen=True, kw_only=True)
class MergeInputs:
    """What is merged, and where it comes from."""

    parts: tuple[Part, ...]
    store: Store | None = None
    """The registry, for stages."""
    variant: Variant | None = None
    """What the stages are together; None for folders."""
    entries: tuple[Entry, ...] = ()
    """The stages' objects in the registry, verified."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How a merge is done, and what it is for; the defaults are the exact sum as one adapter."""

    method: str | None = None
    """One of `merge.plan.METHODS`; None is `exact`, or `svd` where a rank or an error is given."""
    rank: int | None = None
    max_error: float | None = None
    """Relative error to meet with the smallest rank that vLLM serves, instead of a rank."""
    density: float | None = None
    """Share of entries kept by methods that trim or drop; None is 0.5."""
    seed: int | None = None
    """Of methods that drop at random; None is 0."""
    numerics: str = "sum"
    """One of `merge.plan.NUMERICS`."""
    prompts: Path | None = None
    """Prompts of which `activation` keeps the outputs, and of which the certificate says what any rank does to them."""
    dtype: str | None = None
    """`fp32`, `bf16` or `fp16`; None is `fp32` for an adapter, the base's own for a model."""
    base: str | None = None
    """The base: a folder, or its Hub id; known already for stages."""
    base_view: str | None = None
    """Base of a model: `trained` (the default for stages) or `original` (the default for folders)."""
    into: str = "adapter"
    """`adapter`, or `model`: a checkpoint that needs no base."""
    out: Path | None = None
    """Folder to make. Stages go into the registry, and here too; folders go to one named after the result."""
    verify_logits: Path | None = None
    """Prompts on which a model's logits are compared with the adapters left apart."""
    dry_run: bool = False
    """Whether nothing is to be written."""


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merge that can be carried out."""

    inputs: MergeInputs
    options: MergeOptions
    compose: ComposePlan
    fold: FoldPlan | None
    """For a merge into a model."""

    @property
    def base_at_hand(self) -> Path | None:
        """Where the base lies on this disk, if it does."""
        return self.fold.base.path if self.fold else _base_at_hand(self.inputs, self.options)


def stage_inputs(
    store: Store,
    stages: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    curriculum: str | None = None,
    allow_revoked: bool = False,
) -> MergeInputs:
    """Stages of a curriculum.

    Args:
        store: The registry.
        stages: Their numbers, each once; in any order.
        weights: One per stage, dimensionless, in their order; None weighs each 1.
        curriculum: Name of the curriculum; None where the registry has only one.
        allow_revoked: Whether revoked stages and ancestors are merged all the same.

    Raises:
        ConfigError: Not one weight per stage.
        NotFoundError: A stage that the curriculum does not have.
        IntegrityError: Damaged bytes, or a stage that is revoked or stands on one that is.
        BaseMismatchError, IncompatibleError: As `resolve.plan_variant`.
    """
    from ..registry.trust.revocation import refuse_revoked
    from .name import Variant
    from .resolve import plan_variant

    chosen = sorted(zip(stages, _weights(weights, len(stages)), strict=True))
    variant = Variant(
        curriculum=store.default_curriculum(curriculum),
        stages=tuple(number for number, _ in chosen),
        weights=tuple(weight for _, weight in chosen) if weights else None,
    )
    planned = plan_variant(store, variant)
    assert planned.composition is not None
    if not allow_revoked:
        refuse_revoked(store, [entry.digest for entry in planned.entries])
    return MergeInputs(parts=planned.composition.parts, store=store, variant=variant, entries=planned.entries)


def folder_inputs(
    paths: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    store: Store | None = None,
    curriculum: str | None = None,
    allow_revoked: bool = False,
) -> MergeInputs:
    """Plain PEFT folders; what is no folder is looked up in the registry by its name.

    Args:
        paths: At least one.
        weights: One per folder, dimensionless; None weighs each 1.
        store: The registry, if there is one: it knows names, and what is revoked.
        curriculum: Curriculum of a name that does not say one.
        allow_revoked: Whether copies of revoked adapters are merged all the same, with a warning.

    Raises:
        ConfigError: Not one weight per folder.
        NotFoundError: Neither a folder nor an adapter of the registry.
        IntegrityError: A folder whose record is not true of it, or one that is revoked.
    """
    from ..merge.inputs import Part
    from ..registry.lineage.exported_copies import read_copy, refuse_revoked_copies, revoked_copies

    factors = _weights(weights, len(paths))
    folders = [_folder_of(path, store, curriculum) for path in paths]
    copies = [copy for folder in folders if (copy := read_copy(folder))]
    if store is not None and allow_revoked:
        for item in revoked_copies(store, copies):
            warn(f"revoked: {item.label} ({short(item.digest)}): {item.reason}")
    elif store is not None:
        refuse_revoked_copies(store, copies)
    names = [Part(path).name for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return MergeInputs(
        parts=tuple(Part(path, weight, label) for path, weight, label in zip(folders, factors, labels, strict=True))
    )


def plan_merge(inputs: MergeInputs, options: MergeOptions) -> MergePlan:
    """Check adapters, options, the base and where the result goes; nothing is written.

    Raises:
        ConfigError: Options that do not go together, or prompts that cannot be read.
        NotFoundError, OfflineError: A base that a model needs and that cannot be had.
        BaseMismatchError, ShapeMismatchError, IncompatibleError: Adapters that do not go together, or with the base.
        ConflictError: The output exists.
        NotAllowedError: This user may not write there.
        DiskFullError: No room for it.
    """
    compose = _plan_compose(inputs, options)
    fold = None
    if options.into == "model":
        from ..merge.fold.fold import plan_fold

        fold = plan_fold(compose, _base_of_fold(compose, inputs, options), dtype=options.dtype)
    plan = MergePlan(inputs=inputs, options=options, compose=compose, fold=fold)
    _check_output(plan)
    return plan


def prepare_merge(plan: MergePlan) -> Prepared:
    """Compute the result's factors and its certificate; nothing is written.

    Raises:
        As `merge.compose.prepare.prepare`.
    """
    from ..merge.compose.prepare import prepare

    statistics = _statistics(plan) if plan.options.prompts else None
    with progress("compose", len(plan.compose.modules)) as task:
        return prepare(plan.compose, task.advance, statistics=statistics)


class Verified(NamedTuple):
    """A folded checkpoint on prompts."""

    logits: LogitReport
    views: BaseViewReport | None
    """Where the twin and the original base are both at hand."""


def verify_fold(plan: MergePlan, checkpoint: Path) -> Verified:
    """Run the prompts of `verify_logits` through a checkpoint and through what it stands for.

    Args:
        plan: Of a merge into a model.
        checkpoint: The folder that was made of it.
    """
    from ..merge.calibrate.logits import COMPARE_PASSES, VERIFY_PASSES, compare_base_views, verify_logits
    from ..merge.calibrate.prompts import read_prompts

    assert plan.fold is not None
    assert plan.options.verify_logits is not None
    prompts, twin = read_prompts(plan.options.verify_logits), plan.fold.base.path
    with progress("logits", VERIFY_PASSES * len(prompts.texts)) as task:
        logits = verify_logits(checkpoint, twin, plan.fold.compose, prompts, advance=task.advance)
    original = _base_at_hand(plan.inputs, plan.options)
    if plan.inputs.store is None or original is None or original == twin:
        return Verified(logits, None)
    with progress("base views", COMPARE_PASSES * len(prompts.texts)) as task:
        views = compare_base_views(twin, original, plan.fold.compose, prompts, advance=task.advance)
    return Verified(logits, views)


def _statistics(plan: MergePlan) -> Statistics:
    """Run the prompts once through the base with all adapters active."""
    from ..adapters.base.load import load_tokenizer, load_twin
    from ..merge.calibrate.moments import collect_moments
    from ..merge.calibrate.prompts import read_prompts

    assert plan.options.prompts is not None
    prompts = read_prompts(plan.options.prompts)
    base = _base_of_fold(plan.compose, plan.inputs, plan.options)
    with progress("prompts", len(prompts.texts)) as task:
        return collect_moments(load_twin(base), plan.compose, prompts, load_tokenizer(base), task.advance)


def _check_output(plan: MergePlan) -> None:
    """Refuse an output that exists or may not be written, or a disk without room."""
    from ..core.disk.files import refuse_existing, require_space
    from ..merge.plan import HEADER_ALLOWANCE_BYTES

    options, store = plan.options, plan.inputs.store
    out = (options.out or Path.cwd()).absolute()
    if options.out:
        refuse_existing(options.out)
    if plan.fold is None:
        if store and not (options.out or options.dry_run):
            store.require_writable()
        require_space(out, plan.compose.bytes_out + HEADER_ALLOWANCE_BYTES)
        return
    from ..merge.fold.fold import space_needed

    require_space(out, space_needed(plan.fold, out))


def _folder_of(path: Path, store: Store | None, curriculum: str | None) -> Path:
    """The folder itself, or that of the adapter which has this name in the registry."""
    from ..registry.lineage.graph import find

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


def _weights(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ConfigError(
            "there is not one weight per adapter", where="--weights", found=f"{len(weights)}", expected=f"{count}"
        )
    return weights


def _plan_compose(inputs: MergeInputs, options: MergeOptions) -> ComposePlan:
    """Check adapters and options; the sum itself where it goes into a model, which rounds once."""
    from ..merge.calibrate.prompts import read_prompts
    from ..merge.plan import check_dtype, plan_compose

    if options.dtype is not None:
        check_dtype(options.dtype)
    for option, given in (("--base-view", options.base_view), ("--verify-logits", options.verify_logits)):
        if given and options.into != "model":
            raise ConfigError(f"{option} goes with --into model", found="--into adapter")
    if options.base_view == "trained" and inputs.store is None:
        raise ConfigError(
            "how the base was quantised is not on record for plain folders",
            where="--base-view",
            found="trained",
            next_step="leave --base-view out: the original base is used",
        )
    for prompts in filter(None, (options.prompts, options.verify_logits)):
        read_prompts(prompts)  # refused now rather than after the work
    planned = plan_compose(
        inputs.parts,
        method=options.method,
        rank=options.rank,
        max_error=options.max_error,
        dtype=(options.dtype or "fp32") if options.into == "adapter" else "fp32",
        density=options.density,
        seed=options.seed,
        numerics=options.numerics,
        base=_base(inputs, options),
        find_base=lambda repo, revision: _base_near(inputs, options, repo, revision),
    )
    _check_prompts(planned, options)
    return planned


def _check_prompts(plan: ComposePlan, options: MergeOptions) -> None:
    """Prompts belong to methods that stand for the sum: what others do to outputs, adapters left apart cannot tell."""
    if plan.method == "activation" and options.prompts is None:
        raise ConfigError("activation needs prompts to go by", next_step="add --prompts FILE")
    for option, given in (("--prompts", options.prompts), ("--verify-logits", options.verify_logits)):
        if given and not plan.approximates:
            raise ConfigError(
                f"{option} is for methods that stand for the sum of the deltas",
                found=plan.method,
                next_step="leave it out",
            )


def _base(inputs: MergeInputs, options: MergeOptions) -> BaseWord | None:
    """`--base` for plain folders; for stages it is on record, and `--base` can only say where its files lie.

    Raises:
        NotFoundError: No such folder.
        BaseMismatchError: A Hub id that is not the one on record for stages.
    """
    from ..merge.inputs import parse_base

    word = None if options.base is None else parse_base(options.base)
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


def _base_folder(options: MergeOptions) -> Path | None:
    folder = expanded(options.base or "")
    return folder if options.base and folder.is_dir() else None


def _base_near(inputs: MergeInputs, options: MergeOptions, repo: str, revision: str | None) -> Path | None:
    """The base that adapters' names are checked against: where a fold goes, or what lies on this disk anyway."""
    from ..adapters.base.resolve import check_weights, resolve_base
    from ..core.config import BaseConfig
    from ..core.errors import PlyfoldError

    folder = _base_folder(options)
    if folder or (options.into == "model" and inputs.store is None):
        return folder or _fetched_base(repo, revision)
    try:  # only what costs nothing: an adapter is composed without its base
        folder = _base_at_hand(inputs, options) or (Path(repo) if repo and Path(repo).is_dir() else None)
        if folder is None:
            return resolve_base(BaseConfig(repo=repo, revision=revision or "main"), local_only=True).path
        check_weights(folder)
        return folder
    except PlyfoldError:
        return None


def _base_of_fold(plan: ComposePlan, inputs: MergeInputs, options: MergeOptions) -> Path:
    """The weights a sum goes into, or that prompts run on: the twin for stages, the original base for folders."""
    from .base import check_folder, shared_base

    if inputs.store is not None and options.base_view != "original":
        return _twin(inputs, options)
    folder = _base_at_hand(inputs, options) or _fetched_base(plan.base_repo, plan.base_revision)
    if inputs.store is not None:
        check_folder(folder, shared_base(inputs.entries), inputs.store.cache)
    return folder


def _twin(inputs: MergeInputs, options: MergeOptions) -> Path:
    """The dequantised base that stages were trained on; for a dry run the base itself, where there is no twin yet."""
    from dataclasses import replace

    from ..adapters.base.twin import ensure_twin, twin_path
    from .base import base_of, check_folder, shared_base

    assert inputs.store is not None
    assert inputs.variant is not None
    ref, quantisation = base_of(inputs.store, [inputs.variant], told=lambda text: None)  # the report tells it
    if folder := _base_folder(options):
        check_folder(folder, shared_base(inputs.entries), inputs.store.cache)
        ref = replace(ref, path=folder)
    if not options.dry_run:
        return ensure_twin(ref, quantisation, inputs.store.cache)
    twin = twin_path(ref, quantisation, inputs.store.cache)
    return twin if twin.is_dir() else ref.path


def _fetched_base(repo: str, revision: str | None) -> Path:
    """The base by the name the adapters have for it: a folder, the Hub cache or the Hub."""
    from ..adapters.base.resolve import resolve_base
    from ..core.config import BaseConfig

    if not repo:
        raise ConfigError("the adapters do not say which base they belong to", next_step="add --base DIR or REPO")
    if Path(repo).is_dir():
        return Path(repo)
    return resolve_base(BaseConfig(repo=repo, revision=revision or "main")).path


def _base_at_hand(inputs: MergeInputs, options: MergeOptions) -> Path | None:
    """The original base where it lies on this disk."""
    folder = _base_folder(options)
    if folder or inputs.store is None:
        return folder
    base = inputs.entries[0].record.base
    return inputs.store.base_path(base.repo, base.revision)
