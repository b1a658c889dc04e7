"""The requests that huggingface_hub makes, and the Hub's answers to them over a `HubStore`, without HTTP.

Known are model repositories, commits with compare-and-swap, branches, tags, Git LFS and the Hub's error headers; not
known are Xet, pull requests, datasets and links that expire. Collections are added by hub_collections.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from .hub_store import HubError, HubStore, User, card_errors, git_blob_id

LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
LARGE_BYTES = 10_000_000


class Reply(NamedTuple):
    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = MappingProxyType({})


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


@dataclass(kw_only=True)
class Request:
    """A request as the server saw it; `status` is None where nothing was answered."""

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    status: int | None = None
    fault: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.target}"

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def first(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


class HubSite:
    """A Hub of one folder and two users.

    Args:
        root: Folder of the state.

    Attributes:
        url: Where it is served; part of some answers.
        token: Of `writer`, who may see and change every repository.
        read_token: Of `reader`, who sees public repositories and is on no list of a gated one.
        page: Rows per page of listings.
    """

    url: str
    token = "hf_plyfoldWriter"
    read_token = "hf_plyfoldReader"

    def __init__(self, root: Path) -> None:
        self.store = HubStore(root)
        self.users = {self.token: User("writer", True), self.read_token: User("reader", False)}
        self.page = 1000

    def answer(self, request: Request) -> Reply:
        path = urlsplit(request.target).path
        try:
            for method, pattern, route in ROUTES:
                if method in (request.method, "GET" if request.method == "HEAD" else "") and (
                    match := pattern.fullmatch(path)
                ):
                    return route(self, request, **{key: unquote(value) for key, value in match.groupdict("").items()})
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            return as_json({"error": error.message, **error.body}, error.status, **headers)

    def user(self, request: Request) -> User | None:
        header = request.headers.get("authorization", "")
        if not header:
            return None
        if (user := self.users.get(header.removeprefix("Bearer "))) is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, request: Request, repo: str | None = None) -> User:
        """The user, who may write; to `repo`, which exists."""
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if repo:
            self.store.check_access(repo, user)
        if not user.writes:
            raise HubError(403, "You don't have the rights to change this; use a token with the write role")
        return user

    def reader(self, request: Request, repo: str, *, files: bool = False) -> dict[str, Any]:
        return self.store.check_access(repo, self.user(request), files=files)

    def paged(self, request: Request, rows: list[Any]) -> Reply:
        start = int(request.first("cursor", "0"))
        end = start + self.page
        headers = {}
        if end < len(rows):
            query = urlencode({**request.query, "cursor": end}, doseq=True)
            headers["Link"] = f'<{self.url}{urlsplit(request.target).path}?{query}>; rel="next"'
        return as_json(rows[start:end], **headers)

    def info(self, repo: str, sha: str, settings: dict[str, Any], *, blobs: bool = False) -> dict[str, Any]:
        files = self.store.files(repo, sha)
        card = self.store.card(repo, sha)
        bases = card.get("base_model", [])
        bases = [bases] if isinstance(bases, str) else bases
        relation = card.get("base_model_relation", "adapter")
        tags = [*card.get("tags", []), *(tag for base in bases for tag in (f"base_model:{relation}:{base}",))]
        siblings = [{"rfilename": path} for path in files]
        if blobs:
            for sibling, (path, entry) in zip(siblings, files.items(), strict=True):
                row = entry.listed(path)
                sibling |= {"size": row["size"], "blobId": row["oid"]}
                if lfs := row.get("lfs"):
                    sibling["lfs"] = {**lfs, "sha256": lfs["oid"]}
        return {"id": repo, "sha": sha, **settings, "tags": tags, "cardData": card, "siblings": siblings}


# ---- routes: one function per request

Route = Callable[..., Reply]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"


def route(method: str, path: str) -> Callable[[Route], Route]:
    def add(function: Route) -> Route:
        ROUTES.append((method, re.compile(path), function))
        return function

    return add


@route("GET", "/api/whoami-v2")
def whoami(hub: HubSite, request: Request) -> Reply:
    user = hub.user(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if user.writes else "read"
    return as_json({"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": {"role": role}}})


@route("POST", "/api/repos/create")
def create_repo(hub: HubSite, request: Request) -> Reply:
    user, wanted = hub.writer(request), request.json()
    repo = f"{wanted.get('organization') or user.name}/{wanted['name']}"
    url = f"{hub.url}/{repo}"
    private = wanted.get("visibility", "public") == "private" or bool(wanted.get("private"))
    hub.store.create(repo, private=private, author=user.name, url=url)
    return as_json({"url": url, "name": repo})


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: HubSite, request: Request) -> Reply:
    wanted = request.json()
    user = hub.writer(request)
    hub.store.delete(f"{wanted.get('organization') or user.name}/{wanted['name']}", user)
    return as_json({})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: HubSite, request: Request) -> Reply:
    errors = [{"message": error} for error in card_errors(request.json()["content"])]
    return as_json({"errors": errors, "warnings": []}, 400 if errors else 200)


@route("GET", "/api/models")
def list_models(hub: HubSite, request: Request) -> Reply:
    user, rows = hub.user(request), []
    for repo in hub.store.repos():
        try:
            settings = hub.store.check_access(repo, user)
        except HubError:
            continue
        info = hub.info(repo, hub.store.resolve(repo, "main"), settings)
        author, search = request.first("author"), request.first("search")
        tagged = set(request.query.get("filter", [])) <= set(info["tags"])
        if tagged and search in repo and author in ("", repo.partition("/")[0]):
            rows.append(info)
    return hub.paged(request, rows)


@route("GET", MODEL + "(/revision/(?P<revision>[^/]+))?")
def repo_info(hub: HubSite, request: Request, repo: str, revision: str) -> Reply:
    settings = hub.reader(request, repo)
    blobs = request.first("blobs").lower() in ("true", "1")
    return as_json(hub.info(repo, hub.store.resolve(repo, revision or "main"), settings, blobs=blobs))


@route("GET", MODEL + "/refs")
def list_refs(hub: HubSite, request: Request, repo: str) -> Reply:
    hub.reader(request, repo)
    rows = {
        kind: [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in names.items()]
        for (kind, names), folder in zip(hub.store.refs(repo).items(), ("heads", "tags"), strict=True)
    }
    return as_json({**rows, "converts": [], "pullRequests": []})


@route("GET", MODEL + "/commits/(?P<revision>[^/]+)")
def list_commits(hub: HubSite, request: Request, repo: str, revision: str) -> Reply:
    hub.reader(request, repo)
    return hub.paged(request, hub.store.history(repo, revision))


@route("GET", MODEL + "/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?")
def list_tree(hub: HubSite, request: Request, repo: str, revision: str, folder: str) -> Reply:
    hub.reader(request, repo)
    recursive = request.first("recursive").lower() in ("true", "1")
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    rows: dict[str, dict[str, Any]] = {}
    for path, entry in hub.store.files(repo, hub.store.resolve(repo, revision)).items():
        if path.startswith(prefix):
            parents = path.removeprefix(prefix).split("/")[:-1]
            for depth in range(len(parents) if recursive else min(1, len(parents))):
                name = prefix + "/".join(parents[: depth + 1])
                rows[name] = {"type": "directory", "oid": git_blob_id(name.encode()), "size": 0, "path": name}
            if recursive or not parents:
                rows[path] = entry.listed(path)
    if prefix and not rows:
        raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    return hub.paged(request, list(rows.values()))


@route("POST", MODEL + "/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: HubSite, request: Request, repo: str, revision: str) -> Reply:
    hub.reader(request, repo)
    files = hub.store.files(repo, hub.store.resolve(repo, revision))
    paths = parse_qs(request.body.decode()).get("paths", [])
    return as_json([files[path].listed(path) for path in paths if path in files])


@route("POST", MODEL + "/preupload/(?P<revision>[^/]+)")
def preupload(hub: HubSite, request: Request, repo: str, revision: str) -> Reply:
    hub.writer(request, repo)
    files, rows = hub.store.files(repo, hub.store.resolve(repo, revision)), []
    for file in request.json()["files"]:
        large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] >= LARGE_BYTES
        row = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if entry := files.get(file["path"]):
            row["oid"] = entry.sha256 or entry.oid
        rows.append(row)
    return as_json({"files": rows})


@route("POST", "/(?P<repo>[^/]+/[^/]+).git/info/lfs/objects/batch")
def lfs_batch(hub: HubSite, request: Request, repo: str) -> Reply:
    hub.writer(request, repo)
    rows = []
    for item in request.json()["objects"]:
        row = {"oid": item["oid"], "size": item["size"]}
        if not hub.store.has_large(item["oid"]):
            href = f"{hub.url}/_lfs/{item['oid']}"
            row["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        rows.append(row)
    return as_json({"transfer": "basic", "objects": rows})


@route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(hub: HubSite, request: Request, oid: str) -> Reply:
    hub.store.put_large(oid, request.body)
    return Reply()


@route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(hub: HubSite, request: Request, oid: str) -> Reply:
    if not hub.store.has_large(oid) or hub.store.large_bytes(oid) != request.json()["size"]:
        raise HubError(400, "The object is missing or has another size")
    return as_json({})


@route("GET", "/_lfs/(?P<oid>[0-9a-f]{64})")
def lfs_get(hub: HubSite, request: Request, oid: str) -> Reply:
    return file_reply(request, hub.store.read_large(oid), oid)


@route("POST", MODEL + "/commit/(?P<branch>[^/]+)")
def commit(hub: HubSite, request: Request, repo: str, branch: str) -> Reply:
    user = hub.writer(request, repo)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    sha = hub.store.commit(repo, branch, lines, user.name)
    return as_json({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}", "hookOutput": ""})


@route("POST", MODEL + "/tag/(?P<revision>[^/]+)")
def create_tag(hub: HubSite, request: Request, repo: str, revision: str) -> Reply:
    hub.writer(request, repo)
    hub.store.add_ref(repo, "tags", request.json()["tag"], revision)
    return as_json({})


@route("DELETE", MODEL + "/tag/(?P<tag>[^/]+)")
def delete_tag(hub: HubSite, request: Request, repo: str, tag: str) -> Reply:
    hub.writer(request, repo)
    hub.store.remove_ref(repo, "tags", tag)
    return as_json({})


@route("POST", MODEL + "/branch/(?P<branch>[^/]+)")
def create_branch(hub: HubSite, request: Request, repo: str, branch: str) -> Reply:
    hub.writer(request, repo)
    hub.store.add_ref(repo, "branches", branch, request.json().get("startingPoint") or "main")
    return as_json({})


@route("DELETE", MODEL + "/branch/(?P<branch>[^/]+)")
def delete_branch(hub: HubSite, request: Request, repo: str, branch: str) -> Reply:
    hub.writer(request, repo)
    hub.store.remove_ref(repo, "branches", branch)
    return as_json({})


@route("GET", "/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve_file(hub: HubSite, request: Request, repo: str, revision: str, path: str) -> Reply:
    hub.reader(request, repo, files=True)
    sha = hub.store.resolve(repo, revision)
    entry = hub.store.entry(repo, sha, path)
    if entry.sha256 is None:
        reply = file_reply(request, hub.store.content_path(entry).read_bytes(), entry.oid)
        return reply._replace(headers={**reply.headers, "X-Repo-Commit": sha})
    # Another host name, as the Hub's storage has: the client must take size and digest from this answer.
    where = f"{hub.url.replace('127.0.0.1', 'localhost')}/_lfs/{entry.sha256}?path={quote(path, safe='')}"
    linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size), "X-Repo-Commit": sha}
    return Reply(302, b"", {"Location": where, **linked})


def file_reply(request: Request, content: bytes, etag: str) -> Reply:
    headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
        start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        if start >= len(content):
            raise HubError(416, "Range Not Satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Reply(206, content[start : end + 1], headers)
    return Reply(200, content, headers)
