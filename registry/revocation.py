"""Adapters that should not be used any more, and everything that stands on them.

A revocation is a statement beside an object, so the object itself and its digest stay as they are. It reaches whatever
was made from the object, through parents and requirements, also where the object itself is no longer held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core.digest import PREFIX, short
from ..core.errors import ConfigError, IntegrityError, NotFoundError
from .ledger import read_attestations
from .record import Record
from .store import Store

REVOKED = "revoked"
"""Kind of the attestations that revoke."""


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """One adapter that was revoked."""

    digest: str
    label: str
    """`1 structure`, or the digest's start where the object is not held."""
    reason: str
    created: str
    """UTC, to the second."""

    def to_json(self) -> dict[str, str]:
        return {"digest": self.digest, "label": self.label, "reason": self.reason, "created": self.created}

    def mark(self, of: str) -> str:
        """As a mark on the adapter `of`, which is the revoked one or stands on it."""
        return f"revoked: {self.reason}" if of == self.digest else f"revoked ancestor {self.label}: {self.reason}"


def revoke(store: Store, digest: str, reason: str) -> Revocation:
    """State that an adapter should not be used; stating the same again changes nothing.

    Raises:
        NotFoundError: No such object.
        ConfigError: No reason, or one that holds a local path.
    """
    text = " ".join(reason.split())
    if not text:
        raise ConfigError("a revocation needs a reason", next_step="add --reason TEXT: whoever meets it will read it")
    entry = store.peek(digest)
    if not any(item.reason == text for item in _own(store, entry.digest, entry.record)):
        store.attest(entry.digest, REVOKED, {"reason": text})
    return next(item for item in _own(store, entry.digest, entry.record) if item.reason == text)


def revocations(store: Store, digests: Iterable[str]) -> dict[str, list[Revocation]]:
    """Digest -> the revocations that reach it, nearest first; adapters that none reaches are left out.

    Raises:
        IntegrityError: An attestation on the way is not readable, so nothing can be said.
    """
    if not any((store.root / "attest").iterdir()):
        return {}
    asked = list(digests)
    own: dict[str, list[Revocation]] = {}
    children: dict[str, list[str]] = {}
    queue = list(asked)
    while queue:
        name = queue.pop()
        if name in own:
            continue
        record = _record(store, name)
        own[name] = _own(store, name, record)
        for above in dict.fromkeys([parent.digest for parent in record.parents] + record.requires) if record else ():
            children.setdefault(above, []).append(name)
            queue.append(above)
    reached: dict[str, list[tuple[int, Revocation]]] = {}
    for name, stated in own.items():  # from the few that are revoked down to all that stand on them
        for below, distance in _distances(children, name).items() if stated else ():
            reached.setdefault(below, []).extend((distance, item) for item in stated)
    near = {name: sorted(found, key=lambda pair: pair[0]) for name, found in reached.items()}
    return {name: [item for _, item in near[name]] for name in asked if name in near}


def descendants(store: Store, digest: str) -> list[str]:
    """Objects of the store that were made from `digest`, directly or not; damaged records are passed over."""
    children: dict[str, list[str]] = {}
    for held in store.digests():
        record = _record(store, held)
        for above in {*[parent.digest for parent in record.parents], *record.requires} if record else ():
            children.setdefault(above, []).append(held)
    return list(_distances(children, store.resolve(digest)))[1:]


def refuse_revoked(store: Store, digests: Iterable[str]) -> None:
    """Refuse adapters that are revoked or stand on one that is.

    Raises:
        IntegrityError: The first of them, with who revoked what and why.
    """
    for digest, (first, *more) in revocations(store, digests).items():
        record = _record(store, digest)
        own = f"the {record.label if record else short(digest)} adapter"
        raise IntegrityError(
            f"{own} was revoked" if first.digest == digest else f"{own} stands on a revoked adapter",
            where=f"{first.label}  {first.digest}",
            expected="no revoked adapter among the inputs and their ancestors",
            found=f"revoked {first.created}: {first.reason}" + (f" (and {len(more)} more)" if more else ""),
            next_step="train it again without that adapter, or add --allow-revoked",
        )


def _distances(children: Mapping[str, list[str]], start: str) -> dict[str, int]:
    """`start` and all below it -> number of steps, nearest first; without recursion, since chains may be long."""
    found = {start: 0}
    queue = deque([start])
    while queue:
        name = queue.popleft()
        for child in children.get(name, []):
            if child not in found:
                found[child] = found[name] + 1
                queue.append(child)
    return found


def _own(store: Store, digest: str, record: Record | None) -> list[Revocation]:
    label = record.label if record else short(digest)
    folder = store.root / "attest"
    if not (folder / digest.removeprefix(PREFIX)).is_dir():
        return []
    return [
        Revocation(digest=digest, label=label, reason=str(item.payload.get("reason", "")), created=item.created)
        for item in read_attestations(folder, digest)
        if item.kind == REVOKED
    ]


def _record(store: Store, digest: str) -> Record | None:
    try:
        return store.peek(digest).record
    except (NotFoundError, IntegrityError):
        return None
