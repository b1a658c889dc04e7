"""Adapters of others: a plain PEFT folder becomes an object of the store whose origin is on record as unknown."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..adapters.base.quantised import unquantised_name
from ..adapters.hub import is_local, model_id
from ..core.config import CURRICULUM_NAME, STAGE_NAME
from ..core.console import warn
from ..core.disk.files import disk_errors, require_space
from ..core.errors import ConfigError, ConflictError, PlyfoldError
from .record import BaseRecord, Code, Recipe, Record, StageId, Weights, check_portable
from .store.store import MERGES, Entry, Store

if TYPE_CHECKING:
    from ..adapters.placement import Placement

UNKNOWN = "unknown"
"""Licence and provenance of adapters that say neither."""


def import_adapter(
    store: Store,
    folder: Path,
    *,
    curriculum: str,
    name: str | None = None,
    stage: int | None = None,
    base: str | None = None,
    quantisation: str | None = None,
    licence: str | None = None,
) -> Entry:
    """Copy an adapter into the store in canonical form, and name it.

    Only the config and the weights are taken. Importing the same weights again under the same name changes nothing,
    or, where something else is said about them, gives the name to a new object.

    Args:
        store: The registry.
        folder: A PEFT LoRA folder; it is read only.
        curriculum: Curriculum to name it in.
        name: Its name there; else the folder's.
        stage: Stage number to take; None names it beside the stages, like a composition.
        base: `org/model@commit`, where the adapter's config does not say it or names a local path.
        quantisation: `nf4`: it was trained on the base in NF4 as QLoRA does (blocks of 64, double quantisation,
            computing in bfloat16). None leaves it unknown, or as it was.
        licence: Licence of the adapter; None leaves it unknown, or as it was.

    Raises:
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `read_spec`, and NaN or infinity in the weights.
        ConfigError: The base, its commit or a name is not known or unfit.
        ConflictError: Another adapter has that stage or name.
        NotAllowedError: This user may not write to the registry.
    """
    from ..adapters.spec import CONFIG_NAME, WEIGHTS_NAME, read_spec
    from ..adapters.tensors import canonicalise, read_adapter, tensor_digest

    store.require_writable()
    spec = read_spec(folder, base_follows=True)
    title = name or fit_name(folder.resolve().name)
    check_name(title)
    if not re.fullmatch(CURRICULUM_NAME, curriculum):
        raise ConfigError("not a curriculum name", found=curriculum, expected="a-z, 0-9 and dashes")
    check_portable({"licence": licence or ""})
    of = base_record(spec.base_repo, spec.base_revision, base, quantisation, where=spec.path)
    files = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
    size = 2 * sum(path.stat().st_size for path in files)  # the copy, and the copy of it that becomes the object
    require_space(store.root, size)
    with store.scratch() as tmp, disk_errors(tmp, size):
        for path in files:
            shutil.copyfile(path, tmp / path.name)
        was = canonicalise(tmp, of.repo, of.revision, _placement(store, of))
        for said in was.about_names:
            warn(f"{title}: {said}")
        adapter = read_adapter(tmp)  # of the copy: whatever happens to the source meanwhile
        spec = adapter.spec
        if adapter.adds_nothing:
            warn(f"{title} adds nothing: its alpha is 0 or its factors are all zeros, as of one never trained")
        targets = spec.config.get("target_modules")
        record = Record(
            kind="foreign",
            curriculum=curriculum,
            stage=StageId(number=stage, name=title) if stage is not None else None,
            base=of,
            recipe=Recipe(details={"provenance": UNKNOWN, "name": title}),
            code=Code(version=metadata.version("plyfold")),
            weights=Weights(
                digest=tensor_digest(tmp),
                dtype=spec.dtype,
                r=max(module.r for module in spec.modules.values()),
                alpha=float(spec.config["lora_alpha"]),
                targets=sorted(
                    targets if isinstance(targets, list) else {each.rpartition(".")[2] for each in spec.modules}
                ),
            ),
            licence=licence or UNKNOWN,
        )
        now = _named(store, record, title)
        if now:
            record = _said_again(now, record, licence, quantisation)
            if (now.record.base, now.record.licence) == (record.base, record.licence):
                return now
        digest = store.publish(tmp, record)
    slot, alias = (stage, "latest") if stage is not None else (MERGES, title)
    store.set_ref(curriculum, slot, digest, alias, expected=now.digest if now else None)
    return store.load(digest)


def fit_name(text: str) -> str:
    """A name for an adapter from a folder's or a repository's, where that holds enough of one."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")


def check_name(name: str) -> None:
    """Refuse what cannot name an adapter.

    Raises:
        ConfigError: Not a letter followed by a-z, 0-9, _ and dashes.
    """
    if not re.fullmatch(STAGE_NAME, name):
        raise ConfigError(
            "not a name for an adapter",
            found=name,
            expected="a letter, then a-z, 0-9, _ and dashes",
            next_step="add --name NAME",
        )


def base_record(
    repo: str, revision: str | None, given: str | None, quantisation: str | None, *, where: object
) -> BaseRecord:
    """The base an adapter belongs to, from what its config and the user say; the user is right.

    Raises:
        ConfigError: No Hub id or no commit, or a quantisation that is not known.
    """
    from ..adapters.base.resolve import Quantisation

    if quantisation not in (None, "nf4"):
        raise ConfigError("not a quantisation that adapters are trained on here", found=quantisation, expected="nf4")
    said_repo, said_revision = model_id(given or "")
    if said_repo and said_repo != repo and not is_local(repo):
        revision = None  # a commit of another repository
    repo, revision = said_repo or repo, said_revision or revision or ""
    plain = unquantised_name(repo)
    if plain != repo and not said_repo:
        raise ConfigError(
            "the adapter names a quantised copy as its base, on which nothing can be folded, served or scored",
            where=where,
            found=repo,
            expected="the 16-bit base the copy was made from",
            next_step=f"add --base {plain}@COMMIT, or the repository it was made from, with the commit of its files",
        )
    try:
        return BaseRecord(repo=repo, revision=revision, quantisation=Quantisation().to_json() if quantisation else None)
    except ValidationError as error:
        raise ConfigError(
            "which base the adapter belongs to is not on record",
            where=where,
            expected="a Hub id and a commit of 40 hex digits",
            found=f"{repo or '(no base)'}@{revision or '(no commit)'}",
            next_step="add --base ORG/MODEL@COMMIT; its page on the Hub has the commit under Files and versions",
        ) from error


def _placement(store: Store, base: BaseRecord) -> Placement | None:
    """The base to check names and copies of its weights against, where it lies on this disk in order."""
    from ..adapters.placement import Placement

    folder = store.base_path(base.repo, base.revision)
    try:
        return Placement.open(folder) if folder else None
    except PlyfoldError:
        return None


def _named(store: Store, record: Record, name: str) -> Entry | None:
    """The adapter that has this stage or name now, if it is held."""
    refs = store.merges(record.curriculum) if record.stage is None else store.stages(record.curriculum)
    digest = {str(key): value for key, value in refs.items()}.get(str(record.stage.number) if record.stage else name)
    return store.load(digest) if digest is not None and digest in store.digests() else None


def _said_again(now: Entry, record: Record, licence: str | None, quantisation: str | None) -> Record:
    """The record of weights that are imported again, with what was said of them before and not now.

    Raises:
        ConflictError: They are another adapter's.
    """
    was = now.record
    if (was.kind, was.weights, was.base.repo, was.base.revision) != (
        record.kind,
        record.weights,
        record.base.repo,
        record.base.revision,
    ):
        raise ConflictError(
            "another adapter has that stage" if record.stage else "another adapter has that name",
            where=f"{was.curriculum} {was.label}",
            found=now.digest,
            next_step="choose another with --stage or --name, or another --curriculum",
        )
    kept = {"licence": licence or was.licence, "base": record.base if quantisation else was.base}
    return record.model_copy(update=kept)
