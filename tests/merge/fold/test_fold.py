"""Folding against the float64 sum, and what a fold must leave alone."""

import json
from dataclasses import replace

import pytest
import torch

from plyfold.adapters.base.checkpoint import open_checkpoint
from plyfold.core.errors import FailedError
from plyfold.merge.compose.prepare import prepare
from plyfold.merge.fold.checkpoint import weight_norms
from plyfold.merge.fold.fold import estimate_loss, fold, loss_warnings, plan_fold, write_fold
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

from ...support import bounds
from ...support.peft_folders import SHAPES, load_checkpoint, write_adapter_folder, write_base_folder

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = [1.0, 0.7, -0.5]


@pytest.fixture
def parts(tmp_path):
    written = [write_adapter_folder(tmp_path / f"a{i}", seed=i, alpha=7, r=3 + i) for i in range(3)]
    return written, [Part(one.path, weight) for one, weight in zip(written, WEIGHTS, strict=True)]


def stack(written, name, weights=WEIGHTS):
    present = [(one.factors[name], w) for one, w in zip(written, weights, strict=True) if name in one.factors]
    B_OR = torch.cat([w * scale * B.double() for (_, B, scale), w in present], 1)
    return B_OR, torch.cat([A.double() for (A, _, _), _ in present], 0)


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", [None, "fp32", "bf16", "fp16"])
def test_every_weight_is_the_float64_sum_rounded_once(tmp_path, parts, stored, dtype):
    written, chosen = parts
    base = write_base_folder(tmp_path / "base", dtype=TORCH[stored])
    report = fold(chosen, tmp_path / "base", tmp_path / "out", dtype=dtype)
    result = load_checkpoint(tmp_path / "out")
    out = dtype or stored
    for name in SHAPES:
        found_OI = result[f"{name}.weight"]
        assert found_OI.dtype == TORCH[out]
        B_OR, A_RI = stack(written, name)
        W_OI = base[f"{name}.weight"].double()
        error_OI = (found_OI.double() - (W_OI + B_OR @ A_RI)).abs()
        assert (error_OI <= bounds.folded_OI(W_OI, B_OR, A_RI, bounds.UNIT[out])).all()
        assert report.modules[name].changed_share > 0.5
    for name in set(base) - {f"{module}.weight" for module in SHAPES}:
        assert torch.equal(result[name], base[name].to(TORCH[out]))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(TORCH[out]).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [None, "fp32"])
def test_blocks_of_rows_give_what_one_block_gives(tmp_path, parts, monkeypatch, dtype):
    _, chosen = parts
    write_base_folder(tmp_path / "base")
    fold(chosen, tmp_path / "base", tmp_path / "whole", dtype=dtype)
    monkeypatch.setattr("plyfold.merge.fold.write.BLOCK_ELEMENTS", 7 * 20)
    fold(chosen, tmp_path / "base", tmp_path / "blocks", dtype=dtype)
    whole, blocks = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "blocks")
    for name in whole:
        torch.testing.assert_close(blocks[name], whole[name], rtol=bounds.UBF16 * 2, atol=0)


@pytest.mark.parametrize("shards", [1, 3])
def test_untouched_tensors_and_files_are_the_same_bytes(tmp_path, parts, shards):
    _, chosen = parts
    base = write_base_folder(tmp_path / "base", shards=shards)
    report = fold(chosen, tmp_path / "base", tmp_path / "out")
    result = load_checkpoint(tmp_path / "out")
    assert set(result) == set(base)
    for name in set(base) - {f"{module}.weight" for module in SHAPES}:
        assert result[name].view(torch.uint8).equal(base[name].view(torch.uint8))
    for file in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "base" / file).read_bytes()
    assert not (tmp_path / "out" / "README.md").exists()
    assert report.num_untouched == len(base) - len(SHAPES)
    if shards > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index == json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())


def test_the_index_counts_the_bytes_of_another_dtype(tmp_path, parts):
    base = write_base_folder(tmp_path / "base", shards=2)
    fold(parts[1], tmp_path / "base", tmp_path / "out", dtype="fp32")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(tensor.nbytes for tensor in base.values())


def test_tied_embeddings_stay_tied(tmp_path, parts):
    base = write_base_folder(tmp_path / "base", tied=True)
    fold(parts[1], tmp_path / "base", tmp_path / "out")
    result = load_checkpoint(tmp_path / "out")
    assert "lm_head.weight" not in result
    assert torch.equal(result["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


@pytest.mark.parametrize("shards", [1, 3])
def test_an_adapter_on_a_tied_head_leaves_the_embedding_alone(tmp_path, shards):
    base = write_base_folder(tmp_path / "base", tied=True, shards=shards)
    one = write_adapter_folder(tmp_path / "a", seed=1, shapes={"lm_head": (50, 20)}, size=1.0)
    report = fold([Part(one.path)], tmp_path / "base", tmp_path / "out")
    result = load_checkpoint(tmp_path / "out")
    embedding = base["model.embed_tokens.weight"]
    assert torch.equal(result["model.embed_tokens.weight"], embedding)
    A_RI, B_OR, scale = one.factors["lm_head"]
    truth = embedding.double() + scale * B_OR.double() @ A_RI.double()
    bound = bounds.folded_OI(embedding.double(), scale * B_OR.double(), A_RI.double(), bounds.UBF16)
    assert ((result["lm_head.weight"].double() - truth).abs() <= bound).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("tied" in warning for warning in report.warnings)


def test_a_config_that_asks_for_quantisation_is_mended(tmp_path, parts):
    write_base_folder(tmp_path / "base", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    plan = plan_fold(plan_compose(parts[1]), tmp_path / "base")
    assert plan.warnings
    fold(parts[1], tmp_path / "base", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_sum_beyond_the_range_of_fp16_fails_and_leaves_nothing(tmp_path):
    write_base_folder(tmp_path / "base")
    one = write_adapter_folder(tmp_path / "a", seed=1, size=1e6)
    with pytest.raises(FailedError, match="not finite"):
        fold([Part(one.path)], tmp_path / "base", tmp_path / "out", dtype="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


def test_a_lossy_rounding_is_said(tmp_path):
    write_base_folder(tmp_path / "base")
    one = write_adapter_folder(tmp_path / "a", seed=1, size=1e-5)
    report = fold([Part(one.path)], tmp_path / "base", tmp_path / "out")
    assert report.relative_loss > 0.2
    assert any("fp16 would lose" in warning and "fp32 nothing" in warning for warning in report.loss_warnings)
    assert fold([Part(one.path)], tmp_path / "base", tmp_path / "wide", dtype="fp32").relative_loss == 0


def test_subtracting_gives_the_base_back(tmp_path):
    base = write_base_folder(tmp_path / "base", dtype=torch.float32)
    one = write_adapter_folder(tmp_path / "a", seed=1)
    fold([Part(one.path)], tmp_path / "base", tmp_path / "added")
    fold([Part(one.path, -1.0)], tmp_path / "added", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    for name in SHAPES:
        W_OI = base[f"{name}.weight"].double()
        B_OR, A_RI = stack([one], name, [1.0])
        assert (
            (back[f"{name}.weight"].double() - W_OI).abs()
            <= 2 * bounds.folded_OI(W_OI, B_OR, A_RI, bounds.U32) + 2 * bounds.U32 * (B_OR @ A_RI).abs()
        ).all()


BIG = {"model.layers.0.mlp.up_proj": (700, 300), "model.layers.0.mlp.down_proj": (300, 700)}
"""Large enough to be written in blocks of several pages and measured by samples."""


@pytest.fixture
def big(tmp_path):
    written = [write_adapter_folder(tmp_path / f"a{i}", seed=i, shapes=BIG, size=0.02) for i in range(2)]
    base = write_base_folder(tmp_path / "base", shapes=BIG)
    return base, written, [Part(one.path, weight) for one, weight in zip(written, WEIGHTS, strict=False)]


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_rounding_is_estimated_before_and_measured_while_writing(tmp_path, big, monkeypatch, dtype):
    monkeypatch.setattr("plyfold.merge.fold.write.BLOCK_ELEMENTS", 1 << 15)
    monkeypatch.setattr("plyfold.merge.fold.loss.SMALL_BLOCK", 1 << 12)
    base, written, chosen = big
    plan = plan_fold(plan_compose(chosen), tmp_path / "base", dtype=dtype)
    prepared = prepare(plan.compose)
    estimated = estimate_loss(plan, prepared)
    measured = write_fold(plan, prepared, tmp_path / "out").modules
    result = load_checkpoint(tmp_path / "out")
    for name in BIG:
        B_OR, A_RI = stack(written, name, WEIGHTS[:2])
        sum_OI = base[f"{name}.weight"].double() + B_OR @ A_RI
        found_OI = result[f"{name}.weight"]
        changed = float((found_OI != base[f"{name}.weight"].to(found_OI.dtype)).double().mean())
        for one in (estimated[name], measured[name]):
            # some 2,000 and more elements stand for all: 1 / sqrt(2 * 2000) = 1.6 % is one standard deviation
            assert one.loss == pytest.approx(float((found_OI.double() - sum_OI).norm()), rel=0.08)
            assert one.loss_fp16 == pytest.approx(float((sum_OI.half().double() - sum_OI).norm()), rel=0.08)
            assert one.delta_norm == pytest.approx(float((B_OR @ A_RI).norm()), rel=1e-6)
            assert one.changed_share == pytest.approx(changed, abs=0.05)
            assert one.largest == pytest.approx(float(sum_OI.abs().max()), rel=0.3)
            assert 0 < one.measured_share < 0.2
    if dtype is None:  # 8 times less noise: 3 more bits
        assert estimated[name].loss_fp16 == pytest.approx(estimated[name].loss / 8, rel=0.1)


def test_a_sum_that_fp16_cannot_hold_is_said_beside_the_loss(tmp_path):
    write_base_folder(tmp_path / "base")
    one = write_adapter_folder(tmp_path / "a", seed=1, size=1e6)
    plan = plan_fold(plan_compose([Part(one.path)]), tmp_path / "base")
    loss = estimate_loss(plan, prepare(plan.compose))
    assert max(module.loss_fp16 for module in loss.values()) == float("inf")
    lossy = {name: replace(module, loss=module.delta_norm) for name, module in loss.items()}
    assert any("fp16 cannot hold it" in warning for warning in loss_warnings(lossy, "bf16"))


def test_weight_norms_are_those_of_the_weights(tmp_path):
    base = write_base_folder(tmp_path / "base", shards=2, shapes=SHAPES | BIG)
    norms = weight_norms(open_checkpoint(tmp_path / "base"), [*SHAPES, *BIG, "no.such.module"])
    assert norms.keys() == {*SHAPES, *BIG}
    for name, norm in norms.items():
        tolerance = 0.03 if name in BIG else 1e-6  # large ones are estimated from some of their rows
        assert norm == pytest.approx(float(base[f"{name}.weight"].double().norm()), rel=tolerance)
