"""Every request to the Hub: with a timeout, with patience where asking twice is safe, and with plyfold's own errors.

Knows repositories, commits and files; nothing about adapters. huggingface_hub is imported only once a client is made.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from ...adapters.hub import check_address, check_token
from ...core.disk.digest import CHUNK_BYTES, PREFIX, sha256_bytes, sha256_file
from ...core.errors import ConfigError, PlyfoldError
from .errors import HubBusyError, offline, translate
from .session import STREAMED, question, use_session

TRIES = 5
FIRST_WAIT_S = 0.5
"""Pause after the first failed try; doubled after each."""
PATIENCE_S = 20.0
"""No further try starts later than this after the first: for some requests the Hub's library tries for 23 s itself."""
TIMEOUT_S = 30.0
"""Longest silence of a connection, and the span a transfer's pace is taken over; `PLYFOLD_HUB_TIMEOUT` sets another."""
SHA1, SHA256 = r"[0-9a-f]{40}", r"[0-9a-f]{64}"

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class HubRefs:
    """Where a repository's names point."""

    branches: dict[str, str]
    """Branch -> commit."""
    tags: dict[str, str]
    """Tag -> commit."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of a branch."""

    sha: str
    description: str


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What the Hub says of one file of a commit."""

    size: int
    """Bytes."""
    sha256: str | None
    """Digest, for files in large-file storage."""
    blob_sha1: str
    """Git's digest, for files in git itself."""

    @property
    def stated(self) -> str:
        """The digest that the Hub tells: `sha256:` of the bytes, or, for files in git itself, `git:` and git's own."""
        return self.sha256 if self.sha256 is not None else f"git:{self.blob_sha1}"

    def digest_of(self, local: bytes | Path) -> str:
        """The same digest of bytes here, or of a file's: equal to `stated` if the Hub holds these."""
        if self.sha256 is not None:
            return sha256_bytes(local) if isinstance(local, bytes) else sha256_file(local)
        with BytesIO(local) if isinstance(local, bytes) else local.open("rb") as file:
            digest = hashlib.sha1(b"blob %d\0" % file.seek(0, os.SEEK_END), usedforsecurity=False)
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return f"git:{digest.hexdigest()}"


def switched_off() -> bool:
    """Is network use switched off by HF_HUB_OFFLINE?"""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A list of repositories that the Hub shows on a page."""

    slug: str
    """`acme/gsm8k-0123456789abcdef01234567`."""
    url: str
    repos: tuple[str, ...]


class HubClient:
    """The Hub at HF_ENDPOINT, spoken to with the user's token.

    Args:
        timeout_s: Longest silence of a connection.
        first_wait_s: Pause after a first failed try.

    Raises:
        ConfigError: HF_ENDPOINT is no address, or carries a password.
        AuthError: The token is none that a header can carry.
    """

    def __init__(self, *, timeout_s: float | None = None, first_wait_s: float = FIRST_WAIT_S) -> None:
        from huggingface_hub import HfApi, constants, get_token
        from huggingface_hub.utils import disable_progress_bars, logging

        use_session(timeout_s or _timeout_s())
        disable_progress_bars()
        logging.set_verbosity_error()  # a line for every upload that goes by plain LFS, as `commit` wants it
        self.endpoint = (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")
        check_address(self.endpoint)
        check_token(get_token())
        self._api = HfApi(endpoint=self.endpoint)
        self._first_wait_s = first_wait_s

    # ---- reading: asked again when the Hub is busy

    def refs(self, repo: str) -> HubRefs:
        """Branches and tags of a repository."""

        def ask() -> HubRefs:
            found = self._api.list_repo_refs(repo)
            branches, tags = (
                {str(ref.name): _checked(SHA1, ref.target_commit) for ref in kind}
                for kind in (found.branches, found.tags)
            )
            return HubRefs(branches=branches, tags=tags)

        return self.patiently(repo, ask)

    def resolve(self, repo: str, revision: str) -> str:
        """The commit a branch, tag or other revision is at now; asked of the Hub, never of a cache."""
        refs = self.refs(repo)
        sha = refs.branches.get(revision) or refs.tags.get(revision)
        where = f"{repo}@{revision}"
        return sha or self.patiently(where, lambda: _checked(SHA1, self._api.model_info(repo, revision=revision).sha))

    def commits(self, repo: str, revision: str) -> list[Commit]:
        """Commits from `revision` back to the first."""

        def ask() -> list[Commit]:
            found = self._api.list_repo_commits(repo, revision=revision)
            return [Commit(sha=_checked(SHA1, each.commit_id), description=str(each.message or "")) for each in found]

        return self.patiently(repo, ask)

    def files(self, repo: str, sha: str) -> dict[str, RemoteFile]:
        """Path -> file of one commit."""

        def ask() -> dict[str, RemoteFile]:
            tree = self._api.list_repo_tree(repo, recursive=True, revision=sha)
            return {str(each.path): _file(each) for each in tree if hasattr(each, "blob_id")}

        return self.patiently(f"{repo}@{sha}", ask)

    def repos(self, namespace: str, search: str) -> list[str]:
        """Ids of the model repositories of a namespace whose name has `search` in it."""

        def ask() -> list[str]:
            return sorted(str(each.id) for each in self._api.list_models(author=namespace, search=search))

        return self.patiently(namespace, ask)

    def fetch(self, repo: str, sha: str, path: str, target: Path, *, max_bytes: int, fresh: bool = False) -> str:
        """Download one file of a commit and return the digest of what came; no cache of this machine takes part.

        Args:
            repo: Hub id.
            sha: Commit.
            path: File of the commit.
            target: Where to write it.
            max_bytes: Reading stops at one byte more.
            fresh: Tell caches on the way to ask the Hub again.
        """
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(repo, path, revision=sha, endpoint=self.endpoint)
        # Compressed answers would blur the size limit.
        headers = {**build_hf_headers(library_name="plyfold"), "Accept-Encoding": "identity"}
        headers |= {"Cache-Control": "no-cache"} if fresh else {}

        def once() -> str:
            digest, size = hashlib.sha256(), 0
            with (
                get_session().stream("GET", url, headers=headers, extensions=dict(STREAMED)) as response,
                target.open("wb") as file,
            ):
                if response.is_error:
                    response.read()
                hf_raise_for_status(response)
                if (packing := response.headers.get("content-encoding", "identity")) != "identity":
                    raise TypeError(f"packed as {packing[:40]}, though nobody asked for it")
                for chunk in response.iter_bytes():  # as it comes, so that its pace is seen
                    kept = chunk[: max_bytes + 1 - size]
                    file.write(kept)
                    digest.update(kept)
                    size += len(kept)
                    if size > max_bytes:
                        break
            return PREFIX + digest.hexdigest()

        return self.patiently(f"{repo}@{sha}/{path}", once)

    # ---- writing

    def create_repo(self, repo: str, *, private: bool) -> None:
        """Make a model repository unless it exists."""
        self.patiently(repo, lambda: self._api.create_repo(repo, private=private, exist_ok=True))

    def commit(
        self,
        repo: str,
        files: Mapping[str, Path | bytes],
        *,
        deleted: Sequence[str] = (),
        parent: str | None,
        title: str,
        description: str,
    ) -> str:
        """Make one commit on `main` and return its sha. Tried once: whether it landed only the branch can tell.

        Args:
            repo: Hub id.
            files: Path -> what it is to hold.
            deleted: Files of `parent` that go.
            parent: Where `main` has to be.
            title: First line of the message.
            description: The rest of it.

        Raises:
            HeadMovedError: `main` is not at `parent`.
            HubBusyError: No answer, or one that says to come back; the commit may have landed all the same.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with ExitStack() as opened:
            # From an open file the library uploads by plain LFS, which every hub-compatible server takes.
            operations: list[Any] = [
                CommitOperationAdd(name, data if isinstance(data, bytes) else opened.enter_context(data.open("rb")))
                for name, data in files.items()
            ]
            operations += [CommitOperationDelete(name, is_folder=False) for name in deleted]
            made = self._told(
                repo,
                lambda: self._api.create_commit(
                    repo, operations, commit_message=title, commit_description=description, parent_commit=parent
                ),
            )
        return str(made.oid)

    def tag(self, repo: str, tag: str, sha: str) -> None:
        """Tag a commit; a tag that is there already stays where it is."""
        self.patiently(repo, lambda: self._api.create_tag(repo, tag=tag, revision=sha, exist_ok=True))

    # ---- collections, which are for display

    def collection(self, namespace: str, title: str, *, private: bool, description: str) -> Collection:
        """The collection of that title, made unless the namespace has it; one that is there stays as it is."""
        return self._collection(
            f"collections of {namespace}",
            lambda: self._api.create_collection(
                title, namespace=namespace, private=private, description=description[:150], exists_ok=True
            ),
        )

    def collect(self, slug: str, repo: str, *, note: str) -> Collection:
        """Add a model repository to a collection; one that is there keeps its place and note."""
        return self._collection(
            f"collection {slug}",
            lambda: self._api.add_collection_item(slug, repo, "model", note=note[:500], exists_ok=True),
        )

    def _collection(self, where: str, ask: Callable[[], Any]) -> Collection:
        def asked() -> Collection:
            found = ask()
            repos = tuple(item.item_id for item in found.items if item.item_type == "model")
            return Collection(slug=str(found.slug), url=str(found.url), repos=repos)

        return self.patiently(where, asked)

    # ---- how it is asked

    def patiently(self, where: str, ask: Callable[[], Answer]) -> Answer:
        """Ask up to five times while the Hub is busy.

        Raises:
            PlyfoldError: As `translate` says.
        """
        start_s = time.monotonic()
        for attempt in range(TRIES):
            try:
                return self._told(where, ask)
            except HubBusyError:
                if attempt == TRIES - 1 or time.monotonic() - start_s > PATIENCE_S:
                    raise
                self.pause(attempt)
        raise AssertionError("the last try returns or raises")

    def pause(self, attempt: int) -> None:
        """Wait before the try after `attempt`, counted from 0; not to the second, so that two in a race part ways."""
        time.sleep(self._first_wait_s * 2**attempt * random.uniform(0.5, 1.5))

    def _told(self, where: str, ask: Callable[[], Answer]) -> Answer:
        if switched_off():
            raise offline(where)
        try:
            with question():
                return ask()
        except PlyfoldError:
            raise
        except Exception as error:
            told = translate(error, f"{self.endpoint}/{where}")
            if told is None:
                raise
            raise told from error


def _checked(pattern: str, value: object) -> str:
    """A digest that a server named: it becomes part of addresses, so it is one.

    Raises:
        LookupError: It is not.
    """
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise LookupError(f"{str(value)[:40]!r} is no digest")
    return value


def _file(listed: Any) -> RemoteFile:
    sha256 = PREFIX + _checked(SHA256, listed.lfs.sha256) if listed.lfs else None
    if type(listed.size) is not int or not 0 <= listed.size < 1 << 53:
        raise LookupError(f"{str(listed.size)[:40]!r} is no size")
    return RemoteFile(size=listed.size, sha256=sha256, blob_sha1=_checked(SHA1, listed.blob_id))


def _timeout_s() -> float:
    text = os.environ.get("PLYFOLD_HUB_TIMEOUT")
    try:
        seconds = float(text) if text else TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError("not a number of seconds", where="PLYFOLD_HUB_TIMEOUT", found=text)
    return seconds
