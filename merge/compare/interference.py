"""How adapters relate, module by module: direction, shared subspaces, signs and, on given prompts, outputs.

Each part's delta is taken as it is added, D_k = w_k s_k B_k A_k, and as its thin SVD in factor space: with B = Q_b R_b
and A^T = Q_a R_a, D = (Q_b U) S (Q_a V)^T where U S V^T is the SVD of the R x R core R_b R_a^T. Only products of these
factors are formed, never a matrix of size O x I.

Shapes: O out_features, I in_features, R rank of one part, N its numerical rank; P and Q: R and N of all parts added up.
All float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ...adapters.spec import read_spec
from ...adapters.tensors import Factors
from ...core.errors import IncompatibleError
from ..factor_reader import ModuleStack, PartReader
from ..inputs import Part, PartSet, union
from ..module_pool import ordered
from .conflict import sign_counts
from .pair_metrics import Interference, PairInterference, Relation


def for_comparison(*parts: Part) -> PartSet:
    """Adapters to look at side by side: unlike for a merge they may be equal, or of different bases.

    Raises:
        ShapeMismatchError: A module whose I or O differs between them.
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `adapters.spec.read_spec`.
    """
    specs = tuple(read_spec(part.path) for part in parts)
    return PartSet(parts=parts, specs=specs, modules=union(parts, specs), base_repo="", base_revision=None, warnings=())


def interference(
    parts: PartSet,
    *,
    statistics: Mapping[str, Tensor] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Interference:
    """Measure how the parts relate, reading one module at a time on every core.

    Args:
        parts: Of a merge plan, or from `for_comparison`; weights count, so a negative one turns a part round.
        statistics: By module, the second moments E[z z^T] of z = [A_1 x; ..; A_n x] over the parts that have the
            module, of shape (P, P); modules left out have no leak.
        advance: Called after each module.

    Raises:
        IntegrityError: NaN or infinity in a part, or a part that changes meanwhile.

    Numerics: float64 QR and SVD; numerical ranks end at max(O, I) * eps of the largest singular value. Dense float64
        references in tests/merge/compare/test_interference.py. Signs are of seeded samples (`conflict`).
    """
    reader, names = PartReader(parts), list(parts.modules)
    moments = statistics or {}
    pairs: dict[tuple[int, int], dict[str, Relation]] = {pair: {} for pair in combinations(range(len(parts.parts)), 2)}
    norms, joint = {}, {}
    measured = ordered(lambda name: _measure(reader.read(name), len(parts.parts), moments.get(name)), names)
    for name, module in zip(names, measured, strict=True):
        norms[name] = tuple(module.norms.get(index) for index in range(len(parts.parts)))
        joint[name] = module.joint
        for (i, j), relation in module.relations.items():
            pairs[i, j][name] = relation
        advance()
    labels = tuple(part.name for part in parts.parts)
    return Interference(
        labels=labels,
        norms=norms,
        pairs=tuple(_pair(parts, i, j, modules) for (i, j), modules in pairs.items()),
        sti={name: each.sti for name, each in joint.items()},
        total_sti=Relation.total(joint.values()).sti,
    )


def _pair(parts: PartSet, i: int, j: int, modules: dict[str, Relation]) -> PairInterference:
    first, second = parts.specs[i].modules.keys(), parts.specs[j].modules.keys()
    return PairInterference(
        first=parts.parts[i].name,
        second=parts.parts[j].name,
        modules=modules,
        only_first=tuple(sorted(first - second)),
        only_second=tuple(sorted(second - first)),
    )


class _Thin(NamedTuple):
    """One part's delta as U_ON S_N V_IN^T, down to its numerical rank."""

    U_ON: Tensor
    S_N: Tensor
    V_IN: Tensor
    output: float
    """E|D x|^2 on the given prompts."""

    @property
    def square(self) -> float:
        """|D|^2."""
        return float(self.S_N.square().sum())


class _ModuleInterference(NamedTuple):
    """What one module gave."""

    norms: dict[int, float]
    """|D_k| by part."""
    relations: dict[tuple[int, int], Relation]
    """By pair of which at least one has the module."""
    joint: Relation
    """Of which only the singular task interference of all parts is set."""


def _measure(stack: ModuleStack, num_parts: int, moments_PP: Tensor | None) -> _ModuleInterference:
    thin = _decompose(stack, moments_PP)
    # Cosines of all singular directions with each other. A part's own block is the identity: cleared rather than
    # computed less I, so that no rounding shows up as interference.
    U_OQ = torch.cat([part.U_ON for part in thin.values()], 1)
    V_IQ = torch.cat([part.V_IN for part in thin.values()], 1)
    U_QQ, V_QQ = U_OQ.T @ U_OQ, V_IQ.T @ V_IQ
    S_Q = torch.cat([part.S_N for part in thin.values()])
    blocks, start = {}, 0
    for index, part in thin.items():
        blocks[index] = slice(start, start := start + len(part.S_N))
        U_QQ[blocks[index], blocks[index]] = V_QQ[blocks[index], blocks[index]] = 0
    signs = _signs(stack) if len(thin) > 1 else {}
    relations = {}
    for i, j in combinations(range(num_parts), 2):
        if i in thin and j in thin:
            U_NN, V_NN = U_QQ[blocks[i], blocks[j]], V_QQ[blocks[i], blocks[j]]
            differing, compared = signs[i, j]
            relation = _relation(thin[i], thin[j], U_NN, V_NN, stack.shape)
            relations[i, j] = replace(relation, differing=differing, compared=compared)
        elif i in thin:
            relations[i, j] = Relation(square_first=thin[i].square, output_first=thin[i].output)
        elif j in thin:
            relations[i, j] = Relation(square_second=thin[j].square, output_second=thin[j].output)
    together = sum(len(part.S_N) > 0 for part in thin.values()) > 1
    joint = Relation(entangled=_sum_abs((U_QQ * S_Q) @ V_QQ), nuclear=float(S_Q.sum())) if together else Relation()
    return _ModuleInterference({index: math.sqrt(part.square) for index, part in thin.items()}, relations, joint)


def _relation(first: _Thin, second: _Thin, U_NN: Tensor, V_NN: Tensor, shape: tuple[int, int]) -> Relation:
    ranks = len(first.S_N), len(second.S_N)
    squares = Relation(
        square_first=first.square, square_second=second.square, output_first=first.output, output_second=second.output
    )
    if not all(ranks):  # a zero delta has no subspace
        return squares
    return replace(
        squares,
        inner=float(first.S_N @ (U_NN * V_NN) @ second.S_N),
        directions=min(ranks),
        shared_columns=float(U_NN.square().sum()),
        shared_rows=float(V_NN.square().sum()),
        expected_columns=math.prod(ranks) / shape[0],
        expected_rows=math.prod(ranks) / shape[1],
        entangled=_sum_abs((U_NN * second.S_N) @ V_NN.T) + _sum_abs((U_NN.T * first.S_N) @ V_NN),
        nuclear=float(first.S_N.sum() + second.S_N.sum()),
    )


def _decompose(stack: ModuleStack, moments_PP: Tensor | None) -> dict[int, _Thin]:
    """Every part of a module, with its output energy tr(B^T B G) on the statistics' own block G."""
    if moments_PP is not None and moments_PP.shape != (sum(stack.ranks), sum(stack.ranks)):
        raise IncompatibleError(
            "the statistics are of other adapters", where=stack.name, expected=sum(stack.ranks), found=len(moments_PP)
        )
    found, start = {}, 0
    for index, rank in zip(stack.parts, stack.ranks, strict=True):
        own = slice(start, start := start + rank)
        Q_OR, R_b = torch.linalg.qr(stack.scaled_B(index))
        Q_IR, R_a = torch.linalg.qr(stack.parts[index].A_RI.double().T)
        U_RN, S_N, Vh_NR = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
        kept = int(S_N.gt(S_N[0] * max(stack.shape) * torch.finfo(S_N.dtype).eps).sum())
        output = 0.0 if moments_PP is None else float(((R_b @ moments_PP[own, own].double()) * R_b).sum())
        found[index] = _Thin(Q_OR @ U_RN[:, :kept], S_N[:kept], Q_IR @ Vh_NR[:kept].T, output)
    return found


def _signs(stack: ModuleStack) -> dict[tuple[int, int], tuple[float, float]]:
    """By pair of parts: sampled entries of other sign, and all that were compared."""
    present = [Factors(part.A_RI, part.B_OR, stack.weights[index] * part.scale) for index, part in stack.parts.items()]
    agreement_KK, compared_KK = sign_counts(present)
    differing_KK = (compared_KK - agreement_KK) / 2
    return {
        (i, j): (float(differing_KK[a, b]), float(compared_KK[a, b]))
        for (a, i), (b, j) in combinations(enumerate(stack.parts), 2)
    }


def _sum_abs(values: Tensor) -> float:
    return float(values.abs().sum())
