"""Does the store hold what its records and refs say? Every byte is hashed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.digest import short
from ..core.errors import IntegrityError, NotFoundError, PlyfoldError
from .objects import Problem, find_problems
from .record import RECORD_FILE
from .store import MERGES, Entry, Store


@dataclass(frozen=True, kw_only=True)
class Check:
    """What verifying one object or ref showed."""

    name: str
    """Curriculum and label, or the ref."""
    digest: str
    num_files: int
    size_bytes: int
    problems: list[Problem]
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


def verify(store: Store, *, deep: bool = False) -> Iterator[Check]:
    """Hash every file of every object against its record, and check that every ref leads to its object.

    Args:
        store: The registry.
        deep: Also compare tensor headers and `adapter_config.json` with the record.
    """
    for digest in store.digests():
        yield _check_object(store, digest, deep)
    for curriculum in store.curricula():
        named = {str(number): digest for number, digest in store.stages(curriculum).items()}
        named |= {f"{MERGES}/{slug}": digest for slug, digest in store.merges(curriculum).items()}
        for slot, digest in named.items():
            problem = _check_ref(store, curriculum, slot, digest)
            if problem:
                name = f"refs/{curriculum}/{slot}"
                yield Check(name=name, digest=digest, num_files=0, size_bytes=0, problems=[problem], notes=[])


def _check_object(store: Store, digest: str, deep: bool) -> Check:
    try:
        entry = store.peek(digest)
    except PlyfoldError as error:
        fault = Problem(path=RECORD_FILE, fault="record", expected=error.expected or digest, found=error.found)
        return Check(name="(unreadable)", digest=digest, num_files=0, size_bytes=0, problems=[fault], notes=[])
    record = entry.record
    problems = find_problems(entry.path, record)
    if deep and not problems:
        problems = _check_content(entry)
    held = set(store.digests())
    gone = [
        f"ancestor {short(parent)} is not in this registry"
        for parent in [parent.digest for parent in record.parents]
        if parent not in held
    ]
    return Check(
        name=f"{record.curriculum} {record.label}",
        digest=digest,
        num_files=len(record.files),
        size_bytes=sum(item.size for item in record.files),
        problems=problems,
        notes=gone,
    )


def _check_content(entry: Entry) -> list[Problem]:
    """Does the adapter say of itself what its record says of it?"""
    from ..adapters.spec import read_spec

    try:
        spec = read_spec(entry.path)
    except PlyfoldError as error:
        name = Path(error.where).name or "adapter"
        return [Problem(path=name, fault="record", expected=error.expected, found=f"{error.what}: {error.found}")]
    record = entry.record
    pairs = [
        ("base", f"{record.base.repo}@{record.base.revision}", f"{spec.base_repo}@{spec.base_revision}"),
        ("r", str(record.weights.r), str(max(module.r for module in spec.modules.values()))),
        ("dtype", record.weights.dtype, spec.dtype),
    ]
    return [Problem(path=name, fault="record", expected=want, found=got) for name, want, got in pairs if want != got]


def _check_ref(store: Store, curriculum: str, slot: str, digest: str) -> Problem | None:
    try:
        record = store.peek(digest).record
    except NotFoundError:
        return Problem(path=slot, fault="missing", expected=digest, found="no such object")
    except IntegrityError:
        return None  # told with the object itself
    own = str(record.stage.number) if record.stage else slot
    if record.curriculum != curriculum or own != slot:
        return Problem(path=slot, fault="record", expected=f"{curriculum} {slot}", found=f"{record.curriculum} {own}")
    return None
