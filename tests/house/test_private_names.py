"""The names of TRL, PEFT, bitsandbytes and transformers that plyfold leans on without a promise: they are there, and
mean what they meant. A new version that moves one fails here, by name, before a stage trains wrongly in silence.
"""

from __future__ import annotations

import ast
import inspect
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from plyfold.adapters.base.load import load_nf4, load_tokenizer
from plyfold.adapters.base.resolve import BaseRef, Quantisation, resolve_base
from plyfold.adapters.stack import attach
from plyfold.core.config import AdapterConfig, load_config
from plyfold.stages.runtime.library_logging import quiet_libraries
from plyfold.stages.training import trainers

ROOT = Path(__file__).parents[2]
ROOMS = ("adapters", "stages", "evaluation", "serving", "merge", "registry", "cli", "core")
PINNED = ("transformers", "peft", "trl", "bitsandbytes", "accelerate")

with quiet_libraries():
    from bitsandbytes.nn import Linear4bit
    from datasets import Dataset
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer, LoraModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel, Trainer, TrainingArguments
    from trl import GRPOConfig, GRPOTrainer, SFTTrainer
    from trl.trainer.utils import RepeatSampler

SIGNATURES: dict[Any, str] = {
    GRPOTrainer._generate_and_score_completions: "self inputs",
    GRPOTrainer._get_per_token_logps_and_entropies: "self model input_ids attention_mask logits_to_keep batch_size …",
    GRPOTrainer._calculate_rewards: "self inputs prompts completions completion_ids_list",
    GRPOTrainer._generate_single_turn: "self prompt_ids images …",
    GRPOTrainer._get_train_sampler: "self dataset",
    GRPOTrainer._log_metric: "self name value",
    GRPOTrainer.log: "self logs start_time",
    GRPOTrainer.training_step: "self model inputs num_items_in_batch",
    SFTTrainer.training_step: "self args kwargs",
    Trainer.training_step: "self model inputs num_items_in_batch",
    Trainer._save: "self output_dir state_dict",
    Trainer._save_checkpoint: "self model trial",
    Trainer._load_from_checkpoint: "self resume_from_checkpoint model",
    Trainer._get_output_dir: "self trial",
    Trainer.evaluate: "self eval_dataset …",
    PeftModel.load_adapter: "self model_id adapter_name is_trainable …",
    PeftModel.set_adapter: "self adapter_name inference_mode",
    PeftModel.set_requires_grad: "self adapter_names requires_grad",
    LoraModel.set_adapter: "self adapter_name inference_mode",
    PreTrainedModel.enable_input_require_grads: "self",
}
"""Callable -> its parameters, `…` for whatever follows."""

ATTRIBUTES: dict[str, type] = {
    "_metrics": GRPOTrainer, "_last_loaded_step": GRPOTrainer, "use_vllm": GRPOTrainer, "vllm_generation": GRPOTrainer,
    "num_generations_eval": GRPOTrainer, "beta": GRPOTrainer, "_active_adapter": BaseTunerLayer,
    "_n_gpu": TrainingArguments,
    "generator": RepeatSampler, "num_samples": RepeatSampler, "seed": RepeatSampler, "shuffle": RepeatSampler,
}  # fmt: skip
"""Attribute that instances get -> the class that gives it."""

TRAINING = {"_active_adapter", "_log_metric", "_get_per_token_logps_and_entropies", "_n_gpu"}
OTHERS = {"_asdict", "_replace", "_content", "huggingface_hub.utils._http", "_exit", "_run_exitfuncs"}
"""Named tuples' own, the Hub client's (tests/registry/hub/test_client.py), and Python's for ending a process."""


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_signatures(function: Any) -> None:
    found = list(inspect.signature(function).parameters)
    expected = SIGNATURES[function].split()
    if expected[-1] == "…":
        found, expected = found[: len(expected) - 1], expected[:-1]
    assert found == expected


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name: str) -> None:
    source = Path(inspect.getfile(ATTRIBUTES[name])).read_text()
    assert f"self.{name} = " in source or f"    {name}: " in source


def test_every_private_name_in_use_is_known_here() -> None:
    own, found = set(), set()
    for tree in (ast.parse(file.read_text()) for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                (own if mine and isinstance(node.ctx, ast.Store) else found).add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {node.module} if "._" in node.module else set()
    private = {name for name in found - own if name.startswith("_") or "._" in name}
    assert {name for name in private if not name.startswith("__")} == TRAINING | OTHERS


def test_what_the_trainers_override_is_still_there_and_what_they_add_is_still_free() -> None:
    """A renamed method would never be called, and a new one of the same name would be overridden: both in silence."""
    added = {"_begin", "_reference_logps"}
    for kind, upstream in ((trainers.StageSFTTrainer, SFTTrainer), (trainers.StageGRPOTrainer, GRPOTrainer)):
        methods = {name for each in (kind, trainers._StageTrainer) for name, value in vars(each).items()
                   if inspect.isfunction(value) and not name.startswith("__")}  # fmt: skip
        assert {name for name in methods if not hasattr(upstream, name)} == methods & added
        for name in methods - added:
            assert name in {key for each in upstream.__mro__ for key in vars(each)}


def test_the_versions_are_pinned_to_their_minor_and_are_the_installed_ones() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {found.name: found.specifier for found in map(Requirement, extras["train"])}
    for name in PINNED:
        (pin,) = pins[name]
        assert pin.operator == "=="
        assert pin.version.count(".") == 2, f"{name} is pinned to its minor"
        assert pin.version.endswith(".*")
        assert pins[name].contains(version(name)), f"{name} {version(name)} is not the tested one"


# ---- what they mean ----


@pytest.fixture(scope="module")
def ref() -> BaseRef:
    return resolve_base(load_config("sandbox").base)


@pytest.fixture
def stacked(ref: BaseRef, tmp_path: Path, make_adapter: Any) -> Any:
    base = load_nf4(ref, Quantisation())
    sizes = {name: (module.out_features, module.in_features) for name, module in base.named_modules()
             if isinstance(module, Linear4bit)}  # fmt: skip
    prior = make_adapter(tmp_path / "prior", modules=sizes, r=6, alpha=1.5, repo=ref.repo, revision=ref.revision)
    return attach(base, AdapterConfig(r=4, alpha=8), prior, seed=0)


def _trainable(model: Any) -> set[str]:
    names = {name.split(".lora_")[1].split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    return {str(name) for name in names}


@pytest.mark.slow
def test_peft_forgets_a_freeze_in_each_way_that_activate_mends(stacked: Any) -> None:
    assert _trainable(stacked) == {"default"}
    with stacked.disable_adapter():
        pass
    assert _trainable(stacked) == {"prior", "default"}  # if not: check_frozen's first reason is gone
    stacked.base_model.set_adapter(["prior"])
    assert _trainable(stacked) == {"prior"}
    assert stacked.active_adapter == "default"  # a string of its own, which knows nothing of the layers' lists
    stacked.base_model.set_adapter(["prior", "default"])
    stacked.set_requires_grad("prior", False)
    assert _trainable(stacked) == {"default"}


@pytest.mark.slow
def test_a_layers_list_of_adapters_decides_what_computes(stacked: Any) -> None:
    layer = next(module for module in stacked.modules() if isinstance(module, LoraLayer))
    x_BI = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
    outputs = {}
    for names in ([], ["prior"], ["default"], ["prior", "default"]):
        layer._active_adapter = names
        assert layer.active_adapters == names
        outputs[tuple(names)] = layer(x_BI)
    assert torch.equal(outputs[()], layer.base_layer(x_BI))
    A_RI, B_OR = layer.lora_A["prior"].weight, layer.lora_B["prior"].weight
    expected = outputs[()].float() + layer.scaling["prior"] * x_BI.float() @ A_RI.T @ B_OR.T
    torch.testing.assert_close(outputs[("prior",)].float(), expected, rtol=2**-7, atol=2**-7)  # bfloat16's rounding
    assert torch.equal(outputs[("default",)], outputs[()])  # B starts at zero
    assert torch.equal(outputs[("prior", "default")], outputs[("prior",)])
    assert (layer.merged, layer.disable_adapters) == (False, False)


@pytest.mark.slow
def test_a_linear4bit_is_the_linear_of_its_dequantised_weight(ref: BaseRef) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import modules

    assert callable(modules.has_avx512bf16)  # what decides whether a layer would repack itself
    model = load_nf4(ref, Quantisation())
    layer = model.model.layers[0].self_attn.q_proj
    assert (layer.weight.quant_state.blocksize, layer.weight.quant_state.nested) == (64, True)
    weight_OI = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x_BI = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
    assert torch.equal(layer(x_BI), torch.nn.functional.linear(x_BI, weight_OI, layer.bias))
    assert (model.is_quantized, model.hf_quantizer is not None) == (True, True)
    assert "quantization_config" in model.config.__dict__


def _stock(model: Any, ref: BaseRef, folder: Path, **fields: Any) -> Any:
    given = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=True, report_to="none", max_steps=2, save_strategy="no",
        per_device_train_batch_size=4, num_generations=4, max_completion_length=6, logging_steps=1, learning_rate=1e-2,
        disable_tqdm=True, gradient_checkpointing=False, **fields,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "Question: 1 + 2\nSolution:\n"}] * 8)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(sum(ids) % 7) for ids in completion_ids]

    return GRPOTrainer(
        model=model, args=given, train_dataset=rows, processing_class=load_tokenizer(ref.path), reward_funcs=[reward]
    )


@pytest.mark.slow
def test_stock_trl_still_needs_what_the_trainers_mend(stacked: Any, ref: BaseRef, tmp_path: Path) -> None:
    """If this fails, TRL has changed: what is mended in stages/trainers.py may no longer need it, or need more."""
    layers = [module for module in stacked.modules() if isinstance(module, LoraLayer)]
    trainer = _stock(stacked, ref, tmp_path, beta=0.05)
    assert {p.dtype for p in stacked.parameters() if p.requires_grad} == {torch.bfloat16}  # small steps round away
    assert {tuple(layer.active_adapters) for layer in layers} == {("prior", "default")}
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert all(line["grad_norm"] > 0 for line in log)  # it looks healthy,
    assert {tuple(layer.active_adapters) for layer in layers} == {("default",)}  # and the earlier stages are gone
    # The figures that alarms, the progress bar and the rollout meter read.
    named = {"reward", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std"}
    assert named <= log[-1].keys()


@pytest.mark.slow
def test_trl_is_loaded_without_its_vllm_client() -> None:
    """Which takes seconds, and which would merge adapters into the quantised base."""
    assert not hasattr(sys.modules["trl.generation.vllm_generation"], "LLM")
