"""What lies beside an adapter in its repository outside its digest: what is said of it, scores, a signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ...core.disk.digest import short
from ...core.errors import IntegrityError
from ..lineage.shared_scores import EVALUATIONS, parse_evaluations
from ..store import Store
from ..trust.shared_statements import MAX_TRAVEL_BYTES, Known, SharedStatement, Sort, fresh, join_statements, to_bytes
from ..trust.signing import signature_of
from ..trust.statements import STATEMENTS, parse_statements
from ..trust.trust import Trust

REVOCATIONS_FILE = "revocations.json"
EVALUATIONS_FILE = "evaluations.json"
SIGNATURE_FILE = "model.sig"
MAX_COMPANION_BYTES = MAX_TRAVEL_BYTES
"""Largest companion fetched."""


T = TypeVar("T", bound=SharedStatement)


def companions(
    store: Store,
    digest: str,
    remote: Mapping[str, bytes],
    where: object,
    *,
    replace_signature: bool = False,
    replace_statements: bool = False,
    notice: Callable[[str], object] = lambda line: None,
) -> dict[str, bytes]:
    """What should stand beside an adapter, given what stands there: what is said here, and of the rest what fits.

    Args:
        store: The registry.
        digest: The adapter at the head of the repository.
        remote: Name -> bytes of the companions that are there.
        where: The repository, for messages.
        replace_signature: Put our signature in the place of one that is there.
        replace_statements: Put what is said here in the place of a file of statements that cannot be read, and of
            statements about an adapter of which there are more than are kept.
        notice: Called with a line about each thing that does not stay.

    Raises:
        IntegrityError: What is there, or here, is not readable.
    """
    known = _Beside(store, digest, remote, where, replace_statements, notice)
    revoked = known.file(REVOCATIONS_FILE, STATEMENTS, parse_statements)
    scored = known.file(EVALUATIONS_FILE, EVALUATIONS, parse_evaluations)
    files = {name: data for name, data in ((REVOCATIONS_FILE, revoked), (EVALUATIONS_FILE, scored)) if data is not None}
    ours, theirs = signature_of(store, digest), remote.get(SIGNATURE_FILE)
    signature = ours if ours and (replace_signature or theirs is None) else theirs
    return files | ({SIGNATURE_FILE: signature} if signature else {})


@dataclass(frozen=True)
class _Beside:
    """One repository's files of statements, about to be written anew; see `companions`."""

    store: Store
    digest: str
    remote: Mapping[str, bytes]
    where: object
    replace: bool
    notice: Callable[[str], object]

    def file(self, name: str, sort: Sort[T], parse: Callable[[bytes, object], list[T]]) -> bytes | None:
        """What is to stand there, or None for no file."""
        unreadable = False
        there: list[T] = []
        try:
            there = parse(self.remote[name], self.where) if name in self.remote else []
        except IntegrityError as error:
            if not self.replace:
                raise
            self.notice(f"{name} of {self.where} could not be read ({error.found}); what is said here is in its place")
            unreadable = True
        said = said_together(self.store, self.digest, there, sort, self.notice, replace=self.replace)
        return to_bytes(said) if said or unreadable else None


def said_together(
    store: Store,
    digest: str,
    there: Iterable[T],
    sort: Sort[T],
    notice: Callable[[str], object] = lambda line: None,
    *,
    replace: bool = False,
) -> list[T]:
    """What is said here and there, bounded: first what is said here, then what is there, about this adapter and others.

    Args:
        store: The registry.
        digest: The adapter.
        there: What is there, about this adapter and others.
        sort: What it is.
        notice: Called with a line where not all of it stays.
        replace: Of an adapter about which there is more than is kept, only what is said here stays.

    Raises:
        IntegrityError: What is said here is not readable.
    """
    others: dict[str, list[Known[T]]] = {digest: []}
    for item in there:
        others.setdefault(item.digest, []).append(Known(item))
    trust, chosen, room = Trust(), list[T](), MAX_TRAVEL_BYTES
    for each, heard in others.items():
        here = sort.known(store, each) if each == digest else []
        every = [*here, *fresh(join_statements(heard), here)]
        fitting = sort.bounded(every, ())
        if len(fitting) < len(every):  # keys are only looked at where they decide
            fitting = sort.bounded(here if replace else every, trust.keys(store, each))
        kept = [item.sound().said for item in fitting]
        room -= len(to_bytes(kept))
        if room < 0:
            kept = []
        if len(kept) < len(every):
            left = "" if replace else "; plyfold push --replace-statements leaves what is said here"
            notice(f"of {len(every):,} statements about {short(each)} there and here, {len(kept):,} stay{left}")
        chosen += kept
    return chosen
