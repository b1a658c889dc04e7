"""A store as one question sees it: every record, name and statement is read once, however often it is asked for.

Questions about the whole graph meet the same adapter many times over: as a stage, as a parent, as what was scored.
"""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Self

from ...core.disk.digest import PREFIX
from ...core.errors import PlyfoldError
from ..record import RECORD_FILE, Record
from . import objects
from .attestations import Attestation
from .objects import Entry, FileProblem, find_problems
from .store import Store


class Snapshot(Store):
    """A registry that is only read; what changes meanwhile may not be seen."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, make=False)
        self._entries: dict[str, Entry | PlyfoldError] = {}
        self._statements: dict[str, list[Attestation]] = {}
        self._by_kind: dict[str, dict[str, list[Attestation]]] = {}
        self._problems: dict[str, list[FileProblem]] = {}
        self._stages: dict[str, dict[int, str]] = {}

    @cached_property
    def _held(self) -> dict[str, None]:
        return dict.fromkeys(super().digests())

    @cached_property
    def _curricula(self) -> list[str]:
        return super().curricula()

    @cached_property
    def _attested(self) -> set[str]:
        try:
            return {PREFIX + name for name in os.listdir(self.layout.attest)}
        except FileNotFoundError:
            return set()

    @classmethod
    def of(cls, store: Store) -> Self:
        """The snapshot itself, or a new one of a store."""
        return store if isinstance(store, cls) else cls(store.root)

    def read_record(self, digest: str) -> Entry:
        """As `Store.read_record`."""
        known = self._entries.get(digest)
        if known is None:
            try:
                known = self._read(digest) if digest in self._held else super().read_record(digest)
            except PlyfoldError as error:
                known = error
            self._entries[digest] = known
        if isinstance(known, PlyfoldError):
            raise known.with_traceback(None)
        return known

    def _read(self, digest: str) -> Entry:
        path = self.objects / digest.removeprefix(PREFIX)
        return Entry(digest=digest, path=path, record=objects.read_record(path))

    def damage(self, entry: Entry) -> list[FileProblem]:
        """What names and sizes of an object's files show, as `find_problems` without hashes."""
        if entry.digest not in self._problems:
            fits = _fits(entry.path, entry.record)
            self._problems[entry.digest] = [] if fits else find_problems(entry.path, entry.record, hashes=False)
        return self._problems[entry.digest]

    def holds(self, digest: str) -> bool:
        """Is there an object of this whole digest, sound or not?"""
        return digest in self._held

    def digests(self) -> list[str]:
        """As `Store.digests`."""
        return list(self._held)

    def curricula(self) -> list[str]:
        """As `Store.curricula`."""
        return self._curricula

    def stages(self, curriculum: str) -> dict[int, str]:
        """As `Store.stages`."""
        if curriculum not in self._stages:
            self._stages[curriculum] = super().stages(curriculum)
        return self._stages[curriculum]

    def attestations_of(self, digest: str) -> list[Attestation]:
        """As `Store.said`."""
        if digest not in self._statements:
            self._statements[digest] = super().attestations_of(digest) if digest in self._attested else []
        return self._statements[digest]

    def statements(self, kind: str, curriculum: str) -> list[Attestation]:
        """Statements of a kind about objects held that say a curriculum, by the objects' digests, oldest first."""
        if kind not in self._by_kind:
            named = self._by_kind[kind] = {}
            for item in (
                item for digest in self.digests() for item in self.attestations_of(digest) if item.kind == kind
            ):
                named.setdefault(str(item.payload.get("curriculum")), []).append(item)
        return self._by_kind[kind].get(curriculum, [])

    def resolve(self, digest: str) -> str:
        """As `Store.resolve`."""
        known = self._entries.get(digest)
        return known.digest if isinstance(known, Entry) else super().resolve(digest)


def _fits(path: Path, record: Record) -> bool:
    """Are an object's files, at one level, those of its record, and as large? False where it takes a closer look."""
    found = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    return False
                found[entry.name] = status.st_size
    except OSError:
        return False
    found.pop(RECORD_FILE, None)
    return found == {item.path: item.size for item in record.files}
