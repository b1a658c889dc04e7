"""Rollouts without vLLM: what is handed over, what is asked for, and what is refused."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.cli.main import run
from plyfold.core.config import AdapterConfig, RolloutConfig
from plyfold.core.errors import (
    ConfigError,
    FailedError,
    IncompatibleError,
    NotFoundError,
    OfflineError,
)
from plyfold.stages.rollouts import vllm as rollout_vllm
from plyfold.stages.rollouts.engine import (
    Completion,
    Request,
    RolloutMeter,
    Sampling,
    TrlRollouts,
    check_agreement,
)
from plyfold.stages.rollouts.validate import check_ready, check_rollout, check_sampling
from plyfold.stages.runtime.metrics import rollout_totals

SAMPLING = Sampling(temperature=1.0, max_tokens=8, stop_token_ids=(1,))


@pytest.mark.parametrize("modules", ["all", "some"])
def test_what_is_handed_over_is_the_exact_composition_byte_for_byte(
    modules: str, tiny_base: Any, make_adapter: Any, tmp_path: Path
) -> None:
    import torch

    from plyfold.adapters.base.load import load_twin
    from plyfold.adapters.stack import attach, composed, save_default
    from plyfold.adapters.tensors import write_adapter
    from plyfold.merge.compose.write import compose
    from plyfold.merge.inputs import Part
    from plyfold.merge.plan import plan_compose

    from ...conftest import REPO, REVISION, TINY_MODULES

    chosen = {name: shape for name, shape in TINY_MODULES.items() if modules == "all" or "self_attn" in name}
    prior = make_adapter(tmp_path / "prior", r=6, alpha=3, modules=chosen)
    targets = ["q_proj", "down_proj", *(["v_proj"] if modules == "all" else [])]
    model = attach(load_twin(tiny_base(dtype="float32"), "cpu"), AdapterConfig(r=4, alpha=8, targets=targets), prior, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B.default." in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(7))
    save_default(model, tmp_path / "default", REPO, REVISION)
    plan = plan_compose([Part(path=tmp_path / name) for name in ("prior", "default")])
    compose(plan, tmp_path / "expected")
    (tmp_path / "found").mkdir()
    write_adapter(tmp_path / "found", composed(model, torch.float32), base_repo=REPO, base_revision=REVISION)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("expected", "found")]
    assert weights[0] == weights[1]
    config = json.loads((tmp_path / "found" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (10, 10)


class Recorder:
    """An engine that remembers what happened to it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.asked: list[Request] = []

    def load(self, name: str, folder: Path) -> None:
        assert (folder / "adapter_model.safetensors").is_file()
        self.events.append(("load", name))

    def unload(self, name: str) -> None:
        self.events.append(("unload", name))

    def sample(self, name: str, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        self.events.append(("sample", name))
        self.asked = list(requests)
        return [[Completion([request.seed % 7, 1], [-0.5, -0.25])] * request.n for request in requests]

    def describe(self) -> dict[str, Any]:
        return {"engine": "recorder"}

    def close(self) -> None: ...


@pytest.fixture
def trl_trainer(tiny_base: Any) -> Any:
    from plyfold.adapters.base.load import load_twin
    from plyfold.adapters.stack import attach

    model = attach(load_twin(tiny_base(dtype="float32"), "cpu"), AdapterConfig(r=4, alpha=8), None, 0)
    return SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        state=SimpleNamespace(global_step=0),
        args=SimpleNamespace(seed=3),
        base=BaseRef(repo="acme/tiny", revision="0" * 40, path=Path()),
        temperature=1.0,
        max_completion_length=8,
        eos_token_ids=[1],
    )


def test_every_sync_brings_a_new_name_and_lets_the_old_one_go_after_it(trl_trainer: Any, tmp_path: Path) -> None:
    engine, meter, folder = Recorder(), RolloutMeter(), tmp_path / "2-brevity" / "rollout"
    rollouts = TrlRollouts(engine, trl_trainer, folder, meter)
    names = []
    for _ in range(3):
        rollouts.sync_weights()
        names.append(rollouts.name)
        rollouts.generate([[5, 6]], None, 1)
        assert [path.name for path in folder.iterdir()] == [rollouts.name]
    assert len(set(names)) == 3
    first, second, third = names
    assert engine.events == [
        ("load", first), ("sample", first),
        ("load", second), ("unload", first), ("sample", second),
        ("load", third), ("unload", second), ("sample", third),
    ]  # fmt: skip
    assert names[0].startswith("2-brevity-")
    assert TrlRollouts(engine, trl_trainer, folder, meter).name.rpartition("-")[0] != first.rpartition("-")[0]
    assert meter.sync_bytes > 3 * 4 * 4 * 1000  # three float32 adapters of rank 4
    assert meter.sync_s > 0


def test_another_process_tells_the_engine_of_the_adapter_too_and_leaves_its_folder(
    trl_trainer: Any, tmp_path: Path
) -> None:
    engine = Recorder()
    rollouts = TrlRollouts(engine, trl_trainer, tmp_path, RolloutMeter())
    rollouts._processes = SimpleNamespace(is_first=False, on_first=lambda work: None)
    for version in (1, 2):
        folder = tmp_path / f"{rollouts.name[:-1]}{version}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
        rollouts.sync_weights()
    first, second = f"{rollouts.name[:-1]}1", rollouts.name
    assert engine.events == [("load", first), ("load", second), ("unload", first)]
    assert {path.name for path in tmp_path.iterdir()} == {first, second}


def test_an_adapter_goes_over_in_the_dtype_of_the_base(trl_trainer: Any, tiny_base: Any, tmp_path: Path) -> None:
    from plyfold.adapters.base.load import load_nf4
    from plyfold.adapters.header import read_header
    from plyfold.adapters.stack import attach

    base = BaseRef(repo="acme/tiny", revision="0" * 40, path=tiny_base())
    trl_trainer.model = attach(load_nf4(base, Quantisation(), "cpu"), AdapterConfig(r=4, alpha=8), None, 0)
    rollouts = TrlRollouts(Recorder(), trl_trainer, tmp_path, RolloutMeter())
    rollouts.sync_weights()
    header = read_header(tmp_path / rollouts.name / "adapter_model.safetensors")
    assert {entry.dtype for entry in header.tensors.values()} == {"BF16"}


def test_equal_prompts_are_one_request_and_seeds_follow_from_the_step(trl_trainer: Any, tmp_path: Path) -> None:
    engine = Recorder()

    def asked(step: int, draws: int = 1) -> list[Request]:
        rollouts = TrlRollouts(engine, trl_trainer, tmp_path, RolloutMeter())
        trl_trainer.state.global_step = step
        for _ in range(draws):
            _, ids, logprobs, _ = rollouts.generate([[5, 6]] * 3 + [[7]] * 2, None, 3)
            assert len(ids) == 5
            assert logprobs[0] == [[-0.5], [-0.25]]  # one candidate a token, as TRL indexes it
        return engine.asked

    first = asked(0)
    assert [(request.prompt_ids, request.n) for request in first] == [((5, 6), 3), ((7,), 2)]
    assert asked(0) == first  # as a resumed run asks again
    others = [first, asked(1), asked(0, draws=2)]
    trl_trainer.args.seed = 4
    seeds = {request.seed + index for each in [*others, asked(0)] for request in each for index in range(request.n)}
    assert len(seeds) == 4 * 5


def test_totals_are_sums_over_a_run_whatever_the_lines_cover() -> None:
    line = {
        "rollout/seconds": 2.0,
        "rollout/sync_seconds": 1.0,
        "rollout/sync_bytes": 10.0,
        "rollout/wall_seconds": 4.0,
    }
    totals = rollout_totals([{"step": 1, **line}, {"step": 2}, {"step": 3, **line, "rollout/wall_seconds": 8.0}])
    assert totals == {"seconds": 4, "sync_seconds": 2, "sync_bytes": 20, "wall_seconds": 12, "share": 0.5}
    assert rollout_totals([{"loss": 1.0}]) == {}


def test_an_engine_far_from_the_trainer_is_refused() -> None:
    check_agreement(1e-5, "float32", {"engine": "vllm"})
    for difference, dtype in ((0.01, "float32"), (0.08, "bfloat16"), (float("nan"), "float32")):
        with pytest.raises(IncompatibleError, match="does not sample from the model"):
            check_agreement(difference, dtype, {"engine": "vllm"})


def test_values_that_cannot_be_meant_are_refused() -> None:
    for config, found in (
        (RolloutConfig(engine="vlm"), "did you mean vllm"),
        (RolloutConfig(engine="http"), "rollout.url"),
        (RolloutConfig(url="http://x"), "a URL is for"),
        (RolloutConfig(engine="http", url="http://u:secret@x"), "VLLM_API_KEY"),
        (RolloutConfig(gpu_memory=1.5), "gpu_memory"),
        (RolloutConfig(timeout_s=0), "timeout_s"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_rollout(config)
        assert found in str(caught.value)
        assert "secret" not in str(caught.value)


def test_only_the_whole_distribution_is_sampled_elsewhere() -> None:
    from trl import GRPOConfig

    def arguments(**fields: Any) -> Any:
        return GRPOConfig(output_dir="x", use_cpu=True, bf16=False, **fields)

    for fields in ({"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition_penalty": 1.1},
                   {"generation_kwargs": {"stop": "x"}}):  # fmt: skip
        check_sampling(RolloutConfig(), arguments(**fields), "stages.a")
        with pytest.raises(ConfigError):
            check_sampling(RolloutConfig(engine="vllm"), arguments(**fields), "stages.a")
    check_sampling(RolloutConfig(engine="vllm"), arguments(temperature=0.7), "stages.a")


def test_an_engine_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ready(config: RolloutConfig, rank: int = 16) -> Any:
        base = BaseRef(repo="acme/tiny", revision="0" * 40, path=tmp_path)
        return check_ready(config, base, Quantisation(), rank, 8, 1.0)

    assert ready(RolloutConfig()) == {"engine": "hf"}
    with pytest.raises(OfflineError, match="does not answer"):
        ready(RolloutConfig(engine="http", url="http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="not the address"):
        ready(RolloutConfig(engine="http", url="not a url"))
    with pytest.raises(IncompatibleError, match="too wide"):
        ready(RolloutConfig(engine="vllm"), rank=513)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(NotFoundError, match="vLLM is not installed"):
            ready(RolloutConfig(engine="vllm"))
    monkeypatch.setattr("plyfold.stages.rollouts.validate.vllm_version", lambda: "0.32.0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(IncompatibleError, match="one training process"):
        ready(RolloutConfig(engine="vllm"))


def test_a_vllm_that_does_not_start_names_its_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any, **given: Any) -> Any:
        assert given["gpu_memory_utilization"] == 0.3
        raise FailedError("vLLM did not start", found="No available memory for the cache blocks", next_step="-v")

    monkeypatch.setattr(rollout_vllm, "start_llm", fails)
    monkeypatch.setattr(rollout_vllm, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(rollout_vllm, "model_dtype", lambda twin: "bfloat16")
    monkeypatch.setattr(rollout_vllm, "engine_options", lambda *_, **__: SimpleNamespace(cpu=False))
    with pytest.raises(FailedError, match="did not start") as caught:
        rollout_vllm.VllmRollouts(tmp_path, rank=16, max_model_len=99, gpu_memory=0.3, seed=0)
    assert "30% of the GPU's memory beside the trainer (rollout.gpu_memory)" in caught.value.next_step


def test_the_private_names_of_trl_that_rollouts_hang_on() -> None:
    from plyfold.stages.runtime.library_logging import quiet_libraries

    with quiet_libraries():
        from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    for used in (
        "if self.use_vllm:", "self.state.global_step != self._last_loaded_step", "self.vllm_generation.sync_weights()",
        "prompts=prompt_ids", "num_generations=num_generations", "lp[0] for lp in seq",
    ):  # fmt: skip
        assert used in source, used
    scoring = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'self._metrics[mode]["sampling/sampling_logp_difference/mean"]' in scoring
    assert "self.use_vllm and self.vllm_importance_sampling_correction" in scoring
    assert list(inspect.signature(GRPOTrainer.log).parameters) == ["self", "logs", "start_time"]
    beginning = inspect.getsource(GRPOTrainer.__init__)
    for name in ("self.temperature", "self.max_completion_length", "self.eos_token_ids", "self._metrics"):
        assert f"{name} =" in beginning, name


def test_the_command_that_starts_a_server_is_shown_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.chdir(tmp_path)
    arguments = ["rollouts", "-c", "sandbox", "--port", "9000", "--dry-run"]
    assert run([*arguments, "--json", "adapter.r=8"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["overrides"] == "rollout.engine=http rollout.url=http://127.0.0.1:9000"
    assert said["rank"] == 24
    assert said["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    command = said["command"]
    for flag, value in (("--max-lora-rank", "32"), ("--logprobs-mode", "processed_logprobs"), ("--dtype", "float32")):
        assert command[command.index(flag) + 1] == value
    assert said["twin"] in command
    assert not Path(said["twin"]).exists()
    assert run(arguments) == 0
    assert "plyfold train -c sandbox rollout.engine=http" in capsys.readouterr().out
    assert run([*arguments, "stages.brevity.task=reconstruct", "stages.remedy.task=reconstruct"]) == 2
    assert "no stage" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_is_stopped_whole_and_one_that_ends_by_itself_is_an_error() -> None:
    from plyfold.stages.rollouts.vllm_server import run_rollout_server

    with pytest.raises(FailedError, match="ended with code 3"):
        run_rollout_server([sys.executable, "-c", "raise SystemExit(3)"], {})
    inner = "import os, time; print(os.environ['MARK'], os.getpid(), flush=True); time.sleep(60)"
    code = f"import sys; from plyfold.stages.rollouts.vllm_server import run_rollout_server as run\n" \
           f"sys.exit(run([sys.executable, '-c', {inner!r}], {{'MARK': 'up'}}))"  # fmt: skip
    outer = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert outer.stderr is not None
    mark, pid = outer.stderr.readline().split()  # what vLLM prints goes to the terminal, not among results
    outer.send_signal(signal.SIGTERM)
    assert (mark, outer.wait(60)) == ("up", 130)
    assert not Path(f"/proc/{pid}").exists()
