"""Base folders as strangers bring them: two sets of weights, other forms, other dtypes, quantisation asked anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from plyfold.adapters.base.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint
from plyfold.adapters.base.quantised import refuse_quantised_config
from plyfold.adapters.base.resolve import check_weights
from plyfold.cli.main import run
from plyfold.core.errors import IncompatibleError, IntegrityError, NotFoundError

from ..support.peft_folders import write_adapter_folder, write_base_folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base_folder(tmp_path / "base")
    return tmp_path / "base"


def with_shards(base: Path) -> None:
    """Other numbers in two shards, with their index."""
    write_base_folder(base.with_name("shards"), shards=2, seed=7)
    for file in (*base.with_name("shards").glob("model-*"), base.with_name("shards") / INDEX_FILE):
        shutil.copy(file, base)


def with_config(base: Path, **fields: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def named_by_the_config(base: Path) -> None:
    shutil.copy(base / SINGLE_FILE, base / "other.safetensors")
    with_config(base, transformers_weights="other.safetensors")


@pytest.mark.parametrize(
    ("change", "said"), [(with_shards, "two sets of weights"), (named_by_the_config, "weights file of its own")]
)
def test_a_folder_of_two_models_is_refused_by_every_reader(
    base: Path, change: Callable[[Path], None], said: str
) -> None:
    change(base)
    for read in (check_weights, open_checkpoint):
        with pytest.raises(IntegrityError, match=said):
            read(base)


def test_an_index_of_the_one_file_is_no_second_set(base: Path) -> None:
    (base / INDEX_FILE).write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(base / SINGLE_FILE), SINGLE_FILE)})
    )
    assert [file.name for file in check_weights(base)] == list(open_checkpoint(base).shards) == [SINGLE_FILE]


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "tf_model.h5", "weights.safetensors", "model.fp16.safetensors"])
def test_a_folder_without_weights_says_what_it_has_instead(base: Path, name: str) -> None:
    (base / SINGLE_FILE).rename(base / name)
    for read in (check_weights, open_checkpoint):
        with pytest.raises(NotFoundError, match="no weights") as caught:
            read(base)
        assert caught.value.found == name


def test_shards_without_their_index_ask_for_it(base: Path) -> None:
    with_shards(base)
    (base / SINGLE_FILE).unlink()
    (base / INDEX_FILE).unlink()
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(base)
    assert INDEX_FILE in caught.value.next_step


def test_pickles_are_refused_by_every_reader(base: Path) -> None:
    (base / SINGLE_FILE).rename(base / "pytorch_model.bin")
    for read in (check_weights, open_checkpoint):
        with pytest.raises(IntegrityError, match="pickled"):
            read(base)


ASKED: list[dict[str, Any]] = [
    {"quantization_config": {"quant_method": "gptq"}},
    {"compression_config": {"quant_method": "compressed-tensors"}},
    {"text_config": {"quantization_config": {"quant_method": "awq"}}},
]


@pytest.mark.parametrize("fields", ASKED)
def test_quantisation_is_seen_wherever_a_config_asks_for_it(base: Path, fields: dict[str, Any]) -> None:
    with_config(base, **fields)
    with pytest.raises(IncompatibleError, match="quantised already"):
        refuse_quantised_config(base)


@pytest.mark.parametrize("fields", ASKED)
def test_a_fold_of_plain_weights_asks_for_none(base: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    with_config(base, **fields)
    write_adapter_folder(tmp_path / "a", seed=1)
    out = tmp_path / "out"
    assert run(["merge", str(tmp_path / "a"), "--base", str(base), "--into", "model", "-o", str(out)]) == 0
    assert "quant_method" not in (out / "config.json").read_text()


def test_a_base_in_float64_is_refused_before_it_is_folded(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: tensor.double() for name, tensor in load_file(base / SINGLE_FILE).items()}
    save_file(tensors, base / SINGLE_FILE, metadata={"format": "pt"})
    write_adapter_folder(tmp_path / "a", seed=1)
    command = ["merge", str(tmp_path / "a"), "--base", str(base), "--into", "model", "-o", str(tmp_path / "out")]
    assert run(command) == IncompatibleError.exit_code
    assert "F64" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    save_file({name: tensor.float() for name, tensor in tensors.items()}, base / SINGLE_FILE, metadata={"format": "pt"})
    assert run(command) == 0
