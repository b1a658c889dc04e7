"""Copies of registered adapters outside a registry: plain folders that still hold their record.

Such a folder says what it is and what it came from. It is believed only while its files are the ones its record
names; what this machine's registry knows of the adapter, or of what it came from, then holds for the copy too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...core.disk.digest import sha256_bytes
from ...core.errors import IntegrityError
from ..record import RECORD_FILE, parse_record, read_record_bytes
from ..store import Store
from ..store.objects import Entry, find_problems
from ..trust.revocation import Revocation, refuse_revoked, revocations


def read_copy(folder: Path) -> Entry | None:
    """What a folder's own record says it is, every file of it verified; None where there is no record.

    Files the record does not name, such as a card, are passed over.

    Raises:
        IntegrityError: The record is not readable, or its files are not what it says.
    """
    path = folder / RECORD_FILE
    if not os.path.isfile(path):  # never an error: what is wrong with the folder, its reader says
        return None
    plain = f"fetch the adapter again, or delete {path} to take it as a plain folder of unknown origin"
    data = read_record_bytes(path)
    try:
        record = parse_record(data, path)
    except IntegrityError as error:
        error.next_step = plain
        raise
    problems = [problem for problem in find_problems(folder, record) if problem.fault != "extra"]
    if problems:
        raise IntegrityError(
            f"the adapter is not the {record.label} adapter of {record.curriculum} that its record describes",
            where=folder / problems[0].path,
            expected=problems[0].expected or "the file its record names",
            found=problems[0].found or f"{problems[0].fault} file",
            next_step=plain,
        )
    return Entry(digest=sha256_bytes(data), path=folder, record=record)


def refuse_revoked_copies(store: Store, copies: Sequence[Entry]) -> None:
    """Refuse copies of adapters that `store` knows to be revoked, or to stand on one that is.

    Raises:
        IntegrityError: The first of them.
    """
    refuse_revoked(store, _lineage(copies))


def revoked_copies(store: Store, copies: Sequence[Entry]) -> list[Revocation]:
    """The revocations that reach copies, each once."""
    found = revocations(store, _lineage(copies)).values()
    return list(dict.fromkeys(item for each in found for item in each))


def _lineage(copies: Sequence[Entry]) -> list[str]:
    """The copies and what their records name: the store may hold neither."""
    named = [
        name
        for copy in copies
        for name in (copy.digest, *(parent.digest for parent in copy.record.parents), *copy.record.requires)
    ]
    return list(dict.fromkeys(named))
