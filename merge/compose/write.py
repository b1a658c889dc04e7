"""Adapters to one adapter on disk: a plain PEFT folder with its certificate, whole or not at all.

`prepare` reads and computes, so that the error can be shown before `write` makes the folder. No base model, no GPU, no
matrix of size O x I.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...adapters.spec import COMPOSITION_FILE, suffix_targets
from ...adapters.stream import stream_adapter, stream_order
from ...core.disk.files import refuse_existing, require_space, staged_folder, write_json
from ..module_pool import ordered
from ..plan import DTYPE_NAMES, HEADER_ALLOWANCE_BYTES, ComposePlan
from .certificate import Certificate
from .prepare import Prepared, prepare


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


def write(prepared: Prepared, out: Path, *, replace: bool = False) -> Composition:
    """Write a prepared composition as a plain PEFT folder with `composition.json`; whole or not at all.

    Raises:
        ConflictError: `out` exists and `replace` is false.
        DiskFullError: No room; refused before the first byte where that can be known.
        IntegrityError: A part has changed since it was certified.
    """
    plan = prepared.plan
    refuse_existing(out, replace=replace)
    require_space(out, plan.bytes_out + HEADER_ALLOWANCE_BYTES)
    names = stream_order(plan.modules)
    with staged_folder(out, replace=replace) as folder:
        digest = stream_adapter(
            folder,
            {name: (shape.out_features, shape.in_features) for name, shape in plan.modules.items()},
            zip(names, ordered(prepared.factors, names), strict=True),
            r=plan.rank,
            dtype=getattr(torch, DTYPE_NAMES[plan.dtype]),
            base_repo=plan.base_repo,
            base_revision=plan.base_revision,
            targets=suffix_targets(plan.specs),
        )
        write_json(folder / COMPOSITION_FILE, prepared.to_json())
    return Composition(
        path=out, r=plan.rank, bucket=plan.bucket, digest=digest, certificate=prepared.certificate, prepared=prepared
    )
