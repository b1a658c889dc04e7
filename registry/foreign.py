"""Adapters of others: a plain PEFT folder becomes an object of the store whose origin is on record as unknown."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..core.errors import ConfigError
from ..core.files import disk_errors, require_space
from .record import STAGE_NAME, BaseRecord, Code, Recipe, Record, StageId, Weights
from .store import MERGES, Entry, Store

if TYPE_CHECKING:
    from ..adapters.spec import AdapterSpec


def import_adapter(
    store: Store,
    folder: Path,
    *,
    curriculum: str,
    name: str | None = None,
    stage: int | None = None,
    base: str | None = None,
    licence: str = "unknown",
) -> Entry:
    """Copy an adapter into the store in canonical form, and name it.

    Only the config and the weights are taken. Importing the same weights again under the same name changes nothing.

    Args:
        store: The registry.
        folder: A PEFT LoRA folder; it is read only.
        curriculum: Curriculum to name it in.
        name: Its name there; else the folder's.
        stage: Stage number to take; None names it beside the stages, like a composition.
        base: `org/model@commit`, where the adapter's config does not say it or names a local path.
        licence: Licence of the adapter, where known.

    Raises:
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `read_spec`, and NaN or infinity in the weights.
        ConfigError: The base, its commit or the name is not known or unfit.
        ConflictError: Another adapter has that stage or name.
    """
    from ..adapters.spec import CONFIG_NAME, WEIGHTS_NAME, read_spec
    from ..adapters.tensors import canonicalise, tensor_digest

    spec = read_spec(folder)
    title = re.sub(r"[^a-z0-9_-]+", "-", (name or folder.resolve().name).lower()).strip("-_")
    if not re.fullmatch(STAGE_NAME, title) or (name and title != name):
        raise ConfigError(
            "not a name for an adapter",
            found=name or folder.name,
            expected="a letter, then a-z, 0-9, _ and dashes",
            next_step="add --name NAME",
        )
    of = _base(spec, base)
    files = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
    size = 2 * sum(path.stat().st_size for path in files)  # the copy, and the copy of it that becomes the object
    scratch = store.root / "tmp"
    require_space(scratch, size)
    with disk_errors(scratch, size), tempfile.TemporaryDirectory(dir=scratch, prefix="import-") as tmp:
        for path in files:
            shutil.copyfile(path, Path(tmp) / path.name)
        canonicalise(Path(tmp), of.repo, of.revision)
        spec = read_spec(Path(tmp))  # of the copy: whatever happens to the source meanwhile
        targets = spec.config.get("target_modules")
        record = Record(
            kind="foreign",
            curriculum=curriculum,
            stage=StageId(number=stage, name=title) if stage is not None else None,
            base=of,
            recipe=Recipe(details={"provenance": "unknown", "name": title}),
            code=Code(version=metadata.version("plyfold")),
            weights=Weights(
                digest=tensor_digest(Path(tmp)),
                dtype=spec.dtype,
                r=max(module.r for module in spec.modules.values()),
                alpha=float(spec.config["lora_alpha"]),
                targets=sorted(
                    targets if isinstance(targets, list) else {each.rpartition(".")[2] for each in spec.modules}
                ),
            ),
            licence=licence,
        )
        known = _same(store, record, title)
        if known:
            return known
        digest = store.publish(Path(tmp), record)
    slot, alias = (stage, "latest") if stage is not None else (MERGES, title)
    store.set_ref(curriculum, slot, digest, alias, expected=None)
    return store.load(digest)


def _base(spec: AdapterSpec, given: str | None) -> BaseRecord:
    repo, _, revision = (given or "").partition("@")
    repo, revision = repo or spec.base_repo, revision or spec.base_revision or ""
    try:
        return BaseRecord(repo=repo, revision=revision)
    except ValidationError as error:
        raise ConfigError(
            "which base the adapter belongs to is not on record",
            where=spec.path,
            expected="a Hub id and a commit of 40 hex digits",
            found=f"{repo or '(no base)'}@{revision or '(no commit)'}",
            next_step="add --base ORG/MODEL@COMMIT",
        ) from error


def _same(store: Store, record: Record, name: str) -> Entry | None:
    """The adapter that has this name already, if it is this one."""
    refs = store.merges(record.curriculum) if record.stage is None else store.stages(record.curriculum)
    digest = {str(key): value for key, value in refs.items()}.get(str(record.stage.number) if record.stage else name)
    if digest not in store.digests():
        return None
    now = store.load(str(digest))
    alike = (now.record.kind, now.record.weights, now.record.base) == (record.kind, record.weights, record.base)
    return now if alike else None
