from __future__ import annotations

import pytest

from plyfold.core import console
from plyfold.core.console import is_first, print_error, say, warn
from plyfold.core.errors import FailedError


def test_plain_progress_says_the_last_step_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("work", 3) as task:
        for step in range(3):
            task.advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert lines[-1].endswith("loss 2")


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_settings", {"verbosity": -1})
    with console.progress("work", 3) as task:
        task.advance(3)
    assert capsys.readouterr().err == ""


def test_of_several_processes_one_speaks_and_each_can_tell_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (
        ("0", ["said", "warning warned", "error[failed]: lost"]),
        ("1", ["error[failed]: process 1: lost"]),
    ):
        monkeypatch.setenv("RANK", rank)
        say("said")
        warn("warned")
        print_error(FailedError("lost"))
        assert capsys.readouterr().err.splitlines() == told
    monkeypatch.setenv("WORLD_SIZE", "1")  # a rank that some launcher left behind silences nobody
    assert is_first()
