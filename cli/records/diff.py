"""`plyfold diff`: two adapters side by side, what made them and what they do to the base.

Joins two rooms: the registry knows what an adapter came from, merge measures how two deltas relate.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.console import emit_json, print_table, progress, show_field, warn
from ...core.disk.digest import short
from ...core.errors import IntegrityError, NotFoundError, PlyfoldError
from ..options import curriculum_option, json_option, registry_option

if TYPE_CHECKING:
    from ...adapters.spec import AdapterSpec
    from ...core.differences import Difference
    from ...merge.compare.pair_metrics import Interference, PairInterference, Relation
    from ...registry.record import Record

WORST = 3
"""Modules named as most against each other."""
FIELDS = 40
"""Differing fields shown; `--json` has all."""
CELL = 48
"""Characters of one value shown."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two adapters."""

    label: str
    path: Path
    record: Record | None
    """None for a folder without one."""
    digest: str = ""
    """Of the tensors."""


@click.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page of heat maps to this file.")
@curriculum_option
@registry_option
@json_option
def diff_command(
    first: str, second: str, html: Path | None, curriculum: str | None, registry: Path | None, as_json: bool
) -> None:
    """Two adapters side by side: what made them, and how their deltas relate.

    A and B are adapters of the registry, named as for `show`, or PEFT folders; where `1` is a stage, `./1` is a folder.
    """
    from ...adapters.tensors import tensor_digest
    from ...core.disk.files import refuse_no_file
    from ...merge.compare.interference import for_comparison, interference
    from ...merge.inputs import Part

    if html:
        refuse_no_file(html)
    sides = _named_apart(*(_side(ref, curriculum, registry) for ref in (first, second)))
    parts = for_comparison(*(Part(side.path, 1.0, side.label) for side in sides))
    sides = [replace(side, digest=tensor_digest(side.path)) for side in sides]
    with progress("compare", len(parts.modules)) as task:
        found = interference(parts, advance=task.advance)
    fields = _fields(sides, parts.specs)
    verdict = _verdict(sides, parts.specs)
    bases = [spec.base_repo for spec in parts.specs]
    if all(bases) and bases[0] != bases[1]:
        warn(f"their bases differ ({bases[0]}, {bases[1]}): what is added to different weights is hard to compare")
    if html:
        _write_page(html, found, sides, verdict, fields)
    if as_json:
        emit_json(_report(sides, verdict, fields, found.pairs[0], html))
        return
    _show(sides, verdict, fields, found.pairs[0])
    if html:
        show_field("page", str(html))


def _side(ref: str, curriculum: str | None, registry: Path | None) -> Side:
    """The adapter a user means: of the registry where it has one of that name, else a folder."""
    from ...core.disk.files import expanded
    from ...registry.lineage.graph import find
    from ...registry.store import find_store

    folder = expanded(ref)
    if os.sep in ref:
        return _folder(folder)
    try:
        store = find_store(registry)
        entry = store.load(find(store, ref, curriculum).digest)
    except PlyfoldError as error:
        if folder.is_dir() and not isinstance(error, IntegrityError):
            return _folder(folder)
        if not isinstance(error, NotFoundError):
            raise
        raise NotFoundError(
            "neither an adapter of the registry nor a folder",
            found=ref,
            expected=error.expected,
            next_step="name a stage as `plyfold tree` shows it, or a PEFT folder",
        ) from error
    return Side(label=f"{entry.record.curriculum} {entry.record.label}", path=entry.path, record=entry.record)


def _folder(path: Path) -> Side:
    from ...registry.record import RECORD_FILE, parse_record, read_record_bytes

    beside = path / RECORD_FILE
    record = parse_record(read_record_bytes(beside), where=beside) if beside.is_file() else None
    return Side(label=path.resolve().name, path=path, record=record)


def _named_apart(first: Side, second: Side) -> list[Side]:
    if first.label != second.label:
        return [first, second]
    return [replace(first, label=f"{first.label} (A)"), replace(second, label=f"{second.label} (B)")]


def _fields(sides: list[Side], specs: tuple[AdapterSpec, ...]) -> list[Difference]:
    """Where the records, if both have one, and the configs differ."""
    from ...adapters.tensors import SET_LIKE, UNSTABLE
    from ...core.differences import differences

    configs = []
    for spec in specs:
        kept = {key: value for key, value in spec.config.items() if key not in UNSTABLE}
        kept |= {key: sorted(kept[key]) for key in SET_LIKE if isinstance(kept.get(key), list)}
        configs.append({"adapter_config": kept})
    first, second = (_said(side.record) for side in sides)
    return [*(differences(first, second) if first and second else []), *differences(*configs)]


def _said(record: Record | None) -> dict[str, Any]:
    """A record without what follows from the files."""
    value = record.to_json() if record else {}
    value.pop("files", None)
    if "weights" in value:
        value["weights"].pop("digest")
    return value


def _verdict(sides: list[Side], specs: tuple[AdapterSpec, ...]) -> str:
    """`same`, `scale` (equal tensors, other alpha) or `different`."""
    first, second = ({name: module.scale for name, module in spec.modules.items()} for spec in specs)
    if sides[0].digest != sides[1].digest:
        return "different"
    return "same" if first == second else "scale"


VERDICTS = {
    "same": "the same adapter: equal tensors, equal scales",
    "scale": "equal tensors, but other scales (alpha)",
    "different": "different tensors",
}


def _report(
    sides: list[Side], verdict: str, fields: list[Difference], pair: PairInterference, html: Path | None
) -> dict[str, Any]:
    return {
        "same": verdict == "same",
        "same_tensors": verdict != "different",
        "adapters": [
            {
                "label": side.label,
                "path": str(side.path),
                "digest": side.digest,
                "record": side.record.digest() if side.record else None,
            }
            for side in sides
        ],
        "fields": [difference._asdict() for difference in fields],
        "interference": pair.to_json(),
        "html": str(html) if html else None,
    }


def _show(sides: list[Side], verdict: str, fields: list[Difference], pair: PairInterference) -> None:
    for name, side in zip("AB", sides, strict=True):
        # The digest by which `show` and `merge` know it; that of the tensors is nobody's name.
        show_field(name, f"{side.label}  {side.record.digest()}" if side.record else side.label)
    show_field("tensors", f"{VERDICTS[verdict]}, {' and '.join(dict.fromkeys(short(side.digest) for side in sides))}")
    if fields:
        rows = [[field, _cell(first), _cell(second)] for field, first, second in fields[:FIELDS]]
        more = f"and {len(fields) - FIELDS} more (--json shows all)" if len(fields) > FIELDS else ""
        print_table(["differs", "A", "B"], rows, caption=more)
    if sum(side.record is None for side in sides) == 1:
        show_field("record", f"only {next(side.label for side in sides if side.record)} has one")
    rows = [_relation_row(kind, relation) for kind, relation in pair.kinds.items()]
    rows.append(_relation_row("all", pair.total))
    columns = ["modules", "|dW| A", "|dW| B", "cosine", "column overlap", "row overlap", "sign conflict", "STI"]
    print_table(
        columns,
        rows,
        right=columns[1:],
        caption="overlap of output and input spaces, and that of random spaces; unrelated: cosine 0, conflict 0.5",
    )
    for name in pair.worst[:WORST]:
        show_field("lowest", f"{name}  cosine {_signed(pair.modules[name].cosine)}")
    for label, names in (("only A", pair.only_first), ("only B", pair.only_second)):
        if names:
            show_field(label, f"{len(names)} modules: {', '.join(names[:WORST])}{', …' if len(names) > WORST else ''}")


def _relation_row(name: str, relation: Relation) -> list[str]:
    return [
        name,
        *(f"{norm:.4g}" for norm in relation.norms),
        _signed(relation.cosine),
        _beside(relation.column_overlap, relation.column_chance),
        _beside(relation.row_overlap, relation.row_chance),
        _plain(relation.sign_conflict),
        _plain(relation.sti),
    ]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _beside(value: float | None, chance: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ({_plain(chance)})"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"


def _write_page(path: Path, found: Interference, sides: list[Side], verdict: str, fields: list[Difference]) -> None:
    from ...core.disk.files import write_bytes
    from ...merge.compare.heatmap import render_heatmap

    facts = {name: f"{side.label}  {side.digest}" for name, side in zip("AB", sides, strict=True)}
    facts["tensors"] = VERDICTS[verdict]
    facts |= {field: f"{_cell(first)} → {_cell(second)}" for field, first, second in fields[:FIELDS]}
    write_bytes(path, render_heatmap(found, f"{sides[0].label} and {sides[1].label}", facts).encode())
