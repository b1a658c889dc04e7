from __future__ import annotations

import json
import re

import pytest

from plyfold.core import console
from plyfold.core.console import emit_json, is_first, print_error, print_table, printable, say, warn
from plyfold.core.errors import FailedError, IntegrityError


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


HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07 \x9b31m \x7f \x00 \r\t \x85 \u202eevil\u202c \u2066x\u2069 \u200b\u200f \u061c \u2028 "
    "\ud800 \U000e0041 [red]x[/] [link=https://evil.example]y[/link] :warning: \\[bold] [/"
)
"""What recolours, moves, hides, turns, or is taken for markup."""
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0041]")


def test_nothing_that_is_printed_steers_the_screen_hides_or_is_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.text import Text
    from rich.tree import Tree

    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0.0)
    say(HOSTILE)
    warn(HOSTILE)
    print_error(FailedError(HOSTILE, where=HOSTILE, expected=HOSTILE, found=HOSTILE, next_step=HOSTILE))
    console.show(HOSTILE)
    console.show_field(HOSTILE, HOSTILE, style="yellow")
    print_table([HOSTILE, "b"], [[HOSTILE, HOSTILE]], title=HOSTILE, caption=HOSTILE)
    print_table([HOSTILE, "b"], [[HOSTILE, HOSTILE]] * 201, title=HOSTILE, caption=HOSTILE)
    console.stdout().print(Tree(Text(HOSTILE)))
    with console.progress(HOSTILE, 2) as task:
        task.advance(note=HOSTILE)
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not UNSEEN.search(text)
        assert text.count("[red]x[/] [link=https://evil.example]y[/link] :warning: \\[bold] [/") >= 7
        assert "\\x1b[31mred" in text


def test_a_terminal_gets_our_colours_and_none_of_theirs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    print_error(FailedError(HOSTILE))
    shown = capsys.readouterr().err
    ours = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert shown != ours
    assert not UNSEEN.search(ours)


def test_a_strangers_line_break_is_no_line_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "a\n  next      run this\nerror[failed]: b"
    print_error(FailedError(forged, found=forged))
    warn(forged)
    console.show_field("licence", f"{forged}\ndigest    sha256:0")
    print_table(["a", "b"], [[forged, "1"]] * 201)
    shown = capsys.readouterr()
    lines = shown.err.splitlines() + shown.out.splitlines()
    assert not [line for line in lines if line.startswith(("  next  ", "error[failed]: b", "digest"))]


@pytest.mark.parametrize(
    "char", ["\u034f", "\u115f", "\u1160", "\u17b4", "\u3164", "\uffa0", "\U000e0100", "\U000e01ef"]
)
def test_what_fills_a_place_unseen_is_spelt_out(char: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(f"a{char}b") == f"a{ascii(char)[1:-1]}b"
    emit_json({"a": char})
    assert char not in capsys.readouterr().out
    assert printable("é 中 한글 ─ 👍🏽 ❤️ हिन्दी") == "é 中 한글 ─ 👍🏽 ❤️ हिन्दी"


def test_what_a_stranger_wrote_does_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[red]x" * 200_000
    console.show_field("licence", long)
    console.print_table(["what"], [[long]])
    console.print_table(["what"], [[long]] * (console.LONG_TABLE + 1))
    console.print_error(IntegrityError(long, where=long, found=long, expected=long, next_step="a" * 5000))
    shown = capsys.readouterr()
    assert len(shown.out) < (console.LONG_TABLE + 4) * 3 * console.LONG_TEXT
    assert len(shown.err) < 5 * console.LONG_TEXT + 5000
    assert "a" * 5000 in shown.err.replace("\n", "")
    assert "1,195,800 more characters" in shown.out


def test_json_escapes_what_no_eye_sees_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    told = HOSTILE.replace("\ud800", "")
    for size in (1, console.LONG_JSON):
        console.emit_json({"name": told, "länge": "x" * size})
        shown = capsys.readouterr().out
        assert not UNSEEN.search(shown)
        assert "länge" in shown
        assert json.loads(shown)["name"] == told
    console.emit_json({"name": "\ud800"})
    assert json.loads(capsys.readouterr().out)["name"] == "\ud800"


def test_a_page_shows_strangers_text_as_text() -> None:
    shown = console.escape_html(HOSTILE + "<script>")
    assert not UNSEEN.search(shown)
    assert "<script>" not in shown
