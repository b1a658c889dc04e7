"""`plyfold tree`, `log` and `show`: what the registry holds, drawn and listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.console import LONG_TABLE, cut, emit_json, print_table, printable, show, show_field, stdout, uncollected
from ...core.disk.digest import short
from ..options import curriculum_option, json_option, registry_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...registry.lineage.graph import Ancestor, TreeNode
    from ...registry.record import Metric, Record
    from ...registry.store import Store
    from ...registry.store.attestations import Attestation
    from ...registry.trust.revocation import Revocation


@click.command("tree")
@click.argument("name", metavar="[CURRICULUM]", required=False)
@curriculum_option
@registry_option
@json_option
@uncollected()
def tree_command(name: str | None, curriculum: str | None, registry: Path | None, as_json: bool) -> None:
    """The lineage of a curriculum: base, stages, merges.

    Every stage hangs under the last stage it was trained on. What was trained on a stage that has changed since is
    marked stale; what is not in the registry is marked missing. Without a name, all curricula are drawn.
    """
    from ...registry.lineage.graph import tree
    from ...registry.store import Snapshot, find_store

    store = Snapshot.of(find_store(registry))
    wanted = name or curriculum
    names = [store.default_curriculum(wanted)] if wanted else store.curricula() or [store.default_curriculum()]
    trees = [tree(store, each) for each in names]
    if as_json:
        emit_json({"registry": str(store.root), "curricula": [node.to_json() for node in trees]})
        return
    print_tree(*trees)


@click.command("log")
@click.argument("ref", required=False)
@curriculum_option
@registry_option
@json_option
@uncollected()
def log_command(ref: str | None, curriculum: str | None, registry: Path | None, as_json: bool) -> None:
    """An adapter and its ancestors, newest first.

    REF is a stage's number or name, a merge's name, CURRICULUM:STAGE, or the start of a digest; without it, the last
    stage is taken.
    """
    from ...registry.lineage.graph import chain, find
    from ...registry.store import Snapshot, find_store
    from ...registry.trust.revocation import revocations

    store = Snapshot.of(find_store(registry))
    links = chain(store, find(store, ref or _last_stage(store, curriculum), curriculum).digest)
    marked = revocations(store, [link.digest for link in links])
    if as_json:
        rows = [{**_ancestor_json(link), "revoked": _json_of(marked.get(link.digest, []))} for link in links]
        emit_json({"registry": str(store.root), "chain": rows})
        return
    print_table(
        ["digest", "adapter", "role", "created", "r", "steps", "seed", "rows", "parents"],
        [_ancestor_row(link, marked.get(link.digest, [])) for link in links],
        right=["r", "steps", "seed", "rows"],
    )


@click.command("show")
@click.argument("ref")
@curriculum_option
@registry_option
@json_option
def show_command(ref: str, curriculum: str | None, registry: Path | None, as_json: bool) -> None:
    """One adapter's record, its files verified.

    REF is a stage's number or name, a merge's name, CURRICULUM:STAGE, or the start of a digest.
    """
    from ...registry.lineage.graph import find
    from ...registry.lineage.scores import overlapping_scores
    from ...registry.store import find_store
    from ...registry.trust.revocation import revocations
    from ...registry.trust.statements import REVOKED, WITHDRAWN

    store = find_store(registry)
    entry = store.load(find(store, ref, curriculum).digest)
    statements = store.attestations(entry.digest)
    revoked = revocations(store, [entry.digest]).get(entry.digest, [])
    overlapping = overlapping_scores(store, entry.digest)
    if as_json:
        emit_json(
            {
                "digest": entry.digest,
                "path": str(entry.path),
                "record": entry.record.to_json(),
                "revoked": _json_of(revoked),
                "attestations": [statement.to_json() for statement in statements],
                "overlaps": [
                    {"variant": score.variant, "created": score.created, "trained": [hit.to_json() for hit in hits]}
                    for score, hits in overlapping
                ],
            }
        )
        return
    for label, text in [("digest", entry.digest), ("folder", str(entry.path)), *_record_lines(entry.record)]:
        show_field(label, text, width=12)
    for item in revoked:
        show_field("revoked", f"{item.created}  {item.mark(entry.digest)}", width=12, style="yellow")
    for statement in [each for each in statements if each.kind not in (REVOKED, WITHDRAWN)]:
        show_field("attested", _statement_text(statement), width=12)
    for score, hits in overlapping:
        for hit in hits:
            show_field("overlap", f"{score.created}  variant {score.variant}  {hit}", width=12, style="yellow")


def print_tree(*curricula: TreeNode) -> None:
    """Draw curricula on stdout."""
    if sum(map(_size, curricula)) > LONG_TABLE:  # plain lines: rich takes a second for a thousand
        show("\n".join(line for node in curricula for line in _lines(node)))
        return
    from rich.text import Text
    from rich.tree import Tree

    def grow(drawn: Tree, node: TreeNode) -> None:
        for child in node.children:
            grow(drawn.add(text(child)), child)

    def text(node: TreeNode) -> Text:
        return Text("  ").join(Text(part, style) for part, style in _node_parts(node))

    for node in curricula:
        drawn = Tree(text(node), guide_style="dim")
        grow(drawn, node)
        stdout().print(drawn, soft_wrap=False)  # long lines wrap inside the guides


def _size(node: TreeNode) -> int:
    return 1 + sum(_size(child) for child in node.children)


def _lines(node: TreeNode, first: str = "", rest: str = "") -> Iterator[str]:
    yield first + "  ".join(part for part, _ in _node_parts(node))
    for child in node.children:
        last = child is node.children[-1]
        yield from _lines(child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def _node_parts(node: TreeNode) -> list[tuple[str, str]]:
    """What is said of a node, each part with its style."""
    parts = [(node.label, "bold")]
    if node.kind == "base" and node.record:
        parts.append((node.record.base.revision[:12], "dim"))
    elif node.digest:
        parts.append((short(node.digest), "cyan"))
        parts += [(node.record.kind if node.record else "merge", "")] if node.kind == "merge" else []
        parts += [(f"r {node.record.weights.r}", "")] if node.record else []
    shown = "  ".join(text for metric in node.metrics if (text := _metric_text(metric)))
    variant = node.variant or ""
    if node.terms:
        parts.append((f"scores {node.terms}", "dim"))
    if shown:
        shown += "  measured elsewhere, pulled" if node.heard else ""
        parts.append((f"as {variant}: {shown}" if "+" in variant else shown, ""))
    if node.apart:
        more = f" (and {len(node.apart) - 1} more)" if len(node.apart) > 1 else ""
        parts.append((f"apart: {node.apart[0]}{more}", "yellow"))
    if node.overlap:
        parts.append((f"overlap: {node.overlap}", "yellow"))
    if node.marks:
        more = f" (and {len(node.marks) - 1} more)" if len(node.marks) > 1 else ""
        parts.append((node.marks[0] + more, "yellow"))
    return [(" ".join(printable(cut(text)).split("\n")), style) for text, style in parts]


def _metric_text(metric: Metric) -> str:
    count = f" (n={metric.n})" if metric.n else ""
    low, high = metric.ci95 or (None, None)
    if metric.name == "accuracy":
        interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
        return f"{100 * metric.value:.1f} %{interval}{count}"
    if metric.name == "tokens":
        return f"{metric.value:.1f} tokens"
    return ""


def _statement_text(statement: Attestation) -> str:
    payload = statement.payload
    if statement.kind == "signature":
        return f"{statement.created}  signed by {payload.get('key')} (plyfold verify --signature checks it)"
    if statement.kind != "eval":
        return f"{statement.created}  {statement.kind}  {json.dumps(payload, ensure_ascii=False)}"
    from ...registry.lineage.scores import read_score

    score = read_score(statement)
    if score is None:
        return f"{statement.created}  {statement.kind}  {json.dumps(payload, ensure_ascii=False)}"
    numbers = "  ".join(f"{item.name} {item.value:.4g}" for item in score.metrics)
    heard = "  (measured elsewhere, pulled)" if statement.heard else ""
    return f"{statement.created}  variant {score.variant}  {numbers}  {score.terms}{heard}"


def _last_stage(store: Store, curriculum: str | None) -> str:
    name = store.default_curriculum(curriculum)
    stages = store.stages(name)
    return f"{name}:{max(stages, default=1)}"


def _json_of(found: list[Revocation]) -> list[dict[str, str]]:
    return [item.to_json() for item in found]


def _ancestor_json(link: Ancestor) -> dict[str, Any]:
    record = link.entry.record.to_json() if link.entry else None
    return {"digest": link.digest, "role": link.role, "missing": link.entry is None, "record": record}


def _ancestor_row(link: Ancestor, revoked: list[Revocation]) -> list[object]:
    mark = f"  {revoked[0].mark(link.digest)}" if revoked else ""
    if link.entry is None:
        return [short(link.digest), f"missing{mark}", link.role, *[""] * 6]
    record = link.entry.record
    return [
        short(link.digest),
        f"{record.curriculum} {record.label}{mark}",
        link.role,
        record.created,
        record.weights.r,
        record.recipe.steps,
        record.recipe.seed,
        sum(data.rows for data in record.data),
        " ".join(short(parent.digest) for parent in record.parents) or "(base)",
    ]


def _training_lines(record: Record) -> list[tuple[str, str]]:
    """A stage's alarms and gate; anything may stand in a stranger's record."""
    alarms, stages = record.recipe.details.get("alarms"), record.recipe.config.get("stages")
    own = stages.get(record.stage.name) if record.stage and isinstance(stages, dict) else None
    lines = [("alarm", f"{alarm.get('name')}, step {alarm.get('step')}, value {alarm.get('value')}")
             for alarm in (alarms if isinstance(alarms, list) else []) if isinstance(alarm, dict)]  # fmt: skip
    if isinstance(own, dict) and own.get("gate"):
        lines.append(("gate", f"{own['gate']} (what it scored is attested)"))
    return lines


def _record_lines(record: Record) -> list[tuple[str, str]]:
    quantised = ", ".join(f"{key} {value}" for key, value in (record.base.quantisation or {}).items())
    weights = record.weights
    lines = [
        ("adapter", f"{record.curriculum} {record.label}"),
        ("created", record.created),
        ("base", f"{record.base.repo}@{record.base.revision}"),
        ("quantised", quantised or "not on record"),
        ("weights", f"r {weights.r}, alpha {weights.alpha:g}, {weights.dtype}, {', '.join(weights.targets)}"),
        ("tensors", weights.digest),
    ]
    lines += [("parent", f"{parent.digest}  {parent.role}  x {parent.scale:g}") for parent in record.parents]
    lines += [("requires", digest) for digest in record.requires]
    lines.append(("recipe", f"seed {record.recipe.seed}, {record.recipe.steps} steps (--json shows the whole config)"))
    lines += _training_lines(record)
    lines += [("data", f"{data.id} {data.split}, {data.rows:,} rows, {data.sha256}") for data in record.data]
    dirty = ", uncommitted changes" if record.code.dirty else ""
    lines.append(("code", f"plyfold {record.code.version} {record.code.git or ''}{dirty}".rstrip()))
    lines.append(("env", ", ".join(f"{key} {value}" for key, value in record.env.items())))
    lines += [("metric", f"{item.name} {item.value:g} n={item.n} {item.protocol or ''}") for item in record.metrics]
    lines += [("file", f"{item.path}  {item.size:,} bytes  {item.sha256}") for item in record.files]
    lines.append(("licence", record.licence))
    return lines
