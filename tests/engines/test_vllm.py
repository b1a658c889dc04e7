"""The offline vLLM engine on a real model: composed adapters against stacked ones, batches against single requests.

One engine serves the whole module. The reference is transformers + PEFT with three adapters active, in float64.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

from plyfold.core.errors import ConfigError, IncompatibleError, NotFoundError
from plyfold.engines.hf import HfEngine
from plyfold.engines.protocol import Generation
from plyfold.engines.vllm import VllmEngine
from plyfold.variants import materialise, parse_variant, twin_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

VARIANTS = ("base", "1", "1+2", "1+2+3")
MAX_NEW_TOKENS = 12
PROMPTS = [
    "Question: Ann has 3 apples and buys 4 more. How many has she?\nSolution:\n",
    "Question: A box holds 12 pens. How many pens are in 5 boxes?\nSolution:\n",
    "Question: 1+1?\nSolution:\n",
]
Scored = list[tuple[list[int], list[float]]]
"""Per prompt: greedy token ids and the log probability of each."""


class World:
    """A store of three random stages on a random base, its twin and its composed adapters."""

    def __init__(self, store: Any) -> None:
        variants = [parse_variant(name, "tiny") for name in VARIANTS]
        self.store = store
        self.twin = twin_of(store, variants)
        self.adapters = {variant.name: materialise(store, variant).path for variant in variants}
        self.stages = [store.stage("tiny", number).path for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def world(make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(make_store(tmp_path_factory.mktemp("world") / ".plyfold", tiny_base(dtype="float32"), r=8))


@pytest.fixture(scope="module")
def stop(world: World) -> str:
    """A string that stands in the middle of one variant's answer, so that stopping is exercised."""
    engine = HfEngine(world.twin, {"1+2+3": world.adapters["1+2+3"]}, max_new_tokens=MAX_NEW_TOKENS, batch_size=4)
    text = engine.generate("1+2+3", PROMPTS)[0].text
    return text[len(text) // 2 :][:3]


@pytest.fixture(scope="module")
def engine(world: World, stop: str) -> Iterator[VllmEngine]:
    before = engine_processes()
    with VllmEngine(world.twin, world.adapters, max_new_tokens=MAX_NEW_TOKENS, stop=(stop,)) as running:
        assert engine_processes() - before
        yield running
    deadline_s = time.monotonic() + 10
    while (left := engine_processes() - before) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert not left


def engine_processes() -> set[Any]:
    """vLLM's live processes below this one; multiprocessing's own resource tracker stays and is none of them."""
    import psutil

    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child)
    return found


def scored(engine: VllmEngine, variants: tuple[str, ...], prompts: list[str]) -> dict[str, Scored]:
    """Greedy tokens with their log probabilities, without stop strings."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS, ignore_eos=True, logprobs=0)
    outputs = engine._run(variants, prompts, [sampling] * len(prompts), "scoring")
    return {
        variant: [
            (
                list(row.outputs[0].token_ids),
                [entry[token].logprob for token, entry in zip(row.outputs[0].token_ids, row.outputs[0].logprobs)],  # noqa: B905
            )
            for row in rows
        ]
        for variant, rows in outputs.items()
    }


class Reference:
    """Teacher-forced log probabilities of the twin with any stages active side by side, in one dtype."""

    def __init__(self, world: World, dtype: torch.dtype) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(world.twin)
        model = AutoModelForCausalLM.from_pretrained(world.twin, dtype=dtype)
        self.model = PeftModel.from_pretrained(model, world.stages[0], adapter_name="1", autocast_adapter_dtype=False)
        for name, path in zip("23", world.stages[1:], strict=True):
            self.model.load_adapter(path, adapter_name=name, autocast_adapter_dtype=False)
        self.model = self.model.to(dtype).eval()

    def logprobs_TV(self, variant: str, prompt: str, tokens: list[int]) -> torch.Tensor:
        """Row t: distribution of the t-th new token."""
        prompt_ids = self.tokenizer(prompt)["input_ids"]
        ids_BT = torch.tensor([prompt_ids + tokens])
        with torch.no_grad():
            if variant == "base":
                with self.model.disable_adapter():
                    logits_TV = self.model(input_ids=ids_BT).logits[0]
            else:
                self.model.base_model.set_adapter(variant.split("+"))
                logits_TV = self.model(input_ids=ids_BT).logits[0]
        return logits_TV[len(prompt_ids) - 1 : -1].log_softmax(-1)


@pytest.fixture(scope="module")
def exact(world: World) -> Reference:
    return Reference(world, torch.float64)


@pytest.fixture(scope="module")
def bound(world: World, exact: Reference, mixed: dict[str, Scored]) -> float:
    """How far float32 may be from the float64 reference.

    transformers in float32 is one float32 evaluation of the same sums; vLLM is another with other summation orders
    and with one stacked product for three. Errors of two orders differ by a small factor, so eight times what the
    first one is measured to be leaves room for order, and nothing for a wrong weight.
    """
    single = Reference(world, torch.float32)
    worst = 0.0
    for variant, rows in mixed.items():
        for prompt, (tokens, _) in zip(PROMPTS, rows, strict=True):
            difference = single.logprobs_TV(variant, prompt, tokens) - exact.logprobs_TV(variant, prompt, tokens)
            worst = max(worst, difference.abs().max().item())
    assert 0 < worst < 1e-4
    return 8 * worst


@pytest.fixture(scope="module")
def mixed(engine: VllmEngine) -> dict[str, Scored]:
    """Every variant and every prompt in one batch."""
    return scored(engine, VARIANTS, PROMPTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vllm_equals_the_stack_of_separate_adapters(
    variant: str, mixed: dict[str, Scored], exact: Reference, bound: float
) -> None:
    for prompt, (tokens, logprobs) in zip(PROMPTS, mixed[variant], strict=True):
        reference_TV = exact.logprobs_TV(variant, prompt, tokens)
        chosen = reference_TV[range(len(tokens)), tokens]
        assert (torch.tensor(logprobs, dtype=torch.float64) - chosen).abs().max().item() <= bound
        # Greedy: no other token is likelier by more than rounding can hide.
        assert (reference_TV.max(-1).values - chosen).max().item() <= 2 * bound


def test_every_variant_differs_from_every_other(mixed: dict[str, Scored], bound: float) -> None:
    for index, first in enumerate(VARIANTS):
        for second in VARIANTS[:index]:
            for (_, one), (_, other) in zip(mixed[first], mixed[second], strict=True):
                assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1000 * bound


@pytest.mark.parametrize("variant", VARIANTS)
def test_alone_and_in_a_mixed_batch_are_the_same(
    variant: str, engine: VllmEngine, mixed: dict[str, Scored], bound: float
) -> None:
    for prompt, (tokens, logprobs) in zip(PROMPTS, mixed[variant], strict=True):
        ((alone_tokens, alone_logprobs),) = scored(engine, (variant,), [prompt])[variant]
        assert alone_tokens == tokens
        assert max(abs(a - b) for a, b in zip(alone_logprobs, logprobs, strict=True)) <= 2 * bound


def test_the_two_engines_agree_on_text_tokens_and_reason(engine: VllmEngine, world: World, stop: str) -> None:
    reference = HfEngine(
        world.twin, world.adapters, max_new_tokens=MAX_NEW_TOKENS, batch_size=len(PROMPTS), stop=(stop,)
    )
    expected = reference.generate_all(VARIANTS, PROMPTS)
    found = engine.generate_all(VARIANTS, PROMPTS)
    assert {variant: comparable(rows) for variant, rows in found.items()} == {
        variant: comparable(rows) for variant, rows in expected.items()
    }
    assert {row.finish_reason for rows in expected.values() for row in rows} == {"stop", "length"}
    assert engine.generate("1", PROMPTS) == found["1"]


def comparable(rows: list[Generation]) -> list[tuple[str, int, str]]:
    """Fields of each row; of a character cut in two, vLLM shows nothing and transformers a mark."""
    return [(row.text.rstrip("\N{REPLACEMENT CHARACTER}"), row.num_tokens, row.finish_reason) for row in rows]


def test_probes_agree_and_tell_a_variant_from_the_base(engine: VllmEngine, world: World, bound: float) -> None:
    reference = HfEngine(world.twin, world.adapters, max_new_tokens=1, batch_size=1)
    for variant in VARIANTS:
        for one, other in zip(engine.probe(variant, PROMPTS), reference.probe(variant, PROMPTS), strict=True):
            assert one == pytest.approx(other, abs=2 * bound)
    assert engine.probe("1", PROMPTS) != engine.probe("base", PROMPTS)


def test_what_is_refused_leaves_the_engine_alive(
    engine: VllmEngine, world: World, make_adapter: Any, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="does not hold"):
        engine.generate("2", PROMPTS)
    with pytest.raises(ConfigError, match="longer than"):
        engine.generate("1", ["many words " * 600])
    wide = make_adapter(tmp_path / "wide", r=64)
    with pytest.raises(IncompatibleError, match="does not take"):
        engine._load({**{name: path for name, path in world.adapters.items() if path}, "wide": wide})
    assert len(engine.generate("base", PROMPTS)) == len(PROMPTS)


def test_samples_follow_their_seed_and_differ_from_prompt_to_prompt(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = engine.generate("1", PROMPTS)
    monkeypatch.setattr(engine, "_temperature", 1.0)
    sampled = engine.generate("1", PROMPTS)
    assert sampled == engine.generate("1", PROMPTS) != greedy
    assert len({made.text for made in engine.generate("1", PROMPTS[:1] * 8)}) > 1  # a stream of its own each
    monkeypatch.setattr(engine, "_seed", 1)
    assert engine.generate("1", PROMPTS) != sampled


def test_the_engine_says_what_it_is(engine: VllmEngine) -> None:
    said = engine.describe()
    assert (said["engine"], said["dtype"], said["max_lora_rank"]) == ("vllm", "float32", 32)
    assert said["max_loras"] == 3 + (said["device"] == "cpu")


def test_an_engine_ends_with_a_process_that_was_killed(world: World) -> None:
    import psutil

    if sys.platform != "linux":
        pytest.skip("parent-death signals are Linux's")
    script = f"""
import pathlib, time
from plyfold.engines.vllm import VllmEngine
if __name__ == "__main__":
    engine = VllmEngine(pathlib.Path({str(world.twin)!r}), {{"base": None}}, max_new_tokens=4)
    print("up", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert any(line.strip() == "up" for line in iter(parent.stdout.readline, ""))
        engines = [child for child in psutil.Process(parent.pid).children(recursive=True)
                   if "resource_tracker" not in " ".join(child.cmdline())]  # fmt: skip
        assert engines
        parent.kill()
        _, left = psutil.wait_procs(engines, timeout=10)
        for process in left:
            process.kill()
        assert not left
