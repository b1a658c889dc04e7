"""The model that variants of all kinds are put on: registered ones on the twin of their base, folders beside it.

A plain PEFT folder says little of its base: a name, perhaps a commit, never how it was quantised. Beside registered
variants it has to be of their base; alone, it is put on the base as it is. What is assumed is told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.base.resolve import BaseRef, Quantisation, folder_identity, refuse_quantised, resolve_base
from ..adapters.base.twin import ensure_twin, twin_path
from ..adapters.hub import is_id, is_local
from ..adapters.spec import COMPOSITION_FILE
from ..core.config import BaseConfig
from ..core.console import warn
from ..core.errors import BaseMismatchError, ConfigError
from ..core.reading.strict_json import read_object
from .base import base_of, described_quantisation, digest_of, on_disk, shared_base

if TYPE_CHECKING:
    from ..merge.inputs import BaseWord
    from ..registry.store import Store
    from .resolve import VariantPlan

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One model that adapters are put on."""

    base: BaseRef
    """Its revision is empty where nobody says it."""
    quantisation: Quantisation | None
    """How it was quantised while its adapters were trained; None takes its weights as they are."""

    def path(self, cache: Path) -> Path:
        """Folder of its weights, made or not: the twin, or the base itself."""
        return self.base.path if self.quantisation is None else twin_path(self.base, self.quantisation, cache)

    def ensure(self, cache: Path) -> Path:
        """The same folder, made where it is missing; as `ensure_twin`."""
        return self.base.path if self.quantisation is None else ensure_twin(self.base, self.quantisation, cache)


def ground_of(
    store: Store,
    plans: Sequence[VariantPlan],
    *,
    word: BaseWord | None = None,
    untrained: BaseConfig | None = None,
    told: Callable[[str], object] = warn,
) -> Ground | None:
    """The one model below all variants, and where it lies here; None where all of them are checkpoints.

    Args:
        store: The registry.
        plans: All of one base.
        word: The user's word on the base of plain folders; beside registered variants it has to be theirs.
        untrained: The base where no stage says it.
        told: Called with what was assumed.

    Raises:
        BaseMismatchError: Variants of different bases, by name.
        ConfigError: Plain folders that do not say which base they belong to, and no `word`.
        NotFoundError, IncompatibleError, IntegrityError, OfflineError, AuthError: As `base_of`.
    """
    folders = [plan for plan in plans if plan.variant.path is not None and plan.composition]
    known = set(store.curricula())
    registered = [
        plan.variant
        for plan in plans
        if plan.variant.path is None and (plan.entries or plan.variant.curriculum in known or not folders)
    ]
    if untrained is not None:
        ground = Ground(base=resolve_base(untrained), quantisation=Quantisation.of(untrained))
    elif registered:
        base, quantisation = base_of(store, registered, told=told)
        ground = Ground(base=base, quantisation=quantisation)
    elif folders:
        ground = _ground_of_folders(store, folders, word, told)
    else:
        ground = None
    if ground is not None:
        if word is not None and (registered or untrained):
            _check_word(store, word, ground.base)
        for plan in folders:
            _check_folder(store, plan, ground, told)
    _check_checkpoints(plans, ground)
    return ground


def _ground_of_folders(
    store: Store, folders: Sequence[VariantPlan], word: BaseWord | None, told: Callable[[str], object]
) -> Ground:
    copies = [entry for plan in folders for entry in plan.entries]
    if copies and word is None:
        record = shared_base(copies)
        quantisation = None if record.quantisation is None else Quantisation(**record.quantisation)  # type: ignore[arg-type]
        return Ground(base=on_disk(store, record), quantisation=quantisation)
    claims = [plan.composition for plan in folders if plan.composition]
    repo = next((claim.base_repo for claim in claims if claim.base_repo), "")
    revision = next((claim.base_revision for claim in claims if claim.base_revision), None)
    path = (word.folder if word else None) or (Path(repo) if repo and Path(repo).is_dir() else None)
    if path is None and not repo:
        raise ConfigError(
            "the adapter does not say which base it belongs to",
            where=folders[0].variant.name,
            next_step="add --base DIR or REPO",
        )
    if path is None and is_id(repo) and revision is not None:
        path = store.base_path(repo, revision)
    if path is None:
        base = resolve_base(BaseConfig(repo=repo, revision=revision or "main"))
    else:
        refuse_quantised(path, repo)
        base = BaseRef(repo=repo if is_id(repo) else path.resolve().name, revision=revision or "", path=path.resolve())
    for plan in folders:
        told(
            f"{plan.variant.name} does not say how its base was quantised while training: it is put on the weights of "
            f"{base.repo} as they are"
        )
    return Ground(base=base, quantisation=None)


def _check_word(store: Store, word: BaseWord, base: BaseRef) -> None:
    """That `--base` means the base of the registered variants beside the folders."""
    same = word.folder is None or _same_model(store, word.folder, base)
    if word.folder is None and word.repo and (word.repo, word.revision or base.revision) != (base.repo, base.revision):
        same = False
    if not same:
        raise BaseMismatchError(
            "the stages were not trained on this base",
            where="--base",
            expected=f"{base.repo}@{base.revision}",
            found=str(word),
            next_step="leave out --base, or what is of another base",
        )


def _check_folder(store: Store, plan: VariantPlan, ground: Ground, told: Callable[[str], object]) -> None:
    """Refuse a PEFT folder of another base, and say what is taken for granted of one that says little."""
    assert plan.composition is not None
    base, name = ground.base, plan.variant.name
    repo, revision, quantisation = plan.composition.base_repo, plan.composition.base_revision, None
    if plan.entries:
        record = plan.entries[0].record.base
        repo, revision, quantisation = record.repo, record.revision, record.quantisation
    if plan.composition.base_word is not None and not plan.entries:
        other = False  # the user's word counts before the adapter's own
    elif is_local(repo):
        other = Path(repo).is_dir() and not _same_model(store, Path(repo), base)
    else:
        known = bool(revision and COMMIT.fullmatch(revision) and base.revision)
        other = (bool(repo) and is_id(base.repo) and repo != base.repo) or (known and revision != base.revision)
    if other:
        at = f"@{short_revision(revision)}" if revision else ""
        raise BaseMismatchError(
            "an adapter was trained on another base",
            where=name,
            expected=f"{base.repo}@{short_revision(base.revision)}",
            found=f"{repo}{at}",
            next_step="leave it out, or if both names mean one base say so: "
            f"--base {base.repo}{f'@{base.revision}' if base.revision else ''}",
        )
    if ground.quantisation is None:
        return
    if quantisation is None:
        told(
            f"{name} does not say how its base was quantised while training: it is put on {base.repo}, "
            f"{described_quantisation(ground.quantisation.to_json())}, which may not be the one it was trained on"
        )
    elif quantisation != ground.quantisation.to_json():
        raise BaseMismatchError(
            "an adapter was trained on another quantisation of the base",
            where=name,
            expected=described_quantisation(ground.quantisation.to_json()),
            found=described_quantisation(quantisation),
            next_step="leave it out, or score it alone",
        )


def _check_checkpoints(plans: Sequence[VariantPlan], ground: Ground | None) -> None:
    """Refuse checkpoints that were folded from another base than the rest, as far as their notes tell."""
    first = (ground.base.repo, ground.base.revision, "the others") if ground and is_id(ground.base.repo) else None
    for plan in plans:
        if plan.checkpoint is None or not (plan.checkpoint / COMPOSITION_FILE).is_file():
            continue
        said = read_object(plan.checkpoint / COMPOSITION_FILE, "the checkpoint's note").get("base")
        repo, revision = (said.get("repo"), said.get("revision")) if isinstance(said, dict) else (None, None)
        if not (isinstance(repo, str) and is_id(repo)):
            continue
        revision = revision if isinstance(revision, str) and COMMIT.fullmatch(revision) else ""
        if first is None:
            first = (repo, revision, plan.variant.name)
        elif repo != first[0] or (revision and first[1] and revision != first[1]):
            raise BaseMismatchError(
                "a checkpoint was folded from another base",
                where=plan.variant.name,
                expected=f"{first[0]}@{short_revision(first[1])}, as {first[2]}",
                found=f"{repo}@{short_revision(revision)}",
                next_step="score variants of one base at a time",
            )


def _same_model(store: Store, folder: Path, base: BaseRef) -> bool:
    """Whether a folder is a base: by its place, by its own note, or by its weights."""
    if os.path.realpath(folder) == os.path.realpath(base.path) or folder_identity(folder) == (base.repo, base.revision):
        return True
    refuse_quantised(folder)
    return digest_of(folder, store.cache) == digest_of(base.path, store.cache)


def short_revision(revision: str | None) -> str:
    """The first digits of a commit, as shown to people."""
    return (revision or "(no commit)")[:12]
