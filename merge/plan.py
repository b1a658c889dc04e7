"""What a merge would be, decided from configs and headers alone: every refusal that can happen, happens here.

Nothing is read but headers and nothing is written, so a plan costs milliseconds whatever the size of the adapters.
No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..adapters.spec import AdapterSpec, read_spec
from ..core.errors import BaseMismatchError, ConfigError, IncompatibleError, ShapeMismatchError

METHODS = {
    "exact": "rank concatenation: the sum of the deltas, nothing lost",
    "svd": "the best approximation of that sum at a given rank (Eckart-Young)",
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Name on the command line -> torch's name."""
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values vLLM 0.32 takes for `max_lora_rank`."""


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
        """The label, or the folder's name."""
        return self.label or self.path.resolve().name


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


@dataclass(frozen=True, kw_only=True)
class ComposePlan(PartSet):
    """A composition that can be carried out."""

    method: str
    """One of `METHODS`."""
    rank: int
    """Uniform rank of the result; shorter modules are padded with zeros."""
    dtype: str
    """`fp32`, `bf16` or `fp16`, of the result's tensors."""
    bytes_out: int
    """Size of the result's tensors."""

    @property
    def bucket(self) -> int | None:
        """Smallest `max_lora_rank` of vLLM that takes the result; None if none does."""
        return vllm_bucket(self.rank)


def vllm_bucket(rank: int) -> int | None:
    """Smallest rank vLLM can be started with that holds `rank`; None above its largest."""
    return next((bucket for bucket in VLLM_RANKS if bucket >= rank), None)


def plan_compose(
    parts: Sequence[Part],
    *,
    method: str = "exact",
    rank: int | None = None,
    dtype: str = "fp32",
    base_repo: str | None = None,
) -> ComposePlan:
    """Check parts and options, and say what composing them would make.

    Args:
        parts: At least one; order decides only the order of rank components.
        method: `exact` or `svd`.
        rank: Rank of the result, for `svd` only.
        dtype: Of the result: `fp32` keeps every bit of narrower factors; others round once, and the loss is stated.
        base_repo: Hub id of the base, where parts name a local folder or nothing.

    Raises:
        ConfigError: Unknown method or dtype, a rank missing, out of range or not meant for the method.
        NotFoundError, IntegrityError, UnsupportedAdapterError, IncompatibleError: As `check_parts`.
    """
    if method not in METHODS:
        raise ConfigError("no such merge method", found=method, expected=", ".join(METHODS))
    check_dtype(dtype)
    if method == "svd" and rank is None:
        raise ConfigError("svd needs the rank to keep", next_step="add --rank 16")
    if method == "exact" and rank is not None:
        raise ConfigError("exact keeps every rank; a rank is for svd", next_step=f"use --method svd --rank {rank}")
    if rank is not None and rank < 1:
        raise ConfigError("not a rank", found=rank, expected="1 or more")
    chosen = check_parts(parts, base_repo=base_repo)
    warnings = list(chosen.warnings)
    if rank is not None and rank >= chosen.exact_rank:
        warnings.append(
            f"rank {rank} was asked for, {chosen.exact_rank} already loses nothing; the result has {chosen.exact_rank}"
        )
    kept = chosen.exact_rank if rank is None else min(rank, chosen.exact_rank)
    if vllm_bucket(kept) is None:
        warnings.append(f"rank {kept} is above vLLM's largest; --method svd --rank {VLLM_RANKS[-1]} can be served")
    elements = sum(kept * (shape.out_features + shape.in_features) for shape in chosen.modules.values())
    return ComposePlan(
        parts=chosen.parts,
        specs=chosen.specs,
        method=method,
        rank=kept,
        dtype=dtype,
        modules=chosen.modules,
        base_repo=chosen.base_repo,
        base_revision=chosen.base_revision,
        warnings=tuple(warnings),
        bytes_out=elements * ELEMENT_BYTES[dtype],
    )


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that is not one of `DTYPES`.

    Raises:
        ConfigError: It is not.
    """
    if dtype not in DTYPES:
        raise ConfigError("no such dtype", found=dtype, expected=", ".join(DTYPES))


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
        modules=_union(parts, specs),
        base_repo=repo,
        base_revision=revision,
        warnings=(*warnings, *about_base, *_differing_targets(parts, specs)),
    )


def _refuse_duplicates(parts: Sequence[Part]) -> None:
    seen: dict[str, Part] = {}
    for part in parts:
        for key in {str(part.path.resolve()), part.digest or str(part.path.resolve())}:
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


def _union(parts: Sequence[Part], specs: Sequence[AdapterSpec]) -> dict[str, ModuleShape]:
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
