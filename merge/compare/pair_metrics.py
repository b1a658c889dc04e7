"""How two adapters relate, as numbers that add up over modules: what `interference` measures. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

KINDS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""Last parts of module names in the order of a forward pass; others come after, by name."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Two adapters on one module, or on several added up.

    The fields are sums, so that relations add up; what people read are the properties, None where undefined.
    """

    square_first: float = 0.0
    """|D_i|^2, Frobenius."""
    square_second: float = 0.0
    inner: float = 0.0
    """<D_i, D_j>."""
    directions: float = 0.0
    """min(r_i, r_j) of numerical ranks: the largest overlap there can be."""
    shared_columns: float = 0.0
    """|U_i^T U_j|^2 of the column spaces (what the modules write to)."""
    shared_rows: float = 0.0
    """|V_i^T V_j|^2 of the row spaces (what the modules read from)."""
    expected_columns: float = 0.0
    """r_i r_j / O: what random subspaces share on average."""
    expected_rows: float = 0.0
    """r_i r_j / I."""
    differing: float = 0.0
    """Sampled entries, both non-zero, of other sign."""
    compared: float = 0.0
    """Sampled entries, both non-zero."""
    entangled: float = 0.0
    """|(U^T U - I) S (V^T V - I)|_1 over both."""
    nuclear: float = 0.0
    """Sum of both's singular values, where neither is zero."""
    output_first: float = 0.0
    """E|D_i x|^2 on the given prompts."""
    output_second: float = 0.0

    @classmethod
    def total(cls, relations: Iterable[Relation]) -> Relation:
        """Several modules as one: block-diagonal deltas."""
        listed = list(relations)
        return cls(**{each.name: math.fsum(getattr(one, each.name) for one in listed) for each in fields(cls)})

    @property
    def norms(self) -> tuple[float, float]:
        """|D_i| and |D_j|, Frobenius."""
        return math.sqrt(self.square_first), math.sqrt(self.square_second)

    @property
    def cosine(self) -> float | None:
        """<D_i, D_j> / (|D_i| |D_j|): 1 the same direction, 0 unrelated, -1 against each other."""
        value = _ratio(self.inner, math.prod(self.norms))
        return None if value is None else max(-1.0, min(1.0, value))

    @property
    def column_overlap(self) -> float | None:
        """|Q_Bi^T Q_Bj|^2 / min(r_i, r_j): 1 where one space of outputs holds the other, 0 orthogonal."""
        return _ratio(min(self.shared_columns, self.directions), self.directions)

    @property
    def row_overlap(self) -> float | None:
        """|Q_Ai^T Q_Aj|^2 / min(r_i, r_j), likewise of inputs."""
        return _ratio(min(self.shared_rows, self.directions), self.directions)

    @property
    def column_chance(self) -> float | None:
        """Column overlap of random subspaces of these ranks: r_i r_j / (O min(r_i, r_j))."""
        return _ratio(self.expected_columns, self.directions)

    @property
    def row_chance(self) -> float | None:
        """Row overlap of random subspaces: r_i r_j / (I min(r_i, r_j))."""
        return _ratio(self.expected_rows, self.directions)

    @property
    def sign_conflict(self) -> float | None:
        """Share of sampled entries, both non-zero, whose signs differ; 0.5 for unrelated adapters."""
        return _ratio(self.differing, self.compared)

    @property
    def sti(self) -> float | None:
        """Singular task interference over the sum of singular values: 0 orthogonal, 1 for an adapter with itself.

        |(U^T U - I) S (V^T V - I)|_1 (sum of absolute entries) / sum S, over the stacked singular vectors; dividing
        makes it independent of the deltas' size. Many small overlaps can add up to more than 1.

        Source: TSV, arXiv:2412.00081, section 4, where it is not divided.
        Numerics: not unique where singular values are equal, as the singular vectors are not.
        """
        return _ratio(self.entangled, self.nuclear)

    @property
    def leak(self) -> float | None:
        """E|D_j x|^2 / E|D_i x|^2: how loud the second is on the prompts beside the first; orthogonal is not silent."""
        return _ratio(self.output_second, self.output_first)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where undefined."""
        names = ("cosine", "column_overlap", "column_chance", "row_overlap", "row_chance", "sign_conflict", "sti")
        return {"norms": list(self.norms), **{name: getattr(self, name) for name in names}, "leak": self.leak}


@dataclass(frozen=True, kw_only=True)
class PairInterference:
    """Two parts against each other."""

    first: str
    second: str
    modules: dict[str, Relation]
    """Every module that either has, by name."""
    only_first: tuple[str, ...]
    """Modules the second does not have."""
    only_second: tuple[str, ...]

    @property
    def total(self) -> Relation:
        """All modules together."""
        return Relation.total(self.modules.values())

    @property
    def kinds(self) -> dict[str, Relation]:
        """By the last part of the modules' names (`q_proj`), in the order of a forward pass."""
        grouped: dict[str, list[Relation]] = defaultdict(list)
        for name, relation in self.modules.items():
            grouped[name.rpartition(".")[2]].append(relation)
        return {kind: Relation.total(grouped[kind]) for kind in sorted(grouped, key=kind_order)}

    @property
    def worst(self) -> list[str]:
        """Modules whose cosine is defined, lowest first."""
        defined = [(relation.cosine, name) for name, relation in self.modules.items() if relation.cosine is not None]
        return [name for _, name in sorted(defined)]

    def to_json(self) -> dict[str, Any]:
        """Totals, kinds and every module."""
        return {
            "first": self.first,
            "second": self.second,
            **self.total.to_json(),
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "kinds": {kind: relation.to_json() for kind, relation in self.kinds.items()},
            "modules": {name: relation.to_json() for name, relation in self.modules.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Interference:
    """All parts and every pair of them."""

    labels: tuple[str, ...]
    norms: dict[str, tuple[float | None, ...]]
    """By module: |D_k| of each part, Frobenius; None for a part that does not have it."""
    pairs: tuple[PairInterference, ...]
    sti: dict[str, float | None]
    """By module: singular task interference of all parts together, divided as in `Relation.sti`."""
    total_sti: float | None
    """Over all modules."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "labels": list(self.labels),
            "sti": self.total_sti,
            "pairs": [pair.to_json() for pair in self.pairs],
            "modules": {
                name: {"norms": list(norms), "sti": self.sti[name]} for name, norms in sorted(self.norms.items())
            },
        }


def kind_order(kind: str) -> tuple[int, str]:
    """Sort key of a module kind, `q_proj` or `self_attn.q_proj`."""
    last = kind.rpartition(".")[2]
    return KINDS.index(last) if last in KINDS else len(KINDS), kind


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
