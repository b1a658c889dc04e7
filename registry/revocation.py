"""Adapters that should not be used any more, and everything that stands on them.

A revocation is a statement beside an object, so the object itself and its digest stay as they are, and it travels with
it over the Hub. It reaches whatever was made from the object, through parents and requirements, also where the object
itself is not held.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from ..core.digest import short
from ..core.errors import ConfigError, IntegrityError, NotFoundError
from .ancestry import known_record
from .record import Record, check_portable, utc_now
from .statements import Said, Statement, adopt, standing, statements
from .store import Store


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """One adapter that was revoked."""

    digest: str
    label: str
    """`1 structure`, or the name its statement gives where the object is not held."""
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
    entry = store.peek(digest)
    said = _said(entry.record, reason)
    if not any(item.reason == said.reason for item in _own(store, entry.digest, entry.record)):
        earlier = {item.id for item in statements(store, entry.digest)}
        new = Statement(digest=entry.digest, kind="revoked", created=utc_now(), payload=said)
        while new.id in earlier:  # said, withdrawn and said again within a second: one statement, unless time passes
            time.sleep(0.1)
            new = new.model_copy(update={"created": utc_now()})
        adopt(store, [new])
    return next(item for item in _own(store, entry.digest, entry.record) if item.reason == said.reason)


def withdraw(store: Store, digest: str, reason: str) -> list[Revocation]:
    """Take back all revocations of an adapter itself; return them. Those of its ancestors stay.

    Raises:
        NotFoundError: No such object, or it is not revoked.
        ConfigError: No reason, or one that holds a local path.
    """
    entry = store.peek(digest)
    said = _said(entry.record, reason)
    revoked = standing(statements(store, entry.digest))
    if not revoked:
        raise NotFoundError(
            "the adapter is not revoked",
            where=f"{entry.record.curriculum} {entry.record.label}  {entry.digest}",
            next_step="`plyfold log` shows which of its ancestors is",
        )
    taken = _own(store, entry.digest, entry.record)
    said = said.model_copy(update={"withdraws": tuple(item.id for item in revoked)})
    adopt(store, [Statement(digest=entry.digest, kind="withdrawn", created=utc_now(), payload=said)])
    return taken


def revocations(store: Store, digests: Iterable[str]) -> dict[str, list[Revocation]]:
    """Digest -> the revocations that reach it, nearest first; adapters that none reaches are left out.

    Raises:
        IntegrityError: An attestation on the way is not readable, so nothing can be said.
    """
    attested = store.root / "attest"
    if not attested.is_dir():  # a read-only copy may lack empty folders
        return {}
    with os.scandir(attested) as entries:
        if next(entries, None) is None:
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
    return [
        Revocation(
            digest=digest,
            label=record.label if record else item.payload.label,
            reason=item.payload.reason,
            created=item.created,
        )
        for item in standing(statements(store, digest))
    ]


def _said(record: Record, reason: str) -> Said:
    text = " ".join(reason.split())
    try:
        check_portable(text)
        return Said(reason=text, label=f"{record.curriculum} {record.label}")
    except ValidationError as error:
        raise ConfigError(
            "a revocation needs a reason",
            expected="1 to 2,000 characters in a line",
            found=f"{len(text)} characters" if text else "none",
            next_step="add --reason TEXT: whoever meets it will read it",
        ) from error


def _record(store: Store, digest: str) -> Record | None:
    try:
        return store.peek(digest).record
    except NotFoundError:
        return known_record(store, digest)
    except IntegrityError:
        return None
