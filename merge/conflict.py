"""How far the parts of a merge pull against each other: cosine and sign conflict of every pair, worst modules first.

Both look at what is added, w_k s_k B_k A_k, so a negative weight turns a pair round. Cosines come from R x R products;
signs need entries of dW, which are formed for a seeded draw of rows only.

Shapes: O out_features, I in_features, R rank, N drawn rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters.delta import inner
from ..adapters.tensors import Factors

SAMPLED_ROWS = 64
"""Rows of dW a module whose signs are compared; all rows where there are no more."""
SEED = 0
CHANCE = 0.5
"""Sign conflict of two unrelated deltas."""
WORST = 3
"""Modules named for each pair."""


class ModuleConflict(NamedTuple):
    """One module of one pair."""

    name: str
    cosine: float
    sign_conflict: float
    """Share of sampled entries, both non-zero, whose signs differ."""


@dataclass(frozen=True, kw_only=True)
class PairConflict:
    """Two parts against each other, over the modules both have."""

    first: str
    second: str
    cosine: float
    """<D_i, D_j> / (|D_i| |D_j|) over all modules; 0 where they share none."""
    sign_conflict: float | None
    """Over all sampled entries; None where no entry is non-zero in both."""
    worst: tuple[ModuleConflict, ...]
    """Modules with the lowest cosine."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "cosine": self.cosine,
            "sign_conflict": self.sign_conflict,
            "worst_modules": [module._asdict() for module in self.worst],
        }


@dataclass
class _Pair:
    inner: float = 0.0
    differing: int = 0
    compared: int = 0
    modules: list[ModuleConflict] = field(default_factory=list)


class ConflictMeter:
    """Takes the parts of a merge module by module, so that no more than one module is in memory.

    Args:
        labels: Names of the parts, in order.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._pairs = {pair: _Pair() for pair in combinations(range(len(labels)), 2)}
        self._squares = [0.0] * len(labels)

    def add(self, name: str, present: Mapping[int, Factors], norms: Mapping[int, float]) -> None:
        """Count one module: the weighted factors of the parts that have it and their norms, by part."""
        for part, norm in norms.items():
            self._squares[part] += norm * norm
        signs = _sampled_signs(present) if len(present) > 1 else {}
        for pair in combinations(sorted(present), 2):
            first, second = pair
            product = inner(present[first], present[second])
            length = norms[first] * norms[second]
            differing, compared = _differing(signs[first], signs[second])
            total = self._pairs[pair]
            total.inner += product
            total.differing += differing
            total.compared += compared
            if length and compared:
                total.modules.append(ModuleConflict(name, product / length, differing / compared))

    def pairs(self) -> list[PairConflict]:
        """Every pair, in the order of the parts."""
        found = []
        for (first, second), pair in self._pairs.items():
            length = math.sqrt(self._squares[first] * self._squares[second])
            found.append(
                PairConflict(
                    first=self._labels[first],
                    second=self._labels[second],
                    cosine=pair.inner / length if length else 0.0,
                    sign_conflict=pair.differing / pair.compared if pair.compared else None,
                    worst=tuple(sorted(pair.modules, key=lambda module: module.cosine)[:WORST]),
                )
            )
        return found


def _sampled_signs(present: Mapping[int, Factors]) -> dict[int, Tensor]:
    num_rows = next(iter(present.values())).B_OR.shape[0]
    rows_N = torch.randperm(num_rows, generator=torch.Generator().manual_seed(SEED))[:SAMPLED_ROWS]
    return {
        part: torch.sign((factors.scale * factors.B_OR[rows_N].float()) @ factors.A_RI.float()).to(torch.int8)
        for part, factors in present.items()
    }


def _differing(first_NI: Tensor, second_NI: Tensor) -> tuple[int, int]:
    product_NI = first_NI * second_NI
    differing = int((product_NI < 0).sum())
    return differing, differing + int((product_NI > 0).sum())
