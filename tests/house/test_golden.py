"""What must not change while the code around it moves: one compose and one fold bit for bit, recipes, rows, adapters.

The inputs of compose and fold are multiples of 1/8, so that every sum is exact and the bytes are the same on any
machine. Training is not exact: its digests hold on the kind of CPU they were taken on, and are skipped on another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from plyfold.adapters.tensors import tensor_digest
from plyfold.core.config import load_config
from plyfold.core.disk.digest import sha256_file
from plyfold.merge.compose.write import compose
from plyfold.merge.fold.fold import fold
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.rewards.hierarchical import HierarchicalReward

from ..support.peft_folders import BASE_REPO, BASE_REVISION, SHAPES
from ..support.tiny_curriculum import tiny_config

COMPOSED = "sha256:774e6c273f59e6c0478fdededbf7949ab7fab505e07489da65feb0297b75ce98"
COMPOSED_CONFIG = "sha256:9ca95ab2d977cde65f6045bbfbee09f01c1a663bd8b29edf03f9291f4557d684"
FOLDED = "sha256:2a5ccbb5bd73e153b46c85bf6f6e66e379f541f597afdeae66e03764e78108e5"
RECIPES = [
    "sha256:913e7d608dd404696f8bd8e156a30ad421e121b2bf877cabb59b6bf6fa1d8e52",
    "sha256:5bd0f3c151e2bcfcb2040c0894f653c95ec2263cc63075fa659401fbf19968ad",
    "sha256:19b47a5d84fd30f860d24016252269a425339d970521edb016f73874bc55452c",
]
ROWS = "sha256:27dd0b75780e5adf4c8bf38fdc72ca84093a8a08610565bb49da105b2c30dd1d"
TRAINED_ON = ("AVX512", "1e4e3bbfe97868ee3069ce6615b65d5e86972709")
"""The CPU's vector instructions as torch names them, and the revision of the random base that they make."""
ADAPTERS = [
    "sha256:c5bb246910ae84a9f1fb1b4d317ba000e12459bd2d1dd4e725ee83602b07266c",
    "sha256:331f67eed54e6e505ec1e9451c5a87074e2e25b70e196720881ad1913b428b93",
    "sha256:68ac7e1d55efa2ed4ecb773ccfe187568c04b8c5742ca5f227daea14a662a2f2",
]


def _eighths(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float() / 8


def _adapter(path: Path, seed: int, r: int) -> Path:
    tensors = {}
    for place, (name, (num_out, num_in)) in enumerate(SHAPES.items()):
        first = 100 * seed + 2 * place
        tensors[f"base_model.model.{name}.lora_A.weight"] = _eighths((r, num_in), first)
        tensors[f"base_model.model.{name}.lora_B.weight"] = _eighths((num_out, r), first + 1)
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_REPO, "revision": BASE_REVISION,
        "r": r, "lora_alpha": 2 * r, "bias": "none",
        "target_modules": sorted(name.rpartition(".")[2] for name in SHAPES),
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    ranks_weights = [(2, 1.0), (4, 0.5), (2, -2.0)]
    return [Part(_adapter(tmp_path / f"a{n}", n, r), weight) for n, (r, weight) in enumerate(ranks_weights, 1)]


def test_a_composed_adapter_is_the_same_bytes(parts: list[Part], tmp_path: Path) -> None:
    compose(plan_compose(parts), tmp_path / "out")
    assert sha256_file(tmp_path / "out" / "adapter_model.safetensors") == COMPOSED
    assert sha256_file(tmp_path / "out" / "adapter_config.json") == COMPOSED_CONFIG


def test_a_folded_checkpoint_is_the_same_bytes(parts: list[Part], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = {f"{name}.weight": _eighths(shape, 7 + n).bfloat16() for n, (name, shape) in enumerate(SHAPES.items())}
    tensors["model.embed_tokens.weight"] = _eighths((11, 20), 99).bfloat16()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 20, "num_hidden_layers": 1,
        "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    fold(parts, base, tmp_path / "out")
    assert sha256_file(tmp_path / "out" / "model.safetensors") == FOLDED


@pytest.mark.slow
def test_a_curriculum_has_the_same_recipes_rows_and_adapters(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HierarchicalReward, "score", lambda self, text, *_: float(len(set(text))))
    (tmp_path / "tiny.yaml").write_text(tiny_config(tiny_base()))
    config, store = load_config(tmp_path / "tiny.yaml", ()), Store(tmp_path / "store")
    plan = plan_curriculum(config, store)
    machine = (torch.backends.cpu.get_cpu_capability(), plan.base.revision)
    if machine[1] == TRAINED_ON[1]:
        assert [stage.config_digest for stage in plan.stages] == RECIPES
    assert {stage.report.sha256 for stage in plan.stages} == {ROWS}
    if machine != TRAINED_ON:
        pytest.skip(f"training's digests were taken on {TRAINED_ON}, this is {machine}")
    train(config, store, runs_dir=tmp_path / "runs")
    assert [tensor_digest(store.stage("tiny", number).path) for number in (1, 2, 3)] == ADAPTERS
