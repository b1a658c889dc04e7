"""What goes into a merge, from configs and headers alone: every adapter that does not add up is refused here.

Nothing is read but headers, so it costs milliseconds whatever the size of the adapters. No torch.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..adapters.base.quantised import unquantised_name
from ..adapters.base.resolve import folder_identity
from ..adapters.hub import is_id, is_local, model_id
from ..adapters.names import version_free
from ..adapters.placement import Placement, place, unplaced
from ..adapters.spec import AdapterSpec, read_spec
from ..core.disk.files import expanded
from ..core.errors import BaseMismatchError, ConfigError, IncompatibleError, NotFoundError, ShapeMismatchError

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Part:
    """One adapter of a merge."""

    path: Path
    """PEFT adapter folder."""
    weight: float = 1.0
    """Factor of its delta, dimensionless; 1 is the model that was trained, negative subtracts."""
    label: str = ""
    """Name shown to people; empty takes the folder's name."""
    digest: str | None = None
    """Its record's digest, where it has a record."""

    @property
    def name(self) -> str:
        """The label, or the folder's name; bytes that are no text are shown as `?`."""
        return (self.label or self.real.name).encode(errors="replace").decode()

    @property
    def real(self) -> Path:
        """The folder behind links and dots; a loop of links stays as it is, for its reader to refuse."""
        return Path(os.path.realpath(self.path))


@dataclass(frozen=True, kw_only=True)
class BaseWord:
    """The user's word on which base plain folders belong to: taken over what their configs call it, and told.

    A base has many names (a mirror, a quantised copy, a local folder, another case) and a config holds the one it was
    loaded by; whether the weights fit is checked against their headers wherever they are at hand.
    """

    repo: str = ""
    """Hub id; empty where only a folder was named."""
    revision: str | None = None
    """Commit, branch or tag of it, where one was named."""
    folder: Path | None = None
    """The base's folder, where one was named."""

    def __str__(self) -> str:
        """As it was typed, more or less."""
        if self.folder is not None:
            return str(self.folder)
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class ModuleShape(NamedTuple):
    """One module of the sum."""

    out_features: int
    in_features: int
    rank: int
    """R, the ranks of the parts that have this module added up."""


@dataclass(frozen=True, kw_only=True)
class PartSet:
    """Adapters that belong together, with what their headers say."""

    parts: tuple[Part, ...]
    specs: tuple[AdapterSpec, ...]
    """One per part."""
    modules: dict[str, ModuleShape]
    """Union over the parts, by module name, sorted."""
    base_repo: str
    """What the parts call their base; empty where none says."""
    base_revision: str | None
    base_word: BaseWord | None = None
    """What the user said the base is; None where the parts' own word stands."""
    warnings: tuple[str, ...]

    @property
    def exact_rank(self) -> int:
        """Rank that holds every module's sum without loss."""
        return max(shape.rank for shape in self.modules.values())


FindBase = Callable[[str, str | None], Path | None]
"""The folder of a base by its name (Hub id, empty where nothing says it) and revision, where it is at hand."""


def check_parts(
    parts: Sequence[Part],
    *,
    base: BaseWord | None = None,
    find_base: FindBase = lambda repo, revision: None,
) -> PartSet:
    """Read every part's header and refuse what does not add up.

    Args:
        parts: At least one.
        base: The user's word on the base, over what the parts call theirs.
        find_base: Where the base lies. With it, modules have the base's names and sizes, and copies of base weights in
            a part are compared with it; without it, names are only compared with each other.

    Raises:
        ConfigError: No part, or a weight that is not finite.
        IncompatibleError: The same adapter twice, a module that the base does not have, or one that is spelt in two
            ways while no base says so.
        BaseMismatchError: Parts of different bases or base revisions.
        ShapeMismatchError: A module whose I or O differs between parts, or from the base's.
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `adapters.spec.read_spec`.
    """
    if not parts:
        raise ConfigError("nothing to merge", next_step="name at least one adapter or stage")
    for part in parts:
        if not math.isfinite(part.weight):
            raise ConfigError("a weight is not finite", where=part.name, found=part.weight)
    _refuse_duplicates(parts)
    specs = tuple(read_spec(part.path, base_follows=True) for part in parts)
    repo, revision, about_base = _common_base(parts, specs, base)
    folder = find_base(repo, revision)
    placement = Placement.open(folder) if folder else None
    specs = tuple(place(spec, placement) if placement else unplaced(spec) for spec in specs)
    if placement is None:
        _refuse_two_spellings(parts, specs)
    return PartSet(
        parts=tuple(parts),
        specs=specs,
        modules=union(parts, specs),
        base_repo=repo,
        base_revision=revision,
        base_word=base,
        warnings=(
            *_adding_nothing(parts, specs),
            *about_base,
            *(f"{part.name}: {said}" for part, spec in zip(parts, specs, strict=True) for said in spec.about_names),
            *_differing_targets(parts, specs),
        ),
    )


def _adding_nothing(parts: Sequence[Part], specs: Sequence[AdapterSpec]) -> list[str]:
    """Parts, or modules of them, whose delta is zero by their weight or their config alone."""
    found = []
    for part, spec in zip(parts, specs, strict=True):
        unscaled = [module.name for module in spec.modules.values() if module.scale == 0]
        if part.weight == 0:
            found.append(f"{part.name} has weight 0: it costs rank and adds nothing")
        elif len(unscaled) == len(spec.modules):
            found.append(f"{part.name} has lora_alpha 0: it costs rank and adds nothing")
        elif unscaled:
            found.append(f"{part.name} has alpha 0 for {len(unscaled)} of its {len(spec.modules)} modules")
    return found


def _refuse_two_spellings(parts: Sequence[Part], specs: Sequence[AdapterSpec]) -> None:
    """Names of one module under two versions of a model's code never stand beside each other as two modules."""
    seen: dict[str, tuple[str, Part]] = {}
    for part, spec in zip(parts, specs, strict=True):
        for name in spec.modules:
            other, first = seen.setdefault(version_free(name), (name, part))
            if other != name:
                raise IncompatibleError(
                    "two adapters spell what may be one module in two ways",
                    where=f"{part.path} {name}",
                    expected=f"{other} (of {first.name})",
                    found=name,
                    next_step="add --base DIR: the base says whether they are one",
                )


def _refuse_duplicates(parts: Sequence[Part]) -> None:
    seen: dict[str, Part] = {}
    for part in parts:
        for key in {str(part.real), part.digest or str(part.real)}:
            if key in seen:
                raise duplicate(seen[key], part)
            seen[key] = part


def duplicate(first: Part, second: Part) -> IncompatibleError:
    """The error for one adapter given twice."""
    return IncompatibleError(
        "the same adapter is given twice",
        where=second.path,
        found=f"{first.name} and {second.name}",
        next_step="name it once, with weight 2 if it is meant to count twice",
    )


def _common_base(
    parts: Sequence[Part], specs: Sequence[AdapterSpec], word: BaseWord | None
) -> tuple[str, str | None, list[str]]:
    """The base's name in the world and its commit, as far as they are known, and what has to be told of them."""
    named = [(part, model_id(spec.base_repo)[0].rstrip("/")) for part, spec in zip(parts, specs, strict=True)]
    known = [(part, repo) for part, repo in named if repo]
    if word is None:
        repo = known[0][1] if known else ""
        _refuse_other_names(known)
        warnings = []
    else:
        repo = word.repo or next((name for _, name in known if not is_local(name)), known[0][1] if known else "")
        others = _by_name([(part, name) for part, name in known if name != repo])
        warnings = [
            f"{', '.join(names)}: trained on {other!r} by the config, taken to be on {word.repo or repo} as --base says"
            for other, names in others.items()
        ]
    unnamed = [part.name for part, name in named if not name]
    if unnamed and not (word and word.repo):
        warnings.append(f"not said which base these were trained on: {', '.join(unnamed)}")
    # A commit belongs to the repository that an adapter names: of another name for the base it says nothing.
    revisions = [
        (part, spec.base_revision or "") for (part, name), spec in zip(named, specs, strict=True) if name in ("", repo)
    ]
    revision, about_revision = _common_revision(revisions, repo, word)
    if is_local(repo):
        warnings.append("the adapters name a local folder as their base; --base REPO gives its Hub id instead")
    return repo, revision, [*warnings, *about_revision]


def _refuse_other_names(known: Sequence[tuple[Part, str]]) -> None:
    for (first, one), (second, other) in pairwise(known):
        if one != other:
            likely = next((name for name in (one, other) if not is_local(name) and not _is_copy(name)), "REPO")
            raise BaseMismatchError(
                "the adapters were trained on different bases",
                where=second.path,
                expected=f"{one} (of {first.name})",
                found=f"{other} (of {second.name})",
                next_step=f"if both names mean one base, say which: --base {likely}",
            )


def _is_copy(repo: str) -> bool:
    return unquantised_name(repo) != repo


def _by_name(named: Sequence[tuple[Part, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part, name in named:
        found.setdefault(name, []).append(part.name)
    return found


def _common_revision(
    revisions: Sequence[tuple[Part, str]], repo: str, word: BaseWord | None
) -> tuple[str | None, list[str]]:
    said = [(part, revision) for part, revision in revisions if revision]
    without = [part.name for part, revision in revisions if not revision]
    warnings = []
    if said and without and not (word and word.revision):
        warnings.append(f"not said which revision of the base these were trained on: {', '.join(without)}")
    commits = list(dict.fromkeys(revision for _, revision in said if _COMMIT.fullmatch(revision)))
    revision = (word.revision if word else None) or next(iter(commits), said[0][1] if said else None)
    others = _by_name([(part, name) for part, name in said if name != revision])
    settled = word is not None and (word.revision or word.folder or len(commits) < 2)
    if others and not settled:
        (other, names), *_ = others.items()
        first = next(part for part, name in said if name == revision)
        raise BaseMismatchError(
            "the adapters were trained on different revisions of the base",
            where=next(part.path for part, name in said if name == other),
            expected=f"{revision} (of {first.name})",
            found=f"{other} (of {names[0]})",
            next_step=f"if they are one to you, say which: --base {repo or 'REPO'}@{revision}",
        )
    warnings += [
        f"{', '.join(names)}: trained on revision {other} by the config, taken to be on {revision} as --base says"
        for other, names in others.items()
    ]
    return revision, warnings


def parse_base(text: str) -> BaseWord:
    """Read `--base`: a folder, `org/model`, `org/model@revision`, or an address of the Hub as a browser shows it.

    Raises:
        NotFoundError: Neither a folder that exists nor a Hub id.
        ConfigError: A file, nothing, or an address that is no model's on the Hub.
    """
    folder = expanded(text)
    if text.strip() and folder.is_dir():
        repo, revision = folder_identity(folder) or ("", None)
        return BaseWord(repo=repo, revision=revision, folder=folder)
    if folder.is_file():
        raise ConfigError(
            "a base is a folder, not a file of it",
            where="--base",
            found=text,
            next_step=f"--base {shlex.quote(str(folder.parent))}",
        )
    repo, revision = model_id(text)
    if is_id(repo):
        return BaseWord(repo=repo, revision=revision)
    if is_local(repo) and "://" not in text:
        raise NotFoundError(
            "no such base folder", where=text, next_step="name a folder that exists, or a Hub id as ORG/MODEL"
        )
    raise ConfigError(
        "not a model on the Hub",
        where="--base",
        found=text.strip() or "nothing",
        expected="ORG/MODEL, ORG/MODEL@COMMIT, its address on the Hub, or a folder",
    )


def union(parts: Sequence[Part], specs: Sequence[AdapterSpec]) -> dict[str, ModuleShape]:
    """Every module that a part has, sorted, with the parts' ranks added up.

    Raises:
        ShapeMismatchError: A module whose I or O differs between parts.
    """
    modules: dict[str, ModuleShape] = {}
    owner: dict[str, Part] = {}
    for part, spec in zip(parts, specs, strict=True):
        for name, module in spec.modules.items():
            before = modules.get(name)
            if before and before[:2] != (module.out_features, module.in_features):
                raise ShapeMismatchError(
                    "a module has different sizes in two adapters",
                    where=f"{part.path} {name}",
                    expected=f"(O, I) = {tuple(before[:2])} as in {owner[name].name}",
                    found=f"({module.out_features}, {module.in_features})",
                )
            rank = module.r + (before.rank if before else 0)
            modules[name] = ModuleShape(module.out_features, module.in_features, rank)
            owner.setdefault(name, part)
    return dict(sorted(modules.items()))


def _differing_targets(parts: Sequence[Part], specs: Sequence[AdapterSpec]) -> list[str]:
    union = {name for spec in specs for name in spec.modules}
    lacking = [
        f"{part.name} ({len(spec.modules)} of {len(union)} modules)"
        for part, spec in zip(parts, specs, strict=True)
        if len(spec.modules) < len(union)
    ]
    if not lacking:
        return []
    return [f"the adapters target different modules; where one has none it adds nothing: {', '.join(lacking)}"]
