"""One HTML page that shows how adapters relate: layer by module kind, a map for every pair and measure.

The file stands alone: no network, no font, no library; its policy forbids the browser to fetch anything. Maps are
tables whose cells hold their numbers, so that they read without colour and without a mouse. Without script all maps
follow one another; with it, two lists choose one. Colours are mixed in OKLab, where equal steps look equal.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...core.console import escape_html
from .heatmap_style import CSS, POLICY, SCRIPT
from .pair_metrics import Interference, PairInterference, Relation, kind_order

Value = float | None
WORST = 3
"""Modules named for each pair."""
FACTS = 8
"""Rows of the table on top that are not folded away."""
UNDEFINED = "\u2013"


@dataclass(frozen=True, kw_only=True)
class HeatmapMeasure:
    """One thing a map can show of a pair."""

    title: str
    value: Callable[[Relation], Value]
    says: str
    """What the numbers mean."""
    ends: tuple[str, str]
    """Words at both ends of the legend."""
    centre: float | None = None
    """Of a diverging scale, whose sides are opposites; None is a scale that starts at 0."""
    high_is_warm: bool = False
    """Whether values above the centre are the side that pulls apart."""
    chance: Callable[[Relation], Value] = lambda relation: None
    """What unrelated adapters would have."""


MEASURES = {
    "cosine": HeatmapMeasure(
        title="cosine",
        value=lambda relation: relation.cosine,
        says="Direction of the two deltas: 1 the same, 0 unrelated, -1 against each other.",
        ends=("against each other", "the same way"),
        centre=0.0,
    ),
    "signs": HeatmapMeasure(
        title="sign conflict",
        value=lambda relation: relation.sign_conflict,
        says="Share of sampled weights that the two move in opposite directions; unrelated adapters have 0.5.",
        ends=("agree", "conflict"),
        centre=0.5,
        high_is_warm=True,
    ),
    "columns": HeatmapMeasure(
        title="column overlap",
        value=lambda relation: relation.column_overlap,
        chance=lambda relation: relation.column_chance,
        says="How much of the smaller space of outputs both write to: 0 none, 1 all.",
        ends=("apart", "shared"),
    ),
    "rows": HeatmapMeasure(
        title="row overlap",
        value=lambda relation: relation.row_overlap,
        chance=lambda relation: relation.row_chance,
        says="How much of the smaller space of inputs both read from: 0 none, 1 all.",
        ends=("apart", "shared"),
    ),
    "sti": HeatmapMeasure(
        title="singular task interference",
        value=lambda relation: relation.sti,
        says="Singular directions that meet on both sides, weighed by their size: 0 none, 1 as an adapter with itself.",
        ends=("none", "much"),
    ),
    "leak": HeatmapMeasure(
        title="output ratio on prompts",
        value=lambda relation: relation.leak,
        says="Mean square output of the second over that of the first, on the prompts given.",
        ends=("silent", "loud"),
    ),
}


class Cell(NamedTuple):
    """One module of a map."""

    name: str
    value: Value
    note: str = ""


class Grid(NamedTuple):
    """Where every module stands."""

    rows: list[str]
    kinds: list[str]
    places: dict[str, tuple[str, str]]
    """Module -> (row, kind)."""


def render_heatmap(interference: Interference, title: str, facts: Mapping[str, str]) -> str:
    """The page, as one HTML document.

    Args:
        interference: What to draw.
        title: Heading of the page.
        facts: Rows of the table on top, label -> text; nothing in them is taken as HTML.
    """
    grid = layout(interference.norms)
    figures = [figure for pair in interference.pairs for figure in _pair_figures(pair, grid)]
    if not interference.pairs:
        label = interference.labels[0]
        cells = [Cell(name, norms[0]) for name, norms in interference.norms.items()]
        figures = [_norm_figure(label, "norm", label, cells, grid, _largest(cells))]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape_html(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n<h1>{escape_html(title)}</h1>\n"
        f"{_facts(list(facts.items()))}{_summary(interference.pairs)}"
        "<p id=choice hidden><label>Pair <select id=of></select></label> "
        "<label>Map <select id=measure></select></label><output id=said></output></p>\n"
        f"{''.join(figures)}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def layout(names: Iterable[str]) -> Grid:
    """Rows (layers) and columns (kinds) for modules by their names; what names no layer goes to the row `other`.

    The layer is the first whole number among the parts of a name. Kinds are the last part of names, or all that follows
    the layer where two modules would share a cell otherwise (experts); rows get their prefix where several stacks have
    layers of one number.
    """
    split = {}
    for name in names:
        found = re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(.+)", name)
        split[name] = (found[1] or "", int(found[2]), found[3]) if found else ("other", -1, name)
    prefixes = {prefix for prefix, number, _ in split.values() if number >= 0}

    def row(name: str) -> str:
        prefix, number, _ = split[name]
        return "other" if number < 0 else str(number) if len(prefixes) == 1 else f"{prefix}.{number}"

    last = {name: rest.rpartition(".")[2] for name, (_, _, rest) in split.items()}
    crowded = {kind for (_, kind), count in Counter((row(name), last[name]) for name in split).items() if count > 1}
    places = {name: (row(name), split[name][2] if last[name] in crowded else last[name]) for name in split}
    ordered = sorted(split, key=lambda name: (split[name][1] < 0, split[name][0], split[name][1]))
    return Grid(
        rows=list(dict.fromkeys(row(name) for name in ordered)),
        kinds=sorted({kind for _, kind in places.values()}, key=kind_order),
        places=places,
    )


def _pair_figures(pair: PairInterference, grid: Grid) -> list[str]:
    between = f"{pair.first} / {pair.second}"
    lone = dict.fromkeys(pair.only_first, f"only {pair.first} has it")
    lone |= dict.fromkeys(pair.only_second, f"only {pair.second} has it")
    figures = []
    for key, measure in MEASURES.items():
        cells = []
        for name, relation in pair.modules.items():
            chance = measure.chance(relation)
            note = lone.get(name) or (f"by chance {chance:.2g}" if chance is not None else "")
            cells.append(Cell(name, measure.value(relation), note))
        if any(cell.value is not None for cell in cells):
            figures.append(_figure(between, key, measure, cells, grid, measure.chance(pair.total)))
    norms = [
        (label, [Cell(name, each.norms[side]) for name, each in pair.modules.items() if name not in others])
        for side, label, others in ((0, pair.first, pair.only_second), (1, pair.second, pair.only_first))
    ]
    largest = max(_largest(cells) for _, cells in norms)
    return figures + [
        _norm_figure(between, f"norm{side}", label, cells, grid, largest) for side, (label, cells) in enumerate(norms)
    ]


def _norm_figure(between: str, key: str, label: str, cells: list[Cell], grid: Grid, largest: float) -> str:
    measure = HeatmapMeasure(
        title=f"size of {label}",
        value=lambda relation: None,
        says="Frobenius norm |dW| of what the adapter adds, in units of the weights.",
        ends=("nothing", "large"),
    )
    return _figure(between, key, measure, cells, grid, None, largest)


def _figure(
    between: str,
    key: str,
    measure: HeatmapMeasure,
    cells: list[Cell],
    grid: Grid,
    chance: Value,
    largest: float | None = None,
) -> str:
    centre = measure.centre or 0.0
    reach = _round_up(_largest(cells, centre) if largest is None else largest)
    # Two digits of the largest value, so that a column of numbers can be compared.
    decimals = max(0, 2 - math.ceil(math.log10(reach)))
    placed = {grid.places[cell.name]: cell for cell in cells}

    def table_cell(place: tuple[str, str]) -> str:
        if place not in placed:
            return "<td></td>"
        cell = placed[place]
        exact = "undefined" if cell.value is None else f"{cell.value:.4g}"
        title = f"{cell.name}: {', '.join(filter(None, (exact, cell.note)))}"
        if cell.value is None:
            return f'<td class=none title="{escape_html(title)}">{UNDEFINED}</td>'
        share = (cell.value - centre) / reach
        side = "" if measure.centre is None else " warm" if (share > 0) == measure.high_is_warm else " cool"
        return (
            f'<td class="cell{side}" style="--t:{abs(share):.0%}" title="{escape_html(title)}">'
            f"{_number(cell.value, decimals)}</td>"
        )

    head = "".join(f"<th scope=col>{escape_html(kind)}</th>" for kind in grid.kinds)
    body = "".join(
        f"<tr><th scope=row>{escape_html(row)}</th>{''.join(table_cell((row, kind)) for kind in grid.kinds)}</tr>"
        for row in grid.rows
    )
    low = centre - reach if measure.centre is not None else 0.0
    warm_first = "" if measure.centre is None else " flipped" if measure.high_is_warm else " diverging"
    by_chance = f" Random spaces of these ranks share {chance:.2g}." if chance is not None else ""
    return (
        f'<figure data-of="{escape_html(between)}" data-measure="{key}" data-title="{escape_html(measure.title)}">\n'
        f"<figcaption><h2>{escape_html(between)}: {escape_html(measure.title)}</h2>"
        f"<p>{measure.says}{by_chance}</p></figcaption>\n"
        f'<p class=legend><span>{_end(low)} {measure.ends[0]}</span><i class="bar{warm_first}"></i>'
        f"<span>{_end(centre + reach)} {measure.ends[1]}</span></p>\n"
        f'<div class=scroll><table class=map aria-label="{escape_html(measure.title)} by layer and module kind">'
        f"<thead><tr><th scope=col>layer</th>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n</figure>\n"
    )


def _facts(facts: list[tuple[str, str]]) -> str:
    """The table on top; what would push the maps off the screen is folded away."""
    rows = [f"<tr><th scope=row>{escape_html(label)}</th><td>{escape_html(text)}</td></tr>" for label, text in facts]
    first, more = "".join(rows[:FACTS]), rows[FACTS:]
    table = f"<table class=facts><tbody>{first}</tbody></table>\n"
    if not more:
        return table
    folded = f"<table class=facts><tbody>{''.join(more)}</tbody></table>"
    return f"{table}<details><summary>{len(more)} more</summary>{folded}</details>\n"


def _summary(pairs: Sequence[PairInterference]) -> str:
    """A row for every pair over all modules, and the modules that pull apart most."""
    totals = [pair.total for pair in pairs]
    shown = [each for each in MEASURES.values() if any(each.value(total) is not None for total in totals)]
    rows = []
    for pair, total in zip(pairs, totals, strict=True):
        cells = ""
        for measure in shown:
            chance = measure.chance(total)
            by_chance = "" if chance is None else f"<small>by chance {_number(chance, 3)}</small>"
            cells += f"<td>{_number(measure.value(total), 3)}{by_chance}</td>"
        worst = "<br>".join(
            f"{escape_html(name)} {_number(pair.modules[name].cosine, 3)}" for name in pair.worst[:WORST]
        )
        rows.append(
            f"<tr><th scope=row>{escape_html(pair.first)} / {escape_html(pair.second)}</th>{cells}<td>{worst}</td></tr>"
        )
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{measure.title}</th>" for measure in shown)
    return (
        "<h2>All modules together</h2>\n<div class=scroll><table class=summary><thead><tr><th scope=col>pair</th>"
        f"{head}<th scope=col>lowest cosines</th></tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _largest(cells: Iterable[Cell], centre: float = 0.0) -> float:
    return max((abs(cell.value - centre) for cell in cells if cell.value is not None), default=0.0)


def _round_up(reach: float) -> float:
    """The next of 1, 2, 5, 10, 20, …, so that legends have round ends; 1 for nothing."""
    if reach <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(reach))
    return next(step * power for step in (1, 2, 5, 10) if reach <= step * power * (1 + 1e-9))


def _number(value: Value, decimals: int) -> str:
    """`.03`, `−.50`, `1.00`: short enough for a cell, the same width all over a map."""
    if value is None:
        return UNDEFINED
    text = f"{abs(value):.{decimals}f}"
    return _signed(value, text.removeprefix("0") if decimals else text)


def _end(value: float) -> str:
    """A round number at the end of a legend."""
    return _signed(value, f"{abs(value):.6g}")


def _signed(value: float, text: str) -> str:
    return f"\u2212{text}" if value < 0 and any(digit in text for digit in "123456789") else text
