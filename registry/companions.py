"""What lies beside an adapter in its repository and is no part of its digest: statements about it, and a signature."""

from __future__ import annotations

from collections.abc import Mapping

from .signing import keep_signature, signature_of
from .statements import MAX_STATEMENTS_BYTES, Statement, adopt, parse_statements, statements, to_bytes
from .store import Store

REVOCATIONS_FILE = "revocations.json"
SIGNATURE_FILE = "model.sig"
COMPANIONS = (REVOCATIONS_FILE, SIGNATURE_FILE)
MAX_COMPANION_BYTES = MAX_STATEMENTS_BYTES
"""Largest companion fetched."""


def companions(
    store: Store, digest: str, remote: Mapping[str, bytes], where: object, *, replace_signature: bool = False
) -> dict[str, bytes]:
    """What should stand beside an adapter, given what stands there: nothing said is ever dropped.

    Args:
        store: The registry.
        digest: The adapter at the head of the repository.
        remote: Name -> bytes of the companions that are there.
        where: The repository, for messages.
        replace_signature: Put our signature in the place of one that is there.

    Raises:
        IntegrityError: What is there, or here, is not readable.
    """
    there = parse_statements(remote[REVOCATIONS_FILE], where) if REVOCATIONS_FILE in remote else []
    said = [*there, *statements(store, digest)]
    files = {REVOCATIONS_FILE: to_bytes(said)} if said else {}
    ours, theirs = signature_of(store, digest), remote.get(SIGNATURE_FILE)
    signature = ours if ours and (replace_signature or theirs is None) else theirs
    return files | ({SIGNATURE_FILE: signature} if signature else {})


def keep_companions(store: Store, digest: str, remote: Mapping[str, bytes], where: object) -> list[Statement]:
    """Take what stood beside an adapter into the registry; return the statements that were not known here.

    Statements about other adapters are kept as well: a repository holds a stage's whole history.

    Raises:
        IntegrityError: It is not readable, or a signature of another adapter.
    """
    said = parse_statements(remote[REVOCATIONS_FILE], where) if REVOCATIONS_FILE in remote else []
    if SIGNATURE_FILE in remote:
        keep_signature(store, digest, remote[SIGNATURE_FILE], where)
    return adopt(store, said)
