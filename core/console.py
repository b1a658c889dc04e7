"""What people see: results on stdout, progress and logs on stderr, and the same as one JSON object.

Everything a command prints goes through here, and most of it names what strangers named: nothing of a record, a card,
a teacher's text, a Hub's answer or a file's name moves the cursor, recolours the screen, turns the reading direction,
hides or is taken for markup. Rich is loaded only when something is shown, so that `--help` stays fast.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from .environment import spelt
from .errors import PlyfoldError

if TYPE_CHECKING:
    from rich.console import Console

JSON_SCHEMA = 1
PLAIN_INTERVAL_S = 5.0
"""Seconds between progress lines when no terminal watches."""

LONG_TABLE = 200
"""Rows above which a table is set without rich, which takes a second for a thousand."""
LONG_TEXT = 4200
"""Characters of one thing said that are shown; a path has up to 4,096."""
LONG_JSON = 200_000
"""Characters above which JSON goes on one line: indenting takes four times as long, and nobody reads it."""

_settings = {"verbosity": 0}


def set_verbosity(level: int) -> None:
    """-1 quiet (errors only), 0 normal, 1 and above verbose."""
    _settings["verbosity"] = level


def verbosity() -> int:
    """The level set by `-q` and `-v`."""
    return _settings["verbosity"]


def is_first() -> bool:
    """Whether this process speaks: of several that `accelerate launch` or `torchrun` started, the first does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def stdout() -> Console:
    """A console for results; wide when piped, so that tables are not cut."""
    return _console(sys.stdout, width=None if sys.stdout.isatty() else 140)


def stderr() -> Console:
    """A console for progress and messages."""
    return _console(sys.stderr)


def _console(file: TextIO, width: int | None = None) -> Console:
    """One that writes no control character of a text, whatever it is asked to draw; its own styles pass."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class _Console(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control or text.isprintable() else Segment(printable(text), style)

    return _Console(file=file, width=width, highlight=False, emoji=False, soft_wrap=True)


def say(message: str) -> None:
    """A line of progress, unless quiet."""
    if verbosity() >= 0 and is_first():
        stderr().print(printable(message), markup=False)


def warn(message: str) -> None:
    """A warning, shown even when quiet: something the user has to know."""
    if is_first():
        stderr().print(f"[yellow]warning[/] {_escape(_indented(message, 8))}")


def show(message: str) -> None:
    """A line of results, on stdout."""
    print(printable(message))


def show_field(label: str, text: str, *, width: int = 9, style: str = "") -> None:
    """What something is, after its name; further lines of the text stand below its first, not below the name.

    Args:
        label: The name.
        text: One line, or several.
        width: Columns of the label.
        style: Rich's name of one, where a terminal watches.
    """
    line = f"{label:<{width}} {_indented(cut(text), width + 1)}"
    stdout().print(printable(line), markup=False, style=style or None)


def print_error(error: PlyfoldError) -> None:
    """One error, its kind first, then where, expected, found and the next step."""
    console = stderr()
    speaker = "" if is_first() else f"process {os.environ.get('RANK')}: "
    console.print(f"[red]error\\[{error.kind}]:[/] {speaker}{_escape(_indented(cut(error.what), 12))}")
    for name, value in error.fields():
        console.print(f"  {name:<9} {_escape(_indented(value if name == 'next' else cut(value), 12))}")


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, with the schema version first; what cannot be seen in it is escaped."""
    full = {"schema": JSON_SCHEMA, **value}
    text = json.dumps(full, ensure_ascii=False, allow_nan=False)
    if len(text) <= LONG_JSON:
        text = json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False)
    print(_UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    right: Sequence[str] = (),
    caption: str = "",
) -> None:
    """A table on stdout; on a terminal that is too narrow, several, so that no number or digest is cut.

    Args:
        columns: Headings; the first column says what a row is.
        rows: Cells, a column each.
        title: Above it.
        right: Columns set flush right.
        caption: Lines below it.
    """
    if len(rows) > LONG_TABLE:
        _print_long_table(columns, rows, title, right, caption)
        return
    from rich import box
    from rich.table import Table

    plain = [[printable(cut(str(cell))) for cell in row] for row in [columns, *rows]]
    cells = [[_escape(cell) for cell in row] for row in plain[1:]]
    widths = [max(_width(line) for cell in column for line in cell.split("\n")) for column in zip(*plain, strict=True)]
    room = stdout().width if sys.stdout.isatty() else None
    parts = _side_by_side(widths, room)
    for part in parts:
        table = Table(
            title=_escape(title) if title and part is parts[0] else None, box=box.SIMPLE_HEAD, title_justify="left"
        )
        width = _table_width([widths[index] for index in part])
        fits = room is None or width <= room
        for index in part:
            justify: Literal["left", "right"] = "right" if columns[index] in right else "left"
            table.add_column(_escape(columns[index]), justify=justify, no_wrap=fits or index == 0, overflow="fold")
        for row in cells:
            table.add_row(*(row[index] for index in part))
        console = stdout()
        if room is None:  # nobody's window: as wide as it takes
            console.width = max(console.width, width)
        console.print(table)
    for line in caption.split("\n") if caption else []:
        stdout().print(_escape(line), soft_wrap=room is None)


def _table_width(widths: Sequence[int]) -> int:
    """Columns of a terminal that a table takes: three a gap, two at its edges."""
    return sum(widths) + 3 * len(widths) + 1


def _side_by_side(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """Columns that are shown in one table: all, or what fits, the first one repeated in each; none is cut."""
    if room is None or _table_width(widths) <= room:
        return [list(range(len(widths)))]
    parts = [[0]]
    for index in range(1, len(widths)):
        if len(parts[-1]) > 1 and _table_width([widths[column] for column in [*parts[-1], index]]) > room:
            parts.append([0])
        parts[-1].append(index)
    return parts


def _print_long_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str, right: Sequence[str], caption: str
) -> None:
    cells = [[" ".join(printable(cut(str(cell))).split("\n")) for cell in row] for row in [columns, *rows]]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        gaps = [" " * (width - _width(cell)) for width, cell in zip(widths, row, strict=True)]
        flushed = zip(columns, row, gaps, strict=True)
        lines.append("  " + "   ".join(gap + cell if name in right else cell + gap for name, cell, gap in flushed))
    lines.insert(1, " " + "─" * (sum(widths) + 3 * len(widths) - 1))
    head, foot = filter(None, [printable(title)]), filter(None, [printable(caption)])
    print(*head, "", *(line.rstrip() for line in lines), "", *foot, sep="\n")


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, for a command that keeps all it reads until it ends: a fifth of its time."""
    import gc

    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Task(Protocol):
    """A running piece of work whose progress is shown."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` as done; `note` replaces the text after the bar."""

    def total(self, steps: int) -> None:
        """Set how many steps there are, once known."""


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Task]:
    """Show a bar on a terminal, a line every few seconds elsewhere, nothing when quiet."""
    if verbosity() < 0 or not sys.stderr.isatty() or not is_first():
        task = _PlainTask(label, total)
        yield task
        task.finish()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr(),
    )
    with bar:
        identity = bar.add_task(_escape(label), total=total, note="")

        class _BarTask:
            def advance(self, steps: int = 1, note: str = "") -> None:
                bar.update(identity, advance=steps)
                if note:
                    bar.update(identity, note=_escape(note))

            def total(self, steps: int) -> None:
                bar.update(identity, total=steps)

        yield _BarTask()


class _PlainTask:
    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done, self._note = label, total, 0, ""
        self._start_s = self._shown_s = time.monotonic()
        self._shown = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._note = note or self._note
        now_s = time.monotonic()
        if now_s - self._shown_s >= PLAIN_INTERVAL_S:
            self._shown_s = now_s
            self._line(now_s)

    def total(self, steps: int) -> None:
        self._total = steps

    def finish(self) -> None:
        now_s = time.monotonic()
        if now_s - self._start_s >= 2.0 and self._done != self._shown:
            self._line(now_s)

    def _line(self, now_s: float) -> None:
        self._shown = self._done
        counted = f"{self._done}/{self._total}  " if self._total else f"{self._done}  " if self._done else ""
        say(f"{self._label}  {counted}{now_s - self._start_s:.0f} s  {self._note}".rstrip())


def printable(text: str) -> str:
    """A text of strangers whose control characters, C1 and bidi ones too, are spelt out; line breaks stay.

    What a config read from the environment stands in it as the config spells it (`spelt`).
    Python counts as printable what has a glyph: no control or format character, no half of a surrogate pair, no
    separator but the space; of what it counts, fillers and selectors are unseen all the same.
    """
    text = spelt(text)
    line = text.replace("\n", "")
    if line.isprintable() and (line.isascii() or not _UNSEEN.search(line)):
        return text
    shown = (char == "\n" or (char.isprintable() and not _UNSEEN.match(char)) for char in text)
    return "".join(char if seen else ascii(char)[1:-1] for char, seen in zip(text, shown, strict=True))


def cut(text: str) -> str:
    """A text of strangers that does not fill the screen; JSON has all of it."""
    more = len(text) - LONG_TEXT
    return text if more <= 0 else f"{text[:LONG_TEXT]} … ({more:,} more characters)"


def escape_html(text: str) -> str:
    """A text of strangers for an HTML page: nothing of it is markup, hides or turns what stands beside it."""
    return html.escape(printable(text))


_UNSEEN = re.compile(
    "[\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""What JSON may hold as it is and no eye sees: C1, joiners, fillers, marks of direction, lone surrogates, tags."""


def _indented(text: str, columns: int) -> str:
    """A text whose further lines cannot be taken for lines of the program."""
    return text.replace("\n", "\n" + " " * columns)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
