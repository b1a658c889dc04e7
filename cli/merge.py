"""`plyfold merge`: stages of the registry, or plain PEFT folders, to one adapter or one checkpoint.

Joins three rooms: the registry knows which adapter a stage is, merge does the algebra, serving knows the twin.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.console import emit_json, progress, warn
from ..core.digest import short
from ..core.errors import ConfigError, NotFoundError
from .options import curriculum_option, dry_run_option, json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ..merge.compose import Composition
    from ..merge.fold import FoldPlan, FoldReport
    from ..merge.parts import Part
    from ..merge.plan import ComposePlan
    from ..merge.prepare import Prepared
    from ..registry.store import Entry, Store
    from ..serving.variants import Variant
    from .merge_report import Report


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is merged, and where it comes from."""

    parts: tuple[Part, ...]
    store: Store | None = None
    """The registry, for stages."""
    variant: Variant | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The command line, parsed."""

    method: str
    rank: int | None
    dtype: str | None
    base: str | None
    base_view: str | None
    into: str
    out: Path | None


@click.command("merge")
@click.argument("paths", nargs=-1, metavar="[PATH]…", type=click.Path(path_type=Path))
@click.option("--stages", help="Stages of the registry, for example 1,2,3.")
@click.option("--weights", help="One factor per adapter, in their order; 1 each is the model that was trained.")
@click.option("--method", default="exact", show_default=True, help="exact (rank concatenation) or svd (needs --rank).")
@click.option("--rank", type=int, help="Rank that svd keeps.")
@click.option("--into", type=click.Choice(["adapter", "model"]), default="adapter", show_default=True)
@click.option("--base", metavar="DIR|REPO", help="The base: a folder, or its Hub id. Known already for stages.")
@click.option(
    "--base-view",
    type=click.Choice(["trained", "original"]),
    help="Base of --into model: the dequantised NF4 weights that stages were trained on (default for stages), or "
    "the original weights (default for folders).",
)
@click.option("--dtype", help="fp32, bf16 or fp16; default fp32 for an adapter, the base's own for a model.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to make. Stages go into the registry, and here too if given; "
    "folders go to merged-<digest> here if not.",
)
@curriculum_option
@registry_option
@dry_run_option
@json_option
def merge_command(
    paths: tuple[Path, ...],
    stages: str | None,
    weights: str | None,
    method: str,
    rank: int | None,
    into: str,
    base: str | None,
    base_view: str | None,
    dtype: str | None,
    out: Path | None,
    curriculum: str | None,
    registry: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compose adapters into one, or fold them into a checkpoint.

    Give --stages of the registry, or the PATHs of plain PEFT folders. The error of the result is computed and shown
    before a byte is written.
    """
    wanted = Wanted(method=method, rank=rank, dtype=dtype, base=base, base_view=base_view, into=into, out=out)
    if bool(paths) == (stages is not None):
        raise ConfigError(
            "name either stages or folders",
            found="both" if paths else "neither",
            next_step="plyfold merge --stages 1,2,3, or plyfold merge PATH PATH",
        )
    inputs = _from_folders(paths, weights) if stages is None else _from_registry(stages, weights, curriculum, registry)
    plan = _plan(inputs, wanted)
    fold_plan = _plan_fold(plan, inputs, wanted, dry_run=dry_run) if into == "model" else None
    _refuse_early(plan, fold_plan, wanted)
    prepared = _prepare(plan)
    report = _report(prepared, fold_plan, inputs, wanted)
    if not as_json:
        report.show()
    for warning in report.warnings:
        warn(warning)
    if not dry_run:
        if fold_plan is not None:
            report.folded(_write_fold(fold_plan, prepared, _out(wanted, inputs, prepared, "folded")))
        elif inputs.store is not None:
            _publish(inputs, prepared, wanted, report)
        else:
            report.composed(_write(prepared, _out(wanted, inputs, prepared, "merged")))
    if as_json:
        emit_json({"dry_run": dry_run, **report.to_json()})
    else:
        report.show_written()


# ---- inputs


def _from_folders(paths: tuple[Path, ...], weights: str | None) -> Inputs:
    from ..merge.parts import Part

    factors = _weights(weights, len(paths))
    names = Counter(path.resolve().name for path in paths)
    labels = [path.resolve().name if names[path.resolve().name] == 1 else str(path) for path in paths]
    return Inputs(
        parts=tuple(Part(path, weight, label) for path, weight, label in zip(paths, factors, labels, strict=True))
    )


def _from_registry(stages: str, weights: str | None, curriculum: str | None, registry: Path | None) -> Inputs:
    from ..registry.store import find_store
    from ..serving.variants import Variant, plan_variant

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


# ---- plans


def _plan(inputs: Inputs, wanted: Wanted) -> ComposePlan:
    from ..merge.plan import check_dtype, plan_compose

    if wanted.dtype is not None:
        check_dtype(wanted.dtype)
    if wanted.base_view and wanted.into != "model":
        raise ConfigError("--base-view is the base of --into model", found="--into adapter")
    return plan_compose(
        inputs.parts,
        method=wanted.method,
        rank=wanted.rank,
        dtype=(wanted.dtype or "fp32") if wanted.into == "adapter" else "fp32",
        base_repo=_base(wanted)[1],
    )


def _base(wanted: Wanted) -> tuple[Path | None, str | None]:
    """`--base` as (folder, Hub id), one of them at most."""
    from ..merge.parts import is_local

    if not wanted.base:
        return None, None
    if Path(wanted.base).is_dir():
        return Path(wanted.base), None
    if is_local(wanted.base):
        raise NotFoundError("no such base folder", where=wanted.base)
    return None, wanted.base


def _plan_fold(plan: ComposePlan, inputs: Inputs, wanted: Wanted, *, dry_run: bool) -> FoldPlan:
    from ..merge.fold import plan_fold

    if inputs.store is not None and wanted.base_view != "original":
        return plan_fold(plan, _twin(inputs, wanted, dry_run=dry_run), dtype=wanted.dtype)
    if wanted.base_view == "trained":
        raise ConfigError(
            "how the base was quantised is not on record for plain folders",
            where="--base-view",
            found="trained",
            next_step="merge --stages of a registry, or use --base-view original",
        )
    return plan_fold(plan, _base_at_hand(inputs, wanted) or _fetched_base(plan), dtype=wanted.dtype)


def _twin(inputs: Inputs, wanted: Wanted, *, dry_run: bool) -> Path:
    """The dequantised base that stages were trained on; for a dry run the base itself, where there is no twin yet."""
    from dataclasses import replace

    from ..adapters.base import ensure_twin, twin_path
    from ..serving.variants import base_of

    assert inputs.store is not None
    assert inputs.variant is not None
    ref, quantisation = base_of(inputs.store, [inputs.variant])
    folder, _ = _base(wanted)
    if folder:
        ref = replace(ref, path=folder)
    if not dry_run:
        return ensure_twin(ref, quantisation, inputs.store.cache)
    twin = twin_path(ref, quantisation, inputs.store.cache)
    return twin if twin.is_dir() else ref.path


def _fetched_base(plan: ComposePlan) -> Path:
    """The base by the name the adapters have for it: a folder, the Hub cache or the Hub."""
    from ..adapters.base import resolve_base
    from ..core.config import BaseConfig

    if not plan.base_repo:
        raise ConfigError("the adapters do not say which base they belong to", next_step="add --base DIR")
    if Path(plan.base_repo).is_dir():
        return Path(plan.base_repo)
    return resolve_base(BaseConfig(repo=plan.base_repo, revision=plan.base_revision or "main")).path


def _refuse_early(plan: ComposePlan, fold_plan: FoldPlan | None, wanted: Wanted) -> None:
    """Refuse before work is spent on it: an output folder that exists, a disk without room."""
    from ..core.files import require_space
    from ..merge.compose import HEADER_ALLOWANCE_BYTES, refuse_existing

    out = wanted.out or Path.cwd()
    if wanted.out:
        refuse_existing(wanted.out)
    require_space(out.absolute(), (fold_plan or plan).bytes_out + HEADER_ALLOWANCE_BYTES)


def _prepare(plan: ComposePlan) -> Prepared:
    from ..merge.prepare import prepare

    with progress("compose", len(plan.modules)) as task:
        return prepare(plan, task.advance)


def _report(prepared: Prepared, fold_plan: FoldPlan | None, inputs: Inputs, wanted: Wanted) -> Report:
    from .merge_report import Report, read_lineage

    base_folder = fold_plan.base.path if fold_plan else _base_at_hand(inputs, wanted)
    lineage = read_lineage(inputs.store, inputs.variant, inputs.entries) if inputs.store and inputs.variant else None
    return Report(prepared=prepared, fold_plan=fold_plan, lineage=lineage, base_folder=base_folder)


def _base_at_hand(inputs: Inputs, wanted: Wanted) -> Path | None:
    """The original base where it lies on this disk."""
    folder, _ = _base(wanted)
    if folder or inputs.store is None:
        return folder
    base = inputs.entries[0].record.base
    return inputs.store.base_path(base.repo, base.revision)


# ---- outputs


def _out(wanted: Wanted, inputs: Inputs, prepared: Prepared, kind: str) -> Path:
    if wanted.out:
        return wanted.out
    return Path(_slug(inputs.variant, prepared) if inputs.variant else f"{kind}-{short(prepared.key)}")


def _slug(variant: Variant, prepared: Prepared) -> str:
    """Name of a merge in the registry: `gsm8k-s1.s2x0.5-svd16`."""
    slug = variant.slug.replace("*", "x")
    if prepared.plan.method != "exact":
        slug += f"-{prepared.plan.method}{prepared.plan.rank}"
    return slug if prepared.plan.dtype == "fp32" else f"{slug}-{prepared.plan.dtype}"


def _write(prepared: Prepared, out: Path) -> Composition:
    from ..merge.compose import write

    return write(prepared, out)


def _write_fold(plan: FoldPlan, prepared: Prepared, out: Path) -> FoldReport:
    from ..merge.fold import write_fold

    with progress("fold", sum(len(tensors) for tensors in plan.shards.values())) as task:
        return write_fold(plan, prepared, out, advance=lambda num_bytes: task.advance())


def _publish(inputs: Inputs, prepared: Prepared, wanted: Wanted, report: Report) -> None:
    """Compose into the registry, under `merges/<slug>`, and copy it out where asked."""
    import shutil
    import tempfile

    from ..core.files import disk_errors, staged_folder
    from .merge_record import record_of

    assert inputs.store is not None
    assert inputs.variant is not None
    store, slug = inputs.store, _slug(inputs.variant, prepared)
    scratch = store.root / "tmp"  # what a kill leaves here is swept by a later publish
    with (
        disk_errors(scratch, prepared.plan.bytes_out),
        tempfile.TemporaryDirectory(dir=scratch, prefix="merge-") as tmp,
    ):
        composed = _write(prepared, Path(tmp) / slug)
        record = record_of(composed, inputs.entries, inputs.variant)
        digest = _same_merge(store, inputs.variant.curriculum, slug, record.weights.digest)
        if digest is None:
            digest = store.publish(composed.path, record)
            store.set_ref(inputs.variant.curriculum, "merges", digest, slug)
    entry = store.load(digest)
    if wanted.out:
        with staged_folder(wanted.out) as folder:
            for source in sorted(entry.path.iterdir()):
                shutil.copyfile(source, folder / source.name)
    report.published(composed, entry.digest, slug, entry.path, wanted.out)


def _same_merge(store: Store, curriculum: str, slug: str, tensors: str) -> str | None:
    """The merge that is registered already, if it holds the same tensors: a rerun then changes nothing."""
    digest = store.merges(curriculum).get(slug)
    if digest is None:
        return None
    try:
        return digest if store.peek(digest).record.weights.digest == tensors else None
    except NotFoundError:
        return None
