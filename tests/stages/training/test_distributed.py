"""Several real processes on the CPU (gloo), as `accelerate launch` starts them: one speaks and writes, all train."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.tensors import read_adapter
from plyfold.core.config import load_config
from plyfold.registry.store import Store
from plyfold.stages.curriculum import train
from plyfold.stages.runtime.metrics import read_metrics

from ...support.tiny_curriculum import tiny_config

pytestmark = pytest.mark.slow

# One GPU is not needed for --multi_gpu: it names torch's launcher, and accelerate's --cpu starts a single process.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
          "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
STAGES = """
  structure:
    number: 1
    task: reconstruct
    gate: tokens <= 4
    trainer: {per_device_train_batch_size: 2, learning_rate: 1.0e-3, weight_decay: 0.0}
  brevity:
    number: 2
    task: complete
    masking: {mode: scattered}
    trainer: {per_device_train_batch_size: 4, gradient_accumulation_steps: 2, num_generations: 4,
               max_completion_length: 8, learning_rate: 1.0e-3, save_steps: 2}
  remedy:
    number: 3
    task: rewrite
    mining: {samples: 1, max_new_tokens: 8, wrong_share: 0, unaided_samples: 1, unaided_problems: 4}
    trainer: {per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, learning_rate: 1.0e-3,
               max_steps: 2}
"""
# A random base never answers right, so the reward is replaced by one that varies.
TRAIN = """
import os, pathlib
from plyfold.cli.main import main
from plyfold.stages.training import stage_run as run
from plyfold.stages.rewards.hierarchical import HierarchicalReward

HierarchicalReward.score = lambda self, text, *_: float(len(set(text)))
digest = run._trained_digest

def noted(model):
    with pathlib.Path("trained-" + os.environ["RANK"]).open("a") as file:
        file.write(digest(model) + "\\n")
    return digest(model)

run._trained_digest = noted
main()
"""
SPEAK = """
import sys
from plyfold.core.console import print_error, say, warn
from plyfold.core.errors import ConfigError, PlyfoldError
from plyfold.stages.runtime.distributed import join

processes = join()
assert join() is processes
said = f"{processes.gather(processes.rank)} {processes.on_first(lambda: {'rank': processes.rank})}\\n"
sys.stdout.write(said)  # in one piece: print() writes its parts one by one where Python does not buffer
say("said by all")
warn("warned by all")

def fail():
    raise ConfigError("only the first fails")

try:
    processes.on_first(fail)
except PlyfoldError as error:
    print_error(error)
    sys.exit(error.exit_code)
"""

ABORT = """
import atexit, os, sys
from plyfold.cli.main import main

class Abort:
    def __del__(self, abort=os.abort):
        abort()

sys.abort_with_the_interpreter = Abort()
atexit.register(print, "said at exit")
main(sys.argv[1:])
"""


def _launch(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*LAUNCH, str(script), *arguments]
    return subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_one_process_speaks_and_its_error_ends_all(tmp_path: Path) -> None:
    (tmp_path / "speak.py").write_text(SPEAK)
    done = _launch(tmp_path / "speak.py")
    assert done.stdout.count("[0, 1] {'rank': 0}") == 2
    for told in ("said by all", "warned by all", "error[config]: only the first fails"):
        assert done.stderr.count(told) == 1, done.stderr
    assert re.search(r"Root Cause.*\n.*\n.*\n.*\n +rank +: 0 .*\n +exitcode +: 2 ", done.stderr), done.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["merge", "--stages", "x"], 2)])
def test_one_of_several_ends_without_taking_its_interpreter_down(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    """A native thread that aborts with the interpreter would make a failure of a finished run."""
    (tmp_path / "abort.py").write_text(ABORT)
    ended = {}
    for count in ("1", "2"):
        environment = {**os.environ, "WORLD_SIZE": count}
        command = [sys.executable, str(tmp_path / "abort.py"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert "said at exit" in done.stdout
        ended[count] = done.returncode
    assert ended == {"1": -signal.SIGABRT, "2": code}


def test_two_processes_train_as_one_with_their_batches_together(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        tiny_config(tiny_base(), STAGES, rows=20, scored=4, evaluation="max_new_tokens: 4")
    )
    (tmp_path / "train.py").write_text(TRAIN)
    done = _launch(tmp_path / "train.py", "train", "-c", "tiny.yaml", "--registry", "store", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object: the first process speaks
    assert done.stderr.count("published as") == 3

    trained = [(tmp_path / f"trained-{rank}").read_text().split() for rank in (0, 1)]
    assert trained[0] == trained[1]
    assert len(set(trained[0])) >= 3  # at each checkpoint, and at the end of each stage
    for stage, steps in zip(result["stages"], (5, 5, 2), strict=True):
        assert stage["details"]["processes"] == 2
        lines = read_metrics(tmp_path / stage["run_dir"] / "metrics.jsonl")
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
        checkpoints = list((tmp_path / stage["run_dir"] / "checkpoints").iterdir())
        assert all({"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(path)) for path in checkpoints)
        rewarded = [line for line in lines if "reward" in line]
        assert bool(rewarded) == (stage["number"] > 1)
        assert all(line["reward_std"] > 0 for line in rewarded)
    assert done.stderr.count("mined with 20 samples") == 1
    assert result["stages"][2]["details"]["mined"]["unaided"]["trained"]["problems"] == 4
    assert (tmp_path / result["stages"][1]["run_dir"] / "completions").is_dir()
    assert result["stages"][0]["gate"][0]["n"] == 4

    # The same rows in the same steps, once in two halves and once whole.
    config = load_config(tmp_path / "tiny.yaml", ["stages.structure.trainer.per_device_train_batch_size=4"])
    alone = Store(tmp_path / "alone")
    train(config, alone, [1], tmp_path / "runs-alone")
    together, whole = (
        read_adapter(store.stage("tiny", 1).path).factors for store in (Store(tmp_path / "store"), alone)
    )
    for name, factors in whole.items():
        assert together[name].A_RI.allclose(factors.A_RI, atol=1e-4), name
        assert together[name].B_OR.allclose(factors.B_OR, atol=1e-4), name
        assert factors.B_OR.abs().max() > 1e-3


def test_a_run_of_two_processes_is_not_continued_by_one(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plyfold.core.errors import IncompatibleError
    from plyfold.stages.training.recorder import RunRecorder

    (tmp_path / "tiny.yaml").write_text(
        tiny_config(tiny_base(), STAGES, rows=20, scored=4, evaluation="max_new_tokens: 4")
    )
    config = load_config(tmp_path / "tiny.yaml")

    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_step_end", kill)
        with pytest.raises(Killed):
            train(config, Store(tmp_path / "store"), [1], tmp_path / "runs")
    note = tmp_path / "runs" / "tiny" / "1-structure" / "run.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"processes": 2}))
    with pytest.raises(IncompatibleError, match="another number of processes") as caught:
        train(config, Store(tmp_path / "store"), [1], tmp_path / "runs")
    assert "2 processes" in caught.value.next_step
