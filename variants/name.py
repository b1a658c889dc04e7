"""What a variant is called: read as people write it, and spelt so that it is read back as the same variant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.disk.digest import PREFIX
from ..core.disk.files import expanded
from ..core.errors import ConfigError

BASE = "base"
"""Name of the variant without any adapter."""

_CURRICULUM = r"(?P<curriculum>[a-z0-9][a-z0-9-]{0,62})"
_WEIGHT = r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,3})?"
_TERM, _SLUG_TERM = rf"\d{{1,3}}(?:\*{_WEIGHT})?", rf"s\d{{1,3}}(?:[*x]{_WEIGHT})?"
_NAME = re.compile(rf"(?:{_CURRICULUM}:)?(?P<stages>{BASE}|{_TERM}(?:\+{_TERM}){{0,15}})")
_SLUG = re.compile(rf"{_CURRICULUM}-(?P<stages>{BASE}|{_SLUG_TERM}(?:\.{_SLUG_TERM}){{0,15}})")
_IN_SLUG = r"(?<=\de)\+(?=\d)|(?:(?<=s\d)|(?<=s\d\d)|(?<=s\d\d\d))\*"
_ADAPTER = re.compile(rf"(?:{_CURRICULUM}:)?(?P<adapter>[A-Za-z0-9](?:[A-Za-z0-9_.-]|{_IN_SLUG}){{0,126}})")
_DIGEST = re.compile(rf"{PREFIX}[0-9a-f]{{4,64}}")
_READ_TERM = re.compile(rf"s?(?P<stage>\d{{1,3}})(?:[*x](?P<weight>{_WEIGHT}))?")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What can be served and scored beside the base, by one name.

    The base plus some stages of one curriculum; or, instead of stages, one adapter of the registry by its name or
    digest, or a folder: a PEFT adapter or a checkpoint.
    """

    curriculum: str
    stages: tuple[int, ...] = ()
    """Ascending stage numbers; empty is the base alone."""
    weights: tuple[float, ...] | None = None
    """One per stage, dimensionless; null weighs every stage 1, which is the model that was trained."""
    merge: str | None = None
    """Name of a registered merge or imported adapter."""
    digest: str | None = None
    """Start of the digest of an adapter that has no name: `sha256:` and at least four hex digits."""
    path: str | None = None
    """A folder, spelt with a `/`: `./my-lora`."""

    @property
    def is_stages(self) -> bool:
        """Whether it is the base with stages, or the base alone."""
        return self.merge is None and self.digest is None and self.path is None

    @property
    def name(self) -> str:
        """`base`, `1`, `1+2*0.5`; a merge's name, `sha256:…`, or a folder; read back by `parse_variant`."""
        if self.merge is not None:
            alone = _NAME.fullmatch(self.merge) or _SLUG.fullmatch(self.merge)
            return f"{self.curriculum}:{self.merge}" if alone else self.merge
        if single := self.digest or self.path:
            return single
        return "+".join(self._spelled()) or BASE

    @property
    def slug(self) -> str:
        """Fit for files and repositories: `gsm8k-s1.s2`; a merge's name, a digest's digits, a folder's last part."""
        if self.path is not None:
            return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(self.path).name).strip(".-") or "folder"
        if single := self.merge or self.digest:
            return single.removeprefix(PREFIX)
        return f"{self.curriculum}-" + (".".join(f"s{term}" for term in self._spelled()) or BASE)

    @property
    def alias(self) -> str:
        """With its curriculum: `gsm8k:1+2`; digests and folders are of none."""
        if single := self.digest or self.path:
            return single
        return f"{self.curriculum}:{self.merge or self.name}"

    def terms(self) -> Iterator[tuple[int, float]]:
        """Each stage with its weight."""
        return zip(self.stages, self.weights or (1.0,) * len(self.stages), strict=True)

    def _spelled(self) -> list[str]:
        return [f"{stage}" if weight == 1 else f"{stage}*{_shortest(weight)}" for stage, weight in self.terms()]


def _shortest(weight: float) -> str:
    """`0.5`, `2`: the fewest digits that give the number back."""
    return f"{weight:g}" if float(f"{weight:g}") == weight else repr(weight)


def names_folder(text: str) -> bool:
    """Whether a name is a folder's, which holds a `/` or begins with `.` or `~`; others are looked up in a registry."""
    return "/" in text or text.startswith((".", "~"))


def folder_name(path: str | Path) -> str:
    """A folder as a variant is called by it: `./my-lora`, whole where it is elsewhere."""
    text = str(expanded(path))
    return text if "/" in text else f"./{text}"


def parse_variant(text: str, curriculum: str) -> Variant:
    """Read a variant as people write it; `parse_variant(v.name, v.curriculum) == v`. Nothing is looked up.

    Args:
        text: `base`, `1+2`, `1+2*0.5`, `gsm8k:1+2`, `gsm8k-s1.s2`; the name of a merge or an adapter, with its
            curriculum or not; `sha256:` and the start of a digest; a folder with a `/` in it.
        curriculum: Curriculum of a name that does not say one.

    Raises:
        ConfigError: Not such a name, or a stage named twice.
    """
    if names_folder(text):
        return Variant(curriculum=curriculum, path=folder_name(text))
    match = _NAME.fullmatch(text) or _SLUG.fullmatch(text)
    if match:
        return _stages(match, text, curriculum)
    if _DIGEST.fullmatch(text):
        return Variant(curriculum=curriculum, digest=text)
    if match := _ADAPTER.fullmatch(text):
        return Variant(curriculum=match["curriculum"] or curriculum, merge=match["adapter"])
    raise ConfigError(
        "not a variant",
        found=text,
        expected=f"base, 1, 1+2, {curriculum}:1+2, {curriculum}-s1.s2, an adapter's name or digest, or ./FOLDER",
    )


def _stages(match: re.Match[str], text: str, curriculum: str) -> Variant:
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
