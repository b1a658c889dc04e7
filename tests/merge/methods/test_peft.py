"""PEFT as the oracle: its functions on dense deltas, and its add_weighted_adapter on whole adapters, bit for bit."""

import sys

import pytest
import torch

from plyfold.core.errors import NotFoundError
from plyfold.merge.factor_reader import PartReader
from plyfold.merge.inputs import Part
from plyfold.merge.methods.dispatch import apply_method
from plyfold.merge.methods.peft_numerics import peft_seed
from plyfold.merge.plan import plan_compose

from ...support import dense_merge
from ...support.dense_merge import dense, merged, plan_of, product, random_stack, relative, weights_of
from ...support.peft_folders import SHAPES, write_adapter_folder

peft = pytest.importorskip("peft", reason="needs plyfold[train]")
from peft.utils import merge_utils  # noqa: E402

WEIGHTS = [1.0, 0.7, -0.5]


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("weights", [(1, 1, 1), (1.0, 0.7, -0.5)], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_is_pefts_on_the_dense_deltas(density, weights):
    stack = random_stack(40, 24, weights=weights)
    expected = merge_utils.ties(dense(stack), torch.tensor(weights, dtype=torch.float64), density)
    torch.testing.assert_close(dense_merge.ties(dense(stack), weights, density), expected, rtol=1e-14, atol=0)
    assert relative(product(merged(stack, "ties", density=density)), expected) < 1e-6


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_pefts_on_the_dense_deltas_given_the_masks(method, monkeypatch):
    from .test_dare import mask

    stack = random_stack(40, 24)
    masks = iter([mask(40, 24, index, density=0.3).double() for index in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "bernoulli", lambda probabilities: next(masks))
        weights = torch.tensor(weights_of(stack), dtype=torch.float64)
        expected = getattr(merge_utils, method)(dense(stack), weights, 0.3)
    assert relative(product(merged(stack, method, density=0.3)), expected) < 1e-6


class Modules(torch.nn.Module):
    """The linear layers of `SHAPES`, under their names."""

    def __init__(self):
        super().__init__()
        for name, (num_out, num_in) in SHAPES.items():
            parent = self
            *path, last = name.split(".")
            for step in path:
                if not hasattr(parent, step):
                    parent.add_module(step, torch.nn.Module())
                parent = getattr(parent, step)
            parent.add_module(last, torch.nn.Linear(num_in, num_out, bias=False))


def adapters(folder, **common):
    scales = [{"alpha": 8}, {"alpha": 3}, {"alpha": 4, "rslora": True}]
    return [
        write_adapter_folder(folder / f"a{seed}", seed=seed, task_type=None, **scale, **common).path
        for seed, scale in enumerate(scales)
    ]


def load(paths):
    model = peft.PeftModel.from_pretrained(Modules(), paths[0], adapter_name="x0")
    for index, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=f"x{index}")
    return model


def ours(paths, method, **options):
    parts = [Part(path, weight) for path, weight in zip(paths, WEIGHTS, strict=True)]
    plan = plan_compose(parts, method=method, numerics="peft", **options)
    reader = PartReader(plan)
    return plan, {name: apply_method(reader.read(name), plan) for name in plan.modules}


@pytest.mark.filterwarnings("ignore:The density")  # PEFT's own, at 1
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("method", "density"), [("linear", None), ("ties", 0.4), ("ties", 1.0)])
def test_a_whole_adapter_is_pefts_bit_for_bit(tmp_path, method, density, dtype):
    paths = adapters(tmp_path, dtype=dtype)
    options = {} if density is None else {"density": density}
    plan, result = ours(paths, method, **options)
    model = load(paths)
    model.add_weighted_adapter(["x0", "x1", "x2"], WEIGHTS, "merged", combination_type=method, **options)
    assert plan.rank == 4
    for name, found in result.items():
        layer = model.base_model.model.get_submodule(name)
        A_RI, B_OR = layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
        assert torch.equal(found.A_KI, A_RI.double())
        assert torch.equal(found.B_OK, B_OR.double())
        assert relative(product(found), layer.get_delta_weight("merged")) < 1e-6
        assert found.norm == pytest.approx(float(layer.get_delta_weight("merged").norm()), rel=1e-5)
        assert found.residual == 0


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_what_peft_draws_after_the_modules_seed(tmp_path, method):
    paths = adapters(tmp_path)
    state = torch.random.get_rng_state()
    plan, result = ours(paths, method, density=0.6, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    model = load(paths).base_model
    for name, found in result.items():
        torch.manual_seed(peft_seed(plan.seed, name))
        A_RI, B_OR = model._generalized_task_arithmetic_weighted_adapter(
            method, ["x0", "x1", "x2"], WEIGHTS, model.model.get_submodule(name), 0.6, "total"
        )
        assert torch.equal(found.A_KI, A_RI.double())
        assert torch.equal(found.B_OK, B_OR.double())
    _, other = ours(paths, method, density=0.6, seed=6)
    assert not torch.equal(other[next(iter(other))].A_KI, result[next(iter(result))].A_KI)


def test_pefts_numbers_are_not_the_sum():
    stack = random_stack(40, 24)
    result = apply_method(stack, plan_of("linear", numerics="peft"))
    assert relative(product(result), product(merged(stack, "linear"))) > 0.3


def test_without_peft_the_error_names_the_command(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(NotFoundError, match="pip install"):
        apply_method(random_stack(40, 24), plan_of("linear", numerics="peft"))
