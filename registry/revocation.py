"""Adapters that should not be used any more, and everything that stands on them.

A revocation is a statement beside an object, so the object itself and its digest stay as they are. It reaches whatever
was made from the object, through parents and requirements, also where the object itself is no longer held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    known: dict[str, tuple[list[Revocation], list[str]]] = {}
    found = {}
    for digest in digests:
        reached: list[Revocation] = []
        queue = {digest: None}
        for name in _growing(queue):  # breadth first, without recursion
            if name not in known:
                record = _record(store, name)
                above = [parent.digest for parent in record.parents] + record.requires if record else []
                known[name] = _own(store, name, record), above
            own, above = known[name]
            reached += own
            queue |= dict.fromkeys(above)
        if reached:
            found[digest] = reached
    return found


def descendants(store: Store, digest: str) -> list[str]:
    """Objects of the store that were made from `digest`, directly or not; damaged records are passed over."""
    children: dict[str, list[str]] = {}
    for held in store.digests():
        record = _record(store, held)
        for above in {*[parent.digest for parent in record.parents], *record.requires} if record else ():
            children.setdefault(above, []).append(held)
    queue = {store.resolve(digest): None}
    for name in _growing(queue):
        queue |= dict.fromkeys(children.get(name, []))
    return list(queue)[1:]


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


def _growing(queue: dict[str, None]) -> Iterator[str]:
    """The keys in order, with those that are added meanwhile."""
    done = 0
    while done < len(queue):
        batch = list(queue)[done:]
        done += len(batch)
        yield from batch


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
