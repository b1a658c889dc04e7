"""`plyfold merge`: stages of the registry, or plain PEFT folders, to one adapter or one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.console import emit_json, progress, warn
from ...core.errors import ConfigError, NotFoundError
from ...variants.merging import (
    MergeInputs,
    MergeOptions,
    MergePlan,
    folder_inputs,
    plan_merge,
    prepare_merge,
    stage_inputs,
    verify_fold,
)
from ..options import curriculum_option, dry_run_option, json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ...merge.compose.prepare import Prepared
    from ...registry.store import Store
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
    weights: str | None,
    html: Path | None,
    as_json: bool,
    allow_revoked: bool,
    **options: Any,
) -> None:
    """Compose adapters into one, or fold them into a checkpoint.

    Give --stages of the registry, or the PATHs of plain PEFT folders; instead of a PATH, CURRICULUM:NAME or the start
    of a digest names an adapter of the registry, such as an imported one. The error of the result is computed and
    shown before a byte is written.
    """
    from ...registry.store import find_store

    if bool(paths) == (stages is not None):
        raise ConfigError(
            "name either stages or folders",
            found="both" if paths else "neither",
            next_step="plyfold merge --stages 1,2,3, or plyfold merge PATH PATH",
        )
    if stages is None:
        factors = _parse_weights(weights)
        store = _registry_if_any(registry)
        inputs = folder_inputs(paths, factors, store=store, curriculum=curriculum, allow_revoked=allow_revoked)
    else:
        numbers, factors = parse_stages(stages), _parse_weights(weights)
        inputs = stage_inputs(
            find_store(registry), numbers, factors, curriculum=curriculum, allow_revoked=allow_revoked
        )
    run_merge(inputs, MergeOptions(**options), html=html, as_json=as_json)


def run_merge(inputs: MergeInputs, options: MergeOptions, *, html: Path | None = None, as_json: bool = False) -> None:
    """Plan a merge, show what it will be, carry it out, and show what was made and what comes next.

    Args:
        inputs: What is merged.
        options: How.
        html: Page to write of the report.
        as_json: One JSON object on stdout instead of the report.
    """
    from ...core.disk.files import refuse_no_file
    from ...variants.publish import fold_merge, publish_merge

    if options.into == "model":
        _import_torch()
    plan = plan_merge(inputs, options)
    if html:
        refuse_no_file(html)
    _import_torch()
    prepared = prepare_merge(plan)
    report = _report(plan, prepared)
    if not as_json:
        report.show()
    for warning in report.warnings:
        warn(warning)
    if options.dry_run:
        pass
    elif plan.fold is not None:
        folded = fold_merge(plan, prepared)
        report.folded(folded)
        if options.verify_logits:
            report.verified(verify_fold(plan, folded.path))
    else:
        report.published(publish_merge(plan, prepared))
    if html:
        _write_page(report, prepared, html)
    if as_json:
        emit_json({"dry_run": options.dry_run, **report.to_json()})
    else:
        report.show_written()
    report.refuse_unfaithful()


def _parse_weights(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(item) for item in text.split(",")]
    except ValueError as error:
        raise ConfigError("not a list of numbers", where="--weights", found=text, expected="as 1,0.7,-0.5") from error


def _registry_if_any(registry: Path | None) -> Store | None:
    """The registry that is named or found here; plain folders need none."""
    from ...registry.store import find_store

    try:
        return find_store(registry)
    except NotFoundError:
        if registry is not None:
            raise
        return None


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


def _report(plan: MergePlan, prepared: Prepared) -> Report:
    from .report import Report

    lineage = rounding = None
    if plan.inputs.store and plan.inputs.variant:
        from ...variants.ancestry import read_lineage

        lineage = read_lineage(plan.inputs.store, plan.inputs.variant, plan.inputs.entries)
    if plan.fold:
        from ...merge.fold.fold import estimate_loss

        rounding = estimate_loss(plan.fold, prepared)
    return Report(plan=plan, prepared=prepared, lineage=lineage, rounding=rounding)


def _write_page(report: Report, prepared: Prepared, path: Path) -> None:
    """The report as a page, with a heat map of every pair of adapters."""
    from ...core.disk.files import write_bytes
    from ...merge.compare.heatmap import render_heatmap
    from ...merge.compare.interference import interference

    moments = prepared.statistics.moments if prepared.statistics else None
    with progress("heat maps", len(prepared.plan.modules)) as task:
        found = interference(prepared.plan, statistics=moments, advance=task.advance)
    title = f"Merge of {', '.join(entry.label for entry in prepared.inputs)}"
    write_bytes(path, render_heatmap(found, title, report.facts()).encode())
    report.page(path)
