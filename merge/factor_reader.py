"""The parts of a merge, module by module: read when they are needed, never all at once.

Shapes: O out_features, I in_features, R rank of one part or of the stack of all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO

import torch
from torch import Tensor

from ..adapters.header import file_stamp, reading
from ..adapters.spec import DTYPES
from ..adapters.tensors import Factors
from ..core.errors import IntegrityError
from .inputs import PartSet


@dataclass(frozen=True)
class ModuleStack:
    """One module of the parts that have it: D_OI = sum_k weight_k * scale_k * B_k @ A_k."""

    name: str
    parts: dict[int, Factors]
    """By index of the part; factors as stored, with their own scale."""
    weights: dict[int, float]
    """By index of the part."""

    @property
    def ranks(self) -> list[int]:
        """R of each part, in order."""
        return [part.A_RI.shape[0] for part in self.parts.values()]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        first = next(iter(self.parts.values()))
        return first.B_OR.shape[0], first.A_RI.shape[1]

    def scaled_B(self, index: int) -> Tensor:
        """The B of one part times its weight and scale, float64."""
        return self.parts[index].B_OR.double() * (self.weights[index] * self.parts[index].scale)

    @property
    def B_OR(self) -> Tensor:
        """All weighted, scaled B side by side, float64: D = B_OR @ A_RI."""
        return torch.cat([self.scaled_B(index) for index in self.parts], 1)

    @property
    def A_RI(self) -> Tensor:
        """All A below each other, float64."""
        return torch.cat([part.A_RI.double() for part in self.parts.values()], 0)


class PartReader:
    """Reads the factors of one module at a time; any number of threads may.

    Args:
        parts: Checked parts; their files must not have changed since.
    """

    def __init__(self, parts: PartSet) -> None:
        self._parts = parts

    def read(self, name: str) -> ModuleStack:
        """The parts of one module.

        Raises:
            IntegrityError: NaN or infinity in a tensor, or a file that has changed since its header was checked.
            FailedError: The system does not let a file be read.
        """
        present: dict[int, Factors] = {}
        for index, spec in enumerate(self._parts.specs):
            if name in spec.modules:
                path = spec.header.path
                with reading(path), path.open("rb", buffering=0) as file:
                    A_RI, B_OR = (self._tensor(index, file, key) for key in spec.modules[name].keys)
                    present[index] = Factors(A_RI, B_OR, spec.modules[name].scale)
                    if file_stamp(os.fstat(file.fileno())) != spec.header.stamp:
                        raise IntegrityError("an adapter changed while it was merged", where=path)
        return ModuleStack(name, present, {index: self._parts.parts[index].weight for index in present})

    def _tensor(self, index: int, file: FileIO, key: str) -> Tensor:
        header = self._parts.specs[index].header
        entry = header.tensors[key]
        # Copied rather than mapped: a file cut short under a map is a crash.
        # Not zeroed first, which would keep other threads waiting.
        tensor = torch.empty(entry.shape, dtype=getattr(torch, DTYPES[entry.dtype]))
        data = tensor.view(torch.uint8).reshape(-1).numpy().data
        if os.preadv(file.fileno(), [data], entry.start) != len(data):
            raise IntegrityError("the file ended inside a tensor", where=f"{header.path} {key}")
        low, high = torch.aminmax(tensor)  # NaN carries through; many times faster than isfinite of all
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise IntegrityError("a tensor holds NaN or infinity", where=f"{header.path} {key}")
        return tensor
