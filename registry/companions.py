"""What lies beside an adapter in its repository outside its digest: what is said of it, scores, a signature."""

from __future__ import annotations

from collections.abc import Mapping

from .evaluations import evaluations, evaluations_to_bytes, parse_evaluations
from .signing import signature_of
from .statements import parse_statements, statements
from .store import Store
from .travel import MAX_TRAVEL_BYTES, to_bytes

REVOCATIONS_FILE = "revocations.json"
EVALUATIONS_FILE = "evaluations.json"
SIGNATURE_FILE = "model.sig"
MAX_COMPANION_BYTES = MAX_TRAVEL_BYTES
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
    measured = parse_evaluations(remote[EVALUATIONS_FILE], where) if EVALUATIONS_FILE in remote else []
    if measured := [*measured, *evaluations(store, digest)]:
        files[EVALUATIONS_FILE] = evaluations_to_bytes(measured)
    ours, theirs = signature_of(store, digest), remote.get(SIGNATURE_FILE)
    signature = ours if ours and (replace_signature or theirs is None) else theirs
    return files | ({SIGNATURE_FILE: signature} if signature else {})
