"""Factors read, written and digested; PEFT and vLLM as the other readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.adapters.delta import inner, norm
from plyfold.adapters.spec import CONFIG_NAME, WEIGHTS_NAME, read_spec
from plyfold.adapters.tensors import Factors, canonicalise, read_adapter, tensor_digest, write_adapter
from plyfold.core.errors import IncompatibleError, IntegrityError

BASE = {"base_repo": "acme/tiny-qwen2", "base_revision": "f" * 40}
NAMES = [f"model.layers.{i}.self_attn.{p}" for i in range(2) for p in ("q_proj", "o_proj")]


def _factors(*, r: int = 4, scale: float = 1.0, size: int = 64, seed: int = 0) -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(torch.randn(r, size, generator=generator), torch.randn(size, r, generator=generator), scale)
        for name in NAMES
    }


def _same(folder: Path, factors: dict[str, Factors]) -> bool:
    found = read_adapter(folder).factors
    return found.keys() == factors.keys() and all(
        torch.equal(found[name].A_RI, module.A_RI)
        and torch.equal(found[name].B_OR, module.B_OR)
        and found[name].scale == module.scale
        for name, module in factors.items()
    )


# ---- reading, PEFT as oracle ----

FORMS: list[dict[str, Any]] = [
    {"r": 8, "lora_alpha": 16},
    {"r": 6, "lora_alpha": 7},
    {"r": 8, "lora_alpha": 16, "use_rslora": True},
    {"r": 5, "lora_alpha": 3, "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2, "down_proj": 7}},
    {"r": 4, "lora_alpha": 8, "alpha_pattern": {"v_proj": 3, "layers.1.mlp.up_proj": 5}},
    {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 3, "self_attn.*": 2}},
    {"r": 4, "lora_alpha": 8, "rank_pattern": {r"model\.layers\.\d+\.self_attn\.(q|k)_proj": 3}},
    {"r": 4, "lora_alpha": 8, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}},
    {"r": 4, "lora_alpha": 8, "alpha_pattern": {".*self_attn.*": 1, "q_proj": 9, "layers.0.*": 11}},
    {"r": 4, "lora_alpha": 9, "use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"k_proj": 5}},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.0\.mlp\.(up|down)_proj"},
    {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    {"r": 4, "lora_alpha": 8, "target_modules": ["model.layers.0.mlp.up_proj", "k_proj"]},
    {"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_is_read_as_peft_computes_it(tmp_path: Path, tiny_base: Any, form: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    targets = form.get("target_modules", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = AutoModelForCausalLM.from_pretrained(tiny_base())
    live = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(form | {"target_modules": targets})))
    for parameter in live.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    live.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    layers = {name: layer for name, layer in live.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    assert adapter.factors.keys() == layers.keys()
    for name, layer in layers.items():
        factors, module = adapter.factors[name], adapter.spec.modules[name]
        assert module.r == layer.r["default"]
        assert module.scale == factors.scale == layer.scaling["default"]
        assert torch.equal(factors.A_RI, layer.lora_A["default"].weight)
        assert torch.equal(factors.B_OR, layer.lora_B["default"].weight)


ORDERED: dict[str, Any] = {
    "rank_pattern": {"self_attn.*": 2, "q_proj": 3},
    "alpha_pattern": {"mlp.*": 5, "layers.0.*": 11, ".*": 3},
}
"""Patterns that overlap, and mean something else once their keys are sorted."""


@pytest.mark.parametrize("canonical", [False, True])
def test_the_first_of_overlapping_patterns_wins_as_in_peft(
    tmp_path: Path, tiny_base: Any, make_adapter: Any, canonical: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    make_adapter(tmp_path, **ORDERED)
    if canonical:
        canonicalise(tmp_path, **BASE)
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base()), str(tmp_path))
    modules = read_spec(tmp_path).modules
    assert (modules["model.layers.1.self_attn.q_proj"].r, modules["model.layers.0.mlp.up_proj"].scale) == (2, 5 / 4)
    for name, module in modules.items():
        layer = live.get_base_model().get_submodule(name)
        assert (module.r, module.scale) == (layer.r["default"], layer.scaling["default"])


def test_a_rank_that_sorted_patterns_belie_is_refused(tmp_path: Path, make_adapter: Any) -> None:
    # PEFT saves its config with sorted keys, after which its own loader fails on such an adapter too.
    make_adapter(tmp_path, **ORDERED)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config, sort_keys=True))
    with pytest.raises(IntegrityError, match="rank"):
        read_spec(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_files_dtype_is_kept(tmp_path: Path, make_adapter: Any, dtype: str) -> None:
    adapter = read_adapter(make_adapter(tmp_path, dtype=dtype))
    assert adapter.spec.dtype == dtype
    assert {module.A_RI.dtype for module in adapter.factors.values()} == {getattr(torch, dtype)}
    for key, tensor in load_file(tmp_path / WEIGHTS_NAME).items():
        name, _, half = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        assert torch.equal(getattr(adapter.factors[name], {"A": "A_RI", "B": "B_OR"}[half]), tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(
    tmp_path: Path, make_adapter: Any, value: float
) -> None:
    make_adapter(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    victim = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    tensors[victim][3, 1] = value
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    with pytest.raises(IntegrityError, match=r"layers\.1\.mlp\.up_proj\.lora_B"):
        read_adapter(tmp_path)


# ---- writing ----


def test_written_folders_load_in_peft_with_every_number_and_scale(tmp_path: Path, tiny_base: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    factors = _factors(scale=0.75)
    write_adapter(tmp_path, factors, **BASE)
    assert _same(tmp_path, factors)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base()), tmp_path)
    for name, module in factors.items():
        layer = model.get_base_model().get_submodule(name)
        assert torch.equal(layer.lora_A["default"].weight, module.A_RI)
        assert torch.equal(layer.lora_B["default"].weight, module.B_OR)
        assert layer.scaling["default"] == 0.75
    assert not hasattr(model.get_base_model().get_submodule("model.layers.0.self_attn.k_proj"), "lora_A")


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.75])
def test_written_folders_are_legal_for_vllm_with_the_same_rank_and_scale(tmp_path: Path, scale: float) -> None:
    helper_module = pytest.importorskip("vllm.lora.peft_helper", reason="vLLM is not installed")
    write_adapter(tmp_path, _factors(r=8, scale=scale), **BASE)
    helper = helper_module.PEFTHelper.from_local_dir(str(tmp_path), None)
    assert helper._validate_features() == []
    for name, module in read_spec(tmp_path).modules.items():
        assert helper.get_rank_and_scaling(name) == (8, scale) == (module.r, module.scale)


_WRITE = """
import sys, torch
from pathlib import Path
from plyfold.adapters.tensors import Factors, write_adapter
names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(3) for p in "qkvo"]
make = lambda name: Factors(*(torch.full(s, float(len(name))) for s in ((4, 8), (8, 4))), 2.0)
order = sorted(set(names), key=hash)  # another order in every process
write_adapter(Path(sys.argv[1]), {n: make(n) for n in order}, base_repo="a/b", base_revision="0" * 40,
              targets=sorted({n.rpartition(".")[2] for n in names}, key=hash))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run([sys.executable, "-c", _WRITE, folder], check=True, env={"PYTHONHASHSEED": seed})
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0].keys() == {CONFIG_NAME, WEIGHTS_NAME}
    assert written[0] == written[1]


def test_targets_are_suffixes_where_given_and_full_names_otherwise(tmp_path: Path) -> None:
    write_adapter(tmp_path, _factors(), **BASE)
    assert read_spec(tmp_path).config["target_modules"] == sorted(NAMES)
    write_adapter(tmp_path, _factors(), **BASE, targets=["q_proj", "o_proj"])
    assert read_spec(tmp_path).config["target_modules"] == ["o_proj", "q_proj"]
    with pytest.raises(IncompatibleError, match="targets"):
        write_adapter(tmp_path, _factors(), **BASE, targets=["q_proj"])


def test_what_one_rank_and_alpha_cannot_say_is_refused(tmp_path: Path) -> None:
    mixed_rank = _factors() | dict(list(_factors(r=2).items())[:1])
    mixed_scale = _factors() | dict(list(_factors(scale=2.0).items())[:1])
    for factors, alpha in ((mixed_rank, None), (mixed_scale, None), (_factors(scale=2.0), 4.0), ({}, None)):
        with pytest.raises(IncompatibleError):
            write_adapter(tmp_path, factors, **BASE, alpha=alpha)
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource, sys, torch
from pathlib import Path
from plyfold.adapters.tensors import Factors, write_adapter
from plyfold.core.errors import DiskFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_adapter(Path(sys.argv[1]), {"m.q_proj": Factors(torch.ones(8, 4096), torch.ones(4096, 8))}, base_repo="a/b",
                  base_revision="0" * 40)
except DiskFullError as error:
    print(error.what)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_with_nothing_half_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL, tmp_path], capture_output=True, text=True, check=True)
    assert "no space" in done.stdout
    assert list(tmp_path.iterdir()) == []


# ---- digest and canonical form ----


def test_the_tensor_digest_is_of_the_tensors_alone(tmp_path: Path) -> None:
    write_adapter(tmp_path, _factors(), **BASE)
    digest = tensor_digest(tmp_path)
    assert digest.startswith("sha256:")
    assert len(digest) == 71
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    save_file(tensors, tmp_path / WEIGHTS_NAME, metadata={"another": "text"})
    (tmp_path / CONFIG_NAME).unlink()
    assert tensor_digest(tmp_path) == digest
    key = next(iter(tensors))
    changes = {
        "one bit": tensors | {key: tensors[key].view(torch.int32).bitwise_xor(1).view(torch.float32)},
        "a name": {name + "x" if name == key else name: tensor for name, tensor in tensors.items()},
        "a shape": tensors | {key: tensors[key].reshape(2, -1)},
        "a dtype": tensors | {key: tensors[key].view(torch.int32)},
    }
    for what, changed in changes.items():
        save_file(changed, tmp_path / WEIGHTS_NAME)
        assert tensor_digest(tmp_path) != digest, what


def test_canonical_folders_are_the_same_adapter_under_the_bases_own_name(tmp_path: Path, make_adapter: Any) -> None:
    form: dict[str, Any] = {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.*": 5}}
    folders = []
    for number, order in enumerate((1, -1)):
        folder = make_adapter(tmp_path / str(number), repo="/home/someone/base", **form)
        config = json.loads((folder / CONFIG_NAME).read_text())
        config |= {"target_modules": config["target_modules"][::order], "peft_version": f"0.{number}"}
        (folder / CONFIG_NAME).write_text(json.dumps(dict(list(config.items())[::order])))
        (folder / "README.md").write_text("made by a tool")
        folders.append(folder)
    before = read_adapter(folders[0])
    for folder in folders:
        canonicalise(folder, "acme/base", "a" * 40)
    after = read_adapter(folders[0])
    assert after.spec.modules == before.spec.modules
    assert _same(folders[0], before.factors)
    assert (after.spec.base_repo, after.spec.base_revision) == ("acme/base", "a" * 40)
    contents = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert contents[0].keys() == {CONFIG_NAME, WEIGHTS_NAME}
    assert b"/home" not in contents[0][CONFIG_NAME]
    canonicalise(folders[0], "acme/base", "a" * 40)
    assert {file.name: file.read_bytes() for file in folders[0].iterdir()} == contents[0]


# ---- factor-space norms, dense float64 as reference ----


def _dense(factors: Factors) -> torch.Tensor:
    return factors.scale * factors.B_OR.double() @ factors.A_RI.double()


@pytest.mark.parametrize(("r", "size"), [(4, 64), (80, 64), (1, 64)])
def test_norms_and_inner_products_equal_the_dense_ones(r: int, size: int) -> None:
    first = next(iter(_factors(r=r, size=size, scale=-1.5).values()))
    second = next(iter(_factors(r=3, size=size, scale=0.25, seed=1).values()))
    assert norm(first) == pytest.approx(float(_dense(first).norm()), rel=1e-12)
    expected = float((_dense(first) * _dense(second)).sum())
    assert inner(first, second) == pytest.approx(expected, abs=1e-12 * norm(first) * norm(second))
    assert inner(first, first) == pytest.approx(norm(first) ** 2, rel=1e-12)


def test_the_norm_of_a_cancelled_delta_is_zero_to_rounding() -> None:
    one = next(iter(_factors().values()))
    both = Factors(torch.cat([one.A_RI, one.A_RI]), torch.cat([one.B_OR, -one.B_OR], dim=1))
    assert norm(both) <= 64 * torch.finfo(torch.float64).eps * norm(one)


def test_streamed_and_saved_folders_have_the_same_bytes(tmp_path):
    from plyfold.adapters.stream import stream_adapter, stream_order

    factors = {
        f"m.{name}": Factors(torch.randn(4, 6).to(torch.bfloat16), torch.randn(5, 4).to(torch.bfloat16))
        for name in ("q_proj", "q_proj-x", "a.k_proj", "0", "Ü".encode().hex())
    }
    (tmp_path / "saved").mkdir()
    (tmp_path / "streamed").mkdir()
    write_adapter(tmp_path / "saved", factors, **BASE)
    digest = stream_adapter(
        tmp_path / "streamed",
        dict.fromkeys(factors, (5, 6)),
        ((name, factors[name]) for name in stream_order(factors)),
        r=4,
        dtype=torch.bfloat16,
        **BASE,
    )
    assert digest == tensor_digest(tmp_path / "saved")
    for path in sorted((tmp_path / "saved").iterdir()):
        assert path.read_bytes() == (tmp_path / "streamed" / path.name).read_bytes(), path.name
