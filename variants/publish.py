"""What becomes of a merge: an object of the registry with its record, a plain folder, or a checkpoint."""

from __future__ import annotations

import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.spec import read_spec
from ..core.console import progress, warn
from ..core.disk.digest import short
from ..core.disk.files import disk_errors, staged_folder
from ..core.errors import NotFoundError
from ..registry.provenance import describe_code
from ..registry.record import Parent, Recipe, Record, Weights
from ..registry.store.objects import write_object
from ..registry.store.store import MERGES
from .base import shared_base

if TYPE_CHECKING:
    from ..merge.compose.prepare import Prepared
    from ..merge.compose.write import Composition
    from ..merge.fold.fold import FoldReport
    from ..registry.store import Entry, Store
    from .merging import MergePlan
    from .name import Variant


@dataclass(frozen=True, kw_only=True)
class PublishedMerge:
    """An adapter that was written."""

    composition: Composition
    path: Path
    """Immutable object of the registry, or the folder that was made."""
    digest: str | None = None
    """Its identity in the registry; None where it is not registered."""
    slug: str | None = None
    """Its name there, of a merge of stages."""
    copy: Path | None = None
    """Where it was copied out to."""


def publish_merge(plan: MergePlan, prepared: Prepared) -> PublishedMerge:
    """Write a merge as one adapter: of stages into the registry, under `merges/<slug>`, of folders to a folder.

    The same merge again changes nothing. Where this user may not write the registry, a merge of stages goes to the
    plan's output folder alone, as a copy out of the registry would be, and that is told.

    Args:
        plan: Where its inputs come from, and where a copy goes.
        prepared: Its result.

    Raises:
        DiskFullError: No room; nothing half-written is left.
        ConflictError: The output exists.
        IntegrityError: What was written is not what was prepared.
    """
    from ..merge.compose.write import write

    inputs, out = plan.inputs, plan.options.out
    if inputs.store is None or inputs.variant is None:
        composed = write(prepared, output_of(plan, prepared))
        return PublishedMerge(composition=composed, path=composed.path)
    store, slug = inputs.store, merge_slug(inputs.variant, prepared)
    if not store.writable:
        return _write_with_record(plan, prepared, slug)
    with store.scratch() as tmp, disk_errors(tmp, prepared.plan.bytes_out):
        composed = write(prepared, tmp / slug)
        record = record_of(composed, inputs.entries, inputs.variant, slug)
        digest = _same_merge(store, inputs.variant.curriculum, slug, record.weights.digest)
        if digest is None:
            digest = store.publish(composed.path, record)
            store.set_ref(inputs.variant.curriculum, MERGES, digest, slug)
    entry = store.load(digest)
    if out:
        _copy(entry.path, out)
    return PublishedMerge(composition=composed, path=entry.path, digest=entry.digest, slug=slug, copy=out)


def fold_merge(plan: MergePlan, prepared: Prepared) -> FoldReport:
    """Write a merge into its base, as a checkpoint; a killed one is resumed.

    Raises:
        As `merge.fold.fold.write_fold`.
    """
    from ..merge.fold.fold import write_fold

    assert plan.fold is not None
    with progress("fold", sum(len(tensors) for tensors in plan.fold.shards.values())) as task:
        return write_fold(plan.fold, prepared, output_of(plan, prepared), advance=lambda num_bytes: task.advance())


def output_of(plan: MergePlan, prepared: Prepared) -> Path:
    """The folder that a merge makes: the one asked for, or one named after what is merged."""
    if plan.options.out:
        return plan.options.out
    if plan.inputs.variant:
        return Path(merge_slug(plan.inputs.variant, prepared))
    return Path(f"{'folded' if plan.fold else 'merged'}-{short(prepared.key)}")


def merge_slug(variant: Variant, prepared: Prepared) -> str:
    """Name of a merge in the registry: `gsm8k-s1.s2x0.5-svd16`."""
    plan = prepared.plan
    slug = variant.slug.replace("*", "x")
    if plan.method != "exact":
        slug += f"-{plan.method.replace('_', '.')}{plan.rank}"
    for name, mark in (("density", "d"), ("seed", "s")):
        slug += f"-{mark}{plan.settings[name]:g}" if name in plan.settings else ""
    slug += "-peft" if plan.numerics == "peft" else ""
    return slug if prepared.plan.dtype == "fp32" else f"{slug}-{prepared.plan.dtype}"


def record_of(composed: Composition, entries: tuple[Entry, ...], variant: Variant, slug: str) -> Record:
    """What the registry says about a composition of its stages, which it names `slug`."""
    plan = composed.prepared.plan
    spec = read_spec(composed.path)
    statistics = composed.prepared.statistics if plan.method == "activation" else None
    return Record(
        kind="merge",
        curriculum=variant.curriculum,
        base=shared_base(entries),
        parents=[
            Parent(role="merge_input", digest=entry.digest, scale=part.weight)
            for entry, part in zip(entries, plan.parts, strict=True)
        ],
        recipe=Recipe(
            details={
                "method": plan.method,
                "settings": {**plan.settings},
                "variant": variant.name,
                "slug": slug,
                "rank": plan.rank,
                "relative_error": composed.certificate.relative,
                **({"statistics": statistics.to_json()} if statistics else {}),
            }
        ),
        code=describe_code(),
        env={
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "machine": platform.machine(),
        },
        weights=Weights(
            digest=composed.digest,
            dtype=spec.dtype,
            r=composed.r,
            alpha=composed.r,
            targets=sorted(spec.config["target_modules"]),
        ),
        licence=", ".join(sorted({entry.record.licence for entry in entries})),
        # The clock would give the same merge another identity each time it is made.
        created=max(entry.record.created for entry in entries),
    )


def _write_with_record(plan: MergePlan, prepared: Prepared, slug: str) -> PublishedMerge:
    """Compose stages of a registry that may not be written into a folder elsewhere, as a copy out of it would be."""
    from ..merge.compose.write import write

    inputs, out = plan.inputs, plan.options.out
    assert inputs.store is not None
    assert inputs.variant is not None
    assert out is not None  # else refused early
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".merge-") as name:
        tmp = Path(name)
        composed = write(prepared, tmp / slug)
        digest = write_object(composed.path, record_of(composed, inputs.entries, inputs.variant, slug), tmp, tmp)
        _copy(tmp / digest.removeprefix("sha256:"), out)
    warn(f"{inputs.store.root} cannot be written by this user: the merge lies in {out} and is not named there")
    return PublishedMerge(composition=composed, path=out, slug=slug)


def _copy(folder: Path, out: Path) -> None:
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
