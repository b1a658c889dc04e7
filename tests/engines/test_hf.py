"""The reference engine against a plain greedy loop, on a tiny random Qwen2 with real PEFT adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.adapters.base.load import load_tokenizer, load_twin
from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError
from plyfold.engines.hf import HfEngine
from plyfold.engines.protocol import Generation

pytestmark = pytest.mark.slow

PROMPTS = [
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nSolution:\n",
    "Question: 2 + 2?\nSolution:\n",
    "Question: Ann reads 12 pages a day for 5 days and then 30 more. How many pages is that in all?\nSolution:\n",
    "Question: x\nSolution:\n",
    "Question: A box holds 24 eggs. How many eggs are in 7 boxes of them?\nSolution:\n",
]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def twin(tiny_base: Any) -> Path:
    return Path(tiny_base(dtype="float32"))


@pytest.fixture(scope="module")
def adapters(make_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "base": None,
        "1": make_adapter(folder / "one", seed=1),
        "1+2": make_adapter(folder / "two", seed=2, r=8),
    }


@pytest.fixture(scope="module")
def engine(twin: Path, adapters: dict[str, Path | None]) -> HfEngine:
    return HfEngine(twin, adapters, max_new_tokens=NEW_TOKENS, batch_size=2, device="cpu")


def _greedy(model: Any, twin: Path, prompts: Sequence[str]) -> list[list[int]]:
    """One prompt at a time, the whole sequence recomputed at every step: no cache, no padding, no generate()."""
    tokenizer = load_tokenizer(twin)
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        with torch.inference_mode():
            for _ in range(NEW_TOKENS):
                ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
                if ids[-1] == tokenizer.eos_token_id:
                    break
        rows.append(ids[start:])
    return rows


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Decoded without a last character that was cut in the middle, as vLLM shows it."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\ufffd")


def test_batched_padded_generation_equals_a_plain_loop(
    engine: HfEngine, twin: Path, adapters: dict[str, Path | None]
) -> None:
    from peft import PeftModel

    tokenizer = load_tokenizer(twin)
    seen = {}
    for variant in ("1", "base", "1+2", "base", "1"):  # switching back must leave nothing behind
        model = load_twin(twin, "cpu")
        path = adapters[variant]
        expected = _greedy(PeftModel.from_pretrained(model, path) if path else model, twin, PROMPTS)
        made = engine.generate(variant, PROMPTS)
        assert [item.text for item in made] == [_text(tokenizer, row) for row in expected]
        assert [item.num_tokens for item in made] == [len(row) for row in expected]
        seen[variant] = [item.text for item in made]
    assert seen["base"] != seen["1"] != seen["1+2"] != seen["base"]


def test_order_and_batch_size_do_not_matter(engine: HfEngine, twin: Path, adapters: dict[str, Path | None]) -> None:
    one_batch = HfEngine(twin, adapters, max_new_tokens=NEW_TOKENS, batch_size=64, device="cpu")
    assert one_batch.generate("1", PROMPTS) == engine.generate("1", PROMPTS)
    assert engine.generate("1", PROMPTS[::-1]) == engine.generate("1", PROMPTS)[::-1]
    both = engine.generate_all(["base", "1"], PROMPTS)
    assert both == {"base": engine.generate("base", PROMPTS), "1": engine.generate("1", PROMPTS)}


def test_cut_answers_say_length(engine: HfEngine) -> None:
    made = engine.generate("base", PROMPTS)
    assert {item.finish_reason for item in made if item.num_tokens < NEW_TOKENS} <= {"stop"}
    assert any(item.finish_reason == "length" and item.num_tokens == NEW_TOKENS for item in made)


def test_end_token_is_counted_and_not_shown(twin: Path, tmp_path: Path) -> None:
    """Every token the base would say becomes an end token in turn."""
    import json
    import shutil

    tokenizer = load_tokenizer(twin)
    said = _greedy(load_twin(twin, "cpu"), twin, PROMPTS[:1])[0]
    for name in ("generation_config.json", "config.json"):
        shutil.copytree(twin, tmp_path / name, dirs_exist_ok=True)
        value = json.loads((tmp_path / name / name).read_text())
        place = next(index for index, token in enumerate(said) if index >= 2 and token not in said[:index])
        (tmp_path / name / name).write_text(json.dumps({**value, "eos_token_id": [said[place]]}))
        engine = HfEngine(tmp_path / name, {}, max_new_tokens=NEW_TOKENS, batch_size=2, device="cpu")
        made = engine.generate("base", PROMPTS[:2])[0]
        assert made == Generation(text=_text(tokenizer, said[:place]), num_tokens=place + 1, finish_reason="stop")


def test_stop_string_is_cut_and_its_tokens_are_counted(twin: Path) -> None:
    tokenizer = load_tokenizer(twin)
    said = _greedy(load_twin(twin, "cpu"), twin, PROMPTS[:1])[0]
    text = _text(tokenizer, said)
    stop = text[4:7]
    place = text.find(stop)
    tokens = next(n for n in range(1, len(said) + 1) if stop in tokenizer.decode(said[:n], skip_special_tokens=True))
    assert 0 < tokens < NEW_TOKENS
    engine = HfEngine(twin, {}, max_new_tokens=NEW_TOKENS, batch_size=5, stop=[stop, "never said"], device="cpu")
    made = engine.generate("base", PROMPTS)
    assert made[0] == Generation(text=text[:place], num_tokens=tokens, finish_reason="stop")
    plain = HfEngine(twin, {}, max_new_tokens=NEW_TOKENS, batch_size=5, device="cpu").generate("base", PROMPTS)
    for cut, whole in zip(made, plain, strict=True):
        assert cut == whole if stop not in whole.text else cut.text == whole.text[: whole.text.find(stop)]


def test_probe_tells_a_trained_adapter_from_a_fresh_one(
    twin: Path, adapters: dict[str, Path | None], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    fresh = get_peft_model(load_twin(twin, "cpu"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    fresh.save_pretrained(tmp_path / "fresh")
    engine = HfEngine(twin, {**adapters, "fresh": tmp_path / "fresh"}, max_new_tokens=2, batch_size=2, device="cpu")
    base = engine.probe("base", PROMPTS[:3])
    assert engine.probe("fresh", PROMPTS[:3]) == base
    assert engine.probe("1", PROMPTS[:3]) != base
    assert engine.probe("base", PROMPTS[:3]) == base
    assert all(row == tuple(sorted(row, reverse=True)) and row[0] < 0 for row in base)


def test_bfloat16_twin_stays_bfloat16(tiny_base: Any, adapters: dict[str, Path | None]) -> None:
    engine = HfEngine(tiny_base(dtype="bfloat16"), adapters, max_new_tokens=2, batch_size=2, device="cpu")
    assert engine.describe()["dtype"] == "bfloat16"
    assert len(engine.generate("1", PROMPTS)) == len(PROMPTS)


def test_samples_are_drawn_from_the_whole_distribution(twin: Path) -> None:
    tokenizer, draws = load_tokenizer(twin), 2000
    ids_BT = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    with torch.inference_mode():
        expected_V = torch.softmax(load_twin(twin, "cpu")(input_ids=ids_BT).logits[0, -1].float(), -1)
    engine = HfEngine(twin, {}, max_new_tokens=1, batch_size=500, device="cpu", temperature=1.0)
    first: list[int] = []
    read = engine._read
    engine._read = lambda ids, limit: (first.append(ids[0]), read(ids, limit))[1]  # type: ignore[method-assign]
    engine.generate("base", PROMPTS[:1] * draws)
    seen_V = torch.bincount(torch.tensor(first), minlength=expected_V.numel()) / draws
    unlikely_V = expected_V.argsort(descending=True)[50:]  # transformers' own default would keep the 50 likeliest
    expected, bound = float(expected_V[unlikely_V].sum()), 5 * 0.5 / draws**0.5
    assert expected > 2 * bound
    assert abs(float(seen_V[unlikely_V].sum()) - expected) < bound


def test_samples_follow_their_seed_and_leave_the_callers_alone(
    twin: Path, adapters: dict[str, Path | None], engine: HfEngine
) -> None:
    def sampled(temperature: float, seed: int) -> list[Generation]:
        made = HfEngine(twin, adapters, max_new_tokens=NEW_TOKENS, batch_size=2, temperature=temperature, seed=seed)
        assert made.describe()["seed"] == seed
        before = torch.random.get_rng_state()
        generations = made.generate("1", PROMPTS)
        assert torch.equal(torch.random.get_rng_state(), before)
        return generations

    one = sampled(1.0, 7)
    assert one == sampled(1.0, 7)
    assert one != sampled(1.0, 8)
    assert sampled(1e-5, 7) == engine.generate("1", PROMPTS)
    assert "seed" not in engine.describe()


def test_what_cannot_be_scored_is_refused(twin: Path, engine: HfEngine, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not hold"):
        engine.generate("1+2+3", PROMPTS)
    with pytest.raises(ConfigError, match="context"):
        engine.generate("base", ["word " * 600])
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="not a temperature"):
            HfEngine(twin, {}, max_new_tokens=1, batch_size=1, temperature=temperature)
    with pytest.raises(ConfigError, match="at least 1"):
        HfEngine(twin, {}, max_new_tokens=0, batch_size=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0")
    with pytest.raises((IntegrityError, NotFoundError)):
        HfEngine(twin, {"1": tmp_path / "broken"}, max_new_tokens=1, batch_size=1)
