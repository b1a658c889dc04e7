"""Exact composition against a dense float64 sum, for every form a LoRA's scale and rank can take."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plyfold.merge.compose.prepare import prepare
from plyfold.merge.compose.write import compose
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

from ...support import bounds
from ...support.peft_folders import SHAPES, Written, read_result, write_adapter_folder

Q, K, DOWN = SHAPES

FORMS = {
    "plain": [{}, {}, {}],
    "odd scales": [{"alpha": 7}, {"alpha": 0.3}, {"alpha": 11}],
    "rslora": [{"rslora": True}, {}, {"rslora": True, "r": 3}],
    "mixed ranks": [{"r": 1}, {"r": 8}, {"r": 3}],
    "rank_pattern": [{"rank_pattern": {"k_proj": 2, "down_proj": 9}}, {}, {"rank_pattern": {"q_proj": 1}}],
    "alpha_pattern": [{"alpha_pattern": {"q_proj": 5}}, {"alpha_pattern": {"k_proj": 64}}, {}],
    "patterns and rslora": [{"rslora": True, "rank_pattern": {"k_proj": 6}, "alpha_pattern": {"k_proj": 5}}, {}, {}],
    "disjoint targets": [{"shapes": {Q: SHAPES[Q]}}, {"shapes": {K: SHAPES[K]}}, {"shapes": {DOWN: SHAPES[DOWN]}}],
    "overlapping targets": [{"shapes": {Q: SHAPES[Q]}}, {}, {"shapes": {Q: SHAPES[Q], DOWN: SHAPES[DOWN]}}],
    "more rank than rows": [{"r": 16}, {"r": 16}, {"r": 16}],
    "half precision": [{"dtype": torch.bfloat16}, {"dtype": torch.float16}, {}],
    "one is zero": [{}, {"zero": True}, {}],
}


def write_all(folder, forms, **common) -> list[Written]:
    return [write_adapter_folder(folder / f"a{i}", seed=i, **{**common, **form}) for i, form in enumerate(forms)]


def parts_of(written, weights=None) -> list[Part]:
    return [Part(one.path, weight) for one, weight in zip(written, weights or [1.0] * len(written), strict=True)]


def dense(written, weights, module):
    return sum(weight * one.delta(module) for one, weight in zip(written, weights, strict=True))


def stacked(written, weights, module):
    present = [(one.factors[module], w) for one, w in zip(written, weights, strict=True) if module in one.factors]
    B_OR = torch.cat([w * scale * B.double() for (_, B, scale), w in present], 1)
    return B_OR, torch.cat([A.double() for (A, _, _), _ in present], 0)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.7, -0.5]], ids=["trained", "weighted"])
@pytest.mark.parametrize("form", FORMS)
def test_the_result_is_the_dense_sum_within_one_rounding_of_B(tmp_path, form, weights):
    written = write_all(tmp_path, FORMS[form])
    compose(plan_compose(parts_of(written, weights)), tmp_path / "out")
    result = read_result(tmp_path / "out")
    assert set(result) == {name for one in written for name in one.factors}
    for name, (A_RI, B_OR) in result.items():
        error_OI = (B_OR @ A_RI - dense(written, weights, name)).abs()
        assert (error_OI <= bounds.scaled_B_OI(*stacked(written, weights, name))).all(), name


def test_power_of_two_scales_keep_every_bit(tmp_path):
    written = write_all(tmp_path, [{"r": 4, "alpha": 8}, {"r": 8, "alpha": 4}, {"r": 4, "alpha": 1}])
    weights = [1.0, -0.5, 2.0]
    done = compose(plan_compose(parts_of(written, weights)), tmp_path / "out")
    for name, (A_RI, B_OR) in read_result(tmp_path / "out").items():
        B_expected, A_expected = stacked(written, weights, name)
        assert torch.equal(A_RI, A_expected)
        assert torch.equal(B_OR, B_expected)
    assert done.certificate.bit_exact
    assert done.certificate.relative == 0


def test_padding_adds_only_zeros(tmp_path):
    written = write_all(tmp_path, FORMS["overlapping targets"])
    done = compose(plan_compose(parts_of(written)), tmp_path / "out")
    assert done.r == 12
    A_RI, B_OR = read_result(tmp_path / "out")[K]
    assert not A_RI[4:].any()
    assert not B_OR[:, 4:].any()
    assert A_RI[:4].any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_certificate_is_the_error_that_was_made(tmp_path, dtype):
    written = write_all(tmp_path, FORMS["odd scales"])
    weights = [1.0, 0.7, -0.5]
    done = compose(plan_compose(parts_of(written, weights), dtype=dtype), tmp_path / "out")
    squares = 0.0
    for name, (A_RI, B_OR) in read_result(tmp_path / "out").items():
        truth_OI = dense(written, weights, name)
        error_OI = B_OR @ A_RI - truth_OI
        assert (error_OI.abs() <= bounds.composed_OI(*stacked(written, weights, name), bounds.UNIT[dtype])).all()
        stated = done.certificate.modules[name]
        noise = bounds.singular_values(*SHAPES[name], A_RI.shape[0], float(truth_OI.norm()))
        assert stated.error == pytest.approx(float(error_OI.norm()), rel=1e-6, abs=noise)
        assert stated.norm == pytest.approx(float(truth_OI.norm()), rel=1e-12)
        assert stated.spectral == pytest.approx(float(torch.linalg.matrix_norm(error_OI, 2)), rel=1e-6, abs=noise)
        squares += float(error_OI.square().sum())
    assert done.certificate.error == pytest.approx(squares**0.5, rel=1e-6)
    assert done.certificate.error > 0


def test_conflicts_are_those_of_the_dense_deltas(tmp_path):
    written = write_all(tmp_path, FORMS["overlapping targets"])
    weights = [1.0, 0.7, -0.5]
    pairs = prepare(plan_compose(parts_of(written, weights))).conflicts
    assert [(pair.first, pair.second) for pair in pairs] == [("a0", "a1"), ("a0", "a2"), ("a1", "a2")]
    for pair, (i, j) in zip(pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        first = {name: weights[i] * written[i].delta(name) for name in SHAPES}
        second = {name: weights[j] * written[j].delta(name) for name in SHAPES}
        inner = sum(float((first[name] * second[name]).sum()) for name in SHAPES)
        lengths = [sum(float(d.square().sum()) for d in side.values()) ** 0.5 for side in (first, second)]
        assert pair.cosine == pytest.approx(inner / (lengths[0] * lengths[1]), abs=1e-12)
        # Every module here has fewer rows than are sampled, so the share is over all entries.
        products = torch.cat([(first[name] * second[name]).flatten() for name in SHAPES])
        assert pair.sign_conflict == pytest.approx(float((products < 0).sum() / (products != 0).sum()), abs=1e-3)


def test_opposite_adapters_conflict_everywhere_and_cancel(tmp_path):
    one = write_adapter_folder(tmp_path / "a", seed=1)
    two = write_adapter_folder(tmp_path / "b", seed=1, size=-0.1)
    done = prepare(plan_compose([Part(one.path), Part(two.path)]))
    assert done.conflicts[0].cosine == pytest.approx(-1)
    assert done.conflicts[0].sign_conflict == 1
    for factors in map(done.factors, done.plan.modules):
        assert float((factors.B_OR.double() @ factors.A_RI.double()).abs().max()) <= bounds.U64


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    weights=st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_parts_does_not_change_the_sum(tmp_path_factory, ranks, weights, order):
    folder = tmp_path_factory.mktemp("permuted")
    written = write_all(folder, [{"r": r} for r in ranks])
    parts = parts_of(written, weights[: len(ranks)])
    shuffled = order.sample(parts, len(parts))
    first, second = (prepare(plan_compose(chosen)) for chosen in (parts, shuffled))
    for one, two in ((first.factors(name), second.factors(name)) for name in first.plan.modules):
        one_OI = one.B_OR.double() @ one.A_RI.double()
        two_OI = two.B_OR.double() @ two.A_RI.double()
        # Same rounded factors in another order: only the float64 sum differs.
        size_OI = one.B_OR.abs().double() @ one.A_RI.abs().double()
        assert ((one_OI - two_OI).abs() <= 2 * bounds.gamma(2 * sum(ranks), bounds.U64) * size_OI).all()
