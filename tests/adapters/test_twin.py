"""The twin is the NF4 base, bit for bit: in its weights, and in its logits in float32 and bfloat16 alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plyfold.adapters.base import twin as twin_module
from plyfold.adapters.base.load import load_nf4, load_tokenizer, load_twin
from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.adapters.base.twin import ensure_twin

pytestmark = pytest.mark.slow

TOKENS_BT = torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(1))
CHOICES = [Quantisation(compute_dtype=d, double_quant=q) for d in ("float32", "bfloat16") for q in (True, False)]


def _ref(path: Path) -> BaseRef:
    return BaseRef(repo="acme/tiny-qwen2", revision="a" * 40, path=path)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("quantisation", CHOICES, ids=lambda q: f"{q.compute_dtype}-{q.double_quant}")
def test_twin_and_nf4_agree_bit_for_bit(tmp_path: Path, tiny_base: Any, quantisation: Quantisation, tie: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ref = _ref(tiny_base(tie=tie))
    quantised = load_nf4(ref, quantisation).eval()
    twin = load_twin(ensure_twin(ref, quantisation, tmp_path))
    plain = load_twin(ref.path)
    with torch.no_grad():
        ours, theirs, original = (model(TOKENS_BT).logits for model in (twin, quantised, plain))
    torch.set_num_threads(threads)
    assert {p.dtype for p in twin.parameters()} == {getattr(torch, quantisation.compute_dtype)}
    assert torch.equal(ours, theirs)
    assert (ours.float() - original.float()).abs().max() > 0.1  # quantisation itself is no small thing


def test_twin_weights_are_the_dequantised_ones_and_all_others_the_bases(tmp_path: Path, tiny_base: Any) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    ref = _ref(tiny_base())
    original = load_file(ref.path / "model.safetensors")
    twin = load_file(ensure_twin(ref, Quantisation(), tmp_path) / "model.safetensors")
    assert twin.keys() == original.keys()
    for name, weight in original.items():
        expected = weight
        if name.endswith("proj.weight"):
            packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
            expected = dequantize_4bit(packed, state)
            assert not torch.equal(expected, weight)
        assert torch.equal(twin[name], expected), name


def test_the_twin_is_a_plain_checkpoint_with_the_bases_own_files(tmp_path: Path, tiny_base: Any) -> None:
    ref = _ref(tiny_base())
    folder = ensure_twin(ref, Quantisation(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (ref.path / name).read_bytes()
    assert {file.name for file in folder.iterdir()} == {file.name for file in ref.path.iterdir()} | {"twin.json"}
    stamp = json.loads((folder / "twin.json").read_text())
    assert (stamp["repo"], stamp["revision"]) == (ref.repo, ref.revision)
    assert str(ref.path) not in json.dumps([stamp, config])
    text = "Question: 3 + 4 = ?\nSolution:\n"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_twin_is_made_once_for_a_base_and_quantisation(tmp_path: Path, tiny_base: Any) -> None:
    ref = _ref(tiny_base())
    folder = ensure_twin(ref, Quantisation(), tmp_path)
    made_ns = (folder / "model.safetensors").stat().st_mtime_ns
    assert ensure_twin(ref, Quantisation(), tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made_ns
    others = {
        ensure_twin(ref, Quantisation(double_quant=False), tmp_path),
        ensure_twin(ref, Quantisation(compute_dtype="float32"), tmp_path),
        ensure_twin(BaseRef(repo=ref.repo, revision="b" * 40, path=ref.path), Quantisation(), tmp_path),
    }
    assert len(others | {folder}) == 4
    assert folder.parent == tmp_path / "twins"


def test_a_damaged_twin_is_made_anew(tmp_path: Path, tiny_base: Any) -> None:
    ref = _ref(tiny_base())
    weights = ensure_twin(ref, Quantisation(), tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    ensure_twin(ref, Quantisation(), tmp_path)
    assert weights.read_bytes() == whole


def test_an_interrupted_twin_leaves_nothing(tmp_path: Path, tiny_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    ref = _ref(tiny_base())
    monkeypatch.setattr(twin_module, "write_json", interrupted)  # the last step of making one
    with pytest.raises(KeyboardInterrupt):
        ensure_twin(ref, Quantisation(), tmp_path)
    assert [file.name for file in (tmp_path / "twins").iterdir() if file.is_dir()] == []
    monkeypatch.undo()
    assert load_twin(ensure_twin(ref, Quantisation(), tmp_path)) is not None


_LOAD = """
import sys
from pathlib import Path
from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.adapters.base.twin import ensure_twin
from plyfold.adapters.base.load import load_nf4, load_twin
from plyfold.adapters.stack import attach
from plyfold.core.config import AdapterConfig
ref = BaseRef(repo="acme/tiny", revision="a" * 40, path=Path(sys.argv[1]))
attach(load_twin(ref.path), AdapterConfig(), None, 0)
attach(load_nf4(ref, Quantisation()), AdapterConfig(), None, 0)
load_twin(ensure_twin(ref, Quantisation(), Path(sys.argv[2])))
"""


def test_loading_quantising_and_attaching_print_nothing(tmp_path: Path, tiny_base: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, tiny_base(), tmp_path], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
