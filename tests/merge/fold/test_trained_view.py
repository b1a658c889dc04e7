"""Folding stages of the registry into the weights they were trained on: the dequantised twin of a real NF4 base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes", reason="needs plyfold[train]")
peft = pytest.importorskip("peft", reason="needs plyfold[train]")

FOLD_ERROR = 3 * 2.0**-24 * 64
"""Relative, on float32 logits: every weight rounds once to float32 (2^-24), sums of 64 terms, three roundings each."""


def test_the_folded_checkpoint_is_the_twin_with_three_active_adapters(
    tmp_path: Path, tiny_base: Any, make_store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from plyfold.adapters.base.load import load_twin

    monkeypatch.chdir(tmp_path)
    base = tiny_base(dtype="float32")
    store = make_store(tmp_path / ".plyfold", base)
    assert run(["merge", "--stages", "1,2,3", "--into", "model", "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["written"]["path"])
    (twin,) = (path for path in (store.cache / "twins").iterdir() if path.is_dir())
    stages = [store.stage("tiny", number).path for number in (1, 2, 3)]
    stacked = peft.PeftModel.from_pretrained(load_twin(twin, "cpu"), stages[0], adapter_name="s1")
    stacked.load_adapter(stages[1], adapter_name="s2")
    stacked.load_adapter(stages[2], adapter_name="s3")
    stacked.base_model.set_adapter(["s1", "s2", "s3"])
    ids = torch.arange(10, 42).reshape(2, 16)
    with torch.no_grad():
        expected = stacked(ids).logits
        folded = load_twin(folder, "cpu")(ids).logits
        plain = load_twin(base, "cpu")(ids).logits
    assert float((folded - expected).norm() / expected.norm()) < FOLD_ERROR
    assert float((plain - expected).norm() / expected.norm()) > 0.01
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
