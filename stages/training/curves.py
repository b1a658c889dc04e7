"""A curriculum's training as one page of curves, drawn from the metrics.jsonl of its run folders and nothing else.

    runs/<curriculum>/curves.html

A measure has one scale in all stages, so that a stage can be read against the one before. The file stands alone: no
network, no script, no library. It is drawn again while a stage trains, and a browser that shows it loads it again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.console import escape_html
from ...core.disk.files import write_bytes
from ..runtime.metrics import METRICS, read_metrics
from .health import CLIPPED, ENTROPY, EQUAL_GROUPS

PAGE = "curves.html"
RELOAD_S = 10
"""Seconds after which a browser loads the page of a running training again."""
WIDTH, HEIGHT = 300, 130
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20
"""Pixels of a chart, and of its margins."""
SMOOTH = 20
"""A mean is drawn over one in so many of a stage's logged steps, so that a trend shows through the noise of batches."""
LAST = 10
"""Logged steps whose mean is written beside a chart, as in the table `train` ends with."""
LARGEST = 1e300
"""A logged number beyond it is not drawn: sums of a few such numbers are none any more."""
MAX_POINTS = 300
"""Of a line: a chart has no more pixels."""

_FOLDER = re.compile(r"(\d+)-([^.]+)")
"""Of a run; folders set aside have a dot in their names."""


@dataclass(frozen=True, kw_only=True)
class CurveMeasure:
    """One row of charts."""

    title: str
    keys: tuple[tuple[str, str], ...]
    """Key in metrics.jsonl -> what its line is called where a chart has several."""
    percent: bool = False
    bounds: tuple[float | None, float | None] = (0.0, None)
    """Ends of its scale; None follows the data."""


MEASURES = (
    CurveMeasure(title="right tokens", keys=(("mean_token_accuracy", ""),), percent=True, bounds=(None, 1.0)),
    CurveMeasure(title="loss", keys=(("loss", ""),), bounds=(None, None)),
    CurveMeasure(title="reward", keys=(("reward", ""),), bounds=(None, None)),
    CurveMeasure(title="right answers", percent=True, bounds=(0.0, 1.0),
            keys=(("accuracy", "all prompts"), ("accuracy_unaided", "unaided"))),
    CurveMeasure(title="tokens a completion", keys=(("completions/mean_length", ""),)),
    CurveMeasure(title="cut off", keys=((CLIPPED, ""),), percent=True, bounds=(0.0, 1.0)),
    CurveMeasure(title="groups of equal rewards", keys=((EQUAL_GROUPS, ""),), percent=True, bounds=(0.0, 1.0)),
    CurveMeasure(title="entropy, nats a token", keys=((ENTROPY, ""),)),
    CurveMeasure(title="KL to the start, nats a token", keys=(("kl", ""),)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one run logged."""

    number: int
    name: str
    lines: tuple[dict[str, Any], ...]

    def points(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever a finite one was logged."""
        return [(line["step"], float(line[key])) for line in self.lines if _finite(line.get(key))]

    def alarms(self) -> list[tuple[int, str]]:
        """(step, name) of what was warned about."""
        return [(int(alarm["step"]), str(alarm["name"])) for line in self.lines for alarm in line.get("alarms", [])]


def read_stages(folder: Path) -> list[Stage]:
    """The runs of a curriculum that have logged something, in the order of their numbers."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        if (match := _FOLDER.fullmatch(path.name)) and (lines := read_metrics(path / METRICS)):
            kept = tuple(line for line in lines if isinstance(line.get("step"), int))
            found.append(Stage(number=int(match[1]), name=match[2], lines=kept))
    return sorted(found, key=lambda stage: (stage.number, stage.name))


def write_curves(folder: Path, *, running: bool) -> Path | None:
    """Draw the runs in a curriculum's folder as they are now; the page is replaced as a whole.

    Args:
        folder: `runs/<curriculum>`.
        running: Whether a browser is to load it again.

    Returns:
        The page; None where no run has logged anything.
    """
    if not (stages := read_stages(folder)):
        return None
    page = folder / PAGE
    write_bytes(page, render_curves(folder.name, stages, running=running).encode())
    return page


def render_curves(curriculum: str, stages: Sequence[Stage], *, running: bool) -> str:
    """The page: a row a measure, a column a stage; a measure that no stage logged is left out."""
    rows = [_row(measure, stages) for measure in MEASURES if any(_logged(measure, stage) for stage in stages)]
    heads = "".join(f"<th scope=col>{_head(stage)}</th>" for stage in stages)
    reload = f'<meta http-equiv="refresh" content="{RELOAD_S}">' if running else ""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    said = f"Faint: each logged step. Bold: a running mean. In figures: the mean of the last {LAST} logged steps."
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}">{reload}<meta name=viewport content="width=device-width">'
        f"<title>{escape_html(curriculum)}: training</title><style>{_CSS}</style>"
        f"<main><h1>{escape_html(curriculum)}</h1><p>{said}</p><div class=scroll><table>"
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></main></html>\n"
    )


def _head(stage: Stage) -> str:
    steps = max((line["step"] for line in stage.lines), default=0)
    wall_s = max((line["wall_s"] for line in stage.lines if _finite(line.get("wall_s"))), default=None)
    taken = "" if wall_s is None else f", {_duration(wall_s)}"
    names = dict.fromkeys(name for _, name in stage.alarms())
    alarms = f" <b>alarms: {escape_html(', '.join(names))}</b>" if names else ""
    return f"{stage.number} {escape_html(stage.name)} <small>{steps} steps{taken}{alarms}</small>"


def _row(measure: CurveMeasure, stages: Sequence[Stage]) -> str:
    low, high = _scale(measure, stages)
    cells = "".join(
        f"<td>{_chart(measure, stage, low, high)}</td>" if _logged(measure, stage) else "<td class=none>not logged</td>"
        for stage in stages
    )
    return f"<tr><th scope=row>{escape_html(measure.title)}</th>{cells}</tr>"


def _chart(measure: CurveMeasure, stage: Stage, low: float, high: float) -> str:
    lines = [(name, points) for key, name in measure.keys if (points := stage.points(key))]
    first = min(points[0][0] for _, points in lines)
    last = max(points[-1][0] for _, points in lines)

    def place(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * ((step - first) / (last - first) if last > first else 0.5)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        return f"{x:.1f},{y:.1f}"

    drawn, said = [], []
    for index, (name, points) in enumerate(lines):
        for kind, line in (("faint", points), ("bold", _smooth(points))):
            path = " ".join(place(*point) for point in _thin(line))
            drawn.append(f'<polyline class="{kind} line{index}" points="{path}"/>')
        ending = fmean(value for _, value in points[-LAST:])
        said.append(f"<span class=line{index}>{escape_html(name)} {_number(ending, measure.percent, digits=1)}</span>")
    for step, name in stage.alarms():
        x = place(min(max(step, first), last), low).partition(",")[0]  # what is told at the end has a step of its own
        drawn.append(f'<line class=alarm x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                     f"<title>step {step}: {escape_html(name)}</title></line>")  # fmt: skip
    bottom = HEIGHT - BOTTOM
    axes = (
        f'<path class=axis d="M{LEFT},{TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        f"<text x={LEFT - 4} y={TOP + 9} text-anchor=end>{_number(high, measure.percent)}</text>"
        f"<text x={LEFT - 4} y={bottom} text-anchor=end>{_number(low, measure.percent)}</text>"
        f"<text x={LEFT} y={HEIGHT - 5}>{first}</text>"
        f"<text x={WIDTH - RIGHT} y={HEIGHT - 5} text-anchor=end>{last}</text>"
    )
    label = escape_html(f"{measure.title} over steps {first} to {last}")
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width={WIDTH} height={HEIGHT} role=img aria-label="{label}">'
        f"{axes}{''.join(drawn)}</svg><figcaption>{' '.join(said)}</figcaption></figure>"
    )


def _logged(measure: CurveMeasure, stage: Stage) -> bool:
    if measure.title == "loss" and stage.points("reward"):
        return False  # a policy gradient's loss falls and rises about zero, and says nothing
    return any(value or key != "kl" for key, _ in measure.keys for _, value in stage.points(key))


def _scale(measure: CurveMeasure, stages: Iterable[Stage]) -> tuple[float, float]:
    values = [value for stage in stages if _logged(measure, stage) for key, _ in measure.keys
              for _, value in stage.points(key)]  # fmt: skip
    low, high = measure.bounds
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    if high > low:
        return low, high
    room = max(1.0, abs(low))  # one more than 1e18 is 1e18
    return (low, low + room) if measure.bounds[1] is None else (high - room, high)


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The trailing mean over a share of the points."""
    width = max(1, math.ceil(len(points) / SMOOTH))
    values = [value for _, value in points]
    return [(step, fmean(values[max(0, end - width) : end])) for end, (step, _) in enumerate(points, start=1)]


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most MAX_POINTS of them, evenly, the last one among them."""
    every = math.ceil(len(points) / MAX_POINTS)
    return list(points[::-every])[::-1]


def _number(value: float, percent: bool, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %" if percent else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _finite(value: object) -> bool:
    """Whether it is a number that can be drawn: means and differences of several have to be numbers, too."""
    return isinstance(value, (int, float)) and abs(value) < LARGEST


_CSS = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d5dae0;--one:#0969b8;--two:#c2570c}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--ink:#eceff3;--soft:#a0a9b4;--line:#353b43;
--one:#5cb0f5;--two:#f0a05a}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{padding:1.5rem 1.5rem 3rem}h1{font-size:1.4rem;margin:0}p,small,.none{color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse}
th{text-align:left;font-weight:600;vertical-align:top;padding:.4rem .8rem .4rem 0}
thead th{white-space:nowrap}small{font-weight:400}small b{color:var(--two)}
tbody th{font-weight:400;color:var(--soft);max-width:8rem}
td{vertical-align:top;padding:.4rem .8rem .2rem 0}tbody tr{border-top:1px solid var(--line)}
figure{margin:0}figcaption{font-size:.85rem;padding-left:44px;font-variant-numeric:tabular-nums}
svg{display:block}text{font-size:11px;fill:var(--soft)}.axis{fill:none;stroke:var(--line)}
polyline{fill:none;stroke:var(--one);stroke-linejoin:round}polyline.line1{stroke:var(--two)}
span.line0{color:var(--one)}span.line1{color:var(--two);margin-left:.8rem}
.faint{opacity:.3}.bold{stroke-width:2}.alarm{stroke:var(--two);stroke-dasharray:3 3}
"""
