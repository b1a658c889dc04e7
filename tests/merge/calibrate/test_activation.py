"""Activation-aware truncation against the dense optimum, and its statistics against a plain float64 computation."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plyfold.adapters.tensors import Factors
from plyfold.core.errors import ConfigError, IncompatibleError, IntegrityError, NotFoundError, ShapeMismatchError
from plyfold.merge.calibrate.activation import activation, output_error
from plyfold.merge.calibrate.moments import Statistics, collect_moments
from plyfold.merge.calibrate.prompts import Prompts, read_prompts
from plyfold.merge.factor_reader import ModuleStack
from plyfold.merge.inputs import Part, PartSet, check_parts
from plyfold.merge.lowrank import truncate

pytestmark = pytest.mark.slow

UNEXCITED_COST = 1e-6
"""Relative to sqrt(E|dW x|^2): directions below a millionth of the largest amplitude count as never excited."""
SIZES = [(24, 20, [4, 6, 3]), (6, 20, [4, 4, 4]), (40, 8, [6, 6]), (20, 40, [5])]
"""(O, I, ranks): plain, R above O, R above I, one part."""


def f64(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_stack(num_out: int, num_in: int, ranks: list[int], *, seed: int = 0, balance: float = 1.0) -> ModuleStack:
    """Random parts with weights 1, 0.7, -1; `balance` moves size from the first part's A to its B."""
    parts = {}
    for index, rank in enumerate(ranks):
        factor = balance if index == 0 else 1.0
        A_RI, B_OR = f64(rank, num_in, seed=seed + 10 * index), f64(num_out, rank, seed=seed + 10 * index + 1)
        parts[index] = Factors(A_RI / factor, B_OR * factor, 2.0 if index == 0 else 0.5)
    return ModuleStack("m", parts, dict(zip(parts, (1.0, 0.7, -1.0), strict=False)))


def inputs(num_in: int, num_tokens: int, seed: int = 5) -> Tensor:
    """x_IN whose features differ in size by 60 times, so that plain SVD is not the answer."""
    return f64(num_in, num_tokens, seed=seed) * torch.linspace(0.05, 3, num_in, dtype=torch.float64)[:, None]


def moment(stack: ModuleStack, x_IN: Tensor) -> Tensor:
    z_RN = stack.A_RI @ x_IN
    return z_RN @ z_RN.T / x_IN.shape[1]


def rms(D_OI: Tensor, x_IN: Tensor) -> float:
    """sqrt(E|D x|^2)."""
    return float((D_OI @ x_IN).norm()) / math.sqrt(x_IN.shape[1])


def delta(stack: ModuleStack) -> Tensor:
    return stack.B_OR @ stack.A_RI


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("num_tokens", [500, 7])  # 7: fewer tokens than ranks, a singular G
def test_the_output_error_is_the_dense_optimum_and_is_predicted(size: Any, rank: int, num_tokens: int) -> None:
    stack, x_IN = make_stack(*size), inputs(size[1], num_tokens)
    D_OI = delta(stack)
    cut = activation(stack, moment(stack, x_IN), rank)
    # Eckart-Young on D C^(1/2), with the whole I x I covariance; x / sqrt(N) is such a root of it.
    optimum = float(torch.linalg.svdvals(D_OI @ x_IN / math.sqrt(num_tokens))[rank:].norm())
    slack = UNEXCITED_COST * rms(D_OI, x_IN)
    found = rms(D_OI - cut.B_OK @ cut.A_KI, x_IN)
    assert cut.B_OK.shape[1] <= rank
    assert found == pytest.approx(optimum, abs=slack)
    assert float(cut.spectrum[rank:].norm()) == pytest.approx(optimum, abs=slack)
    assert float(cut.spectrum.norm()) == pytest.approx(rms(D_OI, x_IN), rel=1e-9)
    assert output_error(stack, moment(stack, x_IN), cut.B_OK, cut.A_KI) == pytest.approx(optimum, abs=slack)


def test_it_beats_plain_svd_and_random_candidates_where_inputs_differ() -> None:
    stack, x_IN = make_stack(24, 20, [4, 6, 3]), inputs(20, 500)
    D_OI, G_RR = delta(stack), moment(stack, x_IN)
    for rank in (3, 8):
        best = rms(D_OI - torch.matmul(*activation(stack, G_RR, rank)[:2]), x_IN)
        plain = truncate(stack.B_OR, stack.A_RI, rank)
        assert best < 0.98 * rms(D_OI - plain.B_OK @ plain.A_KI, x_IN)
        assert output_error(stack, G_RR, plain.B_OK, plain.A_KI) == pytest.approx(
            rms(D_OI - plain.B_OK @ plain.A_KI, x_IN), rel=1e-9
        )
        cut = activation(stack, G_RR, rank)
        for seed in range(50):
            near = cut.B_OK + 0.1 * f64(*cut.B_OK.shape, seed=seed), cut.A_KI + 0.1 * f64(*cut.A_KI.shape, seed=-seed)
            any_column_space = torch.linalg.qr(f64(24, rank, seed=seed)).Q
            assert best <= rms(D_OI - near[0] @ near[1], x_IN)
            assert best <= rms(D_OI - any_column_space @ (any_column_space.T @ D_OI), x_IN)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rank", [1, 4])
def test_white_inputs_give_the_plain_svd(size: Any, rank: int) -> None:
    stack = make_stack(*size)
    plain = truncate(stack.B_OR, stack.A_RI, rank)
    cut = activation(stack, stack.A_RI @ stack.A_RI.T, rank)
    torch.testing.assert_close(cut.B_OK @ cut.A_KI, plain.B_OK @ plain.A_KI, rtol=1e-9, atol=1e-9)
    length = min(len(cut.spectrum), len(plain.spectrum))
    torch.testing.assert_close(cut.spectrum[:length], plain.spectrum[:length], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [500, 2])
def test_the_output_error_falls_with_the_rank_and_ends_at_the_sum_itself(num_tokens: int) -> None:
    stack, x_IN = make_stack(24, 20, [4, 6, 3]), inputs(20, num_tokens)
    D_OI, G_RR = delta(stack), moment(stack, x_IN)
    products = [torch.matmul(*activation(stack, G_RR, rank)[:2]) for rank in range(1, 14)]
    errors = [rms(D_OI - X_OI, x_IN) for X_OI in products]
    noise = UNEXCITED_COST * rms(D_OI, x_IN)
    assert all(later <= earlier + noise for earlier, later in pairwise(errors))
    torch.testing.assert_close(products[-1], D_OI, rtol=1e-10, atol=1e-10)  # R = 13: all of dW, whatever was excited
    assert float((D_OI - products[-2]).norm()) > 1e-3


def test_few_prompts_give_no_garbage_beyond_what_they_excite() -> None:
    """Two tokens excite two of 13 directions: those are exact, the rest of the rank is what plain SVD would take."""
    stack, x_IN = make_stack(24, 20, [4, 6, 3]), inputs(20, 2)
    D_OI = delta(stack)
    cut = activation(stack, moment(stack, x_IN), 6)
    assert cut.B_OK.shape[1] == 6
    assert rms(D_OI - cut.B_OK @ cut.A_KI, x_IN) <= UNEXCITED_COST * rms(D_OI, x_IN)
    assert float((cut.B_OK @ cut.A_KI).norm()) <= float(D_OI.norm())
    U_OK = torch.linalg.svd(D_OI @ x_IN).U[:, :2]
    rest_OI = D_OI - U_OK @ (U_OK.T @ D_OI)
    best = float(torch.linalg.svdvals(rest_OI)[4:].norm())
    assert float((D_OI - cut.B_OK @ cut.A_KI).norm()) == pytest.approx(best, rel=1e-9)


def test_inputs_that_never_come_give_the_plain_svd() -> None:
    stack = make_stack(24, 20, [4, 6, 3])
    cut = activation(stack, torch.zeros(13, 13, dtype=torch.float64), 3)
    plain = truncate(stack.B_OR, stack.A_RI, 3)
    torch.testing.assert_close(cut.B_OK @ cut.A_KI, plain.B_OK @ plain.A_KI, rtol=1e-12, atol=1e-12)
    assert not cut.spectrum.any()


def test_rank_beyond_the_numerical_rank_is_not_filled_with_rounding() -> None:
    one = Factors(f64(4, 20, seed=1), f64(24, 4, seed=2), 1.0)
    stack = ModuleStack("m", {0: one, 1: one}, {0: 1.0, 1: 2.0})
    x_IN = inputs(20, 300)
    cut = activation(stack, moment(stack, x_IN), 8)
    assert cut.B_OK.shape[1] == 4
    torch.testing.assert_close(cut.B_OK @ cut.A_KI, delta(stack), rtol=1e-10, atol=1e-10)
    zero = ModuleStack("m", {0: Factors(one.A_RI, torch.zeros_like(one.B_OR), 1.0)}, {0: 1.0})
    assert activation(zero, moment(zero, x_IN), 4).B_OK.shape[1] == 0


def test_the_result_does_not_depend_on_how_a_part_splits_its_size() -> None:
    x_IN = inputs(20, 500)
    plain, lopsided = (make_stack(24, 20, [4, 6, 3], balance=balance) for balance in (1.0, 1e8))
    cuts = [activation(stack, moment(stack, x_IN), 5) for stack in (plain, lopsided)]
    torch.testing.assert_close(cuts[0].B_OK @ cuts[0].A_KI, cuts[1].B_OK @ cuts[1].A_KI, rtol=1e-7, atol=1e-7)
    for cut in cuts:
        torch.testing.assert_close(cut.B_OK.norm(dim=0), cut.A_KI.norm(dim=1))


def test_statistics_of_something_else_are_refused() -> None:
    stack = make_stack(24, 20, [4, 6, 3])
    with pytest.raises(ShapeMismatchError, match="another rank"):
        activation(stack, torch.eye(12, dtype=torch.float64), 3)
    with pytest.raises(IncompatibleError, match="no combination of the parts' rows"):
        output_error(stack, torch.eye(13, dtype=torch.float64), f64(24, 3, seed=1), f64(3, 20, seed=2))


# ---- statistics of a real model

TEXTS = (
    "Question: 3 + 4 = ?\nSolution:\n",
    "Ann has 3 apples.",
    "Tom buys 12 pens and gives 5 of them to Ann. How many are left?",
    "7",
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_base: Any, make_adapter: Any) -> Any:
    from plyfold.adapters.base.load import load_tokenizer, load_twin

    root = tmp_path_factory.mktemp("parts")
    folders = [make_adapter(root / f"a{seed}", r=rank, seed=seed) for seed, rank in ((1, 4), (2, 3))]
    base = tiny_base(dtype="float32")
    parts = check_parts([Part(folders[0]), Part(folders[1], 0.7)])
    return load_twin(base, "cpu"), load_tokenizer(base), parts


def reference(model: Any, tokenizer: Any, parts: PartSet) -> dict[str, Tensor]:
    """The same moments the long way: deltas added to float64 weights, a prompt at a time, no padding, no plyfold."""
    import copy

    from safetensors.torch import load_file

    model = copy.deepcopy(model).double()
    stacked: dict[str, list[Tensor]] = {}
    for part in parts.parts:
        tensors = load_file(part.path / "adapter_model.safetensors")
        for name in parts.modules:
            A_RI = tensors[f"base_model.model.{name}.lora_A.weight"].double()
            B_OR = tensors[f"base_model.model.{name}.lora_B.weight"].double()
            model.get_submodule(name).weight.data += part.weight * 8 / len(A_RI) * B_OR @ A_RI  # alpha 8
            stacked.setdefault(name, []).append(A_RI)
    seen: dict[str, list[Tensor]] = {name: [] for name in parts.modules}
    for name, rows in seen.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0][0]))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([tokenizer(text)["input_ids"]]))
    result = {}
    for name, rows in seen.items():
        z_NR = torch.cat(rows) @ torch.cat(stacked[name]).T
        result[name] = z_NR.T @ z_NR / len(z_NR)
    return result


def test_moments_are_those_of_every_token_with_all_parts_active(setting: Any) -> None:
    model, tokenizer, parts = setting
    done: list[int] = []
    found = collect_moments(model, parts, Prompts(TEXTS), tokenizer, done.append)
    expected = reference(model, tokenizer, parts)
    assert found.num_tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert sum(done) == found.num_prompts == len(TEXTS)
    assert found.moments.keys() == expected.keys() == parts.modules.keys()
    for name, G_RR in expected.items():
        # float32 activations through 2 layers: some tens of roundings of sums of up to 128 terms.
        assert float((found.of(name) - G_RR).norm() / G_RR.norm()) < 64 * 128 * 2.0**-24, name
    model_after = {handle for module in model.modules() for handle in module._forward_hooks}
    assert not model_after  # the model is as it was


def test_order_batches_and_the_tokenizers_padding_change_no_bit(setting: Any, monkeypatch: Any) -> None:
    model, tokenizer, parts = setting
    first = collect_moments(model, parts, Prompts(TEXTS), tokenizer)
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    second = collect_moments(model, parts, Prompts(TEXTS[::-1]), tokenizer)
    assert first.prompts_digest == second.prompts_digest
    assert all(torch.equal(first.of(name), second.of(name)) for name in parts.modules)
    monkeypatch.setattr("plyfold.merge.calibrate.hooked_model.BATCH_TOKENS", 1)  # a prompt at a time, without padding
    alone = collect_moments(model, parts, Prompts(TEXTS), tokenizer)
    for name in parts.modules:
        assert float((alone.of(name) - first.of(name)).norm() / first.of(name).norm()) < 1e-5
    other = collect_moments(model, parts, Prompts(TEXTS[:2]), tokenizer)
    assert other.prompts_digest != first.prompts_digest
    assert all(not torch.allclose(other.of(name), first.of(name), rtol=1e-3) for name in parts.modules)


def test_weights_decide_what_is_seen(setting: Any) -> None:
    model, tokenizer, parts = setting
    changed = check_parts([parts.parts[0], Part(parts.parts[1].path, -0.7)])
    first, second = (collect_moments(model, each, Prompts(TEXTS), tokenizer) for each in (parts, changed))
    assert not torch.allclose(first.of("model.layers.1.mlp.down_proj"), second.of("model.layers.1.mlp.down_proj"))
    first.check(parts)
    for others in (changed, check_parts(parts.parts[::-1]), check_parts(parts.parts[:1])):
        with pytest.raises(IncompatibleError, match="other adapters, order or weights"):
            first.check(others)
    with pytest.raises(IncompatibleError, match="no activation statistics of this module"):
        first.of("model.layers.9.mlp.down_proj")


def test_saved_statistics_come_back_bit_for_bit_and_damage_is_told(tmp_path: Path, setting: Any) -> None:
    model, tokenizer, parts = setting
    made = collect_moments(model, parts, Prompts(TEXTS), tokenizer)
    made.save(tmp_path / "one")
    back = Statistics.load(tmp_path / "one")
    back.save(tmp_path / "two")
    assert back.to_json() == made.to_json()
    assert back.digest == made.digest != collect_moments(model, parts, Prompts(TEXTS[:3]), tokenizer).digest
    assert all(torch.equal(back.of(name), made.of(name)) for name in parts.modules)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    adapter = parts.parts[0].path / "adapter_model.safetensors"
    (tmp_path / "cut").write_bytes((tmp_path / "one").read_bytes()[:-8])
    (tmp_path / "nan").write_bytes((tmp_path / "one").read_bytes()[:-8] + b"\xff" * 8)
    for path in (adapter, tmp_path / "cut", tmp_path / "nan"):
        with pytest.raises(IntegrityError):
            Statistics.load(path)
    with pytest.raises(NotFoundError):
        Statistics.load(tmp_path / "none")


def test_a_base_without_the_modules_is_refused(tmp_path: Path, setting: Any, make_adapter: Any) -> None:
    model, tokenizer, _ = setting
    absent = make_adapter(tmp_path / "absent", modules={"model.layers.7.mlp.up_proj": (128, 64)})
    sized = make_adapter(tmp_path / "sized", modules={"model.layers.0.mlp.up_proj": (64, 64)})
    with pytest.raises(IncompatibleError, match="does not have"):
        collect_moments(model, check_parts([Part(absent)]), Prompts(TEXTS), tokenizer)
    with pytest.raises(ShapeMismatchError, match="another size"):
        collect_moments(model, check_parts([Part(sized)]), Prompts(TEXTS), tokenizer)
    with pytest.raises(ConfigError, match="does not fit"):
        collect_moments(model, check_parts([Part(sized)]), Prompts(("long " * 600,)), tokenizer)


def test_prompts_are_read_from_text_and_jsonl(tmp_path: Path) -> None:
    text, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_bytes("one\r\n\n  two\u2028 more \n".encode())
    rows.write_text('{"prompt": "one"}\n\n{"question": "  two\\u2028 more ", "answer": "3"}\n')
    assert read_prompts(text).texts == read_prompts(rows).texts == ("one", "  two\u2028 more ")
    assert read_prompts(text).digest == read_prompts(rows).digest == Prompts(("  two\u2028 more ", "one")).digest


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\n \n", "empty"),
        ("p.jsonl", b"", "empty"),
        ("p.csv", b"prompt\none\n", "not a file of prompts"),
        ("p.txt", b"\xff\xfe", "cannot be read"),
        ("p.jsonl", b'{"text": "one"}\n', "no prompt"),
        ("p.jsonl", b'{"prompt": "one"}\n{"prompt": 3}\n', "no prompt"),
        ("p.jsonl", b'["one"]\n', "no prompt"),
        ("p.jsonl", b'{"prompt": "one"\n', "not JSON"),
    ],
)
def test_files_that_hold_no_prompts_are_refused_by_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert name in caught.value.where
    with pytest.raises(NotFoundError):
        read_prompts(tmp_path / "absent.txt")
