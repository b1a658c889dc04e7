"""Questions about the lineage graph: what comes from what, what is out of date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.digest import PREFIX, short
from ..core.errors import ConfigError, IntegrityError, NotFoundError
from .objects import find_problems
from .record import Metric, Record
from .revocation import revocations
from .scores import BASE_VARIANT, scores, variant_name
from .store import Entry, Store


@dataclass(kw_only=True)
class TreeNode:
    """A curriculum, a base, a stage or a merge, with what comes from it."""

    kind: str
    """`curriculum`, `base`, `stage` or `merge`."""
    label: str
    """Name for people: `gsm8k`, `Qwen/Qwen2.5-3B`, `1 structure`, `gsm8k-s1.s2`."""
    digest: str | None = None
    """Identity of a stage or merge."""
    record: Record | None = None
    """Its record, unless missing or damaged."""
    variant: str | None = None
    """The variant whose scores are shown: `base`, `1+2`."""
    marks: list[str] = field(default_factory=list)
    """`revoked: ...`, `stale: ...`, `missing`, `damaged: ...`."""
    metrics: list[Metric] = field(default_factory=list)
    children: list[TreeNode] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"kind": self.kind, "label": self.label, "digest": self.digest}
        if self.record and self.kind != "curriculum":
            record = self.record
            value["base"] = {"repo": record.base.repo, "revision": record.base.revision}
            if self.kind != "base":
                value |= {
                    "stage": record.stage.model_dump() if record.stage else None,
                    "parents": [parent.model_dump() for parent in record.parents],
                    "r": record.weights.r,
                    "created": record.created,
                }
        value |= {
            "variant": self.variant,
            "marks": self.marks,
            "metrics": [metric.model_dump(mode="json") for metric in self.metrics],
            "children": [child.to_json() for child in self.children],
        }
        return value


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One adapter of a chain."""

    digest: str
    entry: Entry | None
    """None where the store does not hold it."""
    role: str
    """What it was to the adapter that named it first: `self`, `active_during_training`, `merge_input`, ..."""


def find(store: Store, ref: str, curriculum: str | None = None) -> Entry:
    """The object a user means by a stage number or name, a merge's slug, `curriculum:stage`, or a digest's start.

    Raises:
        NotFoundError: Nothing of that name; the known stages are listed.
        IntegrityError: Its record is damaged.
    """
    if ref.startswith(PREFIX):
        return store.peek(ref)
    prefix, _, rest = ref.rpartition(":")
    name = store.default_curriculum(prefix or curriculum) if prefix or curriculum or store.curricula() else ""
    try:
        merges = store.merges(name) if name else {}
        return store.peek(merges[rest] if rest in merges else store.ref(store.default_curriculum(name or None), rest))
    except NotFoundError:
        try:
            return store.peek(ref)
        except (NotFoundError, ConfigError):
            pass
        raise


def chain(store: Store, digest: str) -> list[Ancestor]:
    """An adapter and all it came from, each before its own parents; ancestors not held are listed, not opened.

    Raises:
        NotFoundError: The adapter itself is not in the store.
        IntegrityError: A record on the way is damaged.
    """
    seen: set[str] = set()
    ordered: list[Ancestor] = []

    def visit(name: str, role: str) -> None:
        seen.add(name)
        try:
            entry = store.peek(name)
        except NotFoundError:
            if role == "self":
                raise
            entry = None
        for parent in entry.record.parents if entry else []:
            if parent.digest not in seen:
                visit(parent.digest, parent.role)
        ordered.append(Ancestor(digest=entry.digest if entry else name, entry=entry, role=role))

    visit(store.resolve(digest), "self")
    return ordered[::-1]


def stale(store: Store, curriculum: str, wanted: Mapping[int, str] | None = None) -> dict[int, list[str]]:
    """Stages that would come out differently if trained now, with the reasons.

    A stage is stale when a parent it recorded is not what that parent's stage is at now, when a parent is itself
    stale, when its bytes are not in the store, or when its configuration is not the wanted one.

    Args:
        store: The registry.
        curriculum: Name of the curriculum.
        wanted: Stage number -> digest of the configuration it should have; None leaves configurations alone.
    """
    stages = store.stages(curriculum)
    reasons: dict[int, list[str]] = {}
    for number, digest in stages.items():  # in order, so that a parent's own reasons are known
        found = _reasons(store, curriculum, digest, stages, reasons, (wanted or {}).get(number))
        if found:
            reasons[number] = found
    return reasons


def _reasons(
    store: Store, curriculum: str, digest: str, stages: dict[int, str], known: dict[int, list[str]], wanted: str | None
) -> list[str]:
    try:
        entry = store.peek(digest)
    except NotFoundError:
        return ["its files are not in the registry"]
    except IntegrityError:
        return ["its record is damaged"]
    reasons = ["a file is missing or changed in size"] if find_problems(entry.path, entry.record, hashes=False) else []
    for parent in entry.record.parents:
        number = _number_of(store, curriculum, parent.digest, stages)
        now = stages.get(number) if number else None
        if now != parent.digest:
            was = f"it was trained on {short(parent.digest)}"
            reasons.append(f"stage {number} is at {short(now)}, {was}" if now else f"{was}, which is no stage here")
        elif number in known:
            reasons.append(f"stage {number} is stale")
    if wanted is not None and entry.record.recipe.config_digest != wanted:
        reasons.append("its configuration has changed")
    return reasons


def _number_of(store: Store, curriculum: str, digest: str, stages: Mapping[int, str]) -> int | None:
    """The stage an adapter is, or was before it was trained again; None where that is unknown."""
    for number, current in stages.items():
        if current == digest:
            return number
    try:
        record = store.peek(digest).record
    except (NotFoundError, IntegrityError):
        return None
    return record.stage.number if record.stage and record.curriculum == curriculum else None


def _parent_numbers(store: Store, curriculum: str, record: Record, stages: Mapping[int, str]) -> list[int]:
    numbers = (_number_of(store, curriculum, parent.digest, stages) for parent in record.parents)
    return sorted({number for number in numbers if number})


def tree(store: Store, curriculum: str) -> TreeNode:
    """The curriculum as base -> stages -> merges, each under the last stage it was made on.

    Raises:
        NotFoundError: No such curriculum.
        IntegrityError: A ref or an attestation is not readable.
    """
    store.default_curriculum(curriculum)
    stages = store.stages(curriculum)
    outdated = stale(store, curriculum)
    scored = scores(store, curriculum)
    root = TreeNode(kind="curriculum", label=curriculum)
    bases: dict[tuple[str, str], TreeNode] = {}
    placed: dict[int, TreeNode] = {}

    def base_node(record: Record) -> TreeNode:
        key = record.base.repo, record.base.revision
        if key not in bases:
            bases[key] = TreeNode(kind="base", label=record.base.repo, record=record, variant=BASE_VARIANT)
            bases[key].metrics = scored.get(BASE_VARIANT, [])
            root.children.append(bases[key])
        return bases[key]

    def place(node: TreeNode, own: list[int]) -> None:
        """Hang a node below its last parent, and give it the scores of the variant it completes."""
        above = list(placed)  # what is missing or damaged cannot say its parents: it goes below the last stage
        if node.record:
            above = _parent_numbers(store, curriculum, node.record, stages)
            if node.kind == "stage" or _is_plain_sum(node.record):
                node.variant = variant_name([*above, *own])
            node.metrics = scored.get(node.variant or "") or node.record.metrics
        known = [number for number in above if number in placed]
        under = placed[known[-1]] if known else base_node(node.record) if node.record else root
        under.children.append(node)

    for number, digest in stages.items():
        node = _node(store, "stage", str(number), digest)
        node.marks += [f"stale: {reason}" for reason in outdated.get(number, []) if not node.marks]
        place(node, [number])
        placed[number] = node
    for slug, digest in store.merges(curriculum).items():
        node = _node(store, "merge", slug, digest)
        inputs = [parent.digest for parent in node.record.parents] if node.record else []
        gone = [short(item) for item in inputs if item not in stages.values()]
        node.marks += [f"stale: made of {', '.join(gone)}, which is no current stage"] if gone else []
        place(node, [])
    _mark_revoked(store, root)
    return root


def _mark_revoked(store: Store, root: TreeNode) -> None:
    """Put revocations before all other marks."""
    nodes = {node.digest: node for node in _walk(root) if node.digest}
    for digest, found in revocations(store, nodes).items():
        nodes[digest].marks[:0] = [item.mark(digest) for item in found]


def _walk(root: TreeNode) -> Iterator[TreeNode]:
    nodes = [root]
    while nodes:
        node = nodes.pop()
        nodes += node.children
        yield node


def _is_plain_sum(record: Record) -> bool:
    """Is a merge the exact sum of its inputs, so that it is the variant of the same stages?"""
    exact = record.recipe.details.get("method", "exact") == "exact"
    return exact and bool(record.parents) and all(parent.scale == 1.0 for parent in record.parents)


def _node(store: Store, kind: str, label: str, digest: str) -> TreeNode:
    node = TreeNode(kind=kind, label=label, digest=digest)
    try:
        entry = store.peek(digest)
    except NotFoundError:
        node.marks.append("missing")
    except IntegrityError as error:
        node.marks.append(f"damaged: {error.what}")
    else:
        node.record = entry.record
        node.label = entry.record.label if kind == "stage" else label
        problems = find_problems(entry.path, entry.record, hashes=False)
        node.marks += [f"damaged: {problem}" for problem in problems]
    return node
