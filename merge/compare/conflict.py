"""How far the parts of a merge pull against each other: cosine and sign conflict of every pair, worst modules first.

Both look at what is added, w_k s_k B_k A_k, so a negative weight turns a pair round. Cosines come from R x R products;
signs need entries of dW, which are formed for a seeded draw of rows and columns only. `interference` says more, slower.

Shapes: O out_features, I in_features, R rank, N drawn rows, C drawn columns, E = N * C sampled entries, K parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...adapters.tensors import Factors
from ..lowrank import BlockProducts

SAMPLED_ROWS, SAMPLED_COLUMNS = 64, 512
"""Rows and columns of dW a module where signs are compared; all where there are no more.

Entries of one row share b_o, those of one column a_i, so some of many rows and columns say more than all of a few.
"""
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


class Shared(NamedTuple):
    """One module that two parts have."""

    inner: float
    """<D_i, D_j>."""
    differing: int
    """Sampled entries whose signs differ."""
    compared: int
    """Sampled entries that are non-zero in both."""


class ModuleSums(NamedTuple):
    """One module of all parts that have it."""

    norms: dict[int, float]
    """|D_i|, weighted, by part."""
    shared: dict[tuple[int, int], Shared]
    """By pair of parts."""


def measure_conflict(present: Mapping[int, Factors], products: BlockProducts) -> ModuleSums:
    """Compare the weighted factors of the parts that have a module, by part; `products` are of their stack."""
    norms = {part: products.norm(block) for block, part in enumerate(present)}
    if len(present) < 2:
        return ModuleSums(norms, {})
    agreement_KK, compared_KK = (counts.long().tolist() for counts in sign_counts(list(present.values())))
    shared = {}
    for (i, first), (j, second) in combinations(enumerate(present), 2):
        compared = compared_KK[i][j]
        shared[first, second] = Shared(products.inner(i, j), (compared - agreement_KK[i][j]) // 2, compared)
    return ModuleSums(norms, shared)


class ConflictMeter:
    """Takes the parts of a merge module by module, so that no more than one module is in memory.

    Args:
        labels: Names of the parts, in order.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._pairs = {pair: _Pair() for pair in combinations(range(len(labels)), 2)}
        self._squares = [0.0] * len(labels)

    def add(self, name: str, module: ModuleSums) -> None:
        """Count one module; in a fixed order, so that equal parts give equal digits."""
        for part, norm in module.norms.items():
            self._squares[part] += norm * norm
        for (first, second), shared in module.shared.items():
            length = module.norms[first] * module.norms[second]
            total = self._pairs[first, second]
            total.inner += shared.inner
            total.differing += shared.differing
            total.compared += shared.compared
            if length and shared.compared:
                conflict = shared.differing / shared.compared
                total.modules.append(ModuleConflict(name, shared.inner / length, conflict))

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


def sign_counts(present: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """For every pair of parts, over sampled entries: how many more agree than differ in sign, how many have both."""
    rows_N = _drawn(present[0].B_OR.shape[0], SAMPLED_ROWS)
    columns_C = _drawn(present[0].A_RI.shape[1], SAMPLED_COLUMNS)
    signs_KE = torch.stack(
        [
            ((part.scale * part.B_OR[rows_N].float()) @ part.A_RI[:, columns_C].float()).sign_().flatten()
            for part in present
        ]
    )
    nonzero_KE = signs_KE.abs()
    return signs_KE @ signs_KE.T, nonzero_KE @ nonzero_KE.T  # counts: exact in float32 up to 2^24 entries


@lru_cache
def _drawn(total: int, count: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(SEED))[:count]
