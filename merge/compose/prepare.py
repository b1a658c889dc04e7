"""A composition computed and certified before anything is written: module by module, memory flat.

The exact result is never held: its factors are the parts' own, read again when they are needed. Other methods hold
their result, at its rank and dtype.

Shapes: O out_features, I in_features, R stacked rank, K rank of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...adapters.delta import norm
from ...adapters.tensors import Factors, tensor_digest
from ...core.disk.digest import digest_json
from ...core.errors import ConfigError, FailedError, IncompatibleError
from ..compare.conflict import ConflictMeter, ModuleSums, PairConflict, measure_conflict
from ..factor_reader import PartReader
from ..inputs import duplicate
from ..lowrank import BlockProducts, Size, difference
from ..module_pool import ordered
from ..plan import DTYPE_NAMES, VLLM_RANKS, ComposePlan
from .certificate import Bucket, Certificate, ModuleError, bucket_table
from .reduce import Reduction, losses, reduce

if TYPE_CHECKING:
    from ..calibrate.moments import Statistics

COMPOSITION_SCHEMA = "plyfold/composition/1"


@dataclass(frozen=True, kw_only=True)
class Input:
    """One part as it entered."""

    label: str
    weight: float
    tensor_digest: str
    record_digest: str | None
    delta_norm: float
    """|dW| over all modules, Frobenius, unweighted."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "label": self.label,
            "weight": self.weight,
            "digest": self.tensor_digest,
            "record": self.record_digest,
            "delta_norm": self.delta_norm,
        }


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A composition with its error, before anything is written."""

    plan: ComposePlan
    """With the rank that was chosen, where an error was given."""
    inputs: tuple[Input, ...]
    certificate: Certificate
    conflicts: tuple[PairConflict, ...]
    reader: PartReader
    reduced: Mapping[str, Factors]
    """By module, for methods that change the sum; the exact result is read from the parts when it is needed."""
    statistics: Statistics | None = None
    """The activation statistics that decided the result."""

    def factors(self, name: str) -> Factors:
        """One module of the result: scale 1, of the plan's rank and dtype. Any number of threads may ask.

        Raises:
            IntegrityError: A part has changed since it was certified.
        """
        if name in self.reduced:
            return self.reduced[name]
        stack = self.reader.read(name)
        dtype = getattr(torch, DTYPE_NAMES[self.plan.dtype])
        # Each part by itself, A not by way of float64: the same numbers as from the whole stacks, in less memory.
        B_OR = torch.cat([stack.scaled_B(index).to(dtype) for index in stack.parts], 1)
        A_RI = torch.cat([part.A_RI.to(dtype) for part in stack.parts.values()], 0)
        return _pad(B_OR, A_RI, self.plan.rank)

    @property
    def adding_nothing(self) -> list[str]:
        """Labels of the parts whose delta, weighed, is zero: by weight, by alpha, or because A or B is."""
        return [entry.label for entry in self.inputs if not entry.weight * entry.delta_norm]

    @property
    def warnings(self) -> list[str]:
        """What only the numbers tell; the plan's warnings are known before."""
        told = " ".join(self.plan.warnings)
        found = [
            f"{label} is all zeros, as an adapter that was never trained: it costs rank and adds nothing"
            for label in self.adding_nothing
            if f"{label} has " not in told
        ]
        if len(self.adding_nothing) == len(self.inputs):
            found.append("no part adds anything: the result is the base")
        return found

    @property
    def key(self) -> str:
        """Digest of what decides the result: inputs, weights, method, rank, dtype and base."""
        return digest_json(
            {
                "inputs": [[entry.tensor_digest, entry.weight] for entry in self.inputs],
                "scales": [[module.scale for module in spec.modules.values()] for spec in self.plan.specs],
                "method": self.plan.method,
                "settings": self.plan.settings,
                "statistics": self.statistics.to_json() if self.statistics else None,
                "rank": self.plan.rank,
                "dtype": self.plan.dtype,
                "base": [self.plan.base_repo, self.plan.base_revision],
            }
        )

    def to_json(self) -> dict[str, Any]:
        """What `composition.json` holds."""
        return {
            "schema": COMPOSITION_SCHEMA,
            "tool": {"name": "plyfold", "version": version("plyfold")},
            "base": {"repo": self.plan.base_repo, "revision": self.plan.base_revision},
            "method": self.plan.method,
            "settings": self.plan.settings,
            "statistics": self.statistics.to_json() if self.statistics else None,
            "rank": self.plan.rank,
            "exact_rank": self.plan.exact_rank,
            "dtype": self.plan.dtype,
            "inputs": [entry.to_json() for entry in self.inputs],
            "conflicts": [pair.to_json() for pair in self.conflicts],
            "certificate": self.certificate.to_json(),
            **({"adding_nothing": self.adding_nothing} if self.adding_nothing else {}),
        }


def prepare(
    plan: ComposePlan,
    advance: Callable[[], None] = lambda: None,
    *,
    statistics: Statistics | None = None,
) -> Prepared:
    """Sum the parts in factor space and certify the result, without writing.

    dW_OI = sum_k w_k s_k B_k A_k, as A = [A_1; ..; A_n] and B = [w_1 s_1 B_1 | ..] for `exact`; other methods end at
    the plan's rank, or at the smallest rank vLLM can be started with that meets the plan's error.

    Args:
        plan: From `plan_compose`.
        advance: Called after each module.
        statistics: Second moments of the parts' hidden vectors, for `activation`.

    Raises:
        IntegrityError: NaN or infinity in a part, or a part that changes meanwhile.
        FailedError: A factor of the sum leaves the range of the dtype.
        IncompatibleError: Two parts with the same tensors, or an error that no rank of vLLM meets.
        ConfigError: `activation` without statistics, or a dtype that rounds by more than the error asked for.

    Source: LoRA, arXiv:2106.09685, eq. 3; stacking as PEFT's `combination_type="cat"`, with the scales folded in.
    Numerics: float64 throughout, one rounding to the result's dtype at the end, whose size the certificate states.
        Bit-exact where every w_k s_k is a power of two; tests/merge/compose/test_compose.py.
    """
    if statistics is not None:
        statistics.check(plan)
    reader = PartReader(plan)
    digests = _digests(plan)
    buckets: tuple[Bucket, ...] = ()
    if plan.max_error is not None:
        plan, buckets = _choose_rank(plan, plan.max_error, reader, statistics)
    squares = [0.0] * len(plan.parts)
    meter = ConflictMeter([part.name for part in plan.parts])
    reduced: dict[str, Factors] = {}
    errors: dict[str, ModuleError] = {}
    names = list(plan.modules)
    for name, done in zip(names, ordered(lambda name: _certify(plan, reader, name, statistics), names), strict=True):
        meter.add(name, done.conflict)
        for index, length in done.norms.items():
            squares[index] += length**2
        errors[name] = done.error
        if done.factors is not None:
            reduced[name] = done.factors
        advance()
    certificate = Certificate(modules=errors, buckets=buckets)
    _check_rounding(plan, certificate)
    return Prepared(
        plan=plan,
        inputs=tuple(
            Input(
                label=part.name,
                weight=part.weight,
                tensor_digest=digest,
                record_digest=part.digest,
                delta_norm=math.sqrt(square),
            )
            for part, digest, square in zip(plan.parts, digests, squares, strict=True)
        ),
        certificate=certificate,
        conflicts=tuple(meter.pairs()),
        reader=reader,
        reduced=reduced,
        statistics=statistics,
    )


class _Done(NamedTuple):
    """What one module gave."""

    error: ModuleError
    norms: dict[int, float]
    """|dW| of each part that has the module, unweighted."""
    conflict: ModuleSums
    factors: Factors | None
    """None where the result is the sum itself."""


def _certify(plan: ComposePlan, reader: PartReader, name: str, statistics: Statistics | None) -> _Done:
    stack = reader.read(name)
    B_OR, A_RI = stack.B_OR, stack.A_RI
    _check_range(name, plan.dtype if plan.keeps_all else "fp32", B_OR, A_RI)
    products = BlockProducts(B_OR, A_RI, stack.ranks)
    norms = {}
    for block, (index, part) in enumerate(stack.parts.items()):
        weight = abs(stack.weights[index])
        norms[index] = products.norm(block) / weight if weight else norm(part)
    reduction = None if plan.keeps_all else reduce(stack, plan, statistics)
    kept = reduction or Reduction(B_OR, A_RI, Size(0.0, 0.0))
    dtype = getattr(torch, DTYPE_NAMES[plan.dtype])
    if reduction is not None:
        _check_range(name, plan.dtype, kept.B_OK, kept.A_KI)
    rounded_B_OK, rounded_A_KI = kept.B_OK.to(dtype), kept.A_KI.to(dtype)
    rounding = difference(kept.B_OK, kept.A_KI, rounded_B_OK.double(), rounded_A_KI.double())
    error = ModuleError(
        norm=products.norm(),
        truncation=kept.left_out.frobenius,
        rounding=rounding.frobenius,
        spectral=kept.left_out.spectral + rounding.spectral,
        output=kept.output_error,
        own=kept.own,
    )
    factors = None if reduction is None else _pad(rounded_B_OK, rounded_A_KI, plan.rank)
    weighted = {
        index: Factors(part.A_RI, part.B_OR, stack.weights[index] * part.scale) for index, part in stack.parts.items()
    }
    return _Done(error, norms, measure_conflict(weighted, products), factors)


def _check_range(name: str, dtype: str, *factors: Tensor) -> None:
    limit = torch.finfo(getattr(torch, DTYPE_NAMES[dtype])).max
    for factor in factors:
        low, high = factor.aminmax() if factor.numel() else (0.0, 0.0)
        if not (-limit <= low and high <= limit):
            raise FailedError(
                f"a factor of the weighted sum leaves the range of {dtype}",
                where=name,
                expected=f"at most {limit:.4g}",
                next_step="use --dtype fp32 or bf16" if dtype == "fp16" else "use smaller weights",
            )


def _digests(plan: ComposePlan) -> list[str]:
    paths = {str(index): part.path for index, part in enumerate(plan.parts)}
    digests = list(ordered(lambda index: tensor_digest(paths[index]), list(paths)))
    for index, digest in enumerate(digests):
        if digest in digests[:index]:
            raise duplicate(plan.parts[digests.index(digest)], plan.parts[index])
    return digests


def _choose_rank(
    plan: ComposePlan, max_error: float, reader: PartReader, statistics: Statistics | None
) -> tuple[ComposePlan, tuple[Bucket, ...]]:
    """The plan at the smallest rank of vLLM that meets the error, and what every rank would lose."""
    names = list(plan.modules)
    found = ordered(lambda name: losses(reader.read(name), plan, statistics, VLLM_RANKS), names)
    buckets = bucket_table(dict(zip(names, found, strict=True)), VLLM_RANKS)
    chosen = next((bucket for bucket in buckets if bucket.relative_error <= max_error), None)
    if chosen is None:
        raise IncompatibleError(
            "no rank that vLLM serves meets the error",
            expected=f"{max_error:g} of |dW|",
            found=f"{buckets[-1].relative_error:.3g} at rank {buckets[-1].rank}",
            next_step="allow a larger error, or compose exactly and fold",
        )
    return replace(plan, rank=min(chosen.rank, plan.exact_rank)), buckets


def _check_rounding(plan: ComposePlan, certificate: Certificate) -> None:
    if plan.max_error is not None and plan.approximates:
        rounding = certificate.rounding / certificate.norm if certificate.norm else 0.0
        if rounding > plan.max_error:
            raise ConfigError(
                f"{plan.dtype} alone rounds by more than the error asked for",
                found=f"{rounding:.2g} of |dW|",
                expected=f"{plan.max_error:g}",
                next_step="use --dtype fp32",
            )


def _pad(B_OK: Tensor, A_KI: Tensor, rank: int) -> Factors:
    """The same product at the result's rank: zero columns and rows add nothing."""
    missing = rank - A_KI.shape[0]
    if missing:
        B_OK = torch.cat([B_OK, B_OK.new_zeros(B_OK.shape[0], missing)], 1)
        A_KI = torch.cat([A_KI, A_KI.new_zeros(missing, A_KI.shape[1])], 0)
    return Factors(A_KI.contiguous(), B_OK.contiguous(), 1.0)
