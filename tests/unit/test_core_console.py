from __future__ import annotations

import re

import pytest

from plyfold.core import console
from plyfold.core.console import is_first, print_error, print_table, say, warn
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


COLUMNS = ["stage", *(f"column {index}" for index in range(12)), "digest"]
ROWS = [[f"{row} name", *(f"{row}{index}.{'5' * index}" for index in range(12)), str(row) * 64] for row in (1, 2)]


def test_a_narrow_terminal_gets_several_tables_and_no_cell_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    print_table(COLUMNS, ROWS, title="of [b]", right=COLUMNS[1:-1], caption="a caption of many words " * 6)
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(cell in shown for row in ROWS for cell in row)
    assert shown.count("1 name") > 1  # every part says what its rows are
    assert shown.startswith("of [b]")
    assert not any(line.endswith("capti") for line in lines)


def test_what_is_piped_is_as_wide_as_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 4  # heading, rule and two rows, in one table
    assert all(cell in line for row, line in zip(ROWS, lines[2:], strict=True) for cell in row)
