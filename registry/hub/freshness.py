"""Is what the Hub shows of a repository as new as what was seen of it before?

A repository can be put back, and then shows adapters that were replaced, without the revocations that came later; a
signature does not tell, since what is old was signed as well. So the registry remembers, in `seen.json`, the commit of
`main` that was seen last, and which revocations stood there. What was never seen here cannot be missed: that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...core.disk.digest import canonical_json, short
from ...core.disk.files import write_bytes
from ...core.errors import AuthError, IntegrityError, NotFoundError
from ..record import UTC_TIME, Commit, first_fault, utc_now
from ..store import Store
from ..store.attestations import SEEN_FILE, read_store_json
from ..trust.statements import REVOKED, Statement
from .places import HubLocation
from .remote import Remote

MAX_REPOSITORIES = 1000
"""Most repositories remembered, the last looked at."""
MAX_REVOCATIONS = 30
"""Most revocations remembered of one repository."""

State = Literal["first seen", "unchanged", "newer", "older", "rewritten", "not asked"]


class Seen(BaseModel):
    """What was seen of a repository."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: Commit
    """The newest commit of `main`."""
    at: str = Field(pattern=UTC_TIME)
    """When it was last looked at, UTC."""
    revocations: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")], ...] = Field(default=(), max_length=1000)
    """Ids of those that stood there."""


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """One repository now, against what was seen of it before."""

    repo: str
    state: State
    """`main` is at what was seen last (`unchanged`), at a commit that follows it (`newer`), at one that it follows
    (`older`), or at one that it has nothing to do with (`rewritten`). `first seen`: nothing to compare with.
    `not asked`: the registry answered."""
    head: str | None = None
    """Commit of `main` now; None where it was not asked for."""
    seen: str | None = None
    """Commit of `main` when it was last looked at before."""
    seen_at: str | None = None
    """When that was, UTC."""

    def to_json(self) -> dict[str, str | None]:
        return {"state": self.state, "head": self.head, "seen": self.seen, "seen_at": self.seen_at}

    @property
    def warning(self) -> str:
        """A line for people, where something went backwards; else empty."""
        if self.state not in ("older", "rewritten"):
            return ""
        now, then = short(self.head or "", 8), short(self.seen or "", 8)
        what = f"main of {self.repo} is at {now}, and was at {then} on {self.seen_at}: "
        if self.state == "older":
            return (
                what + f"it was put back to a commit that {then} follows; what came after is not shown there any more"
            )
        return what + f"{then} is not part of its history any more, so what is shown there may be older than what was"


def seen(store: Store) -> dict[str, Seen]:
    """Repository -> what was seen of it.

    Raises:
        IntegrityError: The file is not readable.
    """
    path = store.root / SEEN_FILE
    if not path.exists():
        return {}
    value = read_store_json(path).get("repositories")
    try:
        return {name: Seen.model_validate(row) for name, row in value.items()}  # type: ignore[union-attr]
    except (ValidationError, AttributeError) as error:
        raise IntegrityError(
            "not a file of this registry",
            where=path,
            found=first_fault(error),
            next_step="remove it; what was seen of repositories is then forgotten",
        ) from error


def freshness(remote: Remote, repo: str, before: Seen | None) -> Freshness:
    """Look where `main` of a repository is, and whether it follows what was seen.

    Raises:
        NotFoundError, OfflineError, AuthError: The repository cannot be read.
    """
    head = remote.head(repo)
    known = Freshness(repo=repo, state="first seen", head=head)
    if before is None or head is None:
        return known
    known = replace(known, seen=before.head, seen_at=before.at)
    if head == before.head:
        return replace(known, state="unchanged")
    if before.head in remote.history(repo, head):
        return replace(known, state="newer")
    try:
        older = head in remote.history(repo, before.head)
    except (NotFoundError, AuthError):
        older = False  # the Hub does not know that commit any more
    return replace(known, state="older" if older else "rewritten")


def behind(remote: Remote, place: HubLocation) -> str:
    """A line for people where an adapter is asked for by a commit that is not the newest; else empty.

    Raises:
        NotFoundError, OfflineError, AuthError: The repository cannot be read.
    """
    head = remote.head(place.repo)
    if head is None or head == place.sha:
        return ""
    newer = list(remote.history(place.repo, head))
    what = f"{place.repo} at {short(place.sha, 8)} was asked for: "
    if place.sha not in newer:
        return what + f"that commit is not part of main, which is at {short(head, 8)}"
    count = newer.index(place.sha)
    return what + f"main is {count} commit{'s' if count > 1 else ''} further, at {short(head, 8)}"


def vanished(
    before: Mapping[str, Seen], said: Mapping[str, list[Statement]], standing: Iterable[Statement]
) -> list[str]:
    """A line for people about each repository that no longer says that something is revoked, and about what.

    Args:
        before: What was seen of repositories.
        said: Repository that was read now -> what it says.
        standing: Revocations that stand by what is known here.
    """
    stands, lines = {item.id: item for item in standing}, []
    for repo, items in said.items():
        now = {item.id for item in items}
        gone = [
            stands[name]
            for name in (before[repo].revocations if repo in before else ())
            if name not in now and name in stands
        ]
        for digest, first in {item.digest: item for item in reversed(gone)}.items():
            more = sum(item.digest == digest for item in gone) - 1
            lines.append(
                f"{repo} said that {first.payload.label[:80]} ({short(digest)}) is revoked, and says so no longer: "
                f"{first.payload.reason}{f' (and {more} more)' if more else ''}; it stays revoked here"
            )
    return lines


def remember(store: Store, found: Iterable[Freshness], said: Mapping[str, list[Statement]]) -> None:
    """Note what was seen now; the newest commit stays noted where `main` was put back, and what vanished stays known.

    Raises:
        IntegrityError: What was noted before is not readable.
        NotAllowedError: This user may not write to the registry.
    """
    with store.locked():
        known = seen(store)
        for each in found:
            if each.head is None:
                continue
            before = known.pop(each.repo, None)
            head = before.head if before and each.state == "older" else each.head
            now = [item.id for item in said.get(each.repo, ()) if item.kind == REVOKED]
            ids = dict.fromkeys([*(before.revocations if before else ()), *now])
            known[each.repo] = Seen(head=head, at=utc_now(), revocations=tuple(ids)[:MAX_REVOCATIONS])
        kept = sorted(known.items(), key=lambda row: row[1].at)[-MAX_REPOSITORIES:]
        rows = {name: each.model_dump(mode="json") for name, each in kept}
        write_bytes(store.root / SEEN_FILE, canonical_json({"schema": 1, "repositories": rows}) + b"\n")
