"""Questions about the lineage graph: what comes from what, what is out of date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...core.disk.digest import PREFIX, short
from ...core.errors import ConfigError, IntegrityError, NotFoundError
from ..record import Metric, Parent, Record
from ..store import Entry, Snapshot, Store
from ..trust.revocation import revocations
from .contamination import Overlap, nearest
from .scores import BASE_VARIANT, RecordedScore, Terms, scored, variant_name

MAX_DEPTH = 40
"""Levels of stages drawn below each other; readers of JSON have limits too."""


CHANGED = "its configuration has changed"
"""Why a stage is stale whose recipe is not the wanted one."""


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
    """Its score on the terms of the tree."""
    heard: bool = False
    """Whether somebody else measured those, and they came with a pull."""
    terms: Terms | None = None
    """Of a curriculum: what all metrics below it were measured on and with."""
    apart: list[str] = field(default_factory=list)
    """What it scored on other terms, which says nothing beside those metrics."""
    overlap: Overlap | None = None
    """An adapter below those metrics that was trained on the rows they are of."""
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
            "heard": self.heard,
            "terms": self.terms.to_json() if self.terms else None,
            "apart": self.apart,
            "overlap": self.overlap.to_json() if self.overlap else None,
            "children": [child.to_json() for child in self.children],
        }
        return value


class _Place(NamedTuple):
    """Where a stage was drawn."""

    node: TreeNode
    under: TreeNode
    depth: int


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
    return store.read_record(locate(store, ref, curriculum))


def locate(store: Store, ref: str, curriculum: str | None = None) -> str:
    """The digest of the object a user means, as `find`, its record unread.

    Raises:
        NotFoundError: Nothing of that name; the known stages are listed.
        ConfigError: A stage or merge of several curricula, none of which is named.
        IntegrityError: A name that is not a digest.
    """
    if ref.startswith(PREFIX):
        return store.resolve(ref)
    prefix, _, rest = ref.rpartition(":")
    try:
        name = store.default_curriculum(prefix or curriculum) if prefix or curriculum or store.curricula() else ""
        merges = store.merges(name) if name else {}
        found = merges[rest] if rest in merges else store.ref(store.default_curriculum(name or None), rest)
        return store.resolve(found)
    except (NotFoundError, ConfigError):  # of several curricula none is the default, and a digest needs none
        with suppress(NotFoundError, ConfigError):
            return store.resolve(ref)
        raise


def chain(store: Store, digest: str) -> list[Ancestor]:
    """An adapter and all it came from, each before its own parents; ancestors not held are listed, not opened.

    Without recursion, since chains may be long; whatever a store claims, no adapter is visited twice.

    Raises:
        NotFoundError: The adapter itself is not in the store.
        IntegrityError: A record on the way is damaged.
    """
    store = Snapshot.of(store)
    start = store.read_record(digest)
    seen = {start.digest}
    done: list[Ancestor] = []
    path: list[tuple[Ancestor, Iterator[Parent]]] = [
        (Ancestor(digest=start.digest, entry=start, role="self"), iter(start.record.parents))
    ]
    while path:
        _, parents = path[-1]
        parent = next((item for item in parents if item.digest not in seen), None)
        if parent is None:
            done.append(path.pop()[0])
            continue
        seen.add(parent.digest)
        try:
            entry = store.read_record(parent.digest)
        except NotFoundError:
            entry = None
        above = iter(entry.record.parents if entry else ())
        path.append((Ancestor(digest=parent.digest, entry=entry, role=parent.role), above))
    return done[::-1]


def stale(store: Store, curriculum: str, wanted: Mapping[int, str] | None = None) -> dict[int, list[str]]:
    """Stages that would come out differently if trained now, with the reasons.

    A stage is stale when a parent it recorded is not what that parent's stage is at now, when a parent is itself
    stale, when its bytes are not in the store, or when its configuration is not the wanted one.

    Args:
        store: The registry.
        curriculum: Name of the curriculum.
        wanted: Stage number -> digest of the configuration it should have; None leaves configurations alone.
    """
    store = Snapshot.of(store)
    stages = store.stages(curriculum)
    numbers = {digest: number for number, digest in stages.items()}
    reasons: dict[int, list[str]] = {}
    for number, digest in stages.items():  # in order, so that a parent's own reasons are known
        found = _reasons(store, curriculum, digest, numbers, reasons, (wanted or {}).get(number))
        if found:
            reasons[number] = found
    return reasons


def _reasons(
    store: Snapshot,
    curriculum: str,
    digest: str,
    numbers: Mapping[str, int],
    known: Mapping[int, list[str]],
    wanted: str | None,
) -> list[str]:
    try:
        entry = store.read_record(digest)
    except NotFoundError:
        return ["its files are not in the registry"]
    except IntegrityError:
        return ["its record is damaged"]
    reasons = ["a file is missing or changed in size"] if store.damage(entry) else []
    stages = store.stages(curriculum)
    for parent in entry.record.parents:
        number = _number_of(store, curriculum, parent.digest, numbers)
        now = stages.get(number) if number else None
        if now != parent.digest:
            was = f"it was trained on {short(parent.digest)}"
            reasons.append(f"stage {number} is at {short(now)}, {was}" if now else f"{was}, which is no stage here")
        elif number in known:
            reasons.append(f"stage {number} is stale")
    if wanted is not None and entry.record.recipe.config_digest != wanted:
        reasons.append(CHANGED)
    return reasons


def _number_of(store: Store, curriculum: str, digest: str, numbers: Mapping[str, int]) -> int | None:
    """The stage an adapter is, or was before it was trained again; None where that is unknown."""
    if digest in numbers:
        return numbers[digest]
    try:
        record = store.read_record(digest).record
    except (NotFoundError, IntegrityError):
        return None
    return record.stage.number if record.stage and record.curriculum == curriculum else None


def parent_numbers(store: Store, curriculum: str, digest: str) -> tuple[int, ...] | None:
    """Numbers of the stages that a stage was trained on, ascending; None where a parent is no stage here.

    Raises:
        NotFoundError, IntegrityError: The stage's record is gone or damaged.
    """
    snapshot = Snapshot.of(store)
    numbers = {known: number for number, known in snapshot.stages(curriculum).items()}
    record = snapshot.read_record(digest).record
    found = _parent_numbers(snapshot, curriculum, record, numbers)
    return tuple(found) if len(found) == len(record.parents) else None


def _parent_numbers(store: Store, curriculum: str, record: Record, numbers: Mapping[str, int]) -> list[int]:
    found = (_number_of(store, curriculum, parent.digest, numbers) for parent in record.parents)
    return sorted({number for number in found if number})


def tree(store: Store, curriculum: str) -> TreeNode:
    """The curriculum as base -> stages -> merges, each under the last stage it was made on.

    Below `MAX_DEPTH` levels, what was made on a stage stands beside it.

    Raises:
        NotFoundError: No such curriculum.
        IntegrityError: A ref or an attestation is not readable.
    """
    store = Snapshot.of(store)
    store.default_curriculum(curriculum)
    stages = store.stages(curriculum)
    numbers = {digest: number for number, digest in stages.items()}
    outdated = stale(store, curriculum)
    measured = scored(store, curriculum)
    overlapping = _overlapping(store, measured.shown)
    root = TreeNode(kind="curriculum", label=curriculum, terms=measured.terms if measured.shown else None)
    bases: dict[tuple[str, str], TreeNode] = {}
    placed: dict[int, _Place] = {}

    def put_score(node: TreeNode) -> None:
        score = measured.shown.get(node.variant or "")
        node.metrics, node.heard = (score.metrics, score.heard) if score else ([], False)
        node.apart = [other.apart_from(measured.terms) for other in measured.apart.get(node.variant or "", ())]
        own = node.record.metrics if node.record and node.kind != "base" else []
        node.apart += [f"{100 * item.value:.1f} % by its record" for item in own if item.name == "accuracy"]

    def base_node(record: Record) -> TreeNode:
        key = record.base.repo, record.base.revision
        if key not in bases:
            bases[key] = TreeNode(kind="base", label=record.base.repo, record=record, variant=BASE_VARIANT)
            put_score(bases[key])
            root.children.append(bases[key])
        return bases[key]

    def place(node: TreeNode, own: list[int]) -> None:
        """Hang a node below its last parent, and give it the scores of the variant it completes."""
        above = list(placed)  # what is missing or damaged cannot say its parents: it goes below the last stage
        if node.record:
            above = _parent_numbers(store, curriculum, node.record, numbers)
            if node.kind == "stage" or _is_plain_sum(node.record):
                node.variant = variant_name([*above, *own])
            put_score(node)
            node.overlap = overlapping.get(node.variant or "")
        known = [number for number in above if number in placed]
        below = placed[known[-1]] if known else None
        if below is None:
            under, depth = base_node(node.record) if node.record else root, 1
        elif below.depth < MAX_DEPTH:
            under, depth = below.node, below.depth + 1
        else:
            under, depth = below.under, below.depth
        under.children.append(node)
        placed.update({number: _Place(node, under, depth) for number in own})

    for number, digest in stages.items():
        node = _node(store, "stage", str(number), digest)
        node.marks += [f"stale: {reason}" for reason in outdated.get(number, []) if not node.marks]
        place(node, [number])
    for slug, digest in store.merges(curriculum).items():
        node = _node(store, "merge", slug, digest)
        inputs = [parent.digest for parent in node.record.parents] if node.record else []
        gone = [short(item) for item in inputs if item not in numbers]
        node.marks += [f"stale: made of {', '.join(gone)}, which is no current stage"] if gone else []
        place(node, [])
    _mark_revoked(store, root)
    return root


def _overlapping(store: Store, measured: Mapping[str, RecordedScore]) -> dict[str, Overlap]:
    """Variant -> an adapter of it, or below, that was trained on what the variant's score is of."""
    found: dict[str, Overlap] = {}
    sets = {score.data.model_dump_json(): score.data for score in measured.values() if score.data}
    for evaluated in sets.values():
        of_it = [score for score in measured.values() if score.data == evaluated]
        reached = nearest(store, [digest for score in of_it for digest in score.inputs.values()], evaluated)
        for score in of_it:
            hit = next((reached[digest] for digest in score.inputs.values() if digest in reached), None)
            if hit:
                found[score.variant] = hit
    return found


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


def _node(store: Snapshot, kind: str, label: str, digest: str) -> TreeNode:
    node = TreeNode(kind=kind, label=label, digest=digest)
    try:
        entry = store.read_record(digest)
    except NotFoundError:
        node.marks.append("missing")
    except IntegrityError as error:
        node.marks.append(f"damaged: {error.what}")
    else:
        node.record = entry.record
        node.label = entry.record.label if kind == "stage" else label
        node.marks += [f"damaged: {problem}" for problem in store.damage(entry)]
    return node
