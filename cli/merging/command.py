"""`plyfold merge`: stages of the registry, or plain PEFT folders, to one adapter or one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.console import emit_json, progress, warn
from ...core.disk.digest import short
from ...core.errors import ConfigError, NotFoundError
from ..options import curriculum_option, dry_run_option, json_option, registry_option
from .inputs import Inputs, MergeOptions, base_at_hand, from_folders, from_registry, plan, plan_into_model
from .prompts import statistics_of, verify

if TYPE_CHECKING:
    from ...merge.compose.prepare import Prepared
    from ...merge.compose.write import Composition
    from ...merge.fold.fold import FoldPlan, FoldReport
    from ...merge.plan import ComposePlan
    from ...registry.store.store import Store
    from ...variants.variants import Variant
    from .report import Report


@click.command("merge")
@click.argument("paths", nargs=-1, metavar="[PATH]…", type=click.Path(path_type=Path))
@click.option("--stages", help="Stages of the registry, for example 1,2,3.")
@click.option("--weights", help="One factor per adapter, in their order; 1 each is the model that was trained.")
@click.option(
    "--method",
    help="exact (default), svd, activation, linear, ties, dare_linear, dare_ties, knots or core. Exact is the model "
    "that was trained; the others approximate it at a rank, or are for adapters trained apart.",
)
@click.option("--rank", type=int, help="Rank to keep; without a method: svd.")
@click.option("--max-error", type=float, help="Relative error to meet with the smallest rank vLLM serves.")
@click.option("--density", type=float, help="Share of entries kept by ties, dare_*, knots and core; 0.5.")
@click.option("--seed", type=int, help="Of dare_*, which drop entries at random; 0.")
@click.option("--numerics", default="sum", help="peft: linear, ties and dare_* as PEFT computes them.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .txt or .jsonl of prompts, run once through the base with the adapters: their outputs decide what "
    "--method activation keeps, and the certificate says what any rank does to them.",
)
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
@click.option(
    "--verify-logits",
    type=click.Path(path_type=Path, dir_okay=False),
    help="After --into model: compare its logits on these prompts with the adapters left apart, on both views.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as a page.")
@click.option("--allow-revoked", is_flag=True, help="Warn of revoked stages and ancestors instead of refusing them.")
@curriculum_option
@registry_option
@dry_run_option
@json_option
def merge_command(
    paths: tuple[Path, ...],
    stages: str | None,
    curriculum: str | None,
    registry: Path | None,
    as_json: bool,
    allow_revoked: bool,
    **options: Any,
) -> None:
    """Compose adapters into one, or fold them into a checkpoint.

    Give --stages of the registry, or the PATHs of plain PEFT folders; instead of a PATH, CURRICULUM:NAME or the start
    of a digest names an adapter of the registry, such as an imported one. The error of the result is computed and
    shown before a byte is written.
    """
    wanted = MergeOptions(**options)
    if bool(paths) == (stages is not None):
        raise ConfigError(
            "name either stages or folders",
            found="both" if paths else "neither",
            next_step="plyfold merge --stages 1,2,3, or plyfold merge PATH PATH",
        )
    if stages is None:
        inputs = from_folders(
            paths, wanted.weights, curriculum=curriculum, registry=registry, allow_revoked=allow_revoked
        )
    else:
        inputs = from_registry(stages, wanted.weights, curriculum, registry)
        if inputs.store and not allow_revoked:
            from ...registry.trust.revocation import refuse_revoked

            refuse_revoked(inputs.store, [entry.digest for entry in inputs.entries])
    planned = plan(inputs, wanted)
    fold_plan = None
    if wanted.into == "model":
        _import_torch()
        fold_plan = plan_into_model(planned, inputs, wanted)
    _refuse_early(planned, fold_plan, inputs, wanted)
    prepared = _prepare(planned, inputs, wanted)
    report = _report(prepared, fold_plan, inputs, wanted)
    if not as_json:
        report.show()
    for warning in report.warnings:
        warn(warning)
    if not wanted.dry_run:
        if fold_plan is not None:
            folded = _write_fold(fold_plan, prepared, _out(wanted, inputs, prepared, "folded"))
            report.folded(folded)
            if wanted.verify_logits:
                report.verified(verify(fold_plan, folded.path, inputs, wanted))
        elif inputs.store is not None:
            _publish(inputs, prepared, wanted, report)
        else:
            report.composed(_write(prepared, _out(wanted, inputs, prepared, "merged")))
    if wanted.html:
        _write_page(report, prepared, wanted.html)
    if as_json:
        emit_json({"dry_run": wanted.dry_run, **report.to_json()})
    else:
        report.show_written()
    report.refuse_unfaithful()


def _refuse_early(plan: ComposePlan, fold_plan: FoldPlan | None, inputs: Inputs, wanted: MergeOptions) -> None:
    """Refuse before work is spent on it: an output that exists or may not be written, a disk without room."""
    from ...core.disk.files import refuse_existing, refuse_no_file, require_space
    from ...merge.plan import HEADER_ALLOWANCE_BYTES

    out = (wanted.out or Path.cwd()).absolute()
    if wanted.out:
        refuse_existing(wanted.out)
    if wanted.html:
        refuse_no_file(wanted.html)
    if fold_plan is None:
        if inputs.store and not (wanted.out or wanted.dry_run):
            inputs.store.require_writable()
        require_space(out, plan.bytes_out + HEADER_ALLOWANCE_BYTES)
        return
    from ...merge.fold.fold import space_needed

    require_space(out, space_needed(fold_plan, out))


def _prepare(plan: ComposePlan, inputs: Inputs, wanted: MergeOptions) -> Prepared:
    _import_torch()
    from ...merge.compose.prepare import prepare

    statistics = statistics_of(plan, inputs, wanted) if wanted.prompts else None
    with progress("compose", len(plan.modules)) as task:
        return prepare(plan, task.advance, statistics=statistics)


def _import_torch() -> None:
    """Import torch with garbage collection paused: it finds nothing there and takes a third of the time."""
    import gc
    import sys

    if "torch" in sys.modules:
        return  # in a longer process, what is there already must stay collectable
    gc.disable()
    import torch  # noqa: F401

    gc.enable()
    gc.freeze()


def _report(prepared: Prepared, fold_plan: FoldPlan | None, inputs: Inputs, wanted: MergeOptions) -> Report:
    from .report import Report

    base_folder = fold_plan.base.path if fold_plan else base_at_hand(inputs, wanted)
    lineage = None
    if inputs.store and inputs.variant:
        from ...variants.ancestry import read_lineage

        lineage = read_lineage(inputs.store, inputs.variant, inputs.entries)
    rounding = None
    if fold_plan:
        from ...merge.fold.fold import estimate_loss

        rounding = estimate_loss(fold_plan, prepared)
    return Report(prepared=prepared, fold_plan=fold_plan, lineage=lineage, base_folder=base_folder, rounding=rounding)


# ---- outputs


def _write_page(report: Report, prepared: Prepared, path: Path) -> None:
    """The report as a page, with a heat map of every pair of adapters."""
    from ...core.disk.files import write_bytes
    from ...merge.compare.heatmap import render
    from ...merge.compare.interference import interference

    moments = prepared.statistics.moments if prepared.statistics else None
    with progress("heat maps", len(prepared.plan.modules)) as task:
        found = interference(prepared.plan, statistics=moments, advance=task.advance)
    title = f"Merge of {', '.join(entry.label for entry in prepared.inputs)}"
    write_bytes(path, render(found, title, report.facts()).encode())
    report.page(path)


def _out(wanted: MergeOptions, inputs: Inputs, prepared: Prepared, kind: str) -> Path:
    if wanted.out:
        return wanted.out
    return Path(_slug(inputs.variant, prepared) if inputs.variant else f"{kind}-{short(prepared.key)}")


def _slug(variant: Variant, prepared: Prepared) -> str:
    """Name of a merge in the registry: `gsm8k-s1.s2x0.5-svd16`."""
    plan = prepared.plan
    slug = variant.slug.replace("*", "x")
    if plan.method != "exact":
        slug += f"-{plan.method.replace('_', '.')}{plan.rank}"
    for name, mark in (("density", "d"), ("seed", "s")):
        slug += f"-{mark}{plan.settings[name]:g}" if name in plan.settings else ""
    slug += "-peft" if plan.numerics == "peft" else ""
    return slug if prepared.plan.dtype == "fp32" else f"{slug}-{prepared.plan.dtype}"


def _write(prepared: Prepared, out: Path) -> Composition:
    from ...merge.compose.write import write

    return write(prepared, out)


def _write_fold(plan: FoldPlan, prepared: Prepared, out: Path) -> FoldReport:
    from ...merge.fold.fold import write_fold

    with progress("fold", sum(len(tensors) for tensors in plan.shards.values())) as task:
        return write_fold(plan, prepared, out, advance=lambda num_bytes: task.advance())


def _publish(inputs: Inputs, prepared: Prepared, wanted: MergeOptions, report: Report) -> None:
    """Compose into the registry, under `merges/<slug>`, and copy it out where asked."""
    from ...core.disk.files import disk_errors
    from ...variants.publish import record_of

    assert inputs.store is not None
    assert inputs.variant is not None
    store, slug = inputs.store, _slug(inputs.variant, prepared)
    if not store.writable:
        _write_with_record(inputs, prepared, wanted, report)
        return
    with store.scratch() as tmp, disk_errors(tmp, prepared.plan.bytes_out):
        composed = _write(prepared, tmp / slug)
        record = record_of(composed, inputs.entries, inputs.variant, slug)
        digest = _same_merge(store, inputs.variant.curriculum, slug, record.weights.digest)
        if digest is None:
            digest = store.publish(composed.path, record)
            store.set_ref(inputs.variant.curriculum, "merges", digest, slug)
    entry = store.load(digest)
    if wanted.out:
        _copy(entry.path, wanted.out)
    report.published(composed, entry.digest, slug, entry.path, wanted.out)


def _write_with_record(inputs: Inputs, prepared: Prepared, wanted: MergeOptions, report: Report) -> None:
    """Compose stages of a registry that may not be written into a folder elsewhere, as a copy out of it would be."""
    import tempfile
    from dataclasses import replace

    from ...registry.store.objects import write_object
    from ...variants.publish import record_of

    assert inputs.store is not None
    assert inputs.variant is not None
    assert wanted.out is not None  # else refused early
    wanted.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    slug = _slug(inputs.variant, prepared)
    with tempfile.TemporaryDirectory(dir=wanted.out.absolute().parent, prefix=".merge-") as name:
        tmp = Path(name)
        composed = _write(prepared, tmp / slug)
        digest = write_object(composed.path, record_of(composed, inputs.entries, inputs.variant, slug), tmp, tmp)
        _copy(tmp / digest.removeprefix("sha256:"), wanted.out)
    warn(f"{inputs.store.root} cannot be written by this user: the merge lies in {wanted.out} and is not named there")
    report.composed(replace(composed, path=wanted.out))


def _copy(folder: Path, out: Path) -> None:
    import shutil

    from ...core.disk.files import staged_folder

    with staged_folder(out) as staged:
        for source in sorted(folder.iterdir()):
            shutil.copyfile(source, staged / source.name)


def _same_merge(store: Store, curriculum: str, slug: str, tensors: str) -> str | None:
    """The merge that is registered already, if it holds the same tensors: a rerun then changes nothing."""
    digest = store.merges(curriculum).get(slug)
    if digest is None:
        return None
    try:
        return digest if store.read_record(digest).record.weights.digest == tensors else None
    except NotFoundError:
        return None
