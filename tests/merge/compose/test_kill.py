"""`plyfold merge A B -o OUT` killed at any moment, or on a disk that is too small: a whole adapter or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plyfold.adapters.spec import read_spec
from plyfold.adapters.tensors import read_adapter, tensor_digest
from plyfold.cli.main import run

from ...support.peft_folders import write_adapter_folder

pytestmark = pytest.mark.slow

NUM_KILLS = 8
LARGE = {f"model.layers.{layer}.mlp.down_proj": (1024, 1024) for layer in range(8)}

# Forked once everything is imported, so that a kill falls into the merge and not into Python's start.
MERGE = """
import os, sys, time
import torch
import plyfold.merge.compose.write
from plyfold.cli.main import run

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(run(["merge", "a", "b", "-o", "out"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_adapter_folder(tmp_path / name, seed=seed, r=16, shapes=LARGE)
    return tmp_path


@pytest.fixture
def merger(here: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MERGE]
    with subprocess.Popen(
        command, cwd=here, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def merge(process: subprocess.Popen[str], *, kill: Callable[[], None] | None = None) -> tuple[int, float]:
    """Exit code and seconds of one merge; killed when `kill` returns."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    start_s = time.monotonic()
    if kill:
        kill()
        with contextlib.suppress(ProcessLookupError):  # it was done sooner
            os.kill(child, signal.SIGKILL)
    return int(process.stdout.readline()), time.monotonic() - start_s


def staged(folder: Path) -> bool:
    return any(name.startswith(".out.tmp-") for name in os.listdir(folder))


def test_a_kill_leaves_a_whole_adapter_or_nothing_and_the_next_run_finishes_the_same(
    here: Path, merger: subprocess.Popen[str]
) -> None:
    code, whole_s = merge(merger)
    assert code == 0

    def while_writing() -> None:
        patience_s = time.monotonic() + 10 * whole_s + 1
        while not staged(here) and time.monotonic() < patience_s:
            time.sleep(0.0002)
        time.sleep(chance.uniform(0, 0.004))

    def at_any_moment() -> None:
        time.sleep(chance.uniform(0, whole_s))

    expected = tensor_digest(here / "out")
    files = {path.name: path.read_bytes() for path in (here / "out").iterdir()}
    chance = random.Random(0)
    outcomes = []
    for turn in range(NUM_KILLS):
        discard(here / "out")
        code, _ = merge(merger, kill=at_any_moment if turn % 2 else while_writing)
        outcomes.append((code, staged(here)))
        if (here / "out").exists():
            assert {path.name: path.read_bytes() for path in (here / "out").iterdir()} == files
            read_adapter(here / "out")
            json.loads((here / "out" / "composition.json").read_text())
        else:
            assert code == -signal.SIGKILL
        discard(here / "out")
        assert merge(merger)[0] == 0
        assert sorted(os.listdir(here)) == ["a", "b", "out"]
        assert tensor_digest(here / "out") == expected
    assert any(half_written for _, half_written in outcomes), (
        f"no kill fell into the writing, nothing was shown: {outcomes}"
    )


def discard(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("seen_early", [True, False], ids=["before the first byte", "while writing"])
def test_a_full_disk_is_one_error_with_the_space_needed_and_nothing_is_left(
    here: Path,
    small_disk: Path,
    seen_early: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not seen_early:
        monkeypatch.setattr("plyfold.core.disk.files.require_space", lambda *given: None)
        monkeypatch.setattr("plyfold.merge.compose.write.require_space", lambda *given: None)
    assert run(["merge", "a", "b", "-o", str(small_disk / "out")]) == 1
    shown = capsys.readouterr().err
    assert "no space left" in shown
    tensor_bytes = 4 * 32 * sum(map(sum, LARGE.values()))
    needed = int(shown.partition("expected")[2].split()[0].replace(",", ""))
    assert tensor_bytes <= needed < tensor_bytes + (2 << 20)
    assert list(small_disk.iterdir()) == []
    assert read_spec(here / "a")
