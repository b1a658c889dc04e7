"""What adapters on the Hub came from: where it lies and what it came from in turn, whether or not it is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...core.disk.digest import PREFIX
from ...core.errors import AuthError, IntegrityError, NotFoundError
from ..record import Record
from .places import HubLocation, locations, namespace_of, parse_location
from .references import PullContext
from .remote import Remote, RemoteRecord


@dataclass(frozen=True, kw_only=True)
class PullItem:
    """One adapter that is to be in the registry."""

    digest: str
    record: Record
    place: HubLocation
    data: bytes | None
    """The record's bytes; None where the adapter is held already."""
    asked_for: bool
    asks: bool
    """False where the registry answers without a request."""

    @property
    def name(self) -> str:
        """Curriculum and label: `gsm8k 1 structure`."""
        return name_of(self.record)

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch, without the record."""
        return 0 if self.data is None else sum(entry.size for entry in self.record.files)


@dataclass(frozen=True, kw_only=True)
class RemoteAncestor:
    """An adapter that others came from."""

    record: Record | None
    """None where it is neither held nor found."""
    place: HubLocation | None
    """Where the namespace of its child holds it, as far as that was asked; without a record, only by its own word."""
    found: RemoteRecord | None
    """Its record as it lies there, unless it is held."""


def resolve_ancestors(
    looked: PullContext, wanted: Sequence[PullItem], here: Iterable[str], *, insist: bool
) -> dict[str, RemoteAncestor]:
    """All ancestors of adapters that are not among these themselves, children before their parents.

    An ancestor is looked for in the repositories of the namespace its child came from that are named after the child's
    curriculum. For adapters that were answered without a request, only what is held is walked, unless `insist`.

    Args:
        looked: Where to look.
        wanted: The adapters.
        here: Digests that are held.
        insist: Ancestors that are not held have to be found.

    Raises:
        NotFoundError: An ancestor is not held and lies nowhere in its namespace, and `insist`.
        IntegrityError: What lies where it should be is another, and `insist`.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    held, own = set(here), {each.digest for each in wanted}
    found: dict[str, RemoteAncestor] = {}
    for asks in (True, False):
        waiting = [
            (digest, each.record, namespace_of(each.place.repo))
            for each in wanted
            if each.asks == asks
            for digest in named(each.record)
        ]
        while waiting:
            digest, child, namespace = waiting.pop()
            if digest in found or digest in own:
                continue
            found[digest] = ancestor = _ancestor(looked, digest, child, namespace, digest in held, asks, insist)
            if ancestor.record:
                waiting += [(above, ancestor.record, namespace) for above in named(ancestor.record)]
    return found


def named(record: Record | None) -> list[str]:
    """Digests of the adapters a record says it came from or needs."""
    return sorted(record.above) if record else []


def name_of(record: Record) -> str:
    """Curriculum and label: `gsm8k 1 structure`."""
    return f"{record.curriculum} {record.label}"


def parents_first(records: Mapping[str, Record]) -> list[str]:
    """Digests in an order in which each follows those it came from."""
    from graphlib import TopologicalSorter

    order = TopologicalSorter({digest: named(record) for digest, record in sorted(records.items())})
    return [digest for digest in order.static_order() if digest in records]


def _ancestor(
    looked: PullContext, digest: str, child: Record, namespace: str, held: bool, asks: bool, insist: bool
) -> RemoteAncestor:
    if held:
        record = looked.store.read_record(digest).record
        known = [place for place in locations(looked.store, digest) if namespace_of(place) == namespace]
        place = parse_location(known[0], digest=digest) if known else None
        if asks and place is None:
            place = _place_of(looked.remote, digest, child.curriculum, namespace)
        return RemoteAncestor(record=record, place=place if asks else None, found=None)
    if not asks and not insist:
        return RemoteAncestor(record=None, place=None, found=None)
    place = _place_of(looked.remote, digest, child.curriculum, namespace)
    if place is None and insist:
        raise NotFoundError(
            f"an ancestor of {name_of(child)} is in no repository of {namespace or 'a namespace'} named after "
            f"{child.curriculum}; nothing was pulled",
            where=looked.remote.endpoint,
            expected=digest,
            next_step="pull it by its hf:// location first, or pull without --with-parents",
        )
    try:
        found = _record_at(looked.remote, place, insist) if place else None
    except AuthError:
        if insist:
            raise
        return RemoteAncestor(record=None, place=place, found=None)
    return RemoteAncestor(record=found.record if found else None, place=place if found else None, found=found)


def _place_of(remote: Remote, digest: str, curriculum: str, namespace: str) -> HubLocation | None:
    """Where a namespace holds an adapter, by what the commits of its repositories say they brought."""
    for repo in remote.repos(namespace, curriculum) if namespace else ():
        only = re.search(r"-(?:merge|foreign)-([0-9a-f]{12})\Z", repo)
        if only and not digest.startswith(PREFIX + only[1]):
            continue
        try:
            sha = remote.brought(repo).get(digest)
        except (AuthError, NotFoundError):
            continue  # listed, and not for this token, or gone since
        if sha:
            return HubLocation(repo=repo, sha=sha, digest=digest)
    return None


def _record_at(remote: Remote, place: HubLocation, insist: bool) -> RemoteRecord | None:
    """The record where a commit says it brought an adapter; what only claims to be it is passed over."""
    try:
        found = remote.record(place)
        if found.digest == place.digest:
            return found
        error: Exception = IntegrityError(
            "another adapter than the commit says it brought",
            where=place.location,
            expected=place.digest or "",
            found=found.digest,
        )
    except (NotFoundError, IntegrityError) as refused:
        error = refused
    if insist:
        raise error
    return None
