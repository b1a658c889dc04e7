"""Composition against PEFT itself, in float64, so that nothing but the composed factors' own rounding can differ."""

import pytest
import torch

from plyfold.merge.compose.write import compose
from plyfold.merge.fold.fold import fold
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

from ...support import bounds

peft = pytest.importorskip("peft", reason="needs plyfold[train]")
transformers = pytest.importorskip("transformers", reason="needs plyfold[train]")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FORMS = [
    {"r": 4, "lora_alpha": 8, "target_modules": LINEAR},
    {"r": 8, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 3}},
    {"r": 2, "lora_alpha": 3, "target_modules": LINEAR, "alpha_pattern": {"layers.1.self_attn.v_proj": 7}},
]
WEIGHTS = [1.0, 0.7, -0.5]


def tiny_model(dtype=torch.float64):
    config = transformers.Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config).to(dtype).eval()


def save_adapters(folder, forms):
    paths = []
    for index, form in enumerate(forms):
        base = tiny_model(torch.float32)
        torch.manual_seed(100 + index)
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **form))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(folder / f"a{index}")
        paths.append(folder / f"a{index}")
    return paths


def load(paths):
    model = peft.PeftModel.from_pretrained(tiny_model(), paths[0], adapter_name="x0")
    for index, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=f"x{index}")
    return model.double()


def logits(model):
    ids = torch.arange(1, 41).reshape(2, 20)
    with torch.no_grad():
        return model(ids).logits


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_three_active_adapters_and_the_composed_one_give_the_same_logits(tmp_path):
    paths = save_adapters(tmp_path, [{"r": r, "lora_alpha": 2 * r, "target_modules": LINEAR} for r in (2, 4, 8)])
    done = compose(plan_compose([Part(path) for path in paths]), tmp_path / "out")
    assert done.certificate.bit_exact
    stacked = load(paths)
    stacked.base_model.set_adapter(["x0", "x1", "x2"])
    expected = logits(stacked)
    assert relative(logits(load([tmp_path / "out"])), expected) < bounds.LOGITS_FLOAT64
    assert relative(logits(tiny_model()), expected) > 1e-3


def test_weighted_composition_is_pefts_cat(tmp_path):
    paths = save_adapters(tmp_path, FORMS)
    compose(plan_compose([Part(path, weight) for path, weight in zip(paths, WEIGHTS, strict=True)]), tmp_path / "out")
    model = load(paths)
    model.add_weighted_adapter(["x0", "x1", "x2"], WEIGHTS, "cat", combination_type="cat")
    ours = load([tmp_path / "out"])
    theirs = {name: module for name, module in model.named_modules() if "cat" in getattr(module, "lora_A", {})}
    layers = {name: module for name, module in ours.named_modules() if "x0" in getattr(module, "lora_A", {})}
    assert set(layers) == set(theirs)
    for name, layer in layers.items():
        expected = theirs[name].get_delta_weight("cat")
        # B holds scale and weight rounded once to float32; PEFT here multiplies in float64.
        assert relative(layer.get_delta_weight("x0"), expected) <= 2 * bounds.U32


def test_svd_is_pefts_svd(tmp_path):
    paths = save_adapters(tmp_path, FORMS)
    plan = plan_compose([Part(p, w) for p, w in zip(paths, WEIGHTS, strict=True)], method="svd", rank=4)
    compose(plan, tmp_path / "out")
    model = load(paths)
    model.add_weighted_adapter(
        ["x0", "x1", "x2"], WEIGHTS, "svd", combination_type="svd", svd_rank=4, svd_full_matrices=False
    )
    ours = load([tmp_path / "out"])
    for name, module in ours.named_modules():
        if "x0" in getattr(module, "lora_A", {}):
            expected = dict(model.named_modules())[name].get_delta_weight("svd")
            # A truncated SVD magnifies its input's rounding by sigma_r / (sigma_r - sigma_(r+1)), tens here.
            assert relative(module.get_delta_weight("x0"), expected) < 1e-5


def test_one_folded_adapter_is_pefts_merge_bit_for_bit(tmp_path):
    (path,) = save_adapters(tmp_path, FORMS[:1])
    tiny_model(torch.bfloat16).save_pretrained(tmp_path / "base")
    fold([Part(path)], tmp_path / "base", tmp_path / "out")
    merged = peft.PeftModel.from_pretrained(tiny_model(torch.bfloat16), path).merge_and_unload().state_dict()
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert set(merged) == set(ours)
    equal = sum(int((ours[name] == merged[name]).sum()) for name in ours)
    total = sum(tensor.numel() for tensor in ours.values())
    # Blocks add in another order than one big product; that turns a float32 tie in at most one of 10,000 roundings.
    assert equal / total > 0.9999


def test_three_adapters_at_once_lose_less_than_one_after_another(tmp_path):
    forms = [{"r": 4, "lora_alpha": 8, "target_modules": LINEAR} for _ in range(3)]
    paths = save_adapters(tmp_path, forms)
    tiny_model(torch.bfloat16).save_pretrained(tmp_path / "base")
    report = fold([Part(path) for path in paths], tmp_path / "base", tmp_path / "out")
    sequential = peft.PeftModel.from_pretrained(tiny_model(torch.bfloat16), paths[0], adapter_name="x0")
    for index, path in enumerate(paths[1:], 1):
        sequential.load_adapter(path, adapter_name=f"x{index}")
    sequential.merge_adapter(["x0", "x1", "x2"])
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    base = tiny_model(torch.bfloat16).state_dict()
    deltas = load(paths)
    our_error = their_error = size = 0.0
    for name, module in sequential.base_model.model.named_modules():
        if not getattr(module, "lora_A", None):
            continue
        layer = dict(deltas.base_model.model.named_modules())[name]
        delta = sum(layer.get_delta_weight(key) for key in ("x0", "x1", "x2"))
        truth = base[f"{name}.weight"].double() + delta
        our_error += float((ours[f"{name}.weight"].double() - truth).square().sum())
        their_error += float((module.get_base_layer().weight.double() - truth).square().sum())
        size += float(delta.square().sum())
    assert our_error < their_error
    assert report.relative_loss == pytest.approx((our_error / size) ** 0.5, rel=1e-3)


def test_the_folded_model_computes_what_the_stack_computes(tmp_path):
    paths = save_adapters(tmp_path, FORMS)
    tiny_model(torch.float32).save_pretrained(tmp_path / "base")
    fold([Part(path) for path in paths], tmp_path / "base", tmp_path / "out")
    stacked = load(paths)
    stacked.base_model.set_adapter(["x0", "x1", "x2"])
    folded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    # Every weight is off by a few float32 units; 14 linear layers in a row add up at worst.
    assert relative(logits(folded), logits(stacked)) < 14 * bounds.gamma(16, bounds.U32)
