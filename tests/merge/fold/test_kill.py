"""kill -9 at random moments of a fold: nothing under the final name, and the rerun ends with the same digest."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from plyfold.merge.fold.fold import fold
from plyfold.merge.fold.journal import JOURNAL_FILE
from plyfold.merge.inputs import Part

from ...support.peft_folders import write_adapter_folder, write_base_folder

pytestmark = pytest.mark.slow

SHAPES = {f"model.layers.{layer}.mlp.{name}_proj": (900, 700) for layer in range(16) for name in ("up", "gate")}
KILLS = 4
FOLD = """
import sys, time
from pathlib import Path
from plyfold.merge.fold import write as fold_write
from plyfold.merge.fold.fold import fold
from plyfold.merge.fold.journal import Journal
from plyfold.merge.inputs import Part

# Slowed down, so that a moment drawn by the parent falls anywhere in it however fast the machine is.
record = Journal.record
Journal.record = lambda self, entry: (time.sleep(0.01), record(self, entry))
print("ready", flush=True)
report = fold([Part(Path("a")), Part(Path("b"), 0.5)], Path("base"), Path("out"))
print(report.digest, report.num_resumed, flush=True)
"""


def start(folder):
    process = subprocess.Popen([sys.executable, "-c", FOLD], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def same(one, other):
    return {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }


@pytest.fixture
def work(tmp_path):
    write_base_folder(tmp_path / "base", shapes=SHAPES)
    for seed, name in enumerate("ab"):
        write_adapter_folder(tmp_path / name, seed=seed, shapes=SHAPES, size=0.02)
    return tmp_path


def test_killed_folds_are_continued_until_one_is_whole(work):
    expected = fold([Part(work / "a"), Part(work / "b", 0.5)], work / "base", work / "whole").digest
    draw, caught, kept = random.Random(0), 0, 0
    for _ in range(KILLS):
        process = start(work)
        time.sleep(draw.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (work / "out").exists():  # it came too late
            assert same(work / "out", work / "whole")
            shutil.rmtree(work / "out")
            kept = 0
            continue
        leftovers = list(work.glob(".out.*"))
        assert len(leftovers) <= 1  # the same work finds its folder again
        kept = 0
        if leftovers and (leftovers[0] / JOURNAL_FILE).exists():
            kept = max(0, (leftovers[0] / JOURNAL_FILE).read_text().count("\n") - 1)
            caught += 1
    assert caught >= 2, "no kill fell into the writing"
    last = start(work)
    assert last.wait() == 0
    digest, num_resumed = last.stdout.read().split()
    assert digest == expected
    assert int(num_resumed) >= kept
    assert sorted(path.name for path in work.iterdir()) == ["a", "b", "base", "out", "whole"]
    assert same(work / "out", work / "whole")
