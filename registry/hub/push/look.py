"""What the Hub says of one repository at one moment, compared with what is here.

A commit's description names the adapter it brought, or beside which it changed something.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....core.errors import IntegrityError
from ...record import RECORD_FILE
from ...store import Entry, Store
from ..client import Commit, HubClient, RemoteFile
from ..places import DIGEST_LINE, location
from ..remote import MAIN
from ..sidecars import MAX_COMPANION_BYTES

COMPANION_LINE = "companions-of: "
"""Begins the description of a commit that changed only what lies beside an adapter."""


class Repository:
    """Refs and history as they are when this is made.

    Args:
        client: How to reach the Hub.
        repo: Hub id.
        trees: Commit -> its files, known and learnt.
    """

    def __init__(self, client: HubClient, repo: str, trees: dict[str, dict[str, RemoteFile]]) -> None:
        refs = client.refs(repo)
        self.client, self.repo, self.tags = client, repo, refs.tags
        self.head = refs.branches.get(MAIN)
        self.commits: list[Commit] = client.commits(repo, self.head) if self.head else []
        self._trees = trees

    def tree(self, sha: str | None) -> dict[str, RemoteFile]:
        """Files of a commit, which never change and so are asked for once."""
        if sha is None:
            return {}
        if sha not in self._trees:
            self._trees[sha] = self.client.files(self.repo, sha)
        return self._trees[sha]

    def landed(self, entry: Entry) -> str | None:
        """The newest commit that says it brought this adapter, and did."""
        for commit in self.commits:
            if line_of(commit, DIGEST_LINE) == entry.digest and self._holds(entry, commit.sha):
                return commit.sha
        return None

    def _holds(self, entry: Entry, sha: str) -> bool:
        if first_difference(entry, self.tree(sha)) is None:
            return True
        del self._trees[sha]  # rather the listing came changed than that the commit is not what it says: ask again
        return first_difference(entry, self.tree(sha)) is None

    def last_brought(self) -> str | None:
        """The adapter that came last."""
        return next((digest for commit in self.commits if (digest := line_of(commit, DIGEST_LINE))), None)

    def read(self, store: Store, path: str, file: RemoteFile) -> bytes:
        """A small file at the head, checked against what the tree says of it.

        Raises:
            IntegrityError: Twice other bytes came.
        """
        assert self.head is not None
        with store.scratch() as folder:
            for fresh in (False, True):
                target = folder / "file"
                self.client.fetch(self.repo, self.head, path, target, max_bytes=MAX_COMPANION_BYTES, fresh=fresh)
                data = target.read_bytes()
                if (
                    file.digest_of(data) == file.stated or file.size > MAX_COMPANION_BYTES
                ):  # the reader says that it is too large
                    return data
        raise IntegrityError(
            "a file came changed from the Hub, twice",
            where=f"{location(self.repo, self.head)}/{path}",
            expected=file.stated,
            next_step="try another network, or run the same command again later",
        )


def line_of(commit: Commit, start: str) -> str | None:
    """What follows `start` in a line of a commit's description."""
    lines = (line.strip() for line in commit.description.splitlines())
    return next((line.removeprefix(start) for line in lines if line.startswith(start)), None)


def first_difference(entry: Entry, remote: Mapping[str, RemoteFile]) -> tuple[str, str, str] | None:
    """(file, expected, found) of the first file of the object that the Hub holds otherwise."""
    local = {item.path: item.sha256 for item in entry.record.files} | {RECORD_FILE: entry.digest}
    for name, digest in local.items():
        file = remote.get(name)
        if file is None:
            return name, digest, "no such file"
        expected = digest if file.sha256 is not None else file.digest_of(entry.path / name)
        if expected != file.stated:
            return name, expected, file.stated
    return None
