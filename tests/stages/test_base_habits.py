"""What a base says of how it likes to sample is followed by nothing that trains, mines or scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

HABITS = {"do_sample": True, "repetition_penalty": 1.3, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.1,
          "no_repeat_ngram_size": 2, "typical_p": 0.5, "suppress_tokens": [5], "max_new_tokens": 3, "num_beams": 2,
          "begin_suppress_tokens": [6], "bad_words_ids": [[7]], "min_new_tokens": 2}  # fmt: skip


@pytest.fixture
def base(tiny_base: Any, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_base(dtype="float32"), tmp_path / "base"))
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **HABITS}))
    return folder


@pytest.mark.parametrize("quantised", [False, True])
def test_a_loaded_base_keeps_its_special_tokens_alone(base: Path, quantised: bool) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    from plyfold.adapters.base.load import load_nf4, load_twin
    from plyfold.adapters.base.resolve import BaseRef, Quantisation
    from plyfold.stages.rollouts.sampling import end_ids

    ref = BaseRef(repo="acme/tiny", revision="0" * 40, path=base)
    model = load_nf4(ref, Quantisation(compute_dtype="float32"), "cpu") if quantised else load_twin(base, "cpu")
    said = GenerationConfig.from_pretrained(base)
    assert set(model.generation_config.to_diff_dict()) <= {"bos_token_id", "eos_token_id", "pad_token_id",
                                                           "transformers_version"}  # fmt: skip
    assert model.generation_config.eos_token_id == said.eos_token_id
    assert end_ids(model, AutoTokenizer.from_pretrained(base))


def test_mining_samples_as_if_the_base_had_no_habits(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from plyfold.adapters.base.load import load_twin
    from plyfold.stages.rollouts.sampling import hf_sampler

    drawn = []
    for folder in (base, Path(shutil.copytree(base, tmp_path / "plain"))):
        if folder.name == "plain":
            said = json.loads((folder / "generation_config.json").read_text())
            plain = {name: value for name, value in said.items() if name not in HABITS}
            (folder / "generation_config.json").write_text(json.dumps(plain))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        sample = hf_sampler(load_twin(folder, "cpu"), tokenizer, temperature=1.0, max_new_tokens=24, stop=())
        drawn.append(sample(["Question: 1+1?\nSolution:\n", "Question: 2+3?\nSolution:\n"], 7))
    assert drawn[0] == drawn[1]
