"""How far a composed adapter is from the sum it stands for, per module and in all; known before a byte is written.

The truth is D = sum_k w_k s_k B_k A_k of the factors as stored, in float64. Two things can part the result from it:
truncation (what `svd` leaves out, known from the spectrum) and rounding (the result's factors in their dtype, measured
in factor space). The two are orthogonal up to rounding of rounding, so their squares add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModuleError:
    """The error of one module; absolute norms, in units of the weights."""

    norm: float
    """|D|, Frobenius."""
    truncation: float = 0.0
    """|D - D_K|, Frobenius: sqrt of the sum of the dropped singular values' squares."""
    rounding: float = 0.0
    """|D_K - result|, Frobenius, measured."""
    spectral: float = 0.0
    """Bound on |D - result|_2: no input of length 1 changes its output by more."""

    @property
    def error(self) -> float:
        """|D - result|, Frobenius."""
        return math.hypot(self.truncation, self.rounding)

    @property
    def relative(self) -> float:
        """|D - result| / |D|; 0 for a module whose sum is zero."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The error of a whole composition."""

    modules: dict[str, ModuleError]

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
            "worst_module": {"name": worst, "relative_error": worst_relative},
            "modules": {
                name: {
                    "delta_norm": module.norm,
                    "relative_error": module.relative,
                    "truncation": module.truncation,
                    "rounding": module.rounding,
                    "spectral_bound": module.spectral,
                }
                for name, module in self.modules.items()
            },
        }


def _root(values: Any) -> float:
    return math.sqrt(math.fsum(value * value for value in values))
