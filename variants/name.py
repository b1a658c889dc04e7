"""What a variant is called: read as people write it, and spelt so that it is read back as the same variant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.errors import ConfigError

BASE = "base"
"""Name of the variant without any adapter."""

_CURRICULUM = r"(?P<curriculum>[a-z0-9][a-z0-9-]{0,62})"
_WEIGHT = r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?"
_TERM, _SLUG_TERM = rf"\d{{1,3}}(?:\*{_WEIGHT})?", rf"s\d{{1,3}}(?:[*x]{_WEIGHT})?"
_NAME = re.compile(rf"(?:{_CURRICULUM}:)?(?P<stages>{BASE}|{_TERM}(?:\+{_TERM}){{0,15}})")
_SLUG = re.compile(rf"{_CURRICULUM}-(?P<stages>{BASE}|{_SLUG_TERM}(?:\.{_SLUG_TERM}){{0,15}})")
_READ_TERM = re.compile(rf"s?(?P<stage>\d{{1,3}})(?:[*x](?P<weight>{_WEIGHT}))?")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The base plus some stages of one curriculum, or plus one adapter that is registered beside the stages."""

    curriculum: str
    stages: tuple[int, ...] = ()
    """Ascending stage numbers; empty is the base alone."""
    weights: tuple[float, ...] | None = None
    """One per stage, dimensionless; null weighs every stage 1, which is the model that was trained."""
    merge: str | None = None
    """Name of a registered merge or imported adapter, which has no stages then."""

    @property
    def name(self) -> str:
        """`base`, `1`, `1+2`, or a merge's name; other weights than 1 are spelled out: `1+2*0.5`."""
        if self.merge is not None:
            return self.merge
        if not self.stages:
            return BASE
        return "+".join(self._spelled())

    @property
    def slug(self) -> str:
        """Fit for files and repositories: `gsm8k-s1.s2`; a merge's own name."""
        if self.merge is not None:
            return self.merge
        return f"{self.curriculum}-" + (".".join(f"s{term}" for term in self._spelled()) or BASE)

    @property
    def alias(self) -> str:
        """With its curriculum: `gsm8k:1+2`."""
        return f"{self.curriculum}:{self.name}"

    def terms(self) -> Iterator[tuple[int, float]]:
        """Each stage with its weight."""
        return zip(self.stages, self.weights or (1.0,) * len(self.stages), strict=True)

    def _spelled(self) -> list[str]:
        return [f"{stage}" if weight == 1 else f"{stage}*{_shortest(weight)}" for stage, weight in self.terms()]


def _shortest(weight: float) -> str:
    """`0.5`, `2`: the fewest digits that give the number back."""
    return f"{weight:g}" if float(f"{weight:g}") == weight else repr(weight)


def parse_variant(text: str, curriculum: str) -> Variant:
    """Read a variant as people write it: `base`, `1+2`, `1+2*0.5`, `gsm8k:1+2` or `gsm8k-s1.s2`.

    Args:
        text: The name.
        curriculum: Curriculum of a name that does not say one.

    Raises:
        ConfigError: Not such a name, or a stage named twice.
    """
    match = _NAME.fullmatch(text) or _SLUG.fullmatch(text)
    if not match:
        raise ConfigError("not a variant", found=text, expected=f"base, 1, 1+2, {curriculum}:1+2 or {curriculum}-s1.s2")
    terms = [] if match["stages"] == BASE else [*_READ_TERM.finditer(match["stages"])]
    weights = {int(term["stage"]): float(term["weight"] or 1) for term in terms}
    if len(weights) != len(terms):
        raise ConfigError("a stage is named twice", found=text, next_step="name every stage once")
    if 0 in weights:
        raise ConfigError("stages are numbered from 1", found=text, next_step="the base alone is called base")
    stages = tuple(sorted(weights))
    plain = all(weight == 1 for weight in weights.values())
    return Variant(
        curriculum=match["curriculum"] or curriculum,
        stages=stages,
        weights=None if plain else tuple(weights[stage] for stage in stages),
    )
