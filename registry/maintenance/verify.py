"""Does the store hold what its records, names and statements say? Every byte is hashed, several files at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...core.disk.digest import PREFIX, short
from ...core.errors import IntegrityError, NotFoundError, PlyfoldError
from ..lineage.scores import read_score
from ..lineage.shared_scores import evaluations
from ..record import RECORD_FILE
from ..store import Snapshot, Store, attestations
from ..store.objects import FileProblem, find_problems
from ..store.refs import MERGES
from ..trust.statements import statements

THREADS = max(1, min(4, os.cpu_count() or 1))
"""Objects hashed at once, each in pieces of 1 MiB: sha256 leaves the other threads alone."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What verifying one object, name or set of statements showed."""

    name: str
    """Curriculum and label, `refs/...` or `attest/...`."""
    digest: str
    num_files: int = 0
    size_bytes: int = 0
    problems: list[FileProblem]
    """Faults; empty when sound."""
    notes: list[str]
    """What is no fault of the bytes, such as an ancestor this store does not hold."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "num_files": self.num_files,
            "size_bytes": self.size_bytes,
            "ok": not self.problems,
            "problems": [problem.to_json() for problem in self.problems],
            "notes": self.notes,
        }


def verify(store: Store, digests: Iterable[str] | None = None, *, deep: bool = False) -> Iterator[Check]:
    """Hash every file of every object against its record, and check that every name leads to its object.

    A fault never ends it: what is damaged or not readable is a check that failed.

    Args:
        store: The registry.
        digests: Only these objects, with `deep` also what they came from; None takes all, with names and statements.
        deep: Also compare weights, configs and lineage with the records (see `deep`).

    Yields:
        Objects in order of their digests, then the names and statements at fault.
    """
    store = Snapshot.of(store)
    asked = None if digests is None else list(digests)
    chosen = store.digests() if asked is None else sorted(with_ancestors(store, asked) if deep else set(asked))
    if deep:
        from ...adapters import tensors  # noqa: F401  once, before the threads

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(partial(_check_object, store, deep), chosen)
    if asked is None:
        yield from _check_refs(store)
    yield from _check_statements(store, None if asked is None else set(chosen))


def with_ancestors(store: Snapshot, digests: Iterable[str]) -> set[str]:
    """Adapters and all they came from or require, as far as the store holds them."""
    found, waiting = set[str](), list(digests)
    while waiting:
        digest = waiting.pop()
        if digest in found:
            continue
        found.add(digest)
        try:
            record = store.read_record(digest).record
        except PlyfoldError:
            continue  # its own check says so
        waiting += [above for above in record.above if store.holds(above)]
    return found


def _check_object(store: Snapshot, deep: bool, digest: str) -> Check:
    try:
        entry = store.read_record(digest)
    except PlyfoldError as error:
        fault = FileProblem(path=RECORD_FILE, fault="record", expected=error.expected or digest, found=error.found)
        return Check(name="(unreadable)", digest=digest, problems=[fault], notes=[])
    record = entry.record
    gone = [f"ancestor {short(above)} is not in this registry" for above in record.above if not store.holds(above)]
    try:
        problems = find_problems(entry.path, record)
        if deep:
            from . import deep as deeper

            problems = problems or deeper.content_problems(entry)
            problems += deeper.lineage_problems(store, record)
            gone += deeper.notes(store, entry)
    except OSError as error:
        problems = [FileProblem(path=_name(error), fault="unreadable", found=error.strerror or str(error))]
    return Check(
        name=f"{record.curriculum} {record.label}",
        digest=digest,
        num_files=len(record.files),
        size_bytes=sum(item.size for item in record.files),
        problems=problems,
        notes=gone,
    )


def _name(error: OSError) -> str:
    return os.path.basename(str(error.filename or "")) or "a file"


def _check_refs(store: Snapshot) -> Iterator[Check]:
    for path in sorted(store.layout.refs.glob("*/*/[!.]*")):
        curriculum, slot, alias = path.parts[-3:]
        if not (slot.isdecimal() or slot == MERGES):
            continue
        name = f"refs/{curriculum}/{slot}" + ("" if alias == "latest" and slot != MERGES else f"/{alias}")
        problem = _readable(slot, partial(attestations.read_ref, path))
        digest = "" if problem else attestations.read_ref(path)
        if digest:
            problem = _check_ref(store, curriculum, slot, digest)
        if problem:
            yield Check(name=name, digest=digest or "", problems=[problem], notes=[])


def _check_ref(store: Store, curriculum: str, slot: str, digest: str) -> FileProblem | None:
    try:
        record = store.read_record(digest).record
    except NotFoundError:
        return FileProblem(path=slot, fault="missing", expected=digest, found="no such object")
    except IntegrityError:
        return None  # told with the object itself
    own = str(record.stage.number) if record.stage else MERGES
    if record.curriculum != curriculum or own != slot:
        return FileProblem(
            path=slot, fault="record", expected=f"{curriculum} {slot}", found=f"{record.curriculum} {own}"
        )
    return None


def _check_statements(store: Snapshot, chosen: set[str] | None) -> Iterator[Check]:
    for folder in sorted(store.layout.attest.iterdir()) if store.layout.attest.is_dir() else ():
        digest = PREFIX + folder.name
        if not folder.is_dir() or (chosen is not None and digest not in chosen):
            continue

        def read(digest: str = digest) -> None:
            for said in [*statements(store, digest), *evaluations(store, digest)]:
                if said.sound() is not said:
                    raise IntegrityError(
                        "a statement was changed: its signature is not of its key", where=f"attest/{short(digest)}"
                    )
            for item in store.attestations_of(digest):
                read_score(item)

        problem = _readable(folder.name, read)
        if problem:
            yield Check(name=f"attest/{short(folder.name)}", digest=digest, problems=[problem], notes=[])


def _readable(name: str, read: Callable[[], object]) -> FileProblem | None:
    try:
        read()
    except PlyfoldError as error:
        return FileProblem(path=os.path.basename(error.where) or name, fault="unreadable", found=error.what)
    except OSError as error:
        return FileProblem(path=_name(error), fault="unreadable", found=error.strerror or str(error))
    return None
