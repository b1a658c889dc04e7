"""Revocations as they stand on the Hub, and which of them count here.

A repository is believed about an adapter if
* it brought the adapter: the record was read from it now, or a commit of its `main` names the digest; and
* the adapter is known here from the repository's namespace: it, or what came from it, is being pulled from there, or
  was before. An adapter made here that was never pushed nor pulled counts as known from everywhere.
A withdrawal counts only where the adapter is known from no other namespace: a copy elsewhere can warn of an adapter,
but cannot take back what its owner said. Where keys are named, it counts wherever it stands if one of them signed it,
and else nowhere. Whatever else a repository says is left out, and told where it is about an adapter that is known here.
A revocation that a repository said before and says no longer is told; it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ....core.disk.digest import short
from ....core.errors import AuthError, IntegrityError, NotFoundError
from ...record import Record
from ...trust.revocation import MAX_TOLD, Revocation
from ...trust.shared_statements import MEND_FILE, Known
from ...trust.statements import WITHDRAWN, Statement, parse_statements, standing, standing_here
from ...trust.trust import Trust
from ..places import location, locations, namespace_of
from ..references import PullContext
from ..remote_lineage import named
from ..sidecars import MAX_COMPANION_BYTES, REVOCATIONS_FILE


@dataclass(frozen=True, kw_only=True)
class RemoteRevocations:
    """What repositories say."""

    believed: list[Statement]
    doubts: list[str]
    """A line for people about each thing that was left out."""
    said: dict[str, list[Statement]]
    """Repository that was read -> what counts of what it says."""


def fetch_revocations(
    looked: PullContext,
    repos: Iterable[str],
    lying: Mapping[str, Sequence[str]],
    here: Iterable[str],
    closed: Iterable[str] = (),
    trust: Trust | None = None,
) -> RemoteRevocations:
    """Read `revocations.json` at the head of repositories and sort out what counts.

    Args:
        looked: The Hub and the registry.
        repos: Where to read.
        lying: Adapter -> repositories it was found in now.
        here: Digests that are held.
        closed: Which of the repositories may be gone, or not for this token.
        trust: The keys that are named; by default those that PLYFOLD_PUBLIC_KEY names.

    Raises:
        IntegrityError: A file that is not what its commit lists, or not readable.
        NotFoundError, AuthError: Another repository is gone, or not for this token.
    """
    held, passable, trust = set(here), set(closed), trust or Trust()
    believed: list[Statement] = []
    doubts: list[str] = []
    heard: dict[str, list[Statement]] = {}
    for repo in dict.fromkeys(repos):
        try:
            head = looked.remote.head(repo)
            data = _read(looked, repo, head) if head else None
        except (AuthError, NotFoundError) as error:
            if repo not in passable:
                raise
            doubts.append(f"whether {repo} revokes what it holds is not known: {error.what} ({error.found})")
            continue
        if not head:
            continue
        heard[repo] = []
        said: dict[str, list[Statement]] = {}
        where = f"{location(repo, head)}/{REVOCATIONS_FILE}"
        for item in parse_statements(data, where) if data is not None else ():
            said.setdefault(item.digest, []).append(item)
        for digest, items in said.items():
            counted, doubt = _counted(looked, repo, digest, items, lying.get(digest, ()), digest in held, trust)
            heard[repo] += counted
            doubts += [doubt] if doubt else []
        believed += heard[repo]
    return RemoteRevocations(believed=believed, doubts=[*doubts, *_overruled(looked, heard, trust)], said=heard)


def _read(looked: PullContext, repo: str, head: str) -> bytes | None:
    try:
        return looked.remote.small_file(repo, head, REVOCATIONS_FILE, MAX_COMPANION_BYTES)
    except IntegrityError as error:
        error.next_step = error.next_step or MEND_FILE
        raise


def reaching(
    looked: PullContext, digest: str, records: Mapping[str, Record | None], heard: RemoteRevocations, trust: Trust
) -> list[Revocation]:
    """The revocations that reach an adapter by what is known here and what was heard, the nearest first."""
    found: list[Revocation] = []
    queue, seen = [digest], {digest}
    for name in queue:  # grows
        record = records.get(name)
        news = [item for item in heard.believed if item.digest == name]
        found += [
            Revocation(
                digest=name,
                label=record.label if record else item.payload.label,
                reason=item.payload.reason,
                created=item.created,
            )
            for item in standing_here(looked.store, name, news, trust)
        ]
        above = [each for each in named(record) if each not in seen]
        seen.update(above)
        queue += above
    return found[:MAX_TOLD]


def _counted(
    looked: PullContext,
    repo: str,
    digest: str,
    items: list[Statement],
    found_in: Sequence[str],
    held: bool,
    trust: Trust,
) -> tuple[list[Statement], str]:
    """What counts of a repository's statements about one adapter, and a line about what does not."""
    known = {namespace_of(place) for place in [*locations(looked.store, digest), *found_in]}
    if not known and not held:
        return [], ""
    label = f"{items[0].payload.label} ({short(digest)})"
    keys = trust.keys(looked.store, digest)
    signed = [item for item in items if item.claimed in keys and item.signer]
    names = {(item.id, item.claimed) for item in signed}
    rest = [item for item in items if (item.id, item.claimed) not in names]
    if not rest:
        return signed, ""
    left = f"what {repo} says of {label} was left out: "
    if repo not in found_in and digest not in looked.remote.brought(repo):
        return signed, left + "it never brought that adapter"
    if known and namespace_of(repo) not in known:
        return signed, left + f"it is known here from {', '.join(sorted(known))}"
    others = sorted(known - {namespace_of(repo)})
    if not keys and not others:
        return rest, ""
    counted = [item for item in rest if item.kind != WITHDRAWN]
    because = "no key that was named signed it" if keys else f"it is known here from {', '.join(others)} as well"
    doubt = f"that {repo} takes a revocation of {label} back was left out: {because}"
    return [*signed, *counted], doubt if len(counted) < len(rest) else ""


def _overruled(looked: PullContext, heard: Mapping[str, list[Statement]], trust: Trust) -> list[str]:
    """Revocations that stand in a repository, and are taken back only by what was said elsewhere."""
    news: dict[str, list[Statement]] = {}
    for item in (item for items in heard.values() for item in items):
        news.setdefault(item.digest, []).append(item)
    doubts = []
    for repo, items in heard.items():
        for digest in dict.fromkeys(item.digest for item in items):
            keys = trust.keys(looked.store, digest)
            here = {each.id for each in standing_here(looked.store, digest, news[digest], trust)}
            own = standing((Known(item) for item in items if item.digest == digest), keys)
            if away := [item for item in own if item.id not in here]:
                who, more = f"{away[0].payload.label} ({short(digest)})", _more(away)
                doubts.append(f"{repo} says {who} is revoked: {away[0].payload.reason}{more}; here that is withdrawn")
    return doubts


def _more(items: Sequence[object]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
