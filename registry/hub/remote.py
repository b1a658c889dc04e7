"""The Hub as one pull sees it: what was asked once is not asked again, so all that is seen is of one moment."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...core.disk.digest import sha256_bytes
from ...core.errors import IntegrityError, NotFoundError
from ..record import MAX_RECORD_BYTES, RECORD_FILE, Record, parse_record
from .client import Commit, HubClient, HubRefs, RemoteFile
from .places import DIGEST_LINE, HubLocation, location

MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class RemoteRecord:
    """A record as it lies on the Hub."""

    digest: str
    data: bytes
    record: Record


class Remote:
    """Repositories, looked at once each.

    Args:
        client: How to reach the Hub.
    """

    def __init__(self, client: HubClient) -> None:
        self.client = client
        self._refs: dict[str, HubRefs] = {}
        self._commits: dict[tuple[str, str], list[Commit]] = {}
        self._brought: dict[str, dict[str, str]] = {}
        self._files: dict[tuple[str, str], dict[str, RemoteFile]] = {}
        self._repos: dict[tuple[str, str], list[str]] = {}
        self._records: dict[str, RemoteRecord] = {}

    @property
    def endpoint(self) -> str:
        """Address of the Hub."""
        return self.client.endpoint

    def repos(self, namespace: str, curriculum: str) -> list[str]:
        """Ids of the repositories of a namespace that are named after a curriculum."""
        key = namespace, curriculum
        if key not in self._repos:
            named = self.client.repos(namespace, curriculum)
            self._repos[key] = [repo for repo in named if repo.startswith(f"{namespace}/{curriculum}-")]
        return self._repos[key]

    def resolve(self, repo: str, revision: str) -> str:
        """The commit a branch, tag or other revision is at.

        Raises:
            NotFoundError: No such repository or revision, or not for this token.
        """
        refs = self._refs_of(repo)
        return refs.branches.get(revision) or refs.tags.get(revision) or self.client.resolve(repo, revision)

    def head(self, repo: str) -> str | None:
        """The commit `main` is at."""
        return self._refs_of(repo).branches.get(MAIN)

    def history(self, repo: str, sha: str) -> list[str]:
        """A commit and all it follows, the newest first.

        Raises:
            NotFoundError: No such commit.
        """
        return [commit.sha for commit in self._back_from(repo, sha)]

    def brought(self, repo: str) -> dict[str, str]:
        """Adapter -> the newest commit of `main` that says it brought it."""
        if repo not in self._brought:
            found: dict[str, str] = {}
            for commit in self._history(repo):
                for digest in _digests(commit):
                    found.setdefault(digest, commit.sha)
            self._brought[repo] = found
        return self._brought[repo]

    def first_brought(self, repo: str) -> list[str]:
        """Adapters in the order in which commits of `main` say they first brought them."""
        return list(dict.fromkeys(digest for commit in reversed(self._history(repo)) for digest in _digests(commit)))

    def last_commit_of(self, repo: str, digest: str) -> str | None:
        """The last commit of `main` before another adapter followed this one; None where none says it brought it."""
        last: str | None = None
        for commit in self._history(repo):
            last = last or commit.sha
            if digests := _digests(commit):
                if digest in digests:
                    return last
                last = None
        return None

    def record(self, place: HubLocation) -> RemoteRecord:
        """The record at a place; nothing else is fetched.

        Raises:
            NotFoundError: No such repository or commit, or no record in it.
            IntegrityError: Not a record.
        """
        if place.location not in self._records:
            name = f"{place.folder}/{RECORD_FILE}" if place.folder else RECORD_FILE
            data = self.small_file(place.repo, place.sha, name, MAX_RECORD_BYTES)
            if data is None:
                raise NotFoundError(
                    f"no adapter with a record ({RECORD_FILE}) here",
                    where=place.location,
                    next_step=f"an adapter of another tool: plyfold import {place.location}",
                )
            record = parse_record(data, f"{place.location}/{RECORD_FILE}")
            self._records[place.location] = RemoteRecord(digest=sha256_bytes(data), data=data, record=record)
        return self._records[place.location]

    def small_file(self, repo: str, sha: str, name: str, max_bytes: int) -> bytes | None:
        """A small file of a commit, whole and held to the digest the commit lists; None where there is no such file.

        Raises:
            IntegrityError: Too large, or other bytes than listed, twice.
        """
        key = repo, sha
        if key not in self._files:
            self._files[key] = self.client.files(repo, sha)
        listed = self._files[key].get(name)
        if listed is None:
            return None
        where = f"{location(repo, sha)}/{name}"
        if listed.size > max_bytes:
            raise IntegrityError(
                "a file of the repository is too large",
                where=where,
                expected=f"at most {max_bytes:,} bytes",
                found=f"{listed.size:,} bytes",
            )
        for fresh in (False, True):  # perhaps changed on the way, perhaps in a cache on the way
            data = self._fetch(repo, sha, name, listed.size, fresh=fresh)
            found = listed.digest_of(data)
            if found == listed.stated:
                return data
        raise IntegrityError(
            "a file of the repository is not what its commit lists",
            where=where,
            expected=listed.stated,
            found=f"{found}, twice",
            next_step="the way to the Hub is damaged: try another network, or later",
        )

    def _fetch(self, repo: str, sha: str, name: str, max_bytes: int, *, fresh: bool = False) -> bytes:
        with tempfile.TemporaryDirectory(prefix="plyfold-") as folder:
            path = Path(folder) / "file"
            self.client.fetch(repo, sha, name, path, max_bytes=max_bytes, fresh=fresh)
            return path.read_bytes()

    def _refs_of(self, repo: str) -> HubRefs:
        if repo not in self._refs:
            self._refs[repo] = self.client.refs(repo)
        return self._refs[repo]

    def _history(self, repo: str) -> list[Commit]:
        head = self.head(repo)
        return self._back_from(repo, head) if head else []

    def _back_from(self, repo: str, sha: str) -> list[Commit]:
        if (repo, sha) not in self._commits:
            self._commits[repo, sha] = self.client.commits(repo, sha)
        return self._commits[repo, sha]


def _digests(commit: Commit) -> list[str]:
    lines = (line.strip() for line in commit.description.splitlines())
    return [line.removeprefix(DIGEST_LINE).strip() for line in lines if line.startswith(DIGEST_LINE)]
