"""What people see: results on stdout, progress and logs on stderr, and the same as one JSON object.

Rich is loaded only when something is shown, so that `--help` stays fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import PlyfoldError

if TYPE_CHECKING:
    from rich.console import Console

JSON_SCHEMA = 1
PLAIN_INTERVAL_S = 5.0
"""Seconds between progress lines when no terminal watches."""

LONG_TABLE = 200
"""Rows above which a table is set without rich, which takes a second for a thousand."""
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
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=True)


def stderr() -> Console:
    """A console for progress and messages."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """A line of progress, unless quiet."""
    if verbosity() >= 0 and is_first():
        stderr().print(message, markup=False)


def warn(message: str) -> None:
    """A warning, shown even when quiet: something the user has to know."""
    if is_first():
        stderr().print(f"[yellow]warning[/] {_escape(message)}")


def print_error(error: PlyfoldError) -> None:
    """One error, its kind first, then where, expected, found and the next step."""
    console = stderr()
    speaker = "" if is_first() else f"process {os.environ.get('RANK')}: "
    console.print(f"[red]error\\[{error.kind}]:[/] {speaker}{_escape(error.what)}")
    for name, value in error.fields():
        console.print(f"  {name:<9} {_escape(value)}")


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, with the schema version first."""
    full = {"schema": JSON_SCHEMA, **value}
    text = json.dumps(full, ensure_ascii=False, allow_nan=False)
    print(text if len(text) > LONG_JSON else json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False))


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

    cells = [[_escape(str(cell)) for cell in row] for row in rows]
    widths = [max(_width(line) for cell in column for line in cell.split("\n"))
              for column in zip(columns, *([str(cell) for cell in row] for row in rows), strict=True)]  # fmt: skip
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
    cells = [list(columns), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        gaps = [" " * (width - _width(cell)) for width, cell in zip(widths, row, strict=True)]
        flushed = zip(columns, row, gaps, strict=True)
        lines.append("  " + "   ".join(gap + cell if name in right else cell + gap for name, cell, gap in flushed))
    lines.insert(1, " " + "─" * (sum(widths) + 3 * len(widths) - 1))
    print(*filter(None, [title]), "", *(line.rstrip() for line in lines), "", *filter(None, [caption]), sep="\n")


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
    """Names come from files of strangers: none may move the cursor, recolour the screen or be unprintable."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
