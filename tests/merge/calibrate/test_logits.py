"""The functional check of a folded checkpoint, on real models: it says what is right, and shows what is not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.adapters.base.load import load_nf4, load_tokenizer, load_twin
from plyfold.adapters.base.resolve import BaseRef, Quantisation, sandbox_folder
from plyfold.adapters.base.twin import ensure_twin
from plyfold.core.errors import FailedError, IncompatibleError, NotFoundError, ShapeMismatchError
from plyfold.merge.calibrate.hooked_model import BATCH_TOKENS, active, batched, fold_in_place, logits
from plyfold.merge.calibrate.kl import LogitFile, Meter
from plyfold.merge.calibrate.logits import (
    COMPARE_PASSES,
    VERIFY_PASSES,
    compare_base_views,
    print_base_views,
    print_logits,
    verify_logits,
)
from plyfold.merge.calibrate.moments import collect_moments
from plyfold.merge.calibrate.prompts import Prompts
from plyfold.merge.fold.fold import fold
from plyfold.merge.inputs import Part, check_parts
from plyfold.sandbox.problems import make_problems

pytestmark = pytest.mark.slow

peft = pytest.importorskip("peft", reason="needs plyfold[train]")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs plyfold[train]")

PROMPTS = Prompts(tuple(f"{row['question']}\n{row['answer']}" for row in make_problems("test", 8)))
DELTA = 0.1
"""|dW| / |W| of each adapter on the sandbox base: far above bfloat16's rounding, below what breaks the model."""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(original base, its twin, two random adapters, one that is in no merge)."""
    root, base = tmp_path_factory.mktemp("sandbox"), sandbox_folder()
    ref = BaseRef(repo="plyfold/sandbox", revision="a" * 40, path=base)
    weights = load_file(base / "model.safetensors")
    parts = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, W_OI in weights.items():
            if key.endswith("_proj.weight"):
                A_RI = torch.randn(4, W_OI.shape[1], generator=generator)
                B_OR = torch.randn(W_OI.shape[0], 4, generator=generator)
                prefix = f"base_model.model.{key.removesuffix('.weight')}"
                tensors[f"{prefix}.lora_A.weight"] = A_RI
                tensors[f"{prefix}.lora_B.weight"] = B_OR * (DELTA * W_OI.float().norm() / (B_OR @ A_RI).norm())
        folder = root / f"adapter{seed}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        names = sorted({key.split(".")[-3] for key in tensors})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": names, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "plyfold/sandbox"}))
        parts.append(Part(folder))
    return base, ensure_twin(ref, Quantisation(), root / "cache"), check_parts(parts[:2]), parts[2]


@pytest.fixture(scope="module")
def folded(sandbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both adapters folded into the twin."""
    out = tmp_path_factory.mktemp("folded") / "model"
    fold(sandbox[2].parts, sandbox[1], out)
    return out


def tampered(checkpoint: Path, out: Path, name: str, factor: float) -> Path:
    """A copy in which one tensor is multiplied."""
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / "model.safetensors")
    tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_active_parts_compute_bit_for_bit_what_peft_computes(
    tmp_path: Path, tiny_base: Any, make_adapter: Any, dtype: str
) -> None:
    base = tiny_base(dtype=dtype)
    folders = [make_adapter(tmp_path / f"a{seed}", r=rank, seed=seed) for seed, rank in ((1, 4), (2, 6))]
    model = load_twin(base, "cpu")
    batch = batched(PROMPTS, load_tokenizer(base), model)[0]
    plain = logits(model, batch)
    with active(model, check_parts([Part(folder) for folder in folders])):
        ours = logits(model, batch)
    with active(model, check_parts([Part(folders[0]), Part(folders[1], -0.5)])):
        weighted = logits(model, batch)
    assert torch.equal(logits(model, batch), plain)  # nothing is left behind
    stacked = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="one")
    stacked.load_adapter(folders[1], adapter_name="two")
    stacked.base_model.set_adapter(["one", "two"])
    assert torch.equal(ours, logits(stacked, batch))
    assert (ours - plain).abs().max() > 0.1
    for module in stacked.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling["two"] *= -0.5
    assert torch.equal(weighted, logits(stacked, batch))


def test_folding_in_memory_is_folding_on_disk(sandbox: Any, folded: Path) -> None:
    _, twin, parts, _ = sandbox
    model = load_twin(twin, "cpu")
    fold_in_place(model, parts)
    on_disk = load_twin(folded, "cpu").state_dict()
    for name, weight in model.state_dict().items():
        # Another order of float32 sums may tip a number that lies between two of bfloat16; no more than that.
        different = weight != on_disk[name]
        assert int(different.sum()) <= 1e-4 * weight.numel(), name
        torch.testing.assert_close(weight, on_disk[name], rtol=2.0**-7, atol=0)


def test_a_right_fold_is_as_near_as_its_dtype_allows(
    sandbox: Any, folded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, twin, parts, _ = sandbox
    done: list[int] = []
    report = verify_logits(folded, twin, parts, PROMPTS, advance=done.append)
    assert report.noise is not None
    assert report.faithful
    assert not report.equals_base
    assert not report.warnings
    assert 0 < report.folded.median_kl < report.folded.kl < report.folded.max_kl
    assert report.noise.kl < 0.01
    assert report.base.median_kl > 50 * report.folded.median_kl
    assert report.base.top1 < report.folded.top1
    assert report.base.max_dlogit > report.folded.max_dlogit
    assert (report.num_prompts, sum(done)) == (8, 8 * VERIFY_PASSES)
    assert (report.dtype, report.noise_dtype) == ("bfloat16", "bfloat16")
    again = verify_logits(folded, twin, parts, PROMPTS, noise=False)
    assert (again.folded, again.base) == (report.folded, report.base)  # deterministic
    assert (again.noise, again.faithful) == (None, None)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["faithful"] is True
    print_logits(report)
    out = capsys.readouterr().out
    assert f"{report.folded.kl:.3g}" in out
    assert "noise of bfloat16" in out


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_fold_in_a_finer_dtype_is_nearer(sandbox: Any, folded: Path, tmp_path: Path, dtype: str) -> None:
    _, twin, parts, _ = sandbox
    fold(parts.parts, twin, tmp_path / "out", dtype=dtype)
    report = verify_logits(tmp_path / "out", twin, parts, PROMPTS)
    assert report.noise is not None
    assert report.noise_dtype == "bfloat16"  # the stacked model's own rounding is what is left
    assert report.folded.median_kl == pytest.approx(report.noise.median_kl, rel=0.2)


def test_a_float32_base_is_held_to_float32_and_a_bfloat16_fold_of_it_to_bfloat16(
    tmp_path: Path, tiny_base: Any, make_adapter: Any
) -> None:
    base = tiny_base(dtype="float32")
    parts = check_parts([Part(make_adapter(tmp_path / "a", seed=1)), Part(make_adapter(tmp_path / "b", seed=2), 0.5)])
    reports = {}
    for dtype in ("fp32", "bf16"):
        fold(parts.parts, base, tmp_path / dtype, dtype=dtype)
        reports[dtype] = verify_logits(tmp_path / dtype, base, parts, PROMPTS)
    fine, coarse = reports["fp32"], reports["bf16"]
    assert (fine.noise_dtype, coarse.noise_dtype) == ("float32", "bfloat16")
    assert fine.noise is not None
    assert fine.faithful
    assert coarse.faithful
    assert fine.folded.kl < 1e-9 < coarse.folded.kl
    assert fine.noise.max_dlogit < 1e-3
    # A delta a millionth off is below bfloat16's rounding, and far above float32's.
    off = check_parts([Part(part.path, part.weight * (1 + 1e-3)) for part in parts.parts])
    fold(off.parts, base, tmp_path / "off", dtype="fp32")
    assert verify_logits(tmp_path / "off", base, parts, PROMPTS).faithful is False


def test_one_wrong_tensor_shows(sandbox: Any, folded: Path, tmp_path: Path) -> None:
    _, twin, parts, _ = sandbox
    right = verify_logits(folded, twin, parts, PROMPTS)
    for name, factor in (("model.layers.2.mlp.down_proj.weight", -1.0), ("model.layers.0.self_attn.v_proj.weight", 0)):
        report = verify_logits(tampered(folded, tmp_path / name, name, factor), twin, parts, PROMPTS)
        assert report.faithful is False
        assert report.folded.median_kl > 20 * right.folded.median_kl
        assert report.folded.top1 < right.folded.top1
        assert "is not the stacked one" in report.warnings[0]


def test_a_fold_of_the_wrong_adapter_or_weight_shows(sandbox: Any, tmp_path: Path) -> None:
    _, twin, parts, stranger = sandbox
    first, second = parts.parts
    wrong = {
        "stranger": [first, stranger],
        "top only": [second],
        "half": [first, Part(second.path, 0.5)],
        "sign": [first, Part(second.path, -1.0)],
    }
    for name, chosen in wrong.items():
        fold(chosen, twin, tmp_path / name)
        report = verify_logits(tmp_path / name, twin, parts, PROMPTS)
        assert report.faithful is False, name
        assert not report.equals_base, name


def test_a_fold_that_does_nothing_is_told_to_equal_the_base(sandbox: Any, tmp_path: Path) -> None:
    _, twin, parts, _ = sandbox
    report = verify_logits(twin, twin, parts, PROMPTS)
    assert report.base.max_dlogit == 0
    assert report.base.top1 == 1
    assert report.equals_base
    assert report.faithful is False
    assert "computes what the base computes" in report.warnings[0]
    # In another dtype no bit is equal, and it is still the base.
    fold([Part(part.path, 0.0) for part in parts.parts], twin, tmp_path / "out", dtype="fp32")
    report = verify_logits(tmp_path / "out", twin, parts, PROMPTS)
    assert report.base.max_dlogit > 0
    assert report.equals_base
    assert report.faithful is False


def test_what_was_trained_is_nearer_to_a_fold_into_the_weights_it_was_trained_on(
    sandbox: Any, folded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, twin, parts, _ = sandbox
    done: list[int] = []
    report = compare_base_views(twin, base, parts, PROMPTS, advance=done.append)
    assert sum(done) == 8 * COMPARE_PASSES
    assert report.nearer == "trained"
    assert report.trained.median_kl < 2 * report.noise.median_kl
    assert report.original.median_kl > 20 * report.trained.median_kl
    assert report.original.top1 < report.trained.top1
    assert report.without.median_kl > 20 * report.trained.median_kl
    # The checkpoint on disk says the same as the fold in memory.
    assert verify_logits(folded, twin, parts, PROMPTS).folded.median_kl == pytest.approx(
        report.trained.median_kl, rel=0.05
    )
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["nearer"] == "trained"
    print_base_views(report)
    assert "folded into the original base" in capsys.readouterr().out


def test_a_base_that_quantisation_has_not_changed_makes_no_difference(sandbox: Any, tmp_path: Path) -> None:
    _, twin, parts, _ = sandbox
    nothing = [Part(part.path, 0.0) for part in parts.parts]
    fold(nothing, twin, tmp_path / "wide", dtype="fp32")
    for trained in (twin, tmp_path / "wide"):  # the dtype in which a base is stored makes none either
        report = compare_base_views(trained, twin, parts, PROMPTS)
        assert report.original == report.trained


def test_statistics_on_the_nf4_base_are_those_of_its_twin(sandbox: Any) -> None:
    base, twin, parts, _ = sandbox
    quantised = load_nf4(BaseRef(repo="plyfold/sandbox", revision="a" * 40, path=base), Quantisation(), "cpu")
    tokenizer = load_tokenizer(base)
    found = collect_moments(quantised, parts, PROMPTS, tokenizer)
    expected = collect_moments(load_twin(twin, "cpu"), parts, PROMPTS, tokenizer)
    original = collect_moments(load_twin(base, "cpu"), parts, PROMPTS, tokenizer)
    last = "model.layers.3.mlp.down_proj"
    assert _distance(found.of(last), expected.of(last)) < 0.01
    assert _distance(original.of(last), expected.of(last)) > 0.05
    with pytest.raises(IncompatibleError, match="quantised weights"):
        fold_in_place(quantised, parts)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_tied_head_with_an_adapter_leaves_the_embeddings_alone(
    tmp_path: Path, tiny_base: Any, make_adapter: Any
) -> None:
    base = tiny_base(dtype="float32")
    vocab_size = json.loads((base / "config.json").read_text())["vocab_size"]
    parts = check_parts([Part(make_adapter(tmp_path / "a", modules={"lm_head": (vocab_size, 64)}))])
    fold(parts.parts, base, tmp_path / "out")
    assert verify_logits(tmp_path / "out", base, parts, PROMPTS).faithful
    report = compare_base_views(base, base, parts, PROMPTS)
    assert report.trained.kl < 1e-9 < report.without.kl


def test_what_cannot_be_compared_is_refused(sandbox: Any, folded: Path, tmp_path: Path) -> None:
    _, twin, parts, _ = sandbox
    with pytest.raises(NotFoundError):
        verify_logits(tmp_path / "none", twin, parts, PROMPTS)
    broken = tampered(folded, tmp_path / "nan", "model.norm.weight", math.nan)
    with pytest.raises(FailedError, match="not finite") as caught:
        verify_logits(broken, twin, parts, PROMPTS)
    assert caught.value.where == "folded"
    with pytest.raises(ShapeMismatchError, match="vocabularies"):
        Meter("folded").add(torch.zeros(2, 5), torch.zeros(2, 6))


def test_the_meter_measures_what_it_says() -> None:
    p_NV = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    q_NV = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]])
    meter = Meter("q")
    meter.add(p_NV.log() + 3, q_NV.log())  # a constant on all logits is no difference of distributions
    found = meter.result()
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert found.kl == pytest.approx(expected / 2, rel=1e-6)
    assert found.max_kl == pytest.approx(expected, rel=1e-6)
    assert found.median_kl == pytest.approx(0, abs=1e-12)
    assert found.top1 == 0.5
    assert found.max_dlogit == pytest.approx(3 + math.log(2), rel=1e-6)


def test_a_tie_of_the_reference_counts_for_each_token_that_shares_it() -> None:
    p_NV = torch.tensor([[2.0, 2.0, 1.0]]).repeat(3, 1)
    meter = Meter("q")
    meter.add(p_NV, torch.eye(3))
    assert meter.result().top1 == pytest.approx(2 / 3)


def test_logits_are_kept_bit_for_bit_and_leave_no_file(tmp_path: Path) -> None:
    batches = [torch.randn(3, 5).bfloat16(), torch.randn(1, 5).bfloat16()]
    with LogitFile(4, tmp_path) as file:
        for batch in batches:
            file.put(batch)
        assert all(torch.equal(file.get(index), batches[index]) for index in (1, 0))
        assert not list(tmp_path.iterdir())  # no name even while it is in use: nothing is left after a kill


def test_batches_are_padded_on_the_right_and_bounded(sandbox: Any) -> None:
    model, tokenizer = load_twin(sandbox[1], "cpu"), load_tokenizer(sandbox[1])
    prompts = Prompts(tuple("apples " * n for n in (1, 3, 90, 2, 200, 90, 90, 7)))
    batches = batched(prompts, tokenizer, model)
    assert sum(len(batch.ids) for batch in batches) == 8
    assert all(batch.ids.numel() <= BATCH_TOKENS or len(batch.ids) == 1 for batch in batches)
    for batch in batches:
        lengths = batch.mask.sum(1)
        assert torch.equal(batch.mask, torch.arange(batch.mask.shape[1]) < lengths[:, None])
    rows = {tuple(ids[mask].tolist()) for batch in batches for ids, mask in zip(batch.ids, batch.mask, strict=True)}
    assert rows == {tuple(tokenizer(text)["input_ids"]) for text in prompts.texts}
