"""Does an adapter hold what its record says, and does its lineage hold together? What hashes of files cannot tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.spec import COMPOSITION_FILE
from ...core.disk.digest import short
from ...core.errors import IntegrityError, NotFoundError, PlyfoldError
from ...core.reading.strict_json import read_json
from ..lineage.scores import overlapping_scores
from ..record import Parent, Record
from ..store import Store
from ..store.objects import PICKLES, Entry, FileProblem

if TYPE_CHECKING:
    from ...adapters.spec import AdapterSpec

CANONICAL_METADATA = {"format": "pt"}
MAX_COMPOSITION_BYTES = 16_000_000


def content_problems(entry: Entry) -> list[FileProblem]:
    """Compare the tensors and configs of an object, whose files are those of its record, with what the record says.

    Base, rank, alpha, targets, dtype and tensor digest; NaN and infinity; the inputs that `composition.json` names;
    pickles. Reads all weights.
    """
    from ...adapters.spec import read_spec
    from ...adapters.tensors import read_adapter, tensor_digest

    record = entry.record
    problems = [
        FileProblem(path=item.path, fault="unsound", expected="no pickle, which can run any code")
        for item in record.files
        if _is_pickle(entry.path / item.path)
    ]
    try:
        spec = read_spec(entry.path)
        read_adapter(entry.path)  # for the numbers themselves: none is NaN or infinite
        digest = tensor_digest(entry.path)
    except PlyfoldError as error:
        name = Path(error.where).name or "adapter"
        return [*problems, FileProblem(path=name, fault="unsound", expected=error.expected, found=_said(error))]
    weights, targets = record.weights, spec.config.get("target_modules")
    pairs = [
        ("base", f"{record.base.repo}@{record.base.revision}", f"{spec.base_repo}@{spec.base_revision}"),
        ("r", str(weights.r), str(max(module.r for module in spec.modules.values()))),
        ("alpha", f"{weights.alpha:g}", f"{float(spec.config.get('lora_alpha', 0)):g}"),
        ("dtype", weights.dtype, spec.dtype),
        ("tensors", weights.digest, digest),
    ]
    if isinstance(targets, list):
        pairs.append(("targets", ", ".join(sorted(weights.targets)), ", ".join(sorted(targets))))
    problems += [
        FileProblem(path=name, fault="record", expected=want, found=got) for name, want, got in pairs if want != got
    ]
    return [*problems, *_composition_problems(entry)]


def lineage_problems(store: Store, record: Record) -> Iterator[FileProblem]:
    """What contradicts itself between an adapter and those it names, as far as the store holds them."""
    needed = [*record.parents, *(Parent(role="active_during_training", digest=each) for each in record.requires)]
    for parent in {item.digest: item for item in reversed(needed) if item.role != "teacher"}.values():
        try:
            other = store.read_record(parent.digest).record
        except (NotFoundError, IntegrityError):
            continue  # the one is noted, the other is told with the object itself
        name = f"{other.label} ({short(parent.digest)})"
        bases = [f"{item.base.repo}@{item.base.revision}" for item in (record, other)]
        if bases[0] != bases[1]:
            yield FileProblem(path=f"base of {name}", fault="record", expected=bases[0], found=bases[1])
        below = parent.role == "active_during_training" and other.curriculum == record.curriculum
        if below and record.stage and other.stage and other.stage.number >= record.stage.number:
            yield FileProblem(path=f"stage of {name}", fault="record", expected=f"below {record.stage.number}")


def notes(store: Store, entry: Entry) -> Iterator[str]:
    """What is no fault of the object, and good to know."""
    from ...adapters.spec import read_spec

    if entry.record.kind == "merge" and not (entry.path / COMPOSITION_FILE).is_file():
        yield f"it has no {COMPOSITION_FILE}"
    with suppress(PlyfoldError):  # told as a problem
        yield from _uncanonical(read_spec(entry.path))
    with suppress(IntegrityError):  # the statement has a row of its own
        for score, hits in overlapping_scores(store, entry.digest):
            for hit in hits:
                yield f"overlap: variant {score.variant} was scored {score.created}, but {hit}"


def _uncanonical(spec: AdapterSpec) -> Iterator[str]:
    """Where a folder is not in the form that gives equal adapters equal bytes."""
    from ...adapters.tensors import SET_LIKE

    if spec.header.metadata != CANONICAL_METADATA:
        yield f"not canonical: the metadata of its tensors is {_shown(spec.header.metadata)}"
    if spec.marks:
        yield f"not canonical: its keys carry {_shown(', '.join(spec.marks))}"
    unsorted = [key for key in SET_LIKE if isinstance(found := spec.config.get(key), list) and found != sorted(found)]
    if unsorted:
        yield f"not canonical: {', '.join(unsorted)} not sorted"


def _composition_problems(entry: Entry) -> list[FileProblem]:
    """Does `composition.json` name the inputs and weights that the record names as parents?"""
    path = entry.path / COMPOSITION_FILE
    if entry.record.kind != "merge" or not path.is_file():
        return []
    try:
        inputs = read_json(path, max_bytes=MAX_COMPOSITION_BYTES)["inputs"]
        found = [(item["record"], float(item["weight"])) for item in inputs]
    except (OSError, ValueError, KeyError, TypeError):
        return [FileProblem(path=COMPOSITION_FILE, fault="unsound", expected="a composition's inputs")]
    want = [(parent.digest, parent.scale) for parent in entry.record.parents]
    if found == want:
        return []
    return [FileProblem(path=COMPOSITION_FILE, fault="record", expected=_inputs(want), found=_inputs(found))]


def _inputs(pairs: list[tuple[Any, float]]) -> str:
    return ", ".join(f"{short(str(digest))} x {weight:g}" for digest, weight in pairs) or "none"


def _is_pickle(path: Path) -> bool:
    """By its name, or by the first two bytes of pickle's protocols 2 to 5."""
    with path.open("rb") as file:
        start = file.read(2)
    return path.suffix.lower() in PICKLES or (
        start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
    )


def _said(error: PlyfoldError) -> str:
    return f"{error.what}: {error.found}" if error.found else f"{error.what} ({error.where})"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
