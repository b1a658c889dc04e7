"""Publish adapters on the Hub: one repository per stage, one commit per adapter, parents first.

A commit's description names the adapter it brought. That line, not the answer to a request, tells whether a push
landed: it is looked for before every try, so a lost answer, a repeated push and a race all end in one commit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import count
from pathlib import Path
from typing import Any

from ..core.digest import short
from ..core.errors import ConflictError, IntegrityError, NotFoundError
from . import card
from .hub_client import PATIENCE_S, TRIES, Commit, HeadMovedError, HubBusyError, HubClient, RemoteFile
from .hub_places import DIGEST_LINE, attest_location, check_shareable, location, repo_of
from .hub_pull import Pulled, pull
from .record import RECORD_FILE
from .store import Entry, Store

__all__ = ["Pulled", "Pushed", "pull", "push", "repo_of"]

MAIN = "main"
CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of one adapter."""

    digest: str
    name: str
    """Curriculum and label: `gsm8k 1 structure`."""
    repo: str
    commit: str | None
    """The commit that holds it; None in a dry run."""
    status: str
    """`pushed`, `already there`, or `would be pushed` in a dry run."""
    head: str | None
    """Where `main` is: another commit when a later adapter has followed."""

    @property
    def location(self) -> str | None:
        """`hf://org/repo@commit`."""
        return location(self.repo, self.commit) if self.commit else None

    def to_json(self) -> dict[str, Any]:
        value = {"digest": self.digest, "name": self.name, "repo": self.repo, "commit": self.commit}
        return {**value, "location": self.location, "status": self.status, "head": self.head}


def push(
    store: Store,
    digests: Sequence[str],
    namespace: str,
    *,
    private: bool = True,
    tag: str | None = None,
    dry_run: bool = False,
    client: HubClient | None = None,
    done: Callable[[Pushed], object] = lambda pushed: None,
) -> list[Pushed]:
    """Publish adapters, each after the adapters it came from.

    Everything that can be refused is refused before the first request. What lies in a repository already stays as it
    is, and nothing is ever removed.

    Args:
        store: The registry.
        digests: What to publish; ancestors are added.
        namespace: User or organisation.
        private: For repositories that are made now.
        tag: Name to give to each commit as well.
        dry_run: Check all that can be checked here, send nothing.
        client: How to reach the Hub.
        done: Called after each adapter.

    Returns:
        One per adapter, in the order of publishing.

    Raises:
        NotFoundError: An adapter or ancestor is not in the registry.
        IntegrityError: Its bytes are damaged here, or arrived changed.
        UnsupportedAdapterError, IncompatibleError: It may not travel (`check_shareable`).
        ConflictError: Another adapter came to the same repository meanwhile, or `tag` names another commit.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    entries = _parents_first(store, digests)
    for entry in entries:
        check_shareable(entry.path, entry.record)
    repos = {entry.digest: repo_of(namespace, entry.record) for entry in entries}
    if dry_run:
        return [_pushed(entry, repos[entry.digest], None, "would be pushed", None) for entry in entries]
    client = client or HubClient()
    places: dict[str, str] = {}
    results = []
    for entry in entries:
        result = _push_one(client, entry, repos[entry.digest], places, private, tag)
        assert result.location is not None
        places[entry.digest] = result.location
        attest_location(store, entry.digest, result.location)
        done(result)
        results.append(result)
    return results


def _parents_first(store: Store, digests: Sequence[str]) -> list[Entry]:
    """The adapters and all their ancestors, verified, every one after those it names."""
    entries: dict[str, Entry] = {}
    waiting = [(store.resolve(digest), "") for digest in digests]
    while waiting:
        digest, child = waiting.pop()
        if digest in entries:
            continue
        try:
            entries[digest] = entry = store.load(digest)
        except NotFoundError as error:
            raise NotFoundError(
                f"an ancestor of {child} is not in the registry; nothing was pushed",
                where=store.root,
                expected=digest,
                next_step="pull it with --with-parents, or publish it here first",
            ) from error
        name = f"{entry.record.curriculum} {entry.record.label}"
        waiting += [(above, name) for above in _named(entry)]
    order = TopologicalSorter({digest: _named(entry) for digest, entry in sorted(entries.items())})
    return [entries[digest] for digest in order.static_order()]


def _named(entry: Entry) -> list[str]:
    return sorted({*(parent.digest for parent in entry.record.parents), *entry.record.requires})


def _push_one(
    client: HubClient, entry: Entry, repo: str, places: Mapping[str, str], private: bool, tag: str | None
) -> Pushed:
    """Look, commit, look again: see the module's first lines."""
    client.create_repo(repo, private=private)
    busy: HubBusyError | HeadMovedError | None = None
    seen: str | None = None
    start_s = time.monotonic()
    for attempt in count():
        refs = client.refs(repo)
        head = refs.branches.get(MAIN)
        commits = client.commits(repo, head) if head else []
        sha = _landed(client, entry, repo, commits)
        _check_tag(repo, tag, refs.tags, sha)
        if sha:
            status = "pushed" if busy else "already there"
            break
        if isinstance(busy, HeadMovedError):
            _refuse_other(entry, repo, commits, seen, head)
        if busy and (attempt == TRIES or time.monotonic() - start_s > PATIENCE_S):
            raise busy
        try:
            sha = head = client.commit(
                repo,
                _files(entry, repo, places),
                parent=head,
                title=f"{entry.record.curriculum} {entry.record.label}",
                description=DIGEST_LINE + entry.digest,
            )
        except (HubBusyError, HeadMovedError) as error:
            busy, seen = error, head
            client.pause(attempt)
            continue
        difference = _difference(entry, client.files(repo, sha))
        if difference:
            raise IntegrityError(
                "the Hub holds other bytes than were sent",
                where=f"{location(repo, sha)}/{difference[0]}",
                expected=difference[1],
                found=difference[2],
                next_step="run the same command again; it makes a new commit",
            )
        status = "pushed"
        break
    assert sha is not None
    if tag and refs.tags.get(tag) != sha:
        client.tag(repo, tag, sha)
        _check_tag(repo, tag, client.refs(repo).tags, sha)
    return _pushed(entry, repo, sha, status, head)


def _pushed(entry: Entry, repo: str, sha: str | None, status: str, head: str | None) -> Pushed:
    name = f"{entry.record.curriculum} {entry.record.label}"
    return Pushed(digest=entry.digest, name=name, repo=repo, commit=sha, status=status, head=head)


def _files(entry: Entry, repo: str, places: Mapping[str, str]) -> dict[str, Path | bytes]:
    """What the commit holds: the object as it is, and around it what can be made again from the record."""
    record = entry.record
    files: dict[str, Path | bytes] = {CARD_FILE: card.render(record, repo=repo, parents=places).encode()}
    if scores := card.eval_results(record):
        files[".eval_results/plyfold.yaml"] = scores.encode()
    names = [RECORD_FILE, *(item.path for item in record.files)]
    return files | {name: entry.path / name for name in names}


def _landed(client: HubClient, entry: Entry, repo: str, commits: Sequence[Commit]) -> str | None:
    """The newest commit that says it brought this adapter, and did."""
    for commit in commits:
        if _brought(commit) == entry.digest and not _difference(entry, client.files(repo, commit.sha)):
            return commit.sha
    return None


def _brought(commit: Commit) -> str | None:
    lines = (line.strip() for line in commit.description.splitlines())
    return next((line.removeprefix(DIGEST_LINE) for line in lines if line.startswith(DIGEST_LINE)), None)


def _difference(entry: Entry, remote: Mapping[str, RemoteFile]) -> tuple[str, str, str] | None:
    """(file, expected, found) of the first file of the object that the Hub holds otherwise."""
    local = {item.path: item.sha256 for item in entry.record.files} | {RECORD_FILE: entry.digest}
    for name, digest in local.items():
        file = remote.get(name)
        if file is None:
            return name, digest, "no such file"
        if file.sha256 is not None:
            expected, found = digest, file.sha256
        else:  # in git itself, whose own digest is all the Hub tells
            expected, found = f"git:{_blob_sha1(entry.path / name)}", f"git:{file.blob_sha1}"
        if expected != found:
            return name, expected, found
    return None


def _blob_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _refuse_other(entry: Entry, repo: str, commits: Sequence[Commit], seen: str | None, head: str | None) -> None:
    """Refuse to follow an adapter that came while this one was on its way.

    Raises:
        ConflictError: A commit since `seen` brought another adapter.
    """
    for commit in commits:
        if commit.sha == seen:
            return
        other = _brought(commit)
        if other and other != entry.digest:
            raise ConflictError(
                f"another adapter came to {repo} while {short(entry.digest)} was being pushed",
                where=location(repo, commit.sha),
                expected=f"main at {short(seen, 8) if seen else 'no commit'}, to be followed by {entry.digest}",
                found=f"main at {short(head or '', 8)}, which brought {other}",
                next_step="your adapter is safe in the registry; look at the other one, then push again to follow it",
            )


def _check_tag(repo: str, tag: str | None, tags: Mapping[str, str], sha: str | None) -> None:
    """Refuse a tag that names another commit.

    Raises:
        ConflictError: It does.
    """
    there = tags.get(tag) if tag else None
    if there and there != sha:
        raise ConflictError(
            f"the tag {tag} is taken",
            where=repo,
            expected=sha or "no such tag yet",
            found=there,
            next_step="choose another --tag",
        )
