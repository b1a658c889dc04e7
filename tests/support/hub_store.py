"""The state of the test Hub: repositories, commits, refs and large files in a folder, changed under one lock.

A commit is a file `commits/<sha>.json` that lists every path; a ref moves by replacing `refs.json` after the commit and
its contents are written, so a server killed at any moment starts again on the old head or on the new one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

COMMIT_ID = re.compile(r"[0-9a-f]{40}")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
STALE = "The branch was updated since you opened this page. Please refresh and try again."


class HubError(Exception):
    """An answer other than success: status, X-Error-Message, X-Error-Code and further fields of the JSON body."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class User(NamedTuple):
    name: str
    writes: bool


class Entry(NamedTuple):
    """A file of a commit; `sha256` is None for a small file that git would hold itself."""

    oid: str
    size: int
    sha256: str | None = None

    def listed(self, path: str) -> dict[str, Any]:
        """What the tree listing says of the file."""
        row: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256:
            row["lfs"] = {
                "oid": self.sha256,
                "size": self.size,
                "pointerSize": len(lfs_pointer(self.sha256, self.size)),
            }
        return row


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def read_card(text: str) -> dict[str, Any]:
    """The scalars and lists of scalars at the top level of a README's front matter; the rest of YAML is passed over."""
    card: dict[str, Any] = {}
    match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    key = ""
    for line in match.group(1).splitlines() if match else ():
        if field := re.fullmatch(r"(\w[\w-]*):\s*(.*?)\s*", line):
            key = field[1]
            card[key] = field[2].strip("'\"") or []
        elif (item := re.fullmatch(r"\s*-\s+([^:]+|\S+)\s*", line)) and isinstance(card.get(key), list):
            card[key].append(item[1].strip().strip("'\""))
    return card


def card_errors(text: str) -> list[str]:
    """Why the Hub refuses a card: the three refusals that adapters meet, not the whole schema."""
    card, errors = read_card(text), []
    bases = card.get("base_model", [])
    for number, base in enumerate([bases] if isinstance(bases, str) else bases):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base) or base.startswith("."):
            errors.append(f'"base_model[{number}]" with value "{base}" is not valid. Use a model id.')
    if (relation := card.get("base_model_relation", "adapter")) not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(RELATIONS)}, not "{relation}"')
    if text.startswith("---") and not re.match(r"---\s*\n.*?\n?---", text, re.DOTALL):
        errors.append("the YAML front matter is not closed")
    return errors


class HubStore:
    """Every public method is one transaction; all raise HubError where the Hub would refuse.

    Args:
        root: Folder of the state; made where it is missing, taken up where it is not.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()
        for name in ("repos", "blobs", "lfs", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # ---- repositories

    def create(self, repo: str, *, private: bool, author: str, url: str) -> str:
        with self._lock:
            if self._exists(repo):
                raise HubError(409, "You already created this model repo", url=url)
            self._write_json(self._folder(repo) / "repo.json", {"private": private, "gated": False, "disabled": False})
            entry = self._write_blob(GITATTRIBUTES)
            head = self._write_commit(repo, None, {".gitattributes": entry}, "initial commit", "", author)
            self._write_json(self._folder(repo) / "refs.json", {"branches": {"main": head}, "tags": {}})
            return head

    def delete(self, repo: str, user: User) -> None:
        with self._lock:
            self.check_access(repo, user)
            grave = self.root / "tmp" / uuid.uuid4().hex
            self._folder(repo).rename(grave)
            shutil.rmtree(grave)

    def configure(self, repo: str, **settings: bool) -> None:
        """Sets `private`, `gated` or `disabled`, as the owner or the Hub's staff would on the web page."""
        with self._lock:
            path = self._folder(repo) / "repo.json"
            self._write_json(path, {**json.loads(path.read_text()), **settings})

    def check_access(self, repo: str, user: User | None, *, files: bool = False) -> dict[str, Any]:
        """Settings of a repository that `user` may see; with `files`, whose contents `user` may fetch."""
        path = self._folder(repo) / "repo.json"
        settings: dict[str, Any] | None = json.loads(path.read_text()) if self._exists(repo) else None
        if settings is None or (settings["private"] and not (user and user.writes)):
            if user is None:  # the Hub does not tell a stranger whether a repository exists
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if settings["disabled"]:
            raise HubError(403, "Access to this resource is disabled.")
        if files and settings["gated"] and not (user and user.writes):
            raise HubError(403 if user else 401, f"Access to model {repo} is restricted.", "GatedRepo")
        return settings

    def repos(self) -> list[str]:
        with self._lock:
            return sorted("/".join(path.parts[-3:-1]) for path in self.root.glob("repos/*/*/refs.json"))

    # ---- refs

    def refs(self, repo: str) -> dict[str, dict[str, str]]:
        with self._lock:
            refs: dict[str, dict[str, str]] = json.loads((self._folder(repo) / "refs.json").read_text())
            return refs

    def resolve(self, repo: str, revision: str) -> str:
        """The commit that a branch, a tag or 40 hexadecimal digits name."""
        refs = self.refs(repo)
        for names in (refs["branches"], refs["tags"]):
            if revision in names:
                return names[revision]
        if COMMIT_ID.fullmatch(revision) and (self._folder(repo) / "commits" / f"{revision}.json").is_file():
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add_ref(self, repo: str, kind: str, name: str, revision: str) -> None:
        with self._lock:
            refs, target = self.refs(repo), self.resolve(repo, revision)
            if name in refs[kind]:
                raise HubError(409, f"Reference already exists: {name}")
            refs[kind][name] = target
            self._write_json(self._folder(repo) / "refs.json", refs)

    def remove_ref(self, repo: str, kind: str, name: str) -> None:
        with self._lock:
            refs = self.refs(repo)
            if name not in refs[kind]:
                raise HubError(404, f"Reference not found: {name}", "RevisionNotFound")
            if (kind, name) == ("branches", "main"):
                raise HubError(403, "The default branch cannot be deleted")
            del refs[kind][name]
            self._write_json(self._folder(repo) / "refs.json", refs)

    def put_back(self, repo: str, revision: str) -> None:
        """Moves `main` to a commit, as a forced push would."""
        with self._lock:
            refs = self.refs(repo)
            refs["branches"]["main"] = self.resolve(repo, revision)
            self._write_json(self._folder(repo) / "refs.json", refs)

    def squash(self, repo: str) -> str:
        """Makes the head the only commit of `main`; what was before it is gone."""
        with self._lock:
            head = self.refs(repo)["branches"]["main"]
            sha = self._write_commit(repo, None, self.files(repo, head), "squashed", "", "writer")
            for path in (self._folder(repo) / "commits").iterdir():
                if path.stem != sha:
                    path.unlink()
            self._write_json(self._folder(repo) / "refs.json", {"branches": {"main": sha}, "tags": {}})
            return sha

    # ---- commits

    def commit(self, repo: str, branch: str, lines: Iterable[Mapping[str, Any]], author: str) -> str:
        """Applies a commit as a whole or not at all; a `parentCommit` that is not the head is refused with 412."""
        header: Mapping[str, Any] = {}
        with self._lock:
            head = self.refs(repo)["branches"].get(branch)
            if head is None:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            files, contents = self.files(repo, head), {}
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    header = value
                    if header.get("parentCommit", head) != head:
                        raise HubError(412, STALE)
                elif key == "file":
                    contents[value["path"]] = _decode(value["content"])
                elif key == "lfsFile":
                    contents[value["path"]] = self._large_entry(value)
                elif key == "deletedFile" and value["path"] in files:
                    del files[value["path"]]
                elif key == "deletedFolder":
                    files = {path: entry for path, entry in files.items() if not path.startswith(_slashed(value))}
                else:
                    raise HubError(404, f"A file with this name doesn't exist: {value.get('path')}", "EntryNotFound")
            for path, content in contents.items():
                if path.startswith("/") or ".." in path.split("/"):
                    raise HubError(400, f"Invalid path: {path}")
                if path == "README.md" and isinstance(content, bytes) and (errors := card_errors(content.decode())):
                    raise HubError(400, "; ".join(errors))
                files[path] = self._write_blob(content) if isinstance(content, bytes) else content
            sha = self._write_commit(
                repo, head, files, header.get("summary", ""), header.get("description", ""), author
            )
            refs = self.refs(repo)
            refs["branches"][branch] = sha
            self._write_json(self._folder(repo) / "refs.json", refs)
            return sha

    def files(self, repo: str, sha: str) -> dict[str, Entry]:
        return {path: Entry(*entry) for path, entry in self._read_commit(repo, sha)["files"].items()}

    def history(self, repo: str, revision: str) -> list[dict[str, Any]]:
        """Commits from `revision` back to the first."""
        rows: list[dict[str, Any]] = []
        sha: str | None = self.resolve(repo, revision)
        while sha:
            commit = self._read_commit(repo, sha)
            rows.append({key: commit[key] for key in ("id", "title", "message", "date", "authors")})
            sha = commit["parent"]
        return rows

    def entry(self, repo: str, sha: str, path: str) -> Entry:
        files = self.files(repo, sha)
        if path not in files:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return files[path]

    def card(self, repo: str, sha: str) -> dict[str, Any]:
        entry = self.files(repo, sha).get("README.md")
        return read_card(self.content_path(entry).read_text()) if entry else {}

    # ---- contents

    def content_path(self, entry: Entry) -> Path:
        return self.root / "lfs" / entry.sha256 if entry.sha256 else self.root / "blobs" / entry.oid

    def read(self, repo: str, revision: str, path: str) -> bytes:
        return self.content_path(self.entry(repo, self.resolve(repo, revision), path)).read_bytes()

    def rot(self, repo: str, path: str, revision: str = "main") -> None:
        """Flips one bit of a stored file, as a bad disk would: listings and sizes stay as they were."""
        file = self.content_path(self.entry(repo, self.resolve(repo, revision), path))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    def has_large(self, sha256: str) -> bool:
        return (self.root / "lfs" / sha256).is_file()

    def put_large(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "The upload does not match its SHA-256")
        self._write(self.root / "lfs" / sha256, content)

    def read_large(self, sha256: str) -> bytes:
        if not self.has_large(sha256):
            raise HubError(404, "Not found", "EntryNotFound")
        return (self.root / "lfs" / sha256).read_bytes()

    def large_bytes(self, sha256: str) -> int:
        return (self.root / "lfs" / sha256).stat().st_size

    def _large_entry(self, value: Mapping[str, Any]) -> Entry:
        sha256 = str(value["oid"])
        if not self.has_large(sha256):
            raise HubError(400, f"LFS object {sha256} was not uploaded")
        size = self.large_bytes(sha256)
        return Entry(git_blob_id(lfs_pointer(sha256, size)), size, sha256)

    def _write_blob(self, content: bytes) -> Entry:
        entry = Entry(git_blob_id(content), len(content))
        self._write(self.root / "blobs" / entry.oid, content)
        return entry

    def _write_commit(
        self, repo: str, parent: str | None, files: Mapping[str, Entry], title: str, message: str, author: str
    ) -> str:
        commit = {
            "parent": parent,
            "title": title,
            "message": message,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "authors": [{"user": author}],
            "files": dict(sorted(files.items())),
        }
        # Equal commits of two repositories, or of two times, have different ids, as on the Hub.
        sha = hashlib.sha1(uuid.uuid4().bytes + json.dumps(commit).encode()).hexdigest()
        self._write_json(self._folder(repo) / "commits" / f"{sha}.json", {"id": sha, **commit})
        return sha

    def _read_commit(self, repo: str, sha: str) -> dict[str, Any]:
        commit: dict[str, Any] = json.loads((self._folder(repo) / "commits" / f"{sha}.json").read_text())
        return commit

    def _folder(self, repo: str) -> Path:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
            raise HubError(400, f"Invalid repository id: {repo}")
        return self.root / "repos" / repo

    def _exists(self, repo: str) -> bool:
        return (self._folder(repo) / "refs.json").is_file()  # written last

    def _write_json(self, path: Path, value: Any) -> None:
        self._write(path, json.dumps(value).encode())

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.root / "tmp" / uuid.uuid4().hex
        temporary.write_bytes(content)
        os.replace(temporary, path)


def _decode(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise HubError(400, "Content is not base64") from error


def _slashed(value: Mapping[str, Any]) -> str:
    return str(value["path"]).rstrip("/") + "/"
