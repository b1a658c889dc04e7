"""Other people's names and bases against PEFT itself: what PEFT computes is what a merge has to give.

Every base and adapter is made here from a seed, saved by transformers and PEFT, and respelt as other tools leave it.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plyfold.adapters.base.load import load_nf4, load_twin
from plyfold.adapters.base.model_config import ModelConfig
from plyfold.adapters.base.resolve import BaseRef, Quantisation, resolve_base
from plyfold.adapters.placement import Placement
from plyfold.adapters.spec import read_spec
from plyfold.adapters.tensors import canonicalise, read_adapter
from plyfold.cli.main import run
from plyfold.core.config import BaseConfig
from plyfold.core.errors import IncompatibleError, IntegrityError, UnsupportedAdapterError
from plyfold.engines.hf import HfEngine
from plyfold.engines.vllm import model_dtype
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

pytestmark = pytest.mark.slow

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
IDS_BT = torch.arange(3, 23)[None]
TEXT = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32}
LEAVES = ["q_proj", "v_proj"]


def config(family: str, **changes: Any) -> Any:
    """A config of a few thousand parameters."""
    if family == "qwen2_5_vl":
        rope = {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}}
        vision = {**VISION, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
        ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
        return transformers.AutoConfig.for_model(
            family, text_config=TEXT | rope, vision_config=vision, **ids, **changes
        )
    if family == "gemma3":
        vision = {**VISION, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        ids = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
        return transformers.AutoConfig.for_model(
            family, text_config=TEXT, vision_config=vision, mm_tokens_per_image=4, **ids, **changes
        )
    if family == "gpt2":
        return transformers.AutoConfig.for_model(family, vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    return transformers.AutoConfig.for_model(family, **TEXT, **(moe if family.endswith("moe") else {}), **changes)


def auto(family: str) -> Any:
    several = family in ("qwen2_5_vl", "gemma3")
    return transformers.AutoModelForImageTextToText if several else transformers.AutoModelForCausalLM


def save_base(family: str, folder: Path, *, forget: str = "", **changes: Any) -> Any:
    """A base from a seed, and in memory; `forget` names a key that the family's own files leave out."""
    torch.manual_seed(0)
    model = auto(family).from_config(config(family, **changes)).eval()
    model.save_pretrained(folder)
    if forget:
        path = folder / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != forget}))
    return model


def save_adapter(model: Any, folder: Path, targets: Any = LEAVES, *, seed: int = 1, **options: Any) -> Tensor:
    """A PEFT adapter of random factors as PEFT saves it; returns the logits it gives."""
    model = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **options)
    ).eval()
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    model.peft_config["default"].base_model_name_or_path = "acme/tiny"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        scores: Tensor = model(input_ids=IDS_BT).logits
    model.unload()
    return scores


def with_adapter(family: str, base: Path, folder: Path) -> Tensor:
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(auto(family).from_pretrained(base), folder).eval()
        scores: Tensor = model(input_ids=IDS_BT).logits
    return scores


def alone(family: str, folder: Path) -> Tensor:
    with torch.no_grad():
        scores: Tensor = auto(family).from_pretrained(folder).eval()(input_ids=IDS_BT).logits
    return scores


def respell(source: Path, target: Path, spell: Callable[[str], str], **changes: Any) -> Path:
    """A copy of an adapter with other keys, and other fields of its config."""
    target.mkdir()
    save_file(
        {spell(key): tensor for key, tensor in load_file(source / WEIGHTS).items()},
        target / WEIGHTS,
        metadata={"format": "pt"},
    )
    (target / CONFIG).write_text(json.dumps(json.loads((source / CONFIG).read_text()) | changes))
    return target


def in_front(segment: str) -> Callable[[str], str]:
    return lambda key: key.replace(PREFIX, f"{PREFIX}{segment}.")


SPELLINGS: dict[str, Callable[[str], str]] = {
    "compiled": in_front("_orig_mod"),
    "layers compiled": lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
    "compiled outside": lambda key: f"_orig_mod.{key}",
    "checkpointed": lambda key: key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "checkpointed and sharded": lambda key: key.replace(
        ".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."
    ),
    "sharded outside": lambda key: f"_fsdp_wrapped_module.{key}",
    "DDP outside": lambda key: f"module.{key}",
    "DDP inside": in_front("module"),
    "DDP of a compiled one": in_front("module._orig_mod"),
    "the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "another adapter's name": lambda key: key.replace(".weight", ".math-v2.weight"),
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "prefix twice": lambda key: PREFIX + key,
    "everything": lambda key: f"module._orig_mod.{PREFIX}{key}".replace(".weight", ".a.weight"),
}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen2 with two adapters, and their exact sum by PEFT's own names."""
    folder = tmp_path_factory.mktemp("qwen2")
    model = save_base("qwen2", folder / "base", tie_word_embeddings=True)
    save_adapter(model, folder / "a")
    save_adapter(model, folder / "b", seed=2)
    assert run(["merge", str(folder / "a"), str(folder / "b"), "-o", str(folder / "sum")]) == 0
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("base", [(), ("--base", "base")], ids=["no base", "base"])
def test_a_module_has_one_name_however_it_is_spelt(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: str, base: tuple[str, ...]
) -> None:
    respell(qwen2 / "b", tmp_path / "b", SPELLINGS[spelling])
    named = [str(qwen2 / each) if each == "base" else each for each in base]
    assert run(["merge", str(qwen2 / "a"), str(tmp_path / "b"), *named, "-o", str(tmp_path / "out")]) == 0
    assert "not as PEFT writes them" in capsys.readouterr().err
    ours, right = load_file(tmp_path / "out" / WEIGHTS), load_file(qwen2 / "sum" / WEIGHTS)
    assert ours.keys() == right.keys()
    assert all(torch.equal(ours[key], right[key]) for key in right)
    if base:
        truth = with_adapter("qwen2", qwen2 / "base", qwen2 / "sum")
        assert torch.equal(with_adapter("qwen2", qwen2 / "base", tmp_path / "out"), truth)
        assert not torch.allclose(truth, alone("qwen2", qwen2 / "base"), atol=1e-2)


@pytest.mark.parametrize("spelling", ["compiled", "no prefix", "the adapter's name"])
def test_an_import_writes_the_names_that_peft_loads(qwen2: Path, tmp_path: Path, spelling: str) -> None:
    folder = respell(qwen2 / "b", tmp_path / "b", SPELLINGS[spelling], target_modules=["_orig_mod.q_proj", "v_proj"])
    respell(qwen2 / "b", tmp_path / "plain", lambda key: key)
    for each in (folder, tmp_path / "plain"):
        canonicalise(each, "acme/tiny", None)
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()
    assert (folder / CONFIG).read_bytes() == (tmp_path / "plain" / CONFIG).read_bytes()


def test_an_engine_refuses_keys_that_peft_would_ignore(qwen2: Path, tmp_path: Path) -> None:
    respell(qwen2 / "b", tmp_path / "b", SPELLINGS["compiled"])
    with pytest.raises(UnsupportedAdapterError, match="PEFT and vLLM would ignore"):
        HfEngine(qwen2 / "base", {"b": tmp_path / "b"}, max_new_tokens=4, batch_size=1)


def _twice(values: dict[str, Tensor]) -> None:
    values.update({in_front("_orig_mod")(key): tensor.clone() for key, tensor in list(values.items())})


def _two_codes(values: dict[str, Tensor]) -> None:
    for key in list(values):
        values[key.replace("model.model.layers", "model.language_model.model.layers")] = values[key].clone()


def _two_adapters(values: dict[str, Tensor]) -> None:
    for key in list(values):
        values[key.replace(".weight", ".first.weight" if ".0." in key else ".second.weight")] = values.pop(key)


def _halves_apart(values: dict[str, Tensor]) -> None:
    for key in [key for key in values if "lora_B" in key]:
        values[in_front("_orig_mod")(key)] = values.pop(key)


def _key(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(values: dict[str, Tensor]) -> None:
        for key in list(values):
            values[key.replace(old, new)] = values.pop(key)

    return change


FILES: dict[str, tuple[Callable[[dict[str, Tensor]], None], type[Exception], str]] = {
    "one module twice": (_twice, IntegrityError, "one module in two ways"),
    "one module of two versions": (_two_codes, IntegrityError, "one module in two ways"),
    "two adapters": (_two_adapters, IntegrityError, "more than one adapter"),
    "A and B apart": (_halves_apart, IntegrityError, "two factors of a module"),
    "a wrapper's or the model's": (_key("layers.", "layers.module."), UnsupportedAdapterError, "`module`"),
    "fused experts": (_key("self_attn.q_proj", "mlp.experts"), UnsupportedAdapterError, "fused experts"),
    "fused experts, inner": (_key("q_proj", "experts.base_layer"), UnsupportedAdapterError, "fused experts"),
    "an embedding": (_key("layers.0.self_attn.q_proj", "embed_tokens"), UnsupportedAdapterError, "embedding"),
    "kohya": (_key("lora_A.weight", "lora_down.weight"), UnsupportedAdapterError, "kohya"),
    "diffusers": (_key("lora_B.weight", "lora.up.weight"), UnsupportedAdapterError, "diffusers"),
    "MLX": (_key("lora_A.weight", "lora_a"), UnsupportedAdapterError, "MLX"),
    "DoRA, with the adapter's name": (
        _key("lora_A.weight", "lora_magnitude_vector.default.weight"), UnsupportedAdapterError, "DoRA",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", FILES)
def test_what_no_name_says_is_refused_by_what_it_is(qwen2: Path, tmp_path: Path, row: str) -> None:
    spoil, kind, message = FILES[row]
    respell(qwen2 / "b", tmp_path / "b", lambda key: key, target_modules=None)
    values = load_file(tmp_path / "b" / WEIGHTS)
    spoil(values)
    save_file(values, tmp_path / "b" / WEIGHTS)
    with pytest.raises(kind, match=message):
        read_spec(tmp_path / "b")


def test_a_pattern_that_only_the_wrapped_name_matches_is_refused(qwen2: Path, tmp_path: Path) -> None:
    patterns = {"alpha_pattern": {r"_orig_mod\.model\.layers\.0\..*": 32}}
    respell(qwen2 / "b", tmp_path / "b", SPELLINGS["compiled"], **patterns)
    with pytest.raises(UnsupportedAdapterError, match="alpha_pattern"):
        read_spec(tmp_path / "b")


# ---- bases


BASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Qwen2, tied": ("qwen2", {"tie_word_embeddings": True}, LEAVES),
    "Qwen2, tied, head": ("qwen2", {"tie_word_embeddings": True}, [*LEAVES, "lm_head"]),
    "Qwen2, head": ("qwen2", {"tie_word_embeddings": False}, [*LEAVES, "lm_head"]),
    "Llama": ("llama", {}, [*LEAVES, "gate_proj"]),
    "Gemma 2, tied by default, head": ("gemma2", {"forget": "tie_word_embeddings"}, ["q_proj", "lm_head"]),
    "Gemma 3": ("gemma3", {}, r".*language_model.*\.(q_proj|v_proj)"),
    "Gemma 3, vision": ("gemma3", {}, r".*(language_model|vision_tower).*\.(q_proj|v_proj)"),
    "Gemma 3, tied, head": ("gemma3", {"forget": "tie_word_embeddings"}, r".*language_model.*\.q_proj|lm_head"),
    "Qwen2.5-VL": ("qwen2_5_vl", {}, r".*language_model.*\.(q_proj|v_proj)"),
    "Qwen2.5-VL, vision": ("qwen2_5_vl", {}, r".*(language_model.*\.q_proj|visual.*\.qkv)"),
    "Qwen3-MoE, attention": ("qwen3_moe", {}, LEAVES),
}


@pytest.mark.parametrize("row", BASES)
def test_a_fold_computes_what_peft_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    family, changes, targets = BASES[row]
    truth = save_adapter(save_base(family, tmp_path / "base", **changes), tmp_path / "a", targets)
    command = ["merge", str(tmp_path / "a"), "--into", "model", "--base", str(tmp_path / "base")]
    assert run([*command, "-o", str(tmp_path / "out")]) == 0
    torch.testing.assert_close(alone(family, tmp_path / "out"), truth, rtol=0, atol=2e-5)
    assert not torch.allclose(truth, alone(family, tmp_path / "base"), atol=1e-2)
    if "lm_head" in targets:
        saved = json.loads((tmp_path / "out" / "config.json").read_text())
        assert saved["tie_word_embeddings"] is False
    shown = capsys.readouterr()
    assert ("plyfold serve " in shown.out) is (family != "gemma2")
    assert ("vLLM 0.32 has no head" in shown.err) is (family == "gemma2")


OLDER: dict[str, tuple[str, str, str]] = {
    "Gemma 3": ("gemma3", "model.language_model.layers", "language_model.model.layers"),
    "Qwen2.5-VL": ("qwen2_5_vl", "model.language_model.layers", "model.layers"),
}
"""How adapters of earlier transformers name the modules of a model of several modalities."""


@pytest.mark.parametrize("family", OLDER)
def test_names_of_two_versions_of_a_model_are_one_module(tmp_path: Path, family: str) -> None:
    kind, new, old = OLDER[family]
    model = save_base(kind, tmp_path / "base")
    for seed, name in enumerate("ab"):
        save_adapter(model, tmp_path / name, r".*language_model.*\.(q_proj|v_proj)", seed=seed)
    respell(tmp_path / "b", tmp_path / "old", lambda key: key.replace(new, old), target_modules=LEAVES)
    merge = ["merge", str(tmp_path / "a")]
    assert run([*merge, str(tmp_path / "b"), "-o", str(tmp_path / "right")]) == 0
    assert run([*merge, str(tmp_path / "old"), "-o", str(tmp_path / "out")]) == 8
    base = ["--base", str(tmp_path / "base")]
    assert run([*merge, str(tmp_path / "old"), *base, "-o", str(tmp_path / "out")]) == 0
    ours, right = load_file(tmp_path / "out" / WEIGHTS), load_file(tmp_path / "right" / WEIGHTS)
    assert ours.keys() == right.keys()
    assert all(torch.equal(ours[key], right[key]) for key in right)
    fold = [*base, "--into", "model", "-o"]
    assert run([*merge, str(tmp_path / "old"), *fold, str(tmp_path / "folded")]) == 0
    truth = with_adapter(kind, tmp_path / "base", tmp_path / "right")
    torch.testing.assert_close(alone(kind, tmp_path / "folded"), truth, rtol=0, atol=2e-5)


def test_weights_that_lie_transposed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(save_base("gpt2", tmp_path / "base"), tmp_path / "a", ["c_proj"], fan_in_fan_out=True)
    respell(tmp_path / "a", tmp_path / "b", lambda key: key, fan_in_fan_out=False)
    attention = {key: v for key, v in load_file(tmp_path / "b" / WEIGHTS).items() if ".attn." in key}
    save_file(attention, tmp_path / "b" / WEIGHTS)  # square, so that no size says it
    for name in "ab":
        command = ["merge", str(tmp_path / name), "--into", "model", "--base", str(tmp_path / "base")]
        assert run([*command, "-o", str(tmp_path / "out")]) == 8
        assert "transposed" in capsys.readouterr().err


def test_lora_on_fused_experts_is_refused(tmp_path: Path) -> None:
    model = save_base("qwen3_moe", tmp_path / "base")
    save_adapter(model, tmp_path / "a", ["q_proj"], target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(UnsupportedAdapterError, match="target_parameters"):
        read_spec(tmp_path / "a")
    respell(tmp_path / "a", tmp_path / "b", lambda key: key, target_parameters=None, target_modules=None)
    with pytest.raises(UnsupportedAdapterError, match="fused experts"):
        read_spec(tmp_path / "b")


def test_an_adapter_on_experts_apart_folds_into_a_checkpoint_that_has_them_apart(tmp_path: Path) -> None:
    save_base("qwen3_moe", tmp_path / "base")
    names = [f"model.layers.{layer}.mlp.experts.{i}.down_proj" for layer in range(2) for i in range(4)]
    draw = torch.Generator().manual_seed(3)
    shapes = {"A": (4, 16), "B": (32, 4)}
    factors = {
        f"{PREFIX}{name}.lora_{half}.weight": 0.2 * torch.randn(shape, generator=draw)
        for name in names
        for half, shape in shapes.items()
    }
    (tmp_path / "a").mkdir()
    save_file(factors, tmp_path / "a" / WEIGHTS)
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["down_proj"], "task_type": "CAUSAL_LM"}
    (tmp_path / "a" / CONFIG).write_text(json.dumps(fields | {"base_model_name_or_path": "acme/tiny"}))
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert f"{names[0]}.weight" in base, "transformers saves experts apart"
    command = ["merge", str(tmp_path / "a"), "--into", "model", "--base", str(tmp_path / "base")]
    assert run([*command, "-o", str(tmp_path / "out")]) == 0
    truth = with_adapter("qwen3_moe", tmp_path / "base", tmp_path / "a")
    torch.testing.assert_close(alone("qwen3_moe", tmp_path / "out"), truth, rtol=0, atol=2e-5)


# ---- copies of base weights


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """An adapter on the head of a tied base: PEFT saves the head's own weight beside it."""
    model = save_base("qwen2", tmp_path / "base", tie_word_embeddings=True)
    save_adapter(model, tmp_path / "a", [*LEAVES, "lm_head"])
    assert f"{PREFIX}lm_head.base_layer.weight" in load_file(tmp_path / "a" / WEIGHTS)
    return tmp_path


def _add(folder: Path, **tensors: Tensor) -> None:
    values = load_file(folder / WEIGHTS)
    save_file(values | tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_that_equals_the_base_is_passed_over(
    head: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype
) -> None:
    embedding = load_file(head / "base" / "model.safetensors")["model.embed_tokens.weight"]
    copies = {f"{PREFIX}lm_head.base_layer.weight": embedding.to(dtype).contiguous()}
    copies[f"{PREFIX}model.embed_tokens.weight"] = embedding.to(dtype).contiguous().clone()
    copies[f"{PREFIX}model.norm.weight"] = load_file(head / "base" / "model.safetensors")["model.norm.weight"]
    _add(head / "a", **copies)
    for into in ("adapter", "model"):
        command = ["merge", str(head / "a"), "--into", into, "--base", str(head / "base")]
        assert run([*command, "-o", str(head / into)]) == 0
        assert "equal to the base's" in capsys.readouterr().err
    assert not any("base_layer" in key or "embed" in key for key in load_file(head / "adapter" / WEIGHTS))


def test_without_a_base_a_frozen_copy_is_passed_over_with_a_word(head: Path) -> None:
    plan = plan_compose([Part(head / "a")])
    assert any("lm_head.weight; not compared" in warning for warning in plan.warnings)
    assert set(read_adapter(head / "a").factors) == set(plan.modules)


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_a_whole_weight_is_refused_unless_it_is_the_bases(
    head: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    own = load_file(head / "base" / "model.safetensors").get(key, torch.zeros(96, 32))
    _add(head / "a", **{PREFIX + key: own + 1e-3})
    for base in ([], ["--base", str(head / "base")], ["--base", str(head / "base"), "--into", "model"]):
        assert run(["merge", str(head / "a"), *base, "-o", str(head / "out")]) == 8
        assert "whole" in capsys.readouterr().err
    with pytest.raises(UnsupportedAdapterError, match="whole"):
        read_spec(head / "a")


def test_a_frozen_copy_of_other_weights_names_another_base(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _add(head / "a", **{f"{PREFIX}lm_head.base_layer.weight": torch.zeros(96, 32)})
    assert run(["merge", str(head / "a"), "--base", str(head / "base"), "-o", str(head / "out")]) == 8
    assert "trained on other weights" in capsys.readouterr().err


# ---- base folders


def test_only_what_belongs_to_a_checkpoint_is_copied(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = head / "base"
    belongs = {
        "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "spiece.model", "qwen.tiktoken",
        "chat_template.jinja", "preprocessor_config.json", "processor_config.json", "LICENSE", "NOTICE.txt",
        "generation_config.json",
    }  # fmt: skip
    stray = {
        "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin", "optimizer.pt",
        "optimizer.bin", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin", "README.md",
        "consolidated.00.pth", "params.json", "all_results.json", "events.out.tfevents.1", "model.gguf", "run.py",
        ".gitattributes", "lineage.json", "composition.json", "notes.txt", "wandb.json",
    }  # fmt: skip
    for name in (belongs | stray) - {"generation_config.json"}:
        (base / name).write_text("{}")
    for name in ("runs", "original", ".cache", "checkpoint-10", "onnx"):
        (base / name).mkdir()
        (base / name / "x.json").write_text("{}")
    shutil.copy(head / "a" / CONFIG, base)
    assert run(["merge", str(head / "a"), "--into", "model", "--base", str(base), "-o", str(head / "out")]) == 0
    out = {path.name for path in (head / "out").iterdir()}
    assert out == belongs | {"config.json", "model.safetensors", "composition.json"}
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in stray - {".gitattributes"})
    assert type(transformers.AutoModelForCausalLM.from_pretrained(head / "out")).__name__ == "Qwen2ForCausalLM"


def test_code_is_copied_where_the_config_says_that_the_model_needs_it(head: Path) -> None:
    path = head / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "modeling_x.X"}}))
    (head / "base" / "modeling_x.py").write_text("X = 1\n")
    command = ["merge", str(head / "a"), "--into", "model", "--base", str(head / "base")]
    assert run([*command, "-o", str(head / "out")]) == 0
    assert (head / "out" / "modeling_x.py").read_text() == "X = 1\n"


def test_a_base_folder_with_an_adapter_is_not_loaded_as_the_base(head: Path) -> None:
    shutil.copy(head / "a" / CONFIG, head / "base")
    ref = BaseRef(repo="acme/tiny", revision="0" * 40, path=head / "base")
    for load in (
        lambda: load_twin(head / "base"),
        lambda: load_nf4(ref, Quantisation()),
        lambda: resolve_base(BaseConfig(repo="acme/tiny", revision="auto", path=str(head / "base"))),
    ):
        with pytest.raises(IncompatibleError, match="an adapter lies in the base folder"):
            load()


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_a_model_of_several_modalities_is_loaded_for_its_text(tmp_path: Path, family: str) -> None:
    model = save_base(family, tmp_path)
    with torch.no_grad():
        truth = model(input_ids=IDS_BT).logits
        assert torch.equal(load_twin(tmp_path, "cpu")(input_ids=IDS_BT).logits, truth)


@pytest.mark.parametrize("kind", ["clip", "nova"])
def test_a_base_that_is_no_language_model_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "x.X"}}))
    ref = BaseRef(repo="acme/tiny", revision="0" * 40, path=tmp_path)
    for load in (lambda: load_twin(tmp_path), lambda: load_nf4(ref, Quantisation())):
        with pytest.raises(IncompatibleError, match="no language model"):
            load()


# ---- configs of strangers


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["pipeline"]},
        {"architectures": "x"},
        {"architectures": [7]},
        {"auto_map": {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"}, "model_type": "x"},
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}, "model_type": "gemma3"},
        {"text_config": [1], "vision_config": 7, "model_type": "qwen2_5_vl"},
        {"model_type": 7},
        {"hidden_size": "x"},
        {"tie_word_embeddings": "no"},
    ],
)
def test_a_config_that_no_class_takes_ends_in_one_error(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    shutil.copytree(qwen2 / "base", tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (tmp_path / "base" / "modeling_x.py").write_text("raise SystemExit('code of a stranger')")
    respell(qwen2 / "b", tmp_path / "b", lambda key: key.replace("model.layers", "vlm.layers"))
    fold = ["merge", str(tmp_path / "b"), "--into", "model", "--base", str(tmp_path / "base")]
    assert run([*fold, "-o", str(tmp_path / "out")]) == 8
    assert "does not have" in capsys.readouterr().err


GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gemma's ties": ({"model_type": "gemma2"}, {"tie_word_embeddings": True, "head_dim": 256}),
    "Llama's do not": ({"model_type": "llama"}, {"tie_word_embeddings": False}),
    "the file's word": ({"model_type": "gemma2", "tie_word_embeddings": False}, {"tie_word_embeddings": False}),
    "Qwen3's head size is no quotient": (
        {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16},
        {"head_dim": 128, "hidden_size": 1024},
    ),
    "Mistral's groups": ({"model_type": "mistral"}, {"num_key_value_heads": 8}),
    "GPT-2's own words": ({"model_type": "gpt2", "n_positions": 512}, {"max_position_embeddings": 512}),
    "a text model inside": (
        {"model_type": "gemma3", "text_config": {"max_position_embeddings": 77, "model_type": "gemma3_text"}},
        {"max_position_embeddings": 77, "tie_word_embeddings": True, "num_attention_heads": 8},
    ),
    "a class of no one": ({"model_type": "nova"}, {"tie_word_embeddings": None, "head_dim": None}),
}


@pytest.mark.parametrize("row", GIVEN)
def test_what_a_config_leaves_out_is_its_classes_default(row: str) -> None:
    raw, expected = GIVEN[row]
    config = ModelConfig(raw)
    assert {name: config.get(name) for name in expected} == expected


def test_the_dtype_of_a_config_that_does_not_say_is_that_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    auto("qwen2").from_config(config("qwen2")).to(torch.bfloat16).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "dtype"}))
    assert model_dtype(tmp_path) == "bfloat16"


def test_a_merge_has_the_names_that_peft_finds_in_a_base_with_older_ones(tmp_path: Path) -> None:
    """Qwen2.5-VL's checkpoints and its older adapters say `model.layers`, which no module in memory is called now."""
    expected = save_adapter(save_base("qwen2_5_vl", tmp_path / "base"), tmp_path / "new")
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "base" / "model.safetensors")
    old = respell(tmp_path / "new", tmp_path / "old", lambda key: key.replace("model.language_model.", "model."))
    assert run(["merge", str(old), "--base", str(tmp_path / "base"), "-o", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(with_adapter("qwen2_5_vl", tmp_path / "base", tmp_path / "merged"), expected)


def test_names_of_another_model_are_not_sent_through_peft(tmp_path: Path) -> None:
    """PEFT loads none of them and says so in a warning only: what it then saves adds nothing."""
    plain = save_base("qwen2", tmp_path / "base")
    save_adapter(plain, tmp_path / "plain")
    other = respell(tmp_path / "plain", tmp_path / "other", in_front("language_model"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(with_adapter("qwen2", tmp_path / "base", other), alone("qwen2", tmp_path / "base"))
    with pytest.raises(IncompatibleError, match="does not have") as caught:
        read_adapter(other, Placement.open(tmp_path / "base"))
    assert "spell the keys" in caught.value.next_step
    assert "PEFT" not in caught.value.next_step


def test_the_head_of_a_classifier_is_told_as_one(tmp_path: Path) -> None:
    save_adapter(save_base("qwen2", tmp_path / "base"), tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / WEIGHTS) | {f"{PREFIX}score.weight": torch.ones(2, 32)}
    save_file(tensors, tmp_path / "plain" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(IncompatibleError, match="classifier's head"):
        read_adapter(tmp_path / "plain", Placement.open(tmp_path / "base"))
