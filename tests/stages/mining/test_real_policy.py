"""Mining with a real policy: NF4, PEFT and `generate`, killed and resumed, and what the command shows of it.

A random base solves nothing, so its samples are judged by a stand-in where outcomes have to differ.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.adapters.base.load import load_nf4, load_tokenizer
from plyfold.adapters.base.resolve import Quantisation, resolve_base
from plyfold.adapters.stack import attach
from plyfold.adapters.tensors import read_adapter
from plyfold.cli.main import run as run_command
from plyfold.core.config import BaseConfig, CurriculumConfig, load_config
from plyfold.core.errors import FailedError, IncompatibleError
from plyfold.registry.store import Store
from plyfold.sandbox.problems import make_problems
from plyfold.stages.curriculum import train
from plyfold.stages.mining import sample_log
from plyfold.stages.mining.mining import judge
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.rollouts import samplers
from plyfold.stages.rollouts.engine import Completion, Request, Sampling
from plyfold.stages.rollouts.sampling import Sample, hf_sampler

from ...support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

STAGES = """
  remedy:
    number: 1
    task: rewrite
    unaided_share: 0.5
    mining: {samples: 2, confirm: 4, max_new_tokens: 8, wrong_share: 0, minimum: 4, unaided_samples: 2,
             unaided_problems: 8}
    trainer:
      per_device_train_batch_size: 4
      num_generations: 4
      max_completion_length: 8
      learning_rate: 1.0e-2
      max_steps: 2
      save_steps: 1
"""


class _Killed(BaseException):
    pass


@pytest.fixture
def config(tmp_path: Path, tiny_base: Any) -> CurriculumConfig:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(tiny_base(), STAGES, rows=100))
    return load_config(path)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts with a vowel counts as right: a random base's samples are then right now and then."""

    def vowel(sample: Sample, gold: str) -> str:
        return "right" if sample.text.strip()[:1].lower() in set("aeiou") else judge(sample, gold)

    monkeypatch.setattr(sample_log, "judge", vowel)


def _policy(tiny_base: Any) -> tuple[Any, Any]:
    base = resolve_base(BaseConfig(repo="acme/tiny-qwen2", revision="auto", path=str(tiny_base())))
    quantisation = Quantisation(compute_dtype="float32")
    config = load_config("sandbox").adapter
    return attach(load_nf4(base, quantisation), config, None, seed=0), load_tokenizer(base.path)


def test_samples_follow_their_seed_and_leave_no_trace(tiny_base: Any) -> None:
    model, tokenizer = _policy(tiny_base)
    model.train()
    state = torch.random.get_rng_state()
    prompts = ["Question: 1 + 1?\nSolution:\n"] * 6 + ["Question: what is half of it?\nSolution:\n"]
    sample = hf_sampler(model, tokenizer, temperature=1.0, max_new_tokens=12)
    first = sample(prompts, 7)
    assert sample(prompts, 7) == first
    assert sample(prompts, 8) != first
    assert len({drawn.text for drawn in first[:6]}) > 1  # equal prompts are sampled anew
    assert not any(drawn.complete for drawn in first if len(tokenizer(drawn.text)["input_ids"]) >= 12)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    # a stop string ends a completion wherever it stands, and is cut from it
    letter = max("etaoinsrhld", key=lambda char: sum(char in drawn.text for drawn in first))
    stopped = hf_sampler(model, tokenizer, temperature=1.0, max_new_tokens=12, stop=(letter,))(prompts, 7)
    assert any(letter in drawn.text for drawn in first)
    for drawn, free in zip(stopped, first, strict=True):
        assert drawn.text == free.text.partition(letter)[0]
        assert drawn.complete == (free.complete or letter in free.text)
    # the context ends a completion as well
    long = "Question: " + "many words " * 300
    width = len(tokenizer(long)["input_ids"])
    model.config.max_position_embeddings = width + 3
    (short,) = hf_sampler(model, tokenizer, temperature=1.0, max_new_tokens=12)([long], 0)
    assert len(tokenizer(short.text)["input_ids"]) <= 3


def _tensors(folder: Path) -> dict[str, Any]:
    factors = read_adapter(folder).factors
    return {f"{name}.{half}": getattr(value, half) for name, value in factors.items() for half in ("A_RI", "B_OR")}


def test_a_stage_killed_while_it_mines_or_measures_ends_as_if_it_had_not_been(
    config: CurriculumConfig, tmp_path: Path, lenient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_at(call: int) -> Callable[..., Any]:
        make, calls = samplers.policy_sampler, 0

        @contextmanager
        def counting(*arguments: Any) -> Iterator[Any]:
            def sample(*drawn: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == call:
                    raise _Killed
                return sampler(*drawn)

            with make(*arguments) as sampler:
                yield sample

        return counting

    whole = train(config, Store(tmp_path / "whole"), runs_dir=tmp_path / "whole-runs").stages[0]
    mined = whole.details["mined"]
    assert 4 <= mined["failures"] < mined["tried"] == 100
    assert mined["samples"] < 400  # right ones ended their problems
    assert mined["unaided"]["trained"]["problems"] == 8
    lines = (whole.run_dir / "mined.draws.jsonl").read_text().splitlines()
    assert len(lines) >= 6
    for call in (2, len(lines) - 2, len(lines)):  # in the first round, in the confirmation or before, after training
        with monkeypatch.context() as patch:
            patch.setattr(samplers, "policy_sampler", killed_at(call))
            with pytest.raises(_Killed):
                train(config, Store(tmp_path / f"killed{call}"), runs_dir=tmp_path / f"runs{call}")
        resumed = train(config, Store(tmp_path / f"killed{call}"), runs_dir=tmp_path / f"runs{call}").stages[0]
        assert resumed.details["mined"] == mined
        for name in ("mined.json", "mined.draws.jsonl"):
            assert (resumed.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()
        left, right = (_tensors(stage.run_dir / "adapter") for stage in (whole, resumed))
        assert all(left[key].equal(right[key]) for key in left)


def test_the_command_shows_what_was_mined(
    config: CurriculumConfig, tmp_path: Path, lenient: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["stages.remedy.mining.held_out_share=0.3", "stages.remedy.trainer.max_steps=1"]
    overrides += ["stages.remedy.mining.rehearsal_share=0.2"]
    assert run_command(["train", "-c", "tiny.yaml", "--registry", "a", "--json", *overrides]) == 0
    told = capsys.readouterr()
    (stage,) = json.loads(told.out)["stages"]
    mined = stage["details"]["mined"]
    assert mined["held_out"] == round(0.3 * (mined["held_out"] + mined["failures"]))
    assert 0 < mined["rehearsed"] <= mined["problems"]["solved"]
    assert stage["details"]["rows"] % (mined["failures"] + mined["rehearsed"]) == 0  # copies of both
    assert set(mined["unaided"]) == {"trained", "held_out"}
    assert "with a chance of 5 % at most (after the first 2: 77.6 %)" in told.err
    assert "fresh samples" in told.err
    on_record = Store(tmp_path / "a").stage("tiny", 1).record.recipe.details["mined"]
    assert on_record == mined
    assert run_command(["train", "-c", "tiny.yaml", "--registry", "b", "--runs", "runs", *overrides]) == 0
    shown = capsys.readouterr().out
    assert "1 remedy: problems mined" in shown
    assert "solved from the bare prompt" in shown
    assert "pass@2" in shown
    assert f"beside them: {mined['rehearsed']} of the solved" in shown


def test_no_memory_for_mining_says_what_would_need_less(
    config: CurriculumConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any, **__: Any) -> Any:  # a real refusal of torch's CPU allocator
        return lambda *_: torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(samplers, "hf_sampler", too_much)
    with pytest.raises(FailedError, match="out of memory") as caught:
        train(config, Store(tmp_path / "store"), runs_dir=tmp_path / "runs")
    assert caught.value.where == "stage 1 remedy, its mining"
    assert "stages.remedy.mining.max_new_tokens" in caught.value.next_step


class _Engine:
    """Draws anything, and says how likely a model finds it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def load(self, name: str, folder: Path) -> None: ...

    def unload(self, name: str) -> None: ...

    def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {"engine": "http"}

    def sample(self, name: str, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        drawn = []
        for request in requests:
            ids = [random.Random(request.seed + place).randrange(200) for place in range(6)]
            with torch.no_grad():
                logits = self._model(torch.tensor([[*request.prompt_ids, *ids]])).logits[0, -7:-1]
            logps = (logits / sampling.temperature).log_softmax(-1)[range(6), ids]
            drawn.append([Completion(ids, logps.tolist())])
        return drawn


def test_an_engine_that_holds_another_model_is_refused_before_a_sample_is_kept(
    config: CurriculumConfig, tiny_base: Any, tmp_path: Path
) -> None:
    config.stages["remedy"].mining.temperature = 0.7
    plan = plan_curriculum(config, Store(tmp_path / "store"))
    model, tokenizer = _policy(tiny_base)
    prompts = ["Question: 1 + 1?\nSolution:\n"] * 6
    with samplers.policy_sampler(plan, plan.stages[0], model, tokenizer, _Engine(model), tmp_path) as sampler:
        assert len(sampler(prompts, 0)) == 6
    other = load_nf4(resolve_base(BaseConfig(repo="acme/other", revision="auto", path=str(tiny_base(seed=1)))),
                     Quantisation(compute_dtype="float32"))  # fmt: skip
    unfit = samplers.policy_sampler(plan, plan.stages[0], model, tokenizer, _Engine(other), tmp_path)
    with unfit as sampler, pytest.raises(IncompatibleError, match="does not sample from the model that is trained"):
        sampler(prompts, 0)


def test_a_question_that_leaves_no_room_for_a_sample_is_told_and_left_out(
    config: CurriculumConfig, tmp_path: Path, capsys: Any
) -> None:
    rows = make_problems("train", 12)
    rows[3]["question"] = " ".join([rows[3]["question"]] * 20)
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.path={tmp_path / 'long.jsonl'}", "data.rows=[0,12]", "stages.remedy.mining.unaided_samples=0"]
    short = load_config(tmp_path / "tiny.yaml", [*data, "stages.remedy.trainer.max_steps=1"])
    stage = train(short, Store(tmp_path / "short"), runs_dir=tmp_path / "short-runs").stages[0]
    assert stage.details["mined"]["tried"] == 11
    assert "1 of 12 questions leave no room for 8 tokens in a context of 512, not mined" in capsys.readouterr().err
