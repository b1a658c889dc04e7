"""How far a composed adapter is from the sum it stands for, per module and in all; known before a byte is written.

The truth is D = sum_k w_k s_k B_k A_k of the factors as stored, in float64. Two things can part the result from it:
what the method leaves out or changes (for `svd` known from the spectrum, else measured in factor space) and rounding
(the result's factors in their dtype, measured likewise). The two are orthogonal up to rounding of rounding, so their
squares add.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class OwnResult(NamedTuple):
    """The result that a method other than the sum aims at, and what its rank cannot hold of it; Frobenius norms."""

    norm: float
    residual: float


@dataclass(frozen=True, kw_only=True)
class ModuleError:
    """The error of one module; absolute norms, in units of the weights."""

    norm: float
    """|D|, Frobenius."""
    truncation: float = 0.0
    """|D - D_K|, Frobenius; for `svd` the root of the sum of the dropped singular values' squares."""
    rounding: float = 0.0
    """|D_K - result|, Frobenius, measured."""
    spectral: float = 0.0
    """Bound on |D - result|_2: no input of length 1 changes its output by more."""
    output: float | None = None
    """Predicted sqrt(E|(D - D_K) x|^2 / E|D x|^2) over the inputs x of the statistics; None without statistics."""

    own: OwnResult | None = None
    """For methods that mean another model than the sum."""

    @property
    def error(self) -> float:
        """|D - result|, Frobenius."""
        return math.hypot(self.truncation, self.rounding)

    @property
    def relative(self) -> float:
        """|D - result| / |D|; 0 for a module whose sum is zero."""
        return self.error / self.norm if self.norm else 0.0


class Bucket(NamedTuple):
    """What a rank that vLLM can be started with would lose."""

    rank: int
    relative_error: float
    """Truncation alone, over all modules; of the outputs where the method goes by them."""
    worst_module: str
    worst_relative_error: float


class Losses(NamedTuple):
    """What one module would lose at each of some ranks."""

    norm: float
    """Frobenius, of what is cut; in units of outputs where the method goes by them."""
    lost: tuple[float, ...]
    """Frobenius norm of what each rank cannot hold."""


def bucket_table(losses: Mapping[str, Losses], ranks: Sequence[int]) -> tuple[Bucket, ...]:
    """The error at each rank, over all modules and in the worst."""
    total = _root(module.norm for module in losses.values())
    table = []
    for index, rank in enumerate(ranks):
        relative = {name: module.lost[index] / module.norm if module.norm else 0.0 for name, module in losses.items()}
        worst = max(relative, key=lambda name: relative[name])
        error = _root(module.lost[index] for module in losses.values()) / total if total else 0.0
        table.append(Bucket(rank, error, worst, relative[worst]))
    return tuple(table)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The error of a whole composition."""

    modules: dict[str, ModuleError]
    buckets: tuple[Bucket, ...] = ()
    """Error at every rank vLLM can be started with; where a rank was to be chosen."""

    @property
    def norm(self) -> float:
        """|D| over all modules, Frobenius."""
        return _root(module.norm for module in self.modules.values())

    @property
    def truncation(self) -> float:
        """Frobenius norm of what truncation drops, over all modules."""
        return _root(module.truncation for module in self.modules.values())

    @property
    def rounding(self) -> float:
        """Frobenius norm of what rounding changes, over all modules."""
        return _root(module.rounding for module in self.modules.values())

    @property
    def error(self) -> float:
        """|D - result| over all modules, Frobenius."""
        return math.hypot(self.truncation, self.rounding)

    @property
    def relative(self) -> float:
        """|D - result| / |D| over all modules."""
        return self.error / self.norm if self.norm else 0.0

    @property
    def energy_kept(self) -> float:
        """Share of |D|^2 that truncation keeps."""
        return 1 - (self.truncation / self.norm) ** 2 if self.norm else 1.0

    @property
    def spectral(self) -> float:
        """Largest spectral bound of any module."""
        return max(module.spectral for module in self.modules.values())

    @property
    def own_loss(self) -> float | None:
        """What the rank cannot hold of the method's own result, as a share of that; None where the sum is meant."""
        own = [module.own for module in self.modules.values() if module.own is not None]
        norm = _root(each.norm for each in own)
        return None if not own else _root(each.residual for each in own) / norm if norm else 0.0

    @property
    def output(self) -> float | None:
        """Largest predicted output error of any module; None without statistics."""
        return max((module.output for module in self.modules.values() if module.output is not None), default=None)

    @property
    def bit_exact(self) -> bool:
        """Whether the result's factors give the very sum: nothing dropped, nothing rounded."""
        return self.error == 0

    @property
    def worst(self) -> tuple[str, float]:
        """Module with the largest relative error, and that error."""
        name = max(self.modules, key=lambda key: self.modules[key].relative)
        return name, self.modules[name].relative

    def to_json(self) -> dict[str, Any]:
        """Totals and every module; norms are Frobenius unless named spectral."""
        worst, worst_relative = self.worst
        return {
            "bit_exact": self.bit_exact,
            "delta_norm": self.norm,
            "error": self.error,
            "relative_error": self.relative,
            "truncation": self.truncation,
            "rounding": self.rounding,
            "energy_kept": self.energy_kept,
            "spectral_bound": self.spectral,
            "output_error": self.output,
            "own_loss": self.own_loss,
            "worst_module": {"name": worst, "relative_error": worst_relative},
            "buckets": [bucket._asdict() for bucket in self.buckets],
            "modules": {
                name: {
                    "delta_norm": module.norm,
                    "relative_error": module.relative,
                    "truncation": module.truncation,
                    "rounding": module.rounding,
                    "spectral_bound": module.spectral,
                    **({} if module.output is None else {"output_error": module.output}),
                }
                for name, module in self.modules.items()
            },
        }


def _root(values: Any) -> float:
    return math.sqrt(math.fsum(value * value for value in values))
