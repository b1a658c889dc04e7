"""Merges written out on whole O x I matrices, and random modules to try them on.

`ties` is PEFT's, entry by entry, which test_methods_peft.py holds it to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plyfold.adapters.tensors import Factors
from plyfold.merge.factor_reader import ModuleStack
from plyfold.merge.methods.dispatch import apply_method
from plyfold.merge.methods.result import Merged
from plyfold.merge.plan import ComposePlan

NAME = "model.layers.0.mlp.up_proj"
SHAPES = {"tall": (40, 24), "wide": (24, 40), "fewer outputs than rank": (6, 30), "fewer inputs than rank": (30, 6)}
"""(O, I); three parts of rank 4 have 12 directions."""


def random_stack(
    num_out: int,
    num_in: int,
    ranks: Sequence[int] = (4, 4, 4),
    weights: Sequence[float] = (1.0, 0.7, -0.5),
    seed: int = 0,
) -> ModuleStack:
    """Parts of one size with scale 2, correlated as those of one curriculum, float32."""
    generator = torch.Generator().manual_seed(seed)
    shared_O, shared_I = torch.randn(num_out, 1, generator=generator), torch.randn(1, num_in, generator=generator)
    parts = {}
    for index, rank in enumerate(ranks):
        A_RI = torch.randn(rank, num_in, generator=generator) + shared_I
        B_OR = (torch.randn(num_out, rank, generator=generator) + shared_O) / rank
        parts[index] = Factors(A_RI, B_OR, 2.0)
    return ModuleStack(NAME, parts, dict(enumerate(weights)))


def plan_of(method: str, rank: int = 4, density: float = 0.5, seed: int = 0, numerics: str = "sum") -> ComposePlan:
    return ComposePlan(
        parts=(), specs=(), modules={}, base_repo="", base_revision=None, warnings=(), method=method, rank=rank,
        dtype="fp32", density=density, seed=seed, numerics=numerics,
    )  # fmt: skip


def merged(stack: ModuleStack, method: str, rank: int | None = None, **options: float) -> Merged:
    """The method on a module, at full rank unless told."""
    return apply_method(stack, plan_of(method, min(stack.shape) if rank is None else rank, **options))


def product(result: Merged) -> Tensor:
    return result.B_OK @ result.A_KI


def dense(stack: ModuleStack, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Every part's unweighted delta."""
    return [(part.scale * part.B_OR.double()).to(dtype) @ part.A_RI.to(dtype) for part in stack.parts.values()]


def weights_of(stack: ModuleStack) -> list[float]:
    return list(stack.weights.values())


def trim(values: Tensor, density: float) -> Tensor:
    kept = int(density * values.numel())
    if density >= 1:
        return values
    order = values.abs().flatten().argsort(descending=True)
    mask = torch.zeros(values.numel(), dtype=values.dtype)
    mask[order[:kept]] = 1
    return values * mask.reshape(values.shape)


def elect(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    stacked = torch.stack(list(values))
    majority = torch.where(stacked.sum(0) >= 0, 1, -1)
    agreeing = stacked.sign() == majority
    weighted = stacked * torch.tensor(weights, dtype=stacked.dtype)[:, None, None]
    return (weighted * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def ties(values: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    return elect([trim(value, density) for value in values], weights)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
