"""What trains, what computes and what stays frozen, on real NF4 layers on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.adapters.base.load import load_nf4
from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.adapters.spec import WEIGHTS_NAME
from plyfold.adapters.stack import (
    activate,
    attach,
    check_frozen,
    frozen_digest,
    has_prior,
    load_default,
    recast_fp32,
    reference_policy,
    save_default,
)
from plyfold.adapters.tensors import read_adapter, tensor_digest
from plyfold.core.config import AdapterConfig
from plyfold.core.errors import (
    ConfigError,
    FailedError,
    IncompatibleError,
    IntegrityError,
    PlyfoldError,
    ShapeMismatchError,
)

pytestmark = pytest.mark.slow

CONFIG = AdapterConfig(r=4, alpha=8)
TOKENS_BT = torch.randint(0, 500, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality needs one order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["float32", "bfloat16"])
def quantisation(request: pytest.FixtureRequest) -> Quantisation:
    return Quantisation(compute_dtype=request.param)


@pytest.fixture
def ref(tiny_base: Any) -> BaseRef:
    return BaseRef(repo="acme/tiny-qwen2", revision="a" * 40, path=tiny_base())


@pytest.fixture
def prior(tmp_path: Path, make_adapter: Any) -> Path:
    return Path(make_adapter(tmp_path / "prior", r=6, alpha=6, seed=5))


@pytest.fixture
def stacked(ref: BaseRef, quantisation: Quantisation, prior: Path) -> Any:
    return attach(load_nf4(ref, quantisation), CONFIG, prior, seed=0)


def _train(model: Any, num_steps: int = 3, lr: float = 1e-2) -> list[float]:
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(num_steps):
        loss = model(TOKENS_BT, labels=TOKENS_BT).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _logits(model: Any) -> torch.Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        logits_BTV = model(TOKENS_BT).logits
    model.train(training)
    return logits_BTV


def _default(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}


# ---- freeze ----


def test_training_moves_default_and_not_one_bit_of_anything_else(stacked: Any) -> None:
    before, frozen = _default(stacked), frozen_digest(stacked)
    losses = _train(stacked)
    check_frozen(stacked)
    assert frozen_digest(stacked) == frozen
    assert losses[-1] < losses[0]
    for name, value in _default(stacked).items():
        assert (value != before[name]).any(), name


def test_the_frozen_digest_sees_one_flipped_bit_of_base_and_prior(stacked: Any) -> None:
    frozen = frozen_digest(stacked)
    for name in ("base_layer.weight", "lora_A.prior.weight", "embed_tokens.weight"):
        parameter = next(p for n, p in stacked.named_parameters() if n.endswith(name))
        bits = parameter.data.view(torch.uint8)
        bits.view(-1)[0] ^= 1
        assert frozen_digest(stacked) != frozen, name
        bits.view(-1)[0] ^= 1
    assert frozen_digest(stacked) == frozen


def test_the_frozen_digest_sees_the_scales_of_a_4_bit_weight(ref: BaseRef) -> None:
    model = attach(load_nf4(ref, Quantisation()), CONFIG, None, seed=0)
    frozen = frozen_digest(model)
    state = next(p.quant_state for _, p in model.named_parameters() if hasattr(p, "quant_state"))
    for number in (state.absmax, state.state2.absmax, state.offset):
        before = number.clone()
        number += 1
        assert frozen_digest(model) != frozen
        number.copy_(before)
    assert frozen_digest(model) == frozen


def test_default_is_float32_and_stays_so_after_trls_cast(stacked: Any) -> None:
    trainable = [p for p in stacked.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    for parameter in trainable:
        parameter.data = parameter.data.to(torch.bfloat16)
    recast_fp32(stacked)
    assert {p.dtype for p in stacked.parameters() if p.requires_grad} == {torch.float32}
    before = _default(stacked)
    _train(stacked, num_steps=20, lr=1e-6)
    moved = [(value != before[name]).float().mean() for name, value in _default(stacked).items() if "lora_A" in name]
    assert min(moved) > 0.99  # in bfloat16 about 2 % of A's entries move at this rate


def test_a_freeze_undone_behind_our_back_is_noticed_and_mended(stacked: Any) -> None:
    def leave_disable_adapter() -> None:
        with stacked.disable_adapter():
            pass

    def thaw_prior() -> None:
        stacked.set_requires_grad("prior", True)

    def thaw_base() -> None:
        stacked.get_base_model().model.norm.weight.requires_grad_(True)

    def switch_to_prior() -> None:
        stacked.set_adapter("prior")

    def switch_prior_off() -> None:
        stacked.set_adapter("default")

    def freeze_default() -> None:
        stacked.set_requires_grad("default", False)

    for undo in (leave_disable_adapter, thaw_prior, switch_to_prior, switch_prior_off, freeze_default, thaw_base):
        check_frozen(stacked)
        undo()
        with pytest.raises(FailedError):
            check_frozen(stacked)
        if undo is not thaw_base:
            activate(stacked)
    with pytest.raises(FailedError, match="norm"):
        activate(stacked)  # the base is not an adapter's to freeze: refused, not hidden


def test_computing_with_adapters_off_is_noticed(stacked: Any) -> None:
    with stacked.disable_adapter(), pytest.raises(FailedError):
        check_frozen(stacked)


# ---- what computes ----


def test_the_reference_policy_is_the_prior_alone_bit_for_bit(
    ref: BaseRef, quantisation: Quantisation, prior: Path, stacked: Any
) -> None:
    from peft import PeftModel

    alone = _logits(PeftModel.from_pretrained(load_nf4(ref, quantisation), str(prior)))
    base = _logits(load_nf4(ref, quantisation))
    _train(stacked)
    with reference_policy(stacked):
        reference = _logits(stacked)
    assert torch.equal(reference, alone)
    assert not torch.equal(_logits(stacked), alone)
    assert not torch.equal(base, alone)


def test_the_first_stages_reference_policy_is_the_base_bit_for_bit(ref: BaseRef, quantisation: Quantisation) -> None:
    base = _logits(load_nf4(ref, quantisation))
    model = attach(load_nf4(ref, quantisation), CONFIG, None, seed=0)
    assert not has_prior(model)
    _train(model)
    with reference_policy(model):
        assert torch.equal(_logits(model), base)
    assert not torch.equal(_logits(model), base)
    check_frozen(model)


def test_the_reference_policy_leaves_no_trace_even_after_an_error(stacked: Any) -> None:
    _train(stacked, num_steps=1)
    before = _logits(stacked)
    with pytest.raises(ZeroDivisionError), reference_policy(stacked):
        stacked.set_requires_grad("default", False)
        raise ZeroDivisionError
    check_frozen(stacked)
    assert torch.equal(_logits(stacked), before)
    _train(stacked, num_steps=1)


def test_an_untrained_default_changes_nothing(stacked: Any) -> None:
    with reference_policy(stacked):
        reference = _logits(stacked)
    assert torch.equal(_logits(stacked), reference)


def test_an_eval_forward_before_training_changes_neither_loss_nor_gradient(
    ref: BaseRef, quantisation: Quantisation, prior: Path
) -> None:
    outcomes = []
    for evaluate_first in (False, True):
        model = attach(load_nf4(ref, quantisation), CONFIG, prior, seed=0)
        if evaluate_first:
            _logits(model)
        losses = _train(model, num_steps=2)
        outcomes.append((losses, _default(model)))
    assert outcomes[0][0] == outcomes[1][0]
    for name, value in outcomes[0][1].items():
        assert torch.equal(value, outcomes[1][1][name]), name


def test_the_seed_decides_the_start_and_leaves_the_global_state_alone(ref: BaseRef) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, same, other = (
        _default(attach(load_nf4(ref, Quantisation()), CONFIG, None, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert ("lora_B" in name) == torch.equal(value, other[name]), name  # B is zero whatever the seed


@pytest.mark.parametrize("training", [True, False])
def test_attaching_keeps_the_models_mode(ref: BaseRef, prior: Path, training: bool) -> None:
    assert attach(load_nf4(ref, Quantisation()).train(training), CONFIG, prior, seed=0).training is training


# ---- files ----


def test_a_saved_default_resumes_bit_for_bit(
    tmp_path: Path, ref: BaseRef, quantisation: Quantisation, prior: Path, stacked: Any
) -> None:
    _train(stacked)
    save_default(stacked, tmp_path / "saved", ref.repo, ref.revision)
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == ["adapter_config.json", WEIGHTS_NAME]
    spec = read_adapter(tmp_path / "saved").spec
    assert (spec.base_repo, spec.base_revision, spec.dtype) == (ref.repo, ref.revision, "float32")
    assert {(module.r, module.scale) for module in spec.modules.values()} == {(4, 2.0)}
    resumed = attach(load_nf4(ref, quantisation), CONFIG, prior, seed=99)
    load_default(resumed, tmp_path / "saved")
    assert torch.equal(_logits(resumed), _logits(stacked))
    assert _train(resumed) == _train(stacked)
    for name, value in _default(stacked).items():
        assert torch.equal(value, _default(resumed)[name])


def test_loading_what_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, make_adapter: Any, stacked: Any
) -> None:
    before = _default(stacked)
    cases: list[tuple[type[PlyfoldError], Path]] = [
        (ShapeMismatchError, make_adapter(tmp_path / "rank", r=2, alpha=4)),
        (IncompatibleError, make_adapter(tmp_path / "scale", r=4, alpha=4)),
        (IncompatibleError, make_adapter(tmp_path / "few", modules={"model.layers.0.self_attn.q_proj": (64, 64)})),
    ]
    for error, folder in cases:
        with pytest.raises(error):
            load_default(stacked, folder)
    for name, value in _default(stacked).items():
        assert torch.equal(value, before[name])


def test_a_prior_that_does_not_fit_the_base_is_refused(tmp_path: Path, make_adapter: Any, ref: BaseRef) -> None:
    model = load_nf4(ref, Quantisation())
    foreign = make_adapter(tmp_path / "foreign", modules={"model.layers.7.self_attn.q_proj": (64, 64)})
    larger = make_adapter(tmp_path / "larger", modules={"model.layers.0.self_attn.q_proj": (64, 65)})
    with pytest.raises(IncompatibleError, match="lacks"):
        attach(model, CONFIG, foreign, seed=0)
    with pytest.raises(ShapeMismatchError):
        attach(model, CONFIG, larger, seed=0)
    damaged = Path(shutil.copytree(foreign, tmp_path / "damaged"))
    (damaged / WEIGHTS_NAME).write_bytes((damaged / WEIGHTS_NAME).read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        attach(model, CONFIG, damaged, seed=0)
    with pytest.raises(ConfigError, match="qproj"):
        attach(model, AdapterConfig(targets=["q_proj", "qproj"]), None, seed=0)
    assert not hasattr(model, "peft_config")  # refused before the base was touched


def test_a_prior_of_fewer_modules_and_by_full_names_is_loaded_whole(
    tmp_path: Path, make_adapter: Any, ref: BaseRef
) -> None:
    modules = {"model.layers.1.self_attn.q_proj": (64, 64)}
    folder = make_adapter(tmp_path / "one", modules=modules, target_modules=list(modules), dtype="bfloat16")
    model = attach(load_nf4(ref, Quantisation()), AdapterConfig(r=2, alpha=2, targets=["v_proj"]), folder, seed=0)
    layer = model.get_base_model().get_submodule("model.layers.1.self_attn.q_proj")
    factors = read_adapter(folder).factors["model.layers.1.self_attn.q_proj"]
    assert torch.equal(layer.lora_B["prior"].weight, factors.B_OR.float())
    frozen = frozen_digest(model)
    _train(model)
    check_frozen(model)
    assert frozen_digest(model) == frozen


def test_equal_runs_write_equal_bytes(tmp_path: Path, ref: BaseRef, prior: Path) -> None:
    digests = []
    for number in range(2):
        model = attach(load_nf4(ref, Quantisation()), CONFIG, prior, seed=3)
        _train(model)
        save_default(model, tmp_path / str(number), ref.repo, ref.revision)
        digests.append(tensor_digest(tmp_path / str(number)))
    assert digests[0] == digests[1]
