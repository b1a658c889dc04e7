"""A finished fold, read back from disk and held against base and adapters, before it gets its name.

Nothing of what wrote it is used: the result's own headers say where its tensors lie, the adapters are read again, and
the sums are taken in float64.

Shapes: N rows, O out_features, I in_features, R stacked rank.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...adapters.header import Header, read_header
from ...core.errors import FailedError, IntegrityError
from ..compose.prepare import Prepared
from ..factor_reader import PartReader
from .checkpoint import FLOATS, BaseReader, sample_rows
from .loss import ModuleFold
from .plan import FoldPlan, OutTensor

SAMPLED_MODULES = 16
SAMPLED_UNTOUCHED = 8
RANGE_BYTES = 1 << 20
"""An untouched tensor is compared whole up to 4 of these, and in 4 of these beyond."""


class Checked(NamedTuple):
    """What was looked at, and found right."""

    adapter_tensors: int
    """Each consumed exactly once."""
    modules: tuple[str, ...]
    """Recomputed in float64 from the files."""
    rows: int
    worst: float
    """Largest deviation found, as a share of what one rounding to the dtype and float32 sums allow."""
    untouched: tuple[str, ...]
    """Compared with the base byte by byte."""
    untouched_bytes: int
    is_base: bool
    """Whether the sum is zero, so that the result is the base."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self._asdict(), "modules": list(self.modules), "untouched": list(self.untouched)}


def check_fold(
    plan: FoldPlan, prepared: Prepared, folder: Path, folds: Sequence[tuple[str, ModuleFold]], *, seed: str
) -> Checked:
    """Check a finished folder.

    Args:
        plan: What was to be written.
        prepared: The composition that was added.
        folder: Where it was written.
        folds: What the writer did, once per module that it added a delta to.
        seed: Decides which modules, rows and tensors are looked at.

    Raises:
        FailedError: An adapter tensor that was not consumed exactly once, a file whose header is not the planned one,
            a weight that is not the rounded sum, an untouched tensor that differs from the base's, or a result that
            equals the base although the sum is not zero.

    Numerics: |found - x| <= u |x| + (1 + u) g_(R + 3) (|W| + |B| |A|) for x = W + B A in float64, u of the result's
        dtype and g of float32 (Higham, eq. 3.5), plus half the smallest subnormal number.
    """
    consumed = _count_consumed(plan, [name for name, _ in folds])
    is_base = _is_base(plan, dict(folds))
    headers = {file: read_header(folder / file) for file in plan.shards}
    _check_headers(plan, headers)
    draw = random.Random(seed)
    tensors = [(file, tensor) for file, shard in plan.shards.items() for tensor in shard]
    summed = [pair for pair in tensors if pair[1].module is not None]
    plain = [pair for pair in tensors if pair[1].module is None and pair[1].dtype == pair[1].source.dtype]
    modules = draw.sample(summed, min(SAMPLED_MODULES, len(summed)))
    untouched = draw.sample(plain, min(SAMPLED_UNTOUCHED, len(plain)))
    with BaseReader(plan.base) as base:
        results = [_check_rows(plan, prepared, base, headers[file], tensor, seed) for file, tensor in modules]
        num_bytes = [_check_bytes(base, headers[file], tensor, draw) for file, tensor in untouched]
    return Checked(
        adapter_tensors=consumed,
        modules=tuple(tensor.name for _, tensor in modules),
        rows=sum(rows for rows, _ in results),
        worst=max((worst for _, worst in results), default=0.0),
        untouched=tuple(tensor.name for _, tensor in untouched),
        untouched_bytes=sum(num_bytes),
        is_base=is_base,
    )


def _count_consumed(plan: FoldPlan, used: Sequence[str]) -> int:
    counts = Counter(used)
    held = {name for spec in plan.compose.specs for name in spec.modules}
    wrong = sorted(name for name in held | set(counts) if name not in held or counts[name] != 1)
    if wrong:
        raise FailedError(
            "an adapter's module was not added exactly once", where=wrong[0], found=counts[wrong[0]], expected=1
        )
    return sum(len(module.keys) for spec in plan.compose.specs for module in spec.modules.values())


def _is_base(plan: FoldPlan, folds: Mapping[str, ModuleFold]) -> bool:
    """Whether the sum is zero; an error if it is not and yet every measured element is the base's."""
    if not any(module.delta_norm for module in folds.values()):
        return True
    if not any(module.changed_share for module in folds.values()):
        raise FailedError(
            "the result equals the base wherever it was measured: the deltas are below what its dtype can hold",
            where=plan.base.path,
            found=plan.dtype or "the base's dtype",
            next_step="fold with --dtype fp32",
        )
    return False


def _check_headers(plan: FoldPlan, headers: Mapping[str, Header]) -> None:
    for file, tensors in plan.shards.items():
        found = {name: (entry.dtype, entry.shape) for name, entry in headers[file].tensors.items()}
        if found != {tensor.name: (tensor.dtype, tensor.source.shape) for tensor in tensors}:
            raise FailedError("a file of the result does not hold what was planned", where=headers[file].path)


def _check_rows(
    plan: FoldPlan, prepared: Prepared, base: BaseReader, header: Header, tensor: OutTensor, seed: str
) -> tuple[int, float]:
    """(rows looked at, largest deviation as a share of the bound)."""
    assert tensor.module is not None
    if plan.compose.method == "exact" and plan.compose.dtype == "fp32":
        stack = PartReader(plan.compose).read(tensor.module)
        B_OR, A_RI = stack.B_OR, stack.A_RI
    else:  # the composition is the result of a method, which its own certificate speaks of
        factors = prepared.factors(tensor.module)
        B_OR, A_RI = factors.B_OR.double(), factors.A_RI.double()
    dtype = FLOATS[tensor.dtype]
    unit, unit32 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps / 2
    growth = (B_OR.shape[1] + 3) * unit32 / (1 - (B_OR.shape[1] + 3) * unit32)
    worst = rows = 0.0
    for start, count in sample_rows(f"{seed}{tensor.name}", tensor.source.shape[0]):
        W_NI = base.rows(tensor.source_file, tensor.source, start, count).double()
        B_NR = B_OR[start : start + count]
        sum_NI = W_NI + B_NR @ A_RI
        float32_NI = growth * (W_NI.abs() + B_NR.abs() @ A_RI.abs())
        bound_NI = unit * sum_NI.abs() + (1 + unit) * float32_NI + torch.finfo(dtype).smallest_normal * unit
        share_NI = (_read_rows(header, tensor, start, count).double() - sum_NI).abs() / bound_NI
        worst, rows = max(worst, float(share_NI.max())), rows + count
        if not worst <= 1:  # or NaN
            raise FailedError(
                "a weight read back is not the sum of base and adapters",
                where=f"{tensor.name}, rows {start} to {start + count - 1}",
                found=f"{worst:.3g} times the error one rounding can make",
                next_step="run it again; if it persists, the disk or the memory is at fault",
            )
    return int(rows), worst


def _check_bytes(base: BaseReader, header: Header, tensor: OutTensor, draw: random.Random) -> int:
    num_bytes = tensor.num_bytes
    ranges = [(0, num_bytes)]
    if num_bytes > 4 * RANGE_BYTES:
        ranges = [(draw.randint(0, num_bytes - RANGE_BYTES), RANGE_BYTES) for _ in range(4)]
    for start, count in ranges:
        expected = bytearray(count)
        base.read_into(tensor.source_file, tensor.source.start + start, memoryview(expected))
        if _read(header, tensor.name, start, count) != expected:
            raise FailedError("a tensor that no adapter changes differs from the base's", where=tensor.name)
    return sum(count for _, count in ranges)


def _read_rows(header: Header, tensor: OutTensor, start: int, count: int) -> Tensor:
    dtype = FLOATS[tensor.dtype]
    num_columns = tensor.source.shape[1]
    row_bytes = num_columns * dtype.itemsize
    data = _read(header, tensor.name, start * row_bytes, count * row_bytes)
    return torch.frombuffer(data, dtype=dtype).reshape(count, num_columns)


def _read(header: Header, name: str, start: int, count: int) -> bytearray:
    entry = header.tensors[name]
    data = bytearray(count)
    with header.path.open("rb", buffering=0) as file:
        if os.preadv(file.fileno(), [data], entry.start + start) != count:
            raise IntegrityError("the file ended inside a tensor", where=f"{header.path} {name}")
    return data
