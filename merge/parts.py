"""What goes into a merge, from configs and headers alone: every adapter that does not add up is refused here.

Nothing is read but headers, so it costs milliseconds whatever the size of the adapters. No torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..adapters.spec import AdapterSpec, read_spec
from ..core.errors import BaseMismatchError, ConfigError, IncompatibleError, ShapeMismatchError


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
    warnings: tuple[str, ...]

    @property
    def exact_rank(self) -> int:
        """Rank that holds every module's sum without loss."""
        return max(shape.rank for shape in self.modules.values())


def check_parts(parts: Sequence[Part], *, base_repo: str | None = None) -> PartSet:
    """Read every part's header and refuse what does not add up.

    Raises:
        ConfigError: No part, or a weight that is not finite.
        IncompatibleError: The same adapter twice.
        BaseMismatchError: Parts of different bases or base revisions.
        ShapeMismatchError: A module whose I or O differs between parts.
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `adapters.spec.read_spec`.
    """
    if not parts:
        raise ConfigError("nothing to merge", next_step="name at least one adapter or stage")
    for part in parts:
        if not math.isfinite(part.weight):
            raise ConfigError("a weight is not finite", where=part.name, found=part.weight)
    _refuse_duplicates(parts)
    specs = tuple(read_spec(part.path) for part in parts)
    warnings = [f"{part.name} has weight 0: it costs rank and changes nothing" for part in parts if part.weight == 0]
    repo, revision, about_base = _common_base(parts, specs, base_repo)
    return PartSet(
        parts=tuple(parts),
        specs=specs,
        modules=union(parts, specs),
        base_repo=repo,
        base_revision=revision,
        warnings=(*warnings, *about_base, *_differing_targets(parts, specs)),
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
    parts: Sequence[Part], specs: Sequence[AdapterSpec], named: str | None
) -> tuple[str, str | None, list[str]]:
    warnings = []
    repos = [_repo(spec, named) for spec in specs]
    known = [(part, repo) for part, repo in zip(parts, repos, strict=True) if repo]
    for (first, one), (second, other) in pairwise(known):
        if one != other:
            raise BaseMismatchError(
                "the adapters were trained on different bases",
                where=second.path,
                expected=f"{one} (of {first.name})",
                found=f"{other} (of {second.name})",
                next_step="merge adapters of one base; if a local folder is that base, name it with --base REPO",
            )
    if named and known and known[0][1] != named:
        raise BaseMismatchError(
            "the adapters were not trained on this base", where=known[0][0].path, expected=named, found=known[0][1]
        )
    unnamed = [part.name for part, repo in zip(parts, repos, strict=True) if not repo]
    if unnamed and not named:
        warnings.append(f"not said which base these were trained on: {', '.join(unnamed)}")
    revisions = [(part, spec.base_revision) for part, spec in zip(parts, specs, strict=True) if spec.base_revision]
    for (first, one), (second, other) in pairwise(revisions):
        if one != other:
            raise BaseMismatchError(
                "the adapters were trained on different revisions of the base",
                where=second.path,
                expected=f"{one} (of {first.name})",
                found=f"{other} (of {second.name})",
            )
    if 0 < len(revisions) < len(parts):
        without = [part.name for part, spec in zip(parts, specs, strict=True) if not spec.base_revision]
        warnings.append(f"not said which revision of the base these were trained on: {', '.join(without)}")
    repo = named or (known[0][1] if known else "")
    if is_local(repo):
        warnings.append("the adapters name a local folder as their base; --base REPO gives its Hub id instead")
    return repo, revisions[0][1] if revisions else None, warnings


def _repo(spec: AdapterSpec, named: str | None) -> str:
    repo = spec.base_repo.rstrip("/")
    return named if named and is_local(repo) else repo


def is_local(repo: str) -> bool:
    """Whether a base is named by a folder rather than a Hub id (`name` or `owner/name`)."""
    return bool(repo) and (repo.count("/") > 1 or "\\" in repo or repo[0] in "/.~")


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
