"""Adapters to one adapter: weighted sums kept exactly by stacking factors, or cut to a rank by a core SVD.

`prepare` reads and computes, so that the certificate can be shown before `write` makes the folder. No base model, no
GPU, no matrix of size O x I.

Shapes: O out_features, I in_features, R stacked rank, K rank of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.delta import norm
from ..adapters.spec import WEIGHTS_NAME, suffix_targets
from ..adapters.tensors import Factors, read_adapter, tensor_digest, write_adapter
from ..core.digest import digest_json
from ..core.errors import ConflictError
from ..core.files import require_space, staged_folder, write_json
from .certificate import Certificate, ModuleError
from .conflict import ConflictMeter, PairConflict
from .lowrank import BlockProducts, difference, truncate
from .parts import duplicate
from .plan import DTYPES, ComposePlan

COMPOSITION_FILE = "composition.json"
COMPOSITION_SCHEMA = "plyfold/composition/1"
HEADER_ALLOWANCE_BYTES = 1 << 20
"""Room asked for beside the tensors: header, config, composition.json."""


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
    """A composition in memory, with its error, before anything is written."""

    plan: ComposePlan
    factors: dict[str, Factors]
    """By module, scale 1, every one of the plan's rank and dtype."""
    inputs: tuple[Input, ...]
    certificate: Certificate
    conflicts: tuple[PairConflict, ...]

    @property
    def key(self) -> str:
        """Digest of what decides the result: inputs, weights, method, rank, dtype and base."""
        return digest_json(
            {
                "inputs": [[entry.tensor_digest, entry.weight] for entry in self.inputs],
                "scales": [[module.scale for module in spec.modules.values()] for spec in self.plan.specs],
                "method": self.plan.method,
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
            "rank": self.plan.rank,
            "exact_rank": self.plan.exact_rank,
            "dtype": self.plan.dtype,
            "inputs": [entry.to_json() for entry in self.inputs],
            "conflicts": [pair.to_json() for pair in self.conflicts],
            "certificate": self.certificate.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A composed adapter on disk."""

    path: Path
    r: int
    bucket: int | None
    """vLLM's `max_lora_rank` for it; None above the largest."""
    digest: str
    """Of the tensors."""
    certificate: Certificate
    prepared: Prepared

    def to_json(self) -> dict[str, Any]:
        """`composition.json` with where it went."""
        return {
            **self.prepared.to_json(),
            "path": str(self.path),
            "digest": self.digest,
            "vllm_max_lora_rank": self.bucket,
        }


def compose(plan: ComposePlan, out: Path, *, replace: bool = False) -> Composition:
    """Carry out a plan: `prepare`, then `write`."""
    refuse_existing(out, replace=replace)
    return write(prepare(plan), out, replace=replace)


def refuse_existing(out: Path, *, replace: bool = False) -> None:
    """Refuse an output folder that exists, before work is spent on it.

    Raises:
        ConflictError: `out` exists and `replace` is false.
    """
    if out.exists() and not replace:
        raise ConflictError(
            "the output folder exists already", where=out, next_step="name another with -o, or remove this one"
        )


def prepare(plan: ComposePlan, advance: Callable[[], None] = lambda: None) -> Prepared:
    """Sum the parts in factor space and certify the result, without writing.

    dW_OI = sum_k w_k s_k B_k A_k, as A = [A_1; ..; A_n] and B = [w_1 s_1 B_1 | ..] for `exact`, or the best
    approximation of it at the plan's rank for `svd`.

    Args:
        plan: From `plan_compose`.
        advance: Called after each module.

    Raises:
        IntegrityError: NaN or infinity in a part.
        IncompatibleError: Two parts with the same tensors.

    Source: LoRA, arXiv:2106.09685, eq. 3; stacking as PEFT's `combination_type="cat"`, with the scales folded in.
    Numerics: float64 throughout, one rounding to the result's dtype at the end, whose size the certificate states.
        Bit-exact where every w_k s_k is a power of two; tests/numerics/test_compose.py.
    """
    digests = _digests(plan)
    stored = [read_adapter(part.path).factors for part in plan.parts]
    squares = [0.0] * len(plan.parts)
    meter = ConflictMeter([part.name for part in plan.parts])
    factors: dict[str, Factors] = {}
    errors: dict[str, ModuleError] = {}
    for name in plan.modules:
        # Taken out as they are used, so that inputs and result are never both whole in memory.
        present = {index: part.pop(name) for index, part in enumerate(stored) if name in part}
        weighted = {
            index: Factors(module.A_RI, module.B_OR, plan.parts[index].weight * module.scale)
            for index, module in present.items()
        }
        B_OR = torch.cat([module.B_OR.double() * module.scale for module in weighted.values()], 1)
        A_RI = torch.cat([module.A_RI.double() for module in weighted.values()], 0)
        products = BlockProducts(B_OR, A_RI, [module.A_RI.shape[0] for module in weighted.values()])
        meter.add(name, weighted, products)
        for block, (index, module) in enumerate(present.items()):
            weight = abs(plan.parts[index].weight)
            squares[index] += (products.norm(block) / weight if weight else norm(module)) ** 2
        factors[name], errors[name] = _reduce(plan, B_OR, A_RI, products.norm())
        advance()
    return Prepared(
        plan=plan,
        factors=factors,
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
        certificate=Certificate(modules=errors),
        conflicts=tuple(meter.pairs()),
    )


def write(prepared: Prepared, out: Path, *, replace: bool = False) -> Composition:
    """Write a prepared composition as a plain PEFT folder with `composition.json`; whole or not at all.

    Raises:
        ConflictError: `out` exists and `replace` is false.
        DiskFullError: No room; refused before the first byte where that can be known.
    """
    plan = prepared.plan
    refuse_existing(out, replace=replace)
    require_space(out, plan.bytes_out + HEADER_ALLOWANCE_BYTES)
    with staged_folder(out, replace=replace) as folder:
        write_adapter(
            folder,
            prepared.factors,
            base_repo=plan.base_repo,
            base_revision=plan.base_revision,
            alpha=plan.rank,
            targets=suffix_targets(plan.specs),
        )
        (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors makes it readable to its owner alone
        write_json(folder / COMPOSITION_FILE, prepared.to_json())
        digest = tensor_digest(folder)
    return Composition(
        path=out, r=plan.rank, bucket=plan.bucket, digest=digest, certificate=prepared.certificate, prepared=prepared
    )


def _digests(plan: ComposePlan) -> list[str]:
    digests = [tensor_digest(part.path) for part in plan.parts]
    for index, digest in enumerate(digests):
        if digest in digests[:index]:
            raise duplicate(plan.parts[digests.index(digest)], plan.parts[index])
    return digests


def _reduce(plan: ComposePlan, B_OR: Tensor, A_RI: Tensor, total: float) -> tuple[Factors, ModuleError]:
    """The result's factors of one module from the float64 stacks, and their error."""
    if plan.method == "exact":
        kept_B_OK, kept_A_KI, tail, first_dropped = B_OR, A_RI, 0.0, 0.0
    else:
        kept_B_OK, kept_A_KI, spectrum = truncate(B_OR, A_RI, plan.rank)
        dropped = spectrum[kept_A_KI.shape[0] :]
        tail = float(torch.linalg.vector_norm(dropped))
        first_dropped = float(dropped[0]) if len(dropped) else 0.0
    dtype = getattr(torch, DTYPES[plan.dtype])
    rounded_B_OK, rounded_A_KI = kept_B_OK.to(dtype), kept_A_KI.to(dtype)
    rounding = difference(kept_B_OK, kept_A_KI, rounded_B_OK.double(), rounded_A_KI.double())
    error = ModuleError(
        norm=total,
        truncation=tail,
        rounding=rounding.frobenius,
        spectral=first_dropped + rounding.spectral,
    )
    return _pad(rounded_B_OK, rounded_A_KI, plan.rank), error


def _pad(B_OK: Tensor, A_KI: Tensor, rank: int) -> Factors:
    """The same product at the result's rank: zero columns and rows add nothing."""
    missing = rank - A_KI.shape[0]
    if missing:
        B_OK = torch.cat([B_OK, B_OK.new_zeros(B_OK.shape[0], missing)], 1)
        A_KI = torch.cat([A_KI, A_KI.new_zeros(missing, A_KI.shape[1])], 0)
    return Factors(A_KI.contiguous(), B_OK.contiguous(), 1.0)
