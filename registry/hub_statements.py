"""Revocations as they stand on the Hub, and which of them count here.

A repository is believed about an adapter if
* it brought the adapter: the record was read from it now, or a commit of its `main` names the digest; and
* the adapter is known here from the repository's namespace: it, or what came from it, is being pulled from there, or
  was before. An adapter made here that was never pushed nor pulled counts as known from everywhere.
A withdrawal counts only where the adapter is known from no other namespace: a copy elsewhere can warn of an adapter,
but cannot take back what its owner said. Whatever else a repository says is left out, and told where it is about an
adapter that is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.digest import short
from ..core.errors import AuthError, NotFoundError
from .companions import MAX_COMPANION_BYTES, REVOCATIONS_FILE
from .hub_find import Looked
from .hub_lineage import named
from .hub_places import location, locations, namespace_of
from .record import Record
from .revocation import Revocation
from .statements import WITHDRAWN, Statement, parse_statements, standing, statements


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What repositories say."""

    believed: list[Statement]
    doubts: list[str]
    """A line for people about each thing that was left out."""


def hear(
    looked: Looked,
    repos: Iterable[str],
    lying: Mapping[str, Sequence[str]],
    here: Iterable[str],
    closed: Iterable[str] = (),
) -> Heard:
    """Read `revocations.json` at the head of repositories and sort out what counts.

    Args:
        looked: The Hub and the registry.
        repos: Where to read.
        lying: Adapter -> repositories it was found in now.
        here: Digests that are held.
        closed: Which of the repositories may be gone, or not for this token.

    Raises:
        IntegrityError: A file that is not what its commit lists, or not readable.
        NotFoundError, AuthError: Another repository is gone, or not for this token.
    """
    held, passable = set(here), set(closed)
    believed: list[Statement] = []
    doubts: list[str] = []
    heard: dict[str, list[Statement]] = {}
    for repo in dict.fromkeys(repos):
        try:
            head = looked.remote.head(repo)
            data = looked.remote.small_file(repo, head, REVOCATIONS_FILE, MAX_COMPANION_BYTES) if head else None
        except (AuthError, NotFoundError) as error:
            if repo not in passable:
                raise
            doubts.append(f"whether {repo} revokes what it holds is not known: {error.what} ({error.found})")
            continue
        if not head or data is None:
            continue
        heard[repo] = []
        said: dict[str, list[Statement]] = {}
        for item in parse_statements(data, f"{location(repo, head)}/{REVOCATIONS_FILE}"):
            said.setdefault(item.digest, []).append(item)
        for digest, items in said.items():
            counted, doubt = _counted(looked, repo, digest, items, lying.get(digest, ()), digest in held)
            heard[repo] += counted
            doubts += [doubt] if doubt else []
        believed += heard[repo]
    return Heard(believed=believed, doubts=[*doubts, *_overruled(looked, heard, believed)])


def reaching(looked: Looked, digest: str, records: Mapping[str, Record | None], heard: Heard) -> list[Revocation]:
    """The revocations that reach an adapter by what is known here and what was heard, the nearest first."""
    found: list[Revocation] = []
    queue, seen = [digest], {digest}
    for name in queue:  # grows
        record = records.get(name)
        known = {item.id: item for item in statements(looked.store, name)}
        known |= {item.id: item for item in heard.believed if item.digest == name}
        found += [
            Revocation(
                digest=name,
                label=record.label if record else item.payload.label,
                reason=item.payload.reason,
                created=item.created,
            )
            for item in standing(known.values())
        ]
        above = [each for each in named(record) if each not in seen]
        seen.update(above)
        queue += above
    return found


def _counted(
    looked: Looked, repo: str, digest: str, items: list[Statement], found_in: Sequence[str], held: bool
) -> tuple[list[Statement], str]:
    """What counts of a repository's statements about one adapter, and a line about what does not."""
    known = {namespace_of(place) for place in [*locations(looked.store, digest), *found_in]}
    if not known and not held:
        return [], ""
    label = f"{items[0].payload.label} ({short(digest)})"
    if repo not in found_in and digest not in looked.remote.brought(repo):
        return [], f"what {repo} says of {label} was left out: it never brought that adapter"
    if known and namespace_of(repo) not in known:
        return [], f"what {repo} says of {label} was left out: it is known here from {', '.join(sorted(known))}"
    if known <= {namespace_of(repo)}:
        return items, ""
    counted = [item for item in items if item.kind != WITHDRAWN]
    others = ", ".join(sorted(known - {namespace_of(repo)}))
    doubt = f"that {repo} takes a revocation of {label} back was left out: it is known here from {others} as well"
    return counted, doubt if len(counted) < len(items) else ""


def _overruled(looked: Looked, heard: Mapping[str, list[Statement]], believed: list[Statement]) -> list[str]:
    """Revocations that stand in a repository, and are taken back only by what was said elsewhere."""
    known: dict[str, list[Statement]] = {}
    for item in believed:
        known.setdefault(item.digest, []).append(item)
    standing_here = {
        digest: {each.id for each in standing([*items, *statements(looked.store, digest)])}
        for digest, items in known.items()
    }
    doubts = []
    for repo, items in heard.items():
        for item in standing(items):
            if item.id not in standing_here[item.digest]:
                who = f"{item.payload.label} ({short(item.digest)})"
                doubts.append(f"{repo} says {who} is revoked: {item.payload.reason}; here that is withdrawn")
    return doubts
