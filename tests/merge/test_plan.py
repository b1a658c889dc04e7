"""What a merge refuses, by name, before a tensor is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.core.errors import (
    BaseMismatchError,
    ConfigError,
    IncompatibleError,
    IntegrityError,
    NotFoundError,
    ShapeMismatchError,
    UnsupportedAdapterError,
)
from plyfold.merge.compose.prepare import prepare
from plyfold.merge.fold.fold import plan_fold
from plyfold.merge.inputs import Part, parse_base
from plyfold.merge.plan import plan_compose, vllm_bucket

from ..support.peft_folders import SHAPES, write_adapter_folder, write_base_folder

Q = next(iter(SHAPES))


@pytest.fixture
def one(tmp_path):
    return write_adapter_folder(tmp_path / "one", seed=1).path


@pytest.fixture
def two(tmp_path):
    return write_adapter_folder(tmp_path / "two", seed=2).path


def test_vllm_takes_the_next_rank_it_knows():
    assert [vllm_bucket(rank) for rank in (1, 2, 8, 9, 48, 257, 512, 513)] == [1, 8, 8, 16, 64, 320, 512, None]


def test_a_plan_says_what_it_would_make(one, two):
    plan = plan_compose([Part(one), Part(two, 0.5, "second")])
    assert plan.rank == plan.exact_rank == 8
    assert plan.bucket == 8
    assert plan.modules[Q] == (24, 20, 8)
    assert plan.bytes_out == 4 * 8 * sum(O + I for O, I in SHAPES.values())  # noqa: E741
    assert plan.warnings == ()
    assert [part.name for part in plan.parts] == ["one", "second"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "tie"}, "no such merge method"),
        ({"method": "svd"}, "needs the rank"),
        ({"method": "exact", "rank": 4}, "exact keeps every rank"),
        ({"method": "svd", "rank": 0}, "not a rank"),
        ({"dtype": "int8"}, "no such dtype"),
    ],
)
def test_options_that_cannot_be_meant(one, options, match):
    with pytest.raises(ConfigError, match=match):
        plan_compose([Part(one)], **options)


def test_nothing_to_merge():
    with pytest.raises(ConfigError, match="nothing to merge"):
        plan_compose([])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(one, weight):
    with pytest.raises(ConfigError, match="not finite"):
        plan_compose([Part(one, weight)])


def test_the_same_folder_twice(one, tmp_path):
    with pytest.raises(IncompatibleError, match="given twice"):
        plan_compose([Part(one), Part(tmp_path / "x" / ".." / "one")])


def test_the_same_record_twice(one, two):
    with pytest.raises(IncompatibleError, match="given twice"):
        plan_compose([Part(one, digest="sha256:1"), Part(two, digest="sha256:1")])


def test_the_same_tensors_under_another_path(one, tmp_path):
    shutil.copytree(one, tmp_path / "copy")
    plan = plan_compose([Part(one), Part(tmp_path / "copy")])
    with pytest.raises(IncompatibleError, match="given twice"):
        prepare(plan)


def test_another_base(one, tmp_path):
    other = write_adapter_folder(tmp_path / "other", seed=2, base_model_name_or_path="acme/other").path
    with pytest.raises(BaseMismatchError, match="different bases") as caught:
        plan_compose([Part(one), Part(other)])
    assert "acme/tiny" in caught.value.expected
    assert "acme/other" in caught.value.found
    assert "--base acme/tiny" in caught.value.next_step


def test_another_revision_of_the_base(one, tmp_path):
    other = write_adapter_folder(tmp_path / "other", seed=2, revision="1" * 40).path
    with pytest.raises(BaseMismatchError, match="revisions"):
        plan_compose([Part(one), Part(other)])


def test_a_base_that_is_not_said_is_a_warning(one, tmp_path):
    silent = write_adapter_folder(tmp_path / "silent", seed=2, base_model_name_or_path=None, revision=None).path
    plan = plan_compose([Part(one), Part(silent)])
    assert plan.base_repo == "acme/tiny"
    assert len([warning for warning in plan.warnings if "silent" in warning]) == 2


def test_a_local_base_can_be_named(one, tmp_path):
    local = write_adapter_folder(tmp_path / "local", seed=2, base_model_name_or_path="/data/models/tiny").path
    with pytest.raises(BaseMismatchError):
        plan_compose([Part(one), Part(local)])
    assert plan_compose([Part(one), Part(local)], base=parse_base("acme/tiny")).base_repo == "acme/tiny"
    assert any("local folder" in warning for warning in plan_compose([Part(local)]).warnings)


def test_a_module_of_another_size(one, tmp_path):
    other = write_adapter_folder(tmp_path / "other", seed=2, shapes={Q: (24, 21)}).path
    with pytest.raises(ShapeMismatchError, match="different sizes") as caught:
        plan_compose([Part(one), Part(other)])
    assert Q in caught.value.where


def test_differing_targets_are_a_warning(one, tmp_path):
    narrow = write_adapter_folder(tmp_path / "narrow", seed=2, shapes={Q: SHAPES[Q]}).path
    (warning,) = plan_compose([Part(one), Part(narrow)]).warnings
    assert "narrow (1 of 3 modules)" in warning


def test_a_rank_beyond_vllm_is_a_warning(tmp_path):
    wide = write_adapter_folder(tmp_path / "wide", seed=2, r=513).path
    plan = plan_compose([Part(wide)])
    assert plan.bucket is None
    assert any("512" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}],
    ids=lambda config: next(iter(config)),
)
def test_features_without_an_additive_meaning(tmp_path, config):
    odd = write_adapter_folder(tmp_path / "odd", seed=2, **config).path
    with pytest.raises(UnsupportedAdapterError):
        plan_compose([Part(odd)])


def test_a_truncated_file(one):
    weights = one / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match="truncated"):
        plan_compose([Part(one)])


def test_a_pickle(one):
    (one / "adapter_model.safetensors").rename(one / "adapter_model.bin")
    with pytest.raises(IntegrityError, match="pickle"):
        plan_compose([Part(one)])


def test_no_such_folder(tmp_path):
    with pytest.raises(NotFoundError):
        plan_compose([Part(tmp_path / "nowhere")])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite(one, value):
    tensors = load_file(one / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name][0, 0] = value
    save_file(tensors, one / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="NaN or infinity") as caught:
        prepare(plan_compose([Part(one)]))
    assert name in caught.value.where


class TestFold:
    def test_a_quantised_base(self, one, tmp_path):
        write_base_folder(tmp_path / "base", quantization_config={"quant_method": "bitsandbytes"})
        tensors = load_file(tmp_path / "base" / "model.safetensors")
        tensors[f"{Q}.weight"] = torch.zeros(240, 1, dtype=torch.uint8)
        save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(IncompatibleError, match="quantised") as caught:
            plan_fold(plan_compose([Part(one)]), tmp_path / "base")
        assert "bitsandbytes" in caught.value.found

    def test_a_module_the_base_lacks(self, tmp_path):
        write_base_folder(tmp_path / "base")
        extra = write_adapter_folder(tmp_path / "a", seed=1, shapes={"model.layers.7.mlp.up_proj": (4, 4)}).path
        with pytest.raises(IncompatibleError, match="does not have"):
            plan_fold(plan_compose([Part(extra)]), tmp_path / "base")

    def test_a_module_of_another_size(self, one, tmp_path):
        write_base_folder(tmp_path / "base", shapes={**SHAPES, Q: (24, 22)})
        with pytest.raises(ShapeMismatchError, match="another size"):
            plan_fold(plan_compose([Part(one)]), tmp_path / "base")

    def test_a_twin_of_another_base(self, one, tmp_path):
        write_base_folder(tmp_path / "base")
        (tmp_path / "base" / "twin.json").write_text(json.dumps({"repo": "acme/other", "revision": "0" * 40}))
        with pytest.raises(BaseMismatchError, match="not the base"):
            plan_fold(plan_compose([Part(one)]), tmp_path / "base")

    def test_a_snapshot_of_another_revision(self, one, tmp_path):
        snapshots = tmp_path / "models--acme--tiny" / "snapshots"
        write_base_folder(snapshots / ("0" * 40))
        write_base_folder(snapshots / ("1" * 40))
        plan = plan_compose([Part(one)])
        plan_fold(plan, snapshots / ("0" * 40))
        with pytest.raises(BaseMismatchError, match="not the base"):
            plan_fold(plan, snapshots / ("1" * 40))

    def test_an_index_that_does_not_fit(self, one, tmp_path):
        write_base_folder(tmp_path / "base", shards=2)
        index = tmp_path / "base" / "model.safetensors.index.json"
        value = json.loads(index.read_text())
        value["weight_map"]["ghost.weight"] = next(iter(value["weight_map"].values()))
        index.write_text(json.dumps(value))
        with pytest.raises(IntegrityError, match="not in the file"):
            plan_fold(plan_compose([Part(one)]), tmp_path / "base")
        value["weight_map"] = {"x": "../secret.safetensors"}
        index.write_text(json.dumps(value))
        with pytest.raises(IntegrityError, match="outside"):
            plan_fold(plan_compose([Part(one)]), tmp_path / "base")

    def test_a_pickled_base(self, one, tmp_path):
        write_base_folder(tmp_path / "base")
        (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
        with pytest.raises(IntegrityError, match="pickle"):
            plan_fold(plan_compose([Part(one)]), tmp_path / "base")


def test_names_that_are_not_the_base_s_are_told(tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_base_folder(base)
    shapes = {name.removeprefix("model."): shape for name, shape in SHAPES.items()}
    part = Part(write_adapter_folder(tmp_path / "bare", seed=1, shapes=shapes).path)
    plan = plan_compose([part], find_base=lambda repo, revision: base)
    assert set(plan.modules) == set(SHAPES)
    assert any("layers.0" in warning and "is read as model.layers.0" in warning for warning in plan.warnings)
    whole = Part(write_adapter_folder(tmp_path / "whole", seed=1).path)
    assert not plan_compose([whole], find_base=lambda repo, revision: base).warnings


def test_a_config_without_targets_is_told(tmp_path: Path) -> None:
    part = Part(write_adapter_folder(tmp_path / "a", seed=1, target_modules=None).path)
    assert any("names no target_modules" in warning for warning in plan_compose([part]).warnings)
