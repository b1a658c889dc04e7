"""Interference of adapters against float64 references with every delta formed whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from plyfold.core.errors import IncompatibleError, ShapeMismatchError
from plyfold.merge.compare.interference import for_comparison, interference
from plyfold.merge.compare.pair_metrics import Interference, Relation
from plyfold.merge.inputs import Part

from ...support.peft_folders import SHAPES, Written, write_adapter_folder

EXACT = 1e-12
"""Relative; float64 QR and SVD of matrices of a few dozen rows."""
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


def relate(*adapters: Written, weights: tuple[float, ...] = (), **options: Any) -> Interference:
    chosen = weights or (1.0,) * len(adapters)
    parts = [Part(each.path, weight) for each, weight in zip(adapters, chosen, strict=True)]
    return interference(for_comparison(*parts), **options)


def total(*adapters: Written, **options: Any) -> Relation:
    return relate(*adapters, **options).pairs[0].total


def directions(dW_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of a whole delta, down to its numerical rank."""
    U, S, Vh = torch.linalg.svd(dW_OI, full_matrices=False)
    kept = int((1e-10 * S[0] < S).sum()) if S[0] else 0
    return U[:, :kept], S[:kept], Vh[:kept].T


def dense_overlap(first: Tensor, second: Tensor) -> float:
    return float((first.T @ second).square().sum() / min(first.shape[1], second.shape[1]))


def dense_sti(deltas: list[Tensor]) -> float:
    found = [directions(delta) for delta in deltas]
    U, V = (torch.cat([each[side] for each in found], 1) for side in (0, 2))
    S, eye = torch.cat([each[1] for each in found]), torch.eye(U.shape[1], dtype=U.dtype)
    return float(((U.T @ U - eye) @ S.diag() @ (V.T @ V - eye)).abs().sum() / S.sum())


def rewrite(adapter: Written, path: Path, change: Any) -> Written:
    """A copy whose (A, B) of each module are `change(A, B)`, kept in float64."""
    path.mkdir()
    (path / "adapter_config.json").write_bytes((adapter.path / "adapter_config.json").read_bytes())
    factors, tensors = {}, {}
    for name, (A_RI, B_OR, scale) in adapter.factors.items():
        A_RI, B_OR = change(A_RI.double(), B_OR.double())
        factors[name] = (A_RI, B_OR, scale)
        tensors[f"base_model.model.{name}.lora_A.weight"] = A_RI.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B_OR.contiguous()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return Written(path, factors)


@pytest.fixture
def trio(tmp_path: Path) -> tuple[Written, Written, Written]:
    """Mixed ranks and scales; k_proj has 6 outputs, fewer than b's rank: a wide stack, and a wide part."""
    return (
        write_adapter_folder(tmp_path / "a", seed=1),
        write_adapter_folder(tmp_path / "b", seed=2, r=8, alpha=3, rslora=True),
        write_adapter_folder(tmp_path / "c", seed=3, r=3, rank_pattern={"q_proj": 5}),
    )


def test_every_number_of_every_module_against_dense_deltas(trio: tuple[Written, Written, Written]) -> None:
    weights = (1.0, 0.5, -2.0)
    found = relate(*trio, weights=weights)
    assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in found.pairs:
        i, j = (found.labels.index(label) for label in (pair.first, pair.second))
        for name, (num_out, num_in) in SHAPES.items():
            one, other = (weights[each] * trio[each].delta(name) for each in (i, j))
            relation = pair.modules[name]
            (U, _, V), (X, _, Y) = directions(one), directions(other)
            assert relation.norms == pytest.approx((float(one.norm()), float(other.norm())), rel=EXACT)
            assert relation.cosine == pytest.approx(float((one * other).sum() / one.norm() / other.norm()), abs=EXACT)
            assert relation.column_overlap == pytest.approx(dense_overlap(U, X), rel=EXACT)
            assert relation.row_overlap == pytest.approx(dense_overlap(V, Y), rel=EXACT)
            ranks = U.shape[1], X.shape[1]
            assert relation.column_chance == pytest.approx(math.prod(ranks) / num_out / min(ranks), rel=EXACT)
            assert relation.row_chance == pytest.approx(math.prod(ranks) / num_in / min(ranks), rel=EXACT)
            assert relation.sign_conflict == pytest.approx(float((one * other < 0).double().mean()), abs=EXACT)
            assert relation.sti == pytest.approx(dense_sti([one, other]), rel=1e-9)
    for name in SHAPES:
        deltas = [weight * each.delta(name) for weight, each in zip(weights, trio, strict=True)]
        assert found.sti[name] == pytest.approx(dense_sti(deltas), rel=1e-9)
        assert found.norms[name] == pytest.approx([float(delta.norm()) for delta in deltas], rel=EXACT)


def test_totals_and_kinds_are_those_of_block_diagonal_deltas(trio: tuple[Written, Written, Written]) -> None:
    pair = relate(*trio[:2]).pairs[0]
    one, other = (torch.block_diag(*(each.delta(name) for name in SHAPES)) for each in trio[:2])
    (U, _, V), (X, _, Y) = directions(one), directions(other)
    assert pair.total.cosine == pytest.approx(float((one * other).sum() / one.norm() / other.norm()), abs=EXACT)
    assert pair.total.column_overlap == pytest.approx(dense_overlap(U, X), rel=EXACT)
    assert pair.total.row_overlap == pytest.approx(dense_overlap(V, Y), rel=EXACT)
    assert pair.total.sti == pytest.approx(dense_sti([one, other]), rel=1e-9)
    assert list(pair.kinds) == ["q_proj", "k_proj", "down_proj"]
    assert pair.kinds["q_proj"] == pair.modules[Q]
    assert pair.worst == sorted(SHAPES, key=lambda name: pair.modules[name].cosine or 0)


def test_an_adapter_with_itself(trio: tuple[Written, Written, Written]) -> None:
    for adapter in trio:
        same = total(adapter, adapter)
        assert (same.cosine, same.column_overlap, same.row_overlap) == pytest.approx((1, 1, 1), abs=EXACT)
        assert (same.sti, same.sign_conflict) == (pytest.approx(1, abs=1e-9), 0)


def test_an_adapter_against_its_negative(trio: tuple[Written, Written, Written]) -> None:
    against = total(trio[0], trio[0], weights=(1, -1))
    assert against.cosine == pytest.approx(-1, abs=EXACT)
    assert against.sign_conflict == 1
    assert against.column_overlap == pytest.approx(1, abs=EXACT)


def test_orthogonal_subspaces_overlap_by_nothing(trio: tuple[Written, Written, Written], tmp_path: Path) -> None:
    def halve(start: int) -> Any:
        def keep(A_RI: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
            A_RI, B_OR = A_RI.clone(), B_OR.clone()
            A_RI[:, start::2] = B_OR[start::2] = 0
            return A_RI, B_OR

        return keep

    even, odd = (rewrite(trio[0], tmp_path / f"half-{start}", halve(start)) for start in (0, 1))
    apart = total(even, odd)
    assert (apart.cosine, apart.column_overlap, apart.row_overlap, apart.sti) == pytest.approx((0, 0, 0, 0), abs=EXACT)
    assert apart.sign_conflict is None  # no entry is non-zero in both


def test_a_zero_adapter_has_no_subspace(trio: tuple[Written, Written, Written], tmp_path: Path) -> None:
    zero = write_adapter_folder(tmp_path / "zero", seed=4, zero=True)
    found = relate(trio[0], zero, trio[1])
    for relation in (*found.pairs[0].modules.values(), found.pairs[0].total):
        assert relation.norms[0] > 0
        assert relation.norms[1] == 0
        values = relation.to_json()
        assert {name for name, value in values.items() if value is None} == values.keys() - {"norms"}
    assert found.sti == pytest.approx(relate(trio[0], trio[1]).sti, rel=EXACT)
    json.dumps(found.to_json(), allow_nan=False)
    assert relate(zero, zero).total_sti is None


def test_padded_and_repeated_directions_are_not_counted(trio: tuple[Written, Written, Written], tmp_path: Path) -> None:
    def repeat(A_RI: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
        """The same product from dependent columns, and with a row of zeros."""
        A_RI, B_OR = torch.cat([A_RI[:2], A_RI[:1], 0 * A_RI[:1]]), torch.cat([B_OR[:, :2], B_OR[:, :2]], 1)
        return A_RI, B_OR

    padded = rewrite(trio[0], tmp_path / "padded", repeat)
    relation = relate(padded, trio[1]).pairs[0].modules[Q]
    assert relation.directions == 2
    U, X = directions(padded.delta(Q))[0], directions(trio[1].delta(Q))[0]
    assert U.shape[1] == 2
    assert relation.column_overlap == pytest.approx(dense_overlap(U, X), rel=EXACT)


def test_modules_only_one_has_are_listed(trio: tuple[Written, Written, Written], tmp_path: Path) -> None:
    lone = write_adapter_folder(tmp_path / "lone", seed=5, shapes={"lm_head": (9, 20), Q: SHAPES[Q]})
    found = relate(trio[0], lone, trio[1])
    pair = found.pairs[0]
    assert pair.only_second == ("lm_head",)
    assert set(pair.only_first) == SHAPES.keys() - {Q}
    assert found.norms["lm_head"] == (None, pytest.approx(float(lone.factors["lm_head"][2] * torch.linalg.norm(
        lone.factors["lm_head"][1].double() @ lone.factors["lm_head"][0].double()))), None)  # fmt: skip
    assert pair.modules["lm_head"].cosine is None
    assert pair.total.column_overlap == pair.modules[Q].column_overlap
    assert abs(pair.total.cosine or 0) < abs(pair.modules[Q].cosine or 0)  # what is not shared counts in the norms
    assert "lm_head" not in found.pairs[1].modules
    assert relate(lone).pairs == ()


def test_leak_on_given_prompts(trio: tuple[Written, Written, Written]) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, moments = [0.0, 0.0, 0.0], {}
    weights = (1.0, -1.5, 0.5)
    for name in (Q, K):  # down_proj was not measured
        x_IT = torch.randn(SHAPES[name][1], 50, generator=generator, dtype=torch.float64)
        z_PT = torch.cat([each.factors[name][0].double() for each in trio]) @ x_IT
        moments[name] = (z_PT @ z_PT.T / 50).float()
        for index, each in enumerate(trio):
            outputs[index] += float((weights[index] * each.delta(name) @ x_IT).square().sum() / 50)
    found = relate(*trio, weights=weights, statistics=moments)
    for pair, (i, j) in zip(found.pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert pair.total.leak == pytest.approx(outputs[j] / outputs[i], rel=1e-6)  # float32 moments
        assert pair.modules["model.layers.0.mlp.down_proj"].leak is None
    with pytest.raises(IncompatibleError, match="other adapters"):
        relate(*trio[:2], statistics=moments)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), stretch=st.floats(0.1, 10))
def test_the_split_into_factors_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, seed: int, stretch: float
) -> None:
    """(B M, M^-1 A) is the same delta, so every number is the same, though the factors' own spaces are skewed."""
    folder = tmp_path_factory.mktemp("split")
    one = write_adapter_folder(folder / "one", seed=seed)
    other = write_adapter_folder(folder / "other", seed=seed + 1, r=6)
    M_RR = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    M_RR = stretch * (M_RR + 4 * torch.eye(4, dtype=torch.float64))  # well conditioned
    turned = rewrite(one, folder / "turned", lambda A, B: (torch.linalg.solve(M_RR, A), B @ M_RR))
    before, after = (total(each, other).to_json() for each in (one, turned))
    assert before.pop("leak") is after.pop("leak") is None
    assert before.pop("norms") == pytest.approx(after.pop("norms"), rel=1e-10)
    assert before == pytest.approx(after, rel=1e-8, abs=1e-10)


def test_signs_are_sampled_alike_in_every_run(tmp_path: Path) -> None:
    shapes = {Q: (200, 900)}
    one, other = (write_adapter_folder(tmp_path / f"{seed}", seed=seed, shapes=shapes) for seed in (1, 2))
    first, second = (total(one, other) for _ in range(2))
    assert first == second
    assert first.compared == 64 * 512
    dense = float((one.delta(Q) * other.delta(Q) < 0).double().mean())
    assert first.sign_conflict == pytest.approx(dense, abs=0.05)


def test_sizes_that_differ_are_refused(trio: tuple[Written, Written, Written], tmp_path: Path) -> None:
    other = write_adapter_folder(tmp_path / "other", seed=1, shapes={Q: (24, 22)})
    with pytest.raises(ShapeMismatchError):
        relate(trio[0], other)


def test_progress_is_told(trio: tuple[Written, Written, Written]) -> None:
    calls: list[None] = []
    relate(*trio, advance=lambda: calls.append(None))
    assert len(calls) == len(load_file(trio[0].path / "adapter_model.safetensors")) // 2
