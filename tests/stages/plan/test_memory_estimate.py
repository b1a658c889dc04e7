from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.adapters.base.load import load_nf4
from plyfold.adapters.base.resolve import BaseRef, Quantisation, resolve_base
from plyfold.adapters.stack import attach, save_default
from plyfold.core.config import AdapterConfig, BaseConfig, RolloutConfig, load_config
from plyfold.stages.plan.memory_estimate import MemoryEstimate, count_adapter, estimate_memory, nf4_bytes
from plyfold.stages.plan.model_shape import ModelShape, find_shape
from plyfold.stages.plan.trl_args import trainer_arguments

SANDBOX = BaseConfig(repo="plyfold/sandbox-base", revision="auto", path="sandbox", compute_dtype="float32")
QWEN = BaseConfig(repo="Qwen/Qwen2.5-3B", revision="3aab1f1954e9cc14eb9509a215f9e5ca08227a9b")


def shape_of(config: BaseConfig) -> ModelShape:
    shape, _ = find_shape(config)
    assert shape is not None
    return shape


def estimate(stage: str, *overrides: str, config: str = "sandbox", earlier: int = 0) -> MemoryEstimate:
    loaded = load_config(config, overrides)
    arguments = trainer_arguments(loaded, stage, Path("."), on_gpu=False)
    quantisation, chosen = Quantisation.of(loaded.base), loaded.stages[stage]
    return estimate_memory(
        shape_of(loaded.base), quantisation, chosen, loaded.adapter, [loaded.adapter] * earlier, arguments
    )


def stored(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def quantised_bytes(model: Any) -> int:
    total = 0
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            total += stored(module.weight, state.absmax, state.code)
            if state.nested:
                total += stored(state.state2.absmax, state.state2.code, state.offset)
    return total


@pytest.fixture(scope="module")
def base() -> BaseRef:
    return resolve_base(SANDBOX)


def test_the_embedded_base_needs_no_path() -> None:
    assert shape_of(replace(SANDBOX, path=None)) == shape_of(SANDBOX)


@pytest.mark.parametrize("double_quant", [True, False])
def test_weights_are_exact(base: BaseRef, double_quant: bool) -> None:
    model = load_nf4(base, Quantisation(compute_dtype="float32", double_quant=double_quant), "cpu")
    expected = estimate("structure", f"base.double_quant={double_quant}".lower())
    assert expected.nf4 == quantised_bytes(model)
    assert expected.unquantised == stored(*(p for p in model.parameters() if p.dtype != torch.uint8))


def test_adapters_gradients_and_optimiser_are_exact(base: BaseRef, tmp_path: Path) -> None:
    quantisation = Quantisation(compute_dtype="float32")
    narrow = AdapterConfig(r=8, targets=["q_proj", "mlp.down_proj", "layers.0.mlp.gate_proj"])
    first = attach(load_nf4(base, quantisation, "cpu"), narrow, None, 0)
    save_default(first, tmp_path / "prior", base.repo, base.revision)
    model = attach(load_nf4(base, quantisation, "cpu"), AdapterConfig(), tmp_path / "prior", 0)
    loaded = load_config("sandbox")
    arguments = trainer_arguments(loaded, "brevity", Path("."), on_gpu=False)
    expected = estimate_memory(
        shape_of(SANDBOX), quantisation, loaded.stages["brevity"], AdapterConfig(), [narrow], arguments
    )
    own = [p for p in model.parameters() if p.requires_grad]
    assert expected.prior == stored(*(p for name, p in model.named_parameters() if ".prior." in name))
    assert expected.adapter == stored(*own) == 4 * count_adapter(shape_of(SANDBOX), AdapterConfig())
    optimiser = torch.optim.AdamW(own)
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    assert expected.gradients == stored(*(p.grad for p in own if p.grad is not None))
    assert expected.optimiser == stored(*(t for state in optimiser.state.values() for t in state.values()))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_parameters_of_dense_models_are_counted(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for tied in (True, False):
        config = AutoConfig.for_model(
            kind, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
            intermediate_size=80, vocab_size=100, max_position_embeddings=64, tie_word_embeddings=tied,
        )  # fmt: skip
        shape = ModelShape.of(config.to_dict())
        assert shape is not None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_a_model_of_other_parts_gets_no_estimate(tmp_path: Path) -> None:
    assert ModelShape.of({"model_type": "qwen2_moe"}) is None
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_moe"}')
    assert find_shape(BaseConfig(repo="a/b", revision="c", path=str(tmp_path))) == (
        None,
        "no estimate for a base of type qwen2_moe",
    )


def test_the_known_base_has_its_published_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shape, source = find_shape(QWEN)
    assert shape is not None
    assert "known sizes" in source
    assert shape.parameters == 3_085_938_688
    assert count_adapter(shape, AdapterConfig()) == 29_933_568
    other, why = find_shape(replace(QWEN, revision="0" * 40))
    assert other is None
    assert "config.json is not here" in why


def test_the_share_of_a_weight_is_what_the_docstring_says() -> None:
    assert nf4_bytes(2048 * 11008, Quantisation()) / (2048 * 11008) == pytest.approx(0.51587, abs=1e-4)
    assert nf4_bytes(2048 * 11008, Quantisation(double_quant=False)) / (2048 * 11008) == pytest.approx(0.5625, abs=1e-4)


def test_parts_follow_the_stage() -> None:
    sft, grpo, rewrite = estimate("structure"), estimate("brevity"), estimate("remedy")
    assert sft.rollout == sft.mining == sft.prior == 0
    assert grpo.rollout > 0
    assert grpo.mining == 0
    assert rewrite.mining > 0
    beta = estimate("brevity", "stages.brevity.trainer.beta=0.1")
    assert grpo.logprobs == 0 < beta.logprobs
    assert estimate("brevity", earlier=2).prior == 2 * estimate("brevity", earlier=1).prior > 0
    half = estimate("brevity", "stages.brevity.trainer.gradient_accumulation_steps=2")
    assert grpo.rollout == 2 * half.rollout  # all completions of a step are drawn at once,
    assert grpo.tokens == half.tokens  # and trained on batch by batch
    batch = estimate("brevity", "stages.brevity.trainer.per_device_train_batch_size=16")
    assert (grpo.rollout, grpo.tokens) == (2 * batch.rollout, 2 * batch.tokens)
    off = estimate("structure", "stages.structure.trainer.gradient_checkpointing=false")
    assert off.activations == sft.other_activations > sft.activations
    assert sft.total == sft.held + sft.activations + sft.logits


def test_activations_are_near_the_allocators_peak(base: BaseRef) -> None:
    from torch.profiler import ProfilerActivity, profile
    from trl.trainer.utils import add_fused_lm_head

    overrides = [f"stages.structure.trainer.{item}" for item in ("per_device_train_batch_size=4", "max_length=256")]
    expected = estimate("structure", *overrides, "stages.structure.trainer.gradient_checkpointing=false")
    model = attach(load_nf4(base, Quantisation(compute_dtype="float32"), "cpu"), AdapterConfig(), None, 0).train()
    add_fused_lm_head(model.get_base_model())
    ids = torch.randint(0, 500, (4, 256))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        (-model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.mean()).backward()
    held = peak = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0.9 < (expected.activations + expected.logits) / peak < 1.4


def test_longer_prompts_cost_more_and_mining_elsewhere_nothing() -> None:
    loaded = load_config("gsm8k")
    arguments = trainer_arguments(loaded, "remedy", Path("."), on_gpu=False)
    quantisation, stage = Quantisation.of(loaded.base), loaded.stages["remedy"]
    shape = shape_of(QWEN)
    assumed, short, long = (
        estimate_memory(shape, quantisation, stage, loaded.adapter, [], arguments, None, prompt_tokens)
        for prompt_tokens in (None, 512, 4096)
    )
    assert assumed.total == short.total < long.total
    assert "4096 tokens, as the longest of its rows" in long.assumption
    vllm = estimate_memory(shape, quantisation, stage, loaded.adapter, [], arguments, RolloutConfig(engine="vllm"))
    assert short.mining > 0 == vllm.mining


def test_completions_drawn_elsewhere_cost_the_trainer_a_pass_and_no_cache() -> None:
    loaded = load_config("gsm8k")
    arguments = trainer_arguments(loaded, "brevity", Path("."), on_gpu=False)
    quantisation, stage = Quantisation.of(loaded.base), loaded.stages["brevity"]
    here, vllm, server = (
        estimate_memory(shape_of(QWEN), quantisation, stage, loaded.adapter, [], arguments, rollouts)
        for rollouts in (None, RolloutConfig(engine="vllm", gpu_memory=0.4), RolloutConfig(engine="http", url="u"))
    )
    assert here.rollout > 0 == vllm.rollout == server.rollout
    assert vllm.logprobs == server.logprobs > 0
    assert (here.vllm, server.vllm) == (0, 0)
    shape = shape_of(QWEN)
    assert vllm.vllm == 2 * (shape.parameters + 2 * count_adapter(shape, AdapterConfig(r=16)))
    assert vllm.vllm < RolloutConfig().gpu_memory * 24e9 - 4e9  # room for what it profiles and its cache
    assert vllm.total < (1 - RolloutConfig().gpu_memory) * 24e9 - 1e9  # and for CUDA's own in the trainer
    assert vllm.to_json()["vllm"] == vllm.vllm
    assert "40% of the GPU's memory" in vllm.assumption
    assert "vLLM" not in here.assumption + server.assumption
