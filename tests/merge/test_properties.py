"""What holds of a merge from folder to folder, whatever the adapters: ranks, scales, dtypes and targets are drawn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from plyfold.merge.compose.prepare import Prepared, prepare
from plyfold.merge.compose.write import compose
from plyfold.merge.fold.fold import fold
from plyfold.merge.inputs import Part
from plyfold.merge.plan import VLLM_RANKS, plan_compose

from ..support import bounds
from ..support.peft_folders import (
    SHAPES,
    Written,
    load_checkpoint,
    read_result,
    write_adapter_folder,
    write_base_folder,
)

FEW = settings(max_examples=12, deadline=None, derandomize=True)
WEIGHTS = [1.0, 0.7, -0.5, 2.0, -1.0, 0.0]
subsets = [dict(some) for size in (1, 2, 3) for some in itertools.combinations(SHAPES.items(), size)]

forms = st.fixed_dictionaries(
    {
        "r": st.integers(1, 16),  # k_proj has 6 rows: two parts are often wider than it
        "alpha": st.sampled_from([8, 7, 0.3, -2]),
        "rslora": st.booleans(),
        "rank_pattern": st.sampled_from([{}, {"k_proj": 2, "down_proj": 9}, {"q_proj": 1}]),
        "alpha_pattern": st.sampled_from([{}, {"q_proj": 5}, {"k_proj": 64, "down_proj": 0.5}]),
        "shapes": st.sampled_from(subsets),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
        "zero": st.sampled_from([False, False, False, True]),
        "seed": st.integers(0, 99),
    }
)
adapters = st.lists(
    st.tuples(forms, st.sampled_from(WEIGHTS)), min_size=1, max_size=4, unique_by=lambda one: one[0]["seed"]
)


class Drawn(NamedTuple):
    """Adapters on disk, their weights, and their dense sum by module."""

    written: list[Written]
    parts: list[Part]
    truth: dict[str, Tensor]
    noise: dict[str, float]
    """Bound on the float64 error of a singular value, from what is stacked rather than from what it adds up to."""


def draw(folder: Path, chosen: list[tuple[dict[str, Any], float]]) -> Drawn:
    written = [write_adapter_folder(folder / f"a{i}", **form) for i, (form, _) in enumerate(chosen)]
    weights = [weight for _, weight in chosen]
    parts = [Part(one.path, weight) for one, weight in zip(written, weights, strict=True)]
    names = sorted({name for one in written for name in one.factors})
    truth = {name: sum(w * one.delta(name) for one, w in zip(written, weights, strict=True)) for name in names}
    stacked = {
        name: sum(
            abs(w * s) * float(B.double().norm() * A.double().norm())
            for one, w in zip(written, weights, strict=True)
            if name in one.factors
            for A, B, s in [one.factors[name]]
        )
        for name in names
    }
    noise = {name: bounds.singular_values(*SHAPES[name], 64, stacked[name]) for name in names}
    return Drawn(written, parts, truth, noise)


def product(prepared: Prepared, name: str) -> tuple[Tensor, float]:
    """The result in float64, and the most that rounding its factors to float32 can have changed, Frobenius."""
    factors = prepared.factors(name)
    A_KI, B_OK = factors.A_RI.double(), factors.B_OR.double()
    return B_OK @ A_KI, float(bounds.composed_OI(B_OK, A_KI, bounds.U32).norm())


def tail(values: Tensor, rank: int) -> float:
    return float(torch.linalg.vector_norm(values[rank:]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lambda: tmp_path_factory.mktemp("drawn")


# ---- identity and signs


@pytest.mark.slow
@given(form=forms)
@FEW
def test_one_adapter_of_scale_one_is_itself_bit_for_bit_and_stays_so(folder: Any, form: dict[str, Any]) -> None:
    place = folder()
    plain = {"rank_pattern": {}, "alpha_pattern": {}, "rslora": False, "alpha": form["r"]}
    one = write_adapter_folder(place / "a", **{**form, **plain, "dtype": torch.float32})
    first = compose(plan_compose([Part(one.path)]), place / "once")
    assert first.certificate.bit_exact
    stored, result = (
        load_file(one.path / "adapter_model.safetensors"),
        load_file(place / "once/adapter_model.safetensors"),
    )
    assert stored.keys() == result.keys()
    assert all(stored[key].view(torch.int32).equal(result[key].view(torch.int32)) for key in stored)
    assert compose(plan_compose([Part(place / "once")]), place / "twice").digest == first.digest


@pytest.mark.parametrize("rank", [None, 3])
@given(chosen=adapters)
@FEW
def test_opposite_weights_give_the_opposite(folder: Any, chosen: list[Any], rank: int | None) -> None:
    drawn = draw(folder(), chosen)
    there = prepare(plan_compose(drawn.parts, rank=rank))
    back = prepare(plan_compose([Part(part.path, -part.weight) for part in drawn.parts], rank=rank))
    for name in drawn.truth:
        one, other = there.factors(name), back.factors(name)
        if rank is None:
            assert torch.equal(one.B_OR, -other.B_OR)
            assert torch.equal(one.A_RI, other.A_RI)
        (D_OI, slack), (E_OI, more) = product(there, name), product(back, name)
        moved = bounds.cut(drawn.noise[name], torch.linalg.svdvals(drawn.truth[name]), there.plan.rank)
        assert float((D_OI + E_OI).norm()) <= slack + more + moved


# ---- order, factorisation, rank


@given(chosen=adapters, rank=st.integers(1, 12), data=st.data())
@FEW
def test_the_order_of_parts_does_not_change_a_cut(folder: Any, chosen: list[Any], rank: int, data: Any) -> None:
    drawn = draw(folder(), chosen)
    moved = data.draw(st.permutations(drawn.parts))
    one, other = (prepare(plan_compose(parts, rank=rank)) for parts in (drawn.parts, moved))
    assert one.certificate.truncation == pytest.approx(
        other.certificate.truncation, rel=1e-9, abs=8 * sum(drawn.noise.values())
    )
    for name in drawn.truth:
        (D_OI, slack), (E_OI, more) = product(one, name), product(other, name)
        drift = bounds.cut(drawn.noise[name], torch.linalg.svdvals(drawn.truth[name]), one.plan.rank)
        assert float((D_OI - E_OI).norm()) <= slack + more + drift


@given(form=forms, rank=st.one_of(st.none(), st.integers(1, 6)), seed=st.integers(0, 99))
@FEW
def test_only_the_product_matters_not_how_it_is_factored(
    folder: Any, form: dict[str, Any], rank: int | None, seed: int
) -> None:
    place = folder()
    drawn = draw(place, [({**form, "dtype": torch.float64}, 0.7)])
    path = place / "b" / "adapter_model.safetensors"
    write_adapter_folder(place / "b", **{**form, "dtype": torch.float64})
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path)
    for key in [key for key in tensors if "lora_A" in key]:
        R = tensors[key].shape[0]
        Q = torch.linalg.qr(torch.randn(R, R, generator=generator, dtype=torch.float64)).Q
        M_RR = Q * torch.logspace(-1, 1, R, dtype=torch.float64)
        tensors[key] = torch.linalg.solve(M_RR, tensors[key]).contiguous()
        tensors[key.replace("lora_A", "lora_B")] = tensors[key.replace("lora_A", "lora_B")] @ M_RR
    save_file(tensors, path)
    one = prepare(plan_compose(drawn.parts, rank=rank))
    other = prepare(plan_compose([Part(place / "b", 0.7)], rank=rank))
    for name in drawn.truth:
        (D_OI, slack), (E_OI, more) = product(one, name), product(other, name)
        # M has condition 100: so much more of float64's last digits.
        drift = bounds.cut(100 * drawn.noise[name], torch.linalg.svdvals(drawn.truth[name]), one.plan.rank)
        assert float((D_OI - E_OI).norm()) <= slack + more + drift


@given(chosen=adapters)
@FEW
def test_the_error_falls_with_the_rank_and_is_eckart_youngs(folder: Any, chosen: list[Any]) -> None:
    drawn = draw(folder(), chosen)
    spectra = {name: torch.linalg.svdvals(D_OI) for name, D_OI in drawn.truth.items()}
    errors = []
    for rank in (1, 2, 5, 9, 64):
        prepared = prepare(plan_compose(drawn.parts, method="svd", rank=rank))
        for name, D_OI in drawn.truth.items():
            found_OI, slack = product(prepared, name)
            noise = 8 * drawn.noise[name]
            best = tail(spectra[name], prepared.plan.rank)
            assert prepared.certificate.modules[name].truncation == pytest.approx(best, rel=1e-9, abs=noise)
            assert float((D_OI - found_OI).norm()) <= best + slack + noise
        errors.append(prepared.certificate.truncation)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] <= 8 * sum(drawn.noise.values())


# ---- what the certificate says


@given(chosen=adapters, rank=st.one_of(st.none(), st.integers(1, 9)), dtype=st.sampled_from(["fp32", "bf16", "fp16"]))
@FEW
def test_the_certificate_is_what_was_written(folder: Any, chosen: list[Any], rank: int | None, dtype: str) -> None:
    place = folder()
    drawn = draw(place, chosen)
    done = compose(plan_compose(drawn.parts, rank=rank, dtype=dtype), place / "out")
    squares = {"norm": 0.0, "cut": 0.0, "error": 0.0}
    for name, (A_KI, B_OK) in read_result(place / "out").items():
        D_OI, stated, noise = drawn.truth[name], done.certificate.modules[name], 8 * drawn.noise[name]
        error_OI, values = B_OK @ A_KI - D_OI, torch.linalg.svdvals(D_OI)
        cut = tail(values, done.r) if rank else 0.0
        assert stated.norm == pytest.approx(float(D_OI.norm()), rel=1e-9, abs=noise)
        assert stated.truncation == pytest.approx(cut, rel=1e-9, abs=noise)
        assert float(torch.linalg.matrix_norm(error_OI, 2)) <= stated.spectral * (1 + 1e-9) + noise
        # The cut and the rounding are orthogonal but for the part of the rounding that leaves the kept subspaces.
        slack = stated.rounding if cut else 0.0
        assert abs(float(error_OI.norm()) - stated.error) <= 1e-6 * stated.error + slack + noise
        if not cut:
            assert stated.rounding == pytest.approx(float(error_OI.norm()), rel=1e-6, abs=noise)
        squares["norm"] += float(D_OI.square().sum())
        squares["cut"] += cut**2
        squares["error"] += stated.error**2
    noise = 8 * sum(drawn.noise.values())
    assert done.certificate.norm == pytest.approx(math.sqrt(squares["norm"]), rel=1e-9, abs=noise)
    assert done.certificate.error == pytest.approx(math.sqrt(squares["error"]), rel=1e-9, abs=noise)
    if squares["norm"] > noise:
        assert done.certificate.energy_kept == pytest.approx(1 - squares["cut"] / squares["norm"], abs=1e-9)


@given(chosen=adapters, rank=st.sampled_from([1, 8, 16]), factor=st.sampled_from([0.6, 0.99, 1.01, 1.5]))
@settings(FEW, max_examples=30)
def test_an_error_to_meet_gives_the_smallest_rank_vllm_serves(
    folder: Any, chosen: list[Any], rank: int, factor: float
) -> None:
    drawn = draw(folder(), chosen)
    spectra = [torch.linalg.svdvals(D_OI) for D_OI in drawn.truth.values()]
    total = math.sqrt(sum(tail(values, 0) ** 2 for values in spectra))
    # Just above or below what a rank loses: there a wrong choice shows.
    near = math.sqrt(sum(tail(values, rank) ** 2 for values in spectra)) / total if total else 0.0
    wanted = min(max(factor * near, 1e-6), 0.99)
    prepared = prepare(plan_compose(drawn.parts, max_error=wanted))
    noise = 8 * sum(drawn.noise.values())
    table = prepared.certificate.buckets
    assert tuple(bucket.rank for bucket in table) == VLLM_RANKS
    for bucket in table:
        lost = math.sqrt(sum(tail(values, bucket.rank) ** 2 for values in spectra))
        assert bucket.relative_error * total == pytest.approx(lost, rel=1e-9, abs=noise)
    assert all(later.relative_error <= earlier.relative_error for earlier, later in itertools.pairwise(table))
    chosen_rank = next(bucket.rank for bucket in table if bucket.relative_error <= wanted)
    assert prepared.plan.rank == min(chosen_rank, prepared.plan.exact_rank)
    assert prepared.certificate.truncation <= wanted * total + noise
    smaller = [rank for rank in VLLM_RANKS if rank < chosen_rank]
    if smaller:
        lost = math.sqrt(sum(tail(values, smaller[-1]) ** 2 for values in spectra))
        assert lost > wanted * total - noise


# ---- folding


@given(chosen=adapters)
@settings(FEW, max_examples=5)
def test_folding_the_composition_is_composing_the_folds(folder: Any, chosen: list[Any]) -> None:
    place = folder()
    drawn = draw(place, [(form, weight) for form, weight in chosen if weight] or [(chosen[0][0], 1.0)])
    base = write_base_folder(place / "base", dtype=torch.float32)
    compose(plan_compose(drawn.parts), place / "composed")
    fold([Part(place / "composed")], place / "base", place / "at-once", dtype="fp32")
    at_once = load_checkpoint(place / "at-once")
    allowed = {name: torch.zeros(SHAPES[name], dtype=torch.float64) for name in drawn.truth}
    step = base
    for index, (one, part) in enumerate(zip(drawn.written, drawn.parts, strict=True)):
        before = place / f"step{index - 1}" if index else place / "base"
        fold([part], before, place / f"step{index}", dtype="fp32")
        for name, (A_RI, B_OR, scale) in one.factors.items():
            W_OI = step[f"{name}.weight"].double()
            allowed[name] += bounds.folded_OI(W_OI, part.weight * scale * B_OR.double(), A_RI.double(), bounds.U32)
        step = load_checkpoint(place / f"step{index}")
    for name, (A_KI, B_OK) in read_result(place / "composed").items():
        W_OI = base[f"{name}.weight"].double()
        bound_OI = allowed[name] + bounds.folded_OI(W_OI, B_OK, A_KI, bounds.U32)
        bound_OI += bounds.composed_OI(B_OK, A_KI, bounds.U32)
        key = f"{name}.weight"
        assert ((at_once[key].double() - step[key].double()).abs() <= bound_OI).all(), name
        assert ((at_once[key].double() - W_OI - drawn.truth[name]).abs() <= bound_OI).all(), name
