"""The test Hub itself, over plain HTTP: state that survives, faults that do as they say, halves that do nothing.

What the real client makes of it is tests/registry/hub/test_contract.py.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download

from ...support.hub_server import HubServer
from ...support.hub_store import card_errors, git_blob_id, read_card

REPO = "acme/a"
LARGE = b"large" * 1000
OID = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        server.store.create(REPO, private=False, author="writer", url="")
        yield server


def ask(server: HubServer, method: str, path: str, body: Any = b"", **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer to one request of the writer, on a connection of its own."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {server.token}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def commit(server: HubServer, files: dict[str, bytes], parent: str | None = None) -> int:
    header = {"summary": "s", "description": "", **({"parentCommit": parent} if parent else {})}
    lines: list[dict[str, Any]] = [{"key": "header", "value": header}]
    for path, content in files.items():
        lines.append({"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode()}})
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    return ask(server, "POST", f"/api/models/{REPO}/commit/main", body)[0]


def test_the_fixture_sends_the_client_of_this_process_there(hub):
    api = HfApi()
    assert api.whoami()["name"] == "writer"
    api.create_repo(REPO)
    folder = snapshot_download(REPO)
    assert folder.startswith(hub.environment["HF_HOME"])
    assert [str(request) for request in hub.seen("create")] == ["POST /api/repos/create"]


def test_the_fixture_runs_the_command_line(hub):
    done = hub.run(["--version"])
    assert done.returncode == 0, done.stderr


def test_everything_survives_a_restart(tmp_path):
    with HubServer(tmp_path) as server:
        server.store.create(REPO, private=True, author="writer", url="")
        assert ask(server, "PUT", f"/_lfs/{OID}", LARGE)[0] == 200
        assert commit(server, {"a.txt": b"a"}) == 200
        server.store.add_ref(REPO, "tags", "v1", "main")
        before = server.store.refs(REPO), server.store.history(REPO, "main"), server.store.repos()
    with HubServer(tmp_path) as server:
        assert (server.store.refs(REPO), server.store.history(REPO, "main"), server.store.repos()) == before
        assert server.store.read(REPO, "v1", "a.txt") == b"a"
        assert server.store.read_large(OID) == LARGE
        assert server.store.check_access(REPO, server.users[server.token])["private"]


def test_a_repository_half_made_is_not_there_and_can_be_made(server):
    (server.store.root / "repos" / REPO / "refs.json").unlink()  # killed before the last file
    assert ask(server, "GET", f"/api/models/{REPO}")[0] == 404
    assert ask(server, "POST", "/api/repos/create", {"organization": "acme", "name": "a"})[0] == 200
    assert len(server.store.history(REPO, "main")) == 1


def test_of_commits_on_one_parent_one_lands(server):
    head, statuses = server.store.resolve(REPO, "main"), []

    def write(number: int) -> None:
        statuses.append(commit(server, {f"{number}.txt": b"x"}, head))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, *[412] * 15]
    assert len(server.store.history(REPO, "main")) == 2


def test_half_a_request_does_nothing(server):
    place = urlsplit(server.url)
    head = server.store.resolve(REPO, "main")
    line = b'{"key": "header", "value": {"summary": "s"}}\n'
    for framing in (b"Content-Length: 1000\r\n\r\n" + line, b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % 99 + line):
        with socket.create_connection((place.hostname, place.port)) as client:
            client.sendall(
                b"POST /api/models/%s/commit/main HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
                % (REPO.encode(), server.token.encode())
                + framing
            )
            client.shutdown(socket.SHUT_WR)
            assert client.recv(10) == b""
    assert server.store.resolve(REPO, "main") == head
    assert not server.seen("commit")


@pytest.mark.parametrize("kind", ["500", "503", "429", "401", "403", "412"])
def test_a_status_fault_answers_so_and_does_nothing(server, kind):
    head = server.store.resolve(REPO, "main")
    fault = server.fault("POST .*/commit/", kind)
    assert commit(server, {"a.txt": b"a"}) == int(kind)
    assert (server.store.resolve(REPO, "main"), fault.hits) == (head, 1)
    assert commit(server, {"a.txt": b"a"}) == 200


@pytest.mark.parametrize(
    ("kind", "landed"), [("drop_before", False), ("drop_after", True), ("500_after", True), ("503_after", True)]
)
def test_a_fault_before_or_after_the_act(server, kind, landed):
    head = server.store.resolve(REPO, "main")
    server.fault("POST .*/commit/", kind)
    if kind.startswith("drop"):
        with pytest.raises(http.client.RemoteDisconnected):
            commit(server, {"a.txt": b"a"})
    else:
        assert commit(server, {"a.txt": b"a"}) == int(kind[:3])
    assert (server.store.resolve(REPO, "main") != head) == landed
    assert [request.fault for request in server.seen("commit")] == [kind]


def test_faults_flip_and_truncate_what_is_fetched(server):
    assert commit(server, {"a.txt": b"0123456789"}) == 200
    path = f"/{REPO}/resolve/main/a.txt"
    server.fault(f"GET {path}", "flip")
    server.fault(f"GET {path}", "truncate")
    assert ask(server, "GET", path) == (200, b"0123446789")
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(server, "GET", path)
    assert error.value.partial == b"01234"
    assert ask(server, "GET", path) == (200, b"0123456789")
    assert ask(server, "GET", path, Range="bytes=7-") == (206, b"789")


def test_a_file_says_its_digest_size_and_commit(hub):
    api = HfApi()
    api.create_repo(REPO)
    for path, content, etag in (("a.safetensors", LARGE, OID), ("a.txt", b"a", git_blob_id(b"a"))):
        sha = api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO).oid
        told = get_hf_file_metadata(hf_hub_url(REPO, path))
        assert (told.etag, told.size, told.commit_hash) == (etag, len(content), sha)
        whole = httpx2.get(told.location)
        part = httpx2.get(told.location, headers={"Range": "bytes=0-0"})
        assert (whole.content, part.content) == (content, content[:1])
        assert part.headers["Content-Range"] == f"bytes 0-0/{len(content)}"


def test_an_upload_that_is_not_its_sha256_is_refused(server):
    server.fault("PUT", "flip")
    assert ask(server, "PUT", f"/_lfs/{OID}", LARGE)[0] == 400
    assert not server.store.has_large(OID)
    assert ask(server, "PUT", f"/_lfs/{OID}", LARGE)[0] == 200


def test_a_hang_lasts_until_the_server_closes(server):
    server.fault("GET", "hang")

    def wait() -> None:
        with pytest.raises(http.client.RemoteDisconnected):
            ask(server, "GET", "/api/models")

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    server.close()
    waiting.join(5)
    assert not waiting.is_alive()


def test_faults_are_counted_skipped_and_healed(server):
    fault = server.fault("/api/models", 503, times=2, skip=1)
    assert [ask(server, "GET", "/api/models")[0] for _ in range(4)] == [200, 503, 503, 200]
    assert fault.hits == 2
    server.fault("/api/models", 503, times=None)
    assert ask(server, "GET", "/api/models")[0] == 503
    server.heal()
    assert ask(server, "GET", "/api/models")[0] == 200
    with pytest.raises(ValueError, match="unknown fault explode; known are 500"):
        server.fault("", "explode")


def test_listings_come_in_pages(hub):
    hub.page = 2
    hub.store.create(REPO, private=False, author="writer", url="")
    for name in "abcde":
        assert commit(hub, {f"{name}/file": b""}) == 200
    api = HfApi()
    assert len(api.list_repo_commits(REPO)) == 6
    assert {file.path for file in api.list_repo_tree(REPO)} == {".gitattributes", *"abcde"}
    assert [file.path for file in api.list_repo_tree(REPO, "c")] == ["c/file"]
    assert len(list(api.list_repo_tree(REPO, recursive=True))) == 11
    assert len(hub.seen("/commits/")) == 3


def test_a_path_out_of_the_repository_is_refused(server):
    for path in ("../x", "/x", "a/../../x"):
        assert commit(server, {path: b"x"}) == 400


def test_branches(hub):
    hub.store.create(REPO, private=False, author="writer", url="")
    api = HfApi()
    api.create_branch(REPO, branch="feature/x")
    assert {branch.name for branch in api.list_repo_refs(REPO).branches} == {"main", "feature/x"}
    assert api.repo_info(REPO, revision="feature/x").sha == hub.store.resolve(REPO, "main")
    api.delete_branch(REPO, branch="feature/x")
    assert list(hub.store.refs(REPO)["branches"]) == ["main"]


def test_blob_ids_are_those_of_git():
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_cards_are_read_and_refused():
    text = (
        "---\nbase_model: Qwen/Qwen2.5-3B\ntags:\n- stage:1\n  - lora\nlicense: 'other'\nmodel-index:\n- name: x\n---\n"
    )
    card = read_card(text)
    assert (card["base_model"], card["tags"], card["license"]) == ("Qwen/Qwen2.5-3B", ["stage:1", "lora"], "other")
    assert card_errors(text) == card_errors("no front matter") == []
    assert card_errors("---\nbase_model:\n- /tmp/base\n---\n")[0].startswith('"base_model[0]"')
    assert "base_model_relation" in card_errors("---\nbase_model: a/b\nbase_model_relation: child\n---\n")[0]
