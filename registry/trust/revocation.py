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
from itertools import islice

from pydantic import ValidationError

from ...core.disk.digest import short
from ...core.errors import ConfigError, IntegrityError, NotFoundError
from ..record import Record, check_portable, utc_now
from ..store import Store
from ..store.ancestor_records import known_record
from .statements import REVOKED, STATEMENTS, WITHDRAWN, RevocationPayload, Statement, adopt, standing_here, statements
from .trust import Signer, Trust


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


def revoke(store: Store, digest: str, reason: str, signer: Signer | None = None) -> Revocation:
    """State that an adapter should not be used; stating the same again changes nothing, save that it may be signed.

    Args:
        store: The registry.
        digest: An object of it.
        reason: Why, for whoever meets it.
        signer: The key to sign with: then only this key can take it back.

    Raises:
        NotFoundError: No such object or key.
        ConfigError: No reason, or one that holds a local path; or not a private key.
        AuthError: The key is encrypted and the password missing or wrong.
    """
    entry = store.read_record(digest)
    said = _said(entry.record, reason)
    known = statements(store, entry.digest)
    new = next((item for item in standing_here(store, entry.digest) if item.payload.reason == said.reason), None)
    if new is None:
        new = Statement(digest=entry.digest, kind=REVOKED, created=utc_now(), payload=said)
        while any(item.id == new.id for item in known):  # said, withdrawn and said again within a second
            time.sleep(0.1)
            new = Statement(digest=entry.digest, kind=REVOKED, created=utc_now(), payload=said)
    if signer:
        signed = new.signed(signer)
        new = next((item for item in known if (item.id, item.claimed) == (signed.id, signed.claimed)), signed)
    adopt(store, [new], own=True)
    stated = (item for item in _own(store, entry.digest, entry.record, Trust()) if item.reason == said.reason)
    if (done := next(stated, None)) is None:
        raise ConfigError(
            "the adapter is revoked by as many statements as are kept of one",
            where=f"{entry.record.curriculum} {entry.record.label}  {entry.digest}",
            expected=f"at most {STATEMENTS.max_kept}, each with a reason of its own",
            next_step="plyfold revoke --withdraw takes all of them back; then revoke it for this reason",
        )
    return done


def withdraw(store: Store, digest: str, reason: str, signer: Signer | None = None) -> list[Revocation]:
    """Take back all revocations of an adapter itself; return them. Those of its ancestors stay.

    Args:
        store: The registry.
        digest: An object of it.
        reason: Why.
        signer: The key to sign with; needed where keys are named, or a revocation is signed.

    Raises:
        NotFoundError: No such object or key, or it is not revoked.
        ConfigError: No reason, or one that holds a local path; or a revocation would stand all the same, since only
            another key can take it back. Nothing is said then.
        AuthError: The key is encrypted and the password missing or wrong.
    """
    entry, trust = store.read_record(digest), Trust()
    said = _said(entry.record, reason)
    revoked = standing_here(store, entry.digest, trust=trust)
    if not revoked:
        raise NotFoundError(
            "the adapter is not revoked",
            where=f"{entry.record.curriculum} {entry.record.label}  {entry.digest}",
            next_step="`plyfold log` shows which of its ancestors is",
        )
    taken = _own(store, entry.digest, entry.record, trust)
    said = said.model_copy(update={"withdraws": tuple(item.id for item in revoked)})
    new = Statement(digest=entry.digest, kind=WITHDRAWN, created=utc_now(), payload=said)
    new = new.signed(signer) if signer else new
    if left := standing_here(store, entry.digest, [new], trust):
        counting = trust.keys(store, entry.digest) or {item.claimed for item in revoked if item.id == left[0].id}
        raise ConfigError(
            "this would take nothing back: who may is told by a key",
            where=f"{left[0].payload.label}, revoked {left[0].created}: {left[0].payload.reason}",
            expected=f"a withdrawal signed by {' or '.join(sorted(counting))}",
            found=f"one signed by {new.claimed}" if signer else "one that is not signed",
            next_step="add --sign KEY.pem with the private key of that one, or use the adapter with --allow-revoked",
        )
    adopt(store, [new], own=True)
    return taken


MAX_SOURCES = 8
"""Most revoked adapters that are told of one adapter that stands on them, the nearest."""
MAX_TOLD = 20
"""Most revocations that are told of one adapter."""


def revocations(store: Store, digests: Iterable[str], trust: Trust | None = None) -> dict[str, list[Revocation]]:
    """Digest -> the revocations that reach it, the nearest few first; adapters that none reaches are left out.

    Args:
        store: The registry.
        digests: Adapters.
        trust: The keys that are named; by default those that PLYFOLD_PUBLIC_KEY names.

    Raises:
        IntegrityError: An attestation on the way is not readable, so nothing can be said.
        ConfigError, NotFoundError: A key that is named cannot be used.
    """
    attested = store.layout.attest
    if not attested.is_dir():  # a read-only copy may lack empty folders
        return {}
    with os.scandir(attested) as entries:
        if next(entries, None) is None:
            return {}
    trust = trust or Trust()
    asked = list(digests)
    own: dict[str, list[Revocation]] = {}
    children: dict[str, list[str]] = {}
    queue = list(asked)
    while queue:
        name = queue.pop()
        if name in own:
            continue
        record = _record(store, name)
        own[name] = _own(store, name, record, trust)
        for above in record.above if record else ():
            children.setdefault(above, []).append(name)
            queue.append(above)
    near = _nearest([name for name, stated in own.items() if stated], children)
    return {
        name: list(islice((item for source in near[name] for item in own[source]), MAX_TOLD))
        for name in asked
        if name in near
    }


def _nearest(sources: Iterable[str], children: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Adapter -> the nearest few of `sources` that it is or stands on; the work grows with edges, not with paths."""
    found: dict[str, list[str]] = {}
    queue = deque((source, source) for source in sources)
    while queue:  # by distance, since all sources start at once
        name, source = queue.popleft()
        known = found.setdefault(name, [])
        if len(known) < MAX_SOURCES and source not in known:
            known.append(source)
            queue.extend((child, source) for child in children.get(name, ()))
    return found


def descendants(store: Store, digest: str) -> list[str]:
    """Objects of the store that were made from `digest`, directly or not; damaged records are passed over."""
    children: dict[str, list[str]] = {}
    for held in store.digests():
        record = _record(store, held)
        for above in record.above if record else ():
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


def _own(store: Store, digest: str, record: Record | None, trust: Trust) -> list[Revocation]:
    return [
        Revocation(
            digest=digest,
            label=record.label if record else item.payload.label,
            reason=item.payload.reason,
            created=item.created,
        )
        for item in standing_here(store, digest, trust=trust)
    ]


def _said(record: Record, reason: str) -> RevocationPayload:
    text = " ".join(reason.split())
    try:
        check_portable(text)
        return RevocationPayload(reason=text, label=f"{record.curriculum} {record.label}")
    except ValidationError as error:
        raise ConfigError(
            "a revocation needs a reason",
            expected="1 to 2,000 characters in a line",
            found=f"{len(text)} characters" if text else "none",
            next_step="add --reason TEXT: whoever meets it will read it",
        ) from error


def _record(store: Store, digest: str) -> Record | None:
    try:
        return store.read_record(digest).record
    except NotFoundError:
        return known_record(store, digest)
    except IntegrityError:
        return None
