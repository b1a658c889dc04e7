"""What plyfold relies on a Hub and huggingface_hub for, checked with the real client.

`TestAnyHub` runs against the test Hub and, where PLYFOLD_HUB_ENDPOINT and PLYFOLD_HUB_TOKEN are set, against that
endpoint too (it makes and deletes private repositories of the token's owner). Without them these facts are only known
of the test Hub. `TestOnlyTheTestHub` needs faults, a second user or many requests: its facts are never checked against
another Hub. Uploads through Xet are checked nowhere here.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from ...support.hub_store import git_blob_id

ENDPOINT, TOKEN = os.environ.get("PLYFOLD_HUB_ENDPOINT"), os.environ.get("PLYFOLD_HUB_TOKEN")
HUBS = ["test hub", *(["endpoint"] if ENDPOINT and TOKEN else [])]
CONFIG = b'{"peft_type": "LORA"}'
WEIGHTS = bytes(range(256)) * 4096


@dataclass(kw_only=True)
class Place:
    api: HfApi
    repo: str
    """A private repository with nothing but its first commit."""
    cache: Path

    @property
    def head(self) -> str:
        return next(branch.target_commit for branch in self.api.list_repo_refs(self.repo).branches)

    def commit(self, files: dict[str, bytes], message: str = "files", **options: Any) -> str:
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        oid: str = self.api.create_commit(self.repo, operations, commit_message=message, **options).oid
        return oid

    def fetch(self, revision: str, **options: Any) -> Path:
        return Path(self.api.snapshot_download(self.repo, revision=revision, cache_dir=self.cache, **options))

    def paths(self, revision: str = "main") -> set[str]:
        return {file.path for file in self.api.list_repo_tree(self.repo, recursive=True, revision=revision)}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if getattr(request, "param", HUBS[0]) == HUBS[0]:
        hub = request.getfixturevalue("hub")
        api = HfApi(endpoint=hub.url, token=hub.token)
    else:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=ENDPOINT, token=TOKEN)
    repo = f"{api.whoami()['name']}/plyfold-contract-{uuid.uuid4().hex[:12]}"
    api.create_repo(repo, private=True)
    yield Place(api=api, repo=repo, cache=tmp_path / "cache")
    monkeypatch.undo()  # a test may have gone offline
    api.delete_repo(repo, missing_ok=True)


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return int(error.value.response.status_code)


@pytest.mark.parametrize("place", HUBS, indirect=True)
class TestAnyHub:
    def test_a_repository_that_exists_is_409_and_exist_ok_takes_it(self, place):
        with pytest.raises(HfHubHTTPError) as error:
            place.api.create_repo(place.repo)
        assert status(error) == 409
        assert place.api.create_repo(place.repo, exist_ok=True).repo_id == place.repo
        assert place.api.repo_info(place.repo).private, "exist_ok leaves the visibility as it was"

    def test_a_commit_is_one_step_whatever_it_holds(self, place):
        before = place.head
        sha = place.commit(
            {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS, "a/b/c.txt": b"c"},
            "an adapter",
            commit_description="adapter-digest: sha256:00",
            parent_commit=before,
        )
        assert place.head == sha != before
        assert place.paths() >= {"adapter_config.json", "adapter_model.safetensors", "a/b/c.txt"}
        first, second = place.api.list_repo_commits(place.repo)[:2]
        assert (first.commit_id, second.commit_id) == (sha, before)
        assert (first.title, first.message) == ("an adapter", "adapter-digest: sha256:00")

    def test_a_refused_commit_leaves_nothing(self, place):
        before = place.head
        operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("no-such-file.txt")]
        with pytest.raises(HfHubHTTPError):
            place.api.create_commit(place.repo, operations, commit_message="half of it cannot be done")
        assert place.head == before
        assert "new.txt" not in place.paths()

    def test_a_stale_parent_is_412_and_changes_nothing(self, place):
        stale = place.head
        place.commit({"a.txt": b"mine"}, parent_commit=stale)
        head = place.head
        with pytest.raises(HfHubHTTPError) as error:
            place.commit({"a.txt": b"theirs"}, parent_commit=stale)
        assert status(error) == 412
        assert type(error.value) is HfHubHTTPError, "the conflict has no class of its own"
        assert place.head == head

    def test_a_commit_of_equal_files_skips_the_compare_and_swap(self, place):
        stale = place.head
        files = {"a.txt": b"same", "adapter_model.safetensors": WEIGHTS}
        head = place.commit(files)
        assert place.commit(files, parent_commit=stale) == head

    def test_the_tree_lists_the_sha256_of_large_files_and_the_blob_id_of_small(self, place):
        place.commit({"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS})
        files = {file.path: file for file in place.api.list_repo_tree(place.repo, recursive=True)}
        large, small = files["adapter_model.safetensors"], files["adapter_config.json"]
        assert large.lfs is not None
        assert (large.lfs.sha256, large.lfs.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
        assert small.lfs is None
        assert (small.blob_id, small.size) == (git_blob_id(CONFIG), len(CONFIG))

    def test_a_tag_that_exists_is_409_and_a_tag_can_move(self, place):
        first = place.commit({"a.txt": b"1"})
        place.api.create_tag(place.repo, tag="v1", revision=first)
        with pytest.raises(HfHubHTTPError) as error:
            place.api.create_tag(place.repo, tag="v1", revision=first)
        assert status(error) == 409
        second = place.commit({"a.txt": b"2"})
        assert place.api.repo_info(place.repo, revision="v1").sha == first
        place.api.delete_tag(place.repo, tag="v1")
        place.api.create_tag(place.repo, tag="v1", revision="main")
        assert [(tag.name, tag.target_commit) for tag in place.api.list_repo_refs(place.repo).tags] == [("v1", second)]
        revision = place.api.resolve_revision(place.repo, revision="v1", cache_dir=place.cache)
        assert (revision, revision.resolved) == ("v1", second), "as a string it is the name, not the commit"

    def test_what_is_missing_says_which_kind_it_is(self, place):
        with pytest.raises(RepositoryNotFoundError):
            place.api.repo_info(f"{place.repo}-none")
        with pytest.raises(RepositoryNotFoundError):
            place.api.list_repo_refs(f"{place.repo}-none")
        for revision in ("none", "0" * 40):
            with pytest.raises(RevisionNotFoundError):
                place.api.repo_info(place.repo, revision=revision)
        with pytest.raises(RemoteEntryNotFoundError):
            place.api.hf_hub_download(place.repo, "none.json", cache_dir=place.cache)

    def test_a_private_repository_is_not_there_for_a_stranger(self, place):
        with pytest.raises(RepositoryNotFoundError):
            place.api.repo_info(place.repo, token=False)

    def test_a_bad_token_is_401(self, place):
        with pytest.raises(HfHubHTTPError) as error:
            place.api.whoami(token="hf_wrong")
        assert status(error) == 401
        with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
            place.api.repo_info(place.repo, token="hf_wrong")
        assert (status(error), type(error.value)) == (401, HfHubHTTPError), "not taken for a missing repository"

    def test_a_bad_card_is_refused_before_anything_is_sent(self, place):
        before = place.head
        card = b"---\nbase_model: /tmp/checkpoints/base\n---\n"
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            place.commit({"adapter_model.safetensors": WEIGHTS, "README.md": card})
        assert place.head == before

    def test_a_snapshot_has_the_bytes_and_by_its_sha_needs_no_request_again(self, place, monkeypatch):
        sha = place.commit({"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS})
        patterns = ["adapter_*"]
        folder = place.fetch(sha, allow_patterns=patterns)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "adapter_config.json": CONFIG,
            "adapter_model.safetensors": WEIGHTS,
        }
        sent = []
        send = httpx2.Client.send
        monkeypatch.setattr(httpx2.Client, "send", lambda *call, **options: sent.append(call) or send(*call, **options))
        assert place.fetch(sha, allow_patterns=patterns) == folder
        assert not sent
        assert place.fetch("main", allow_patterns=patterns) == folder
        assert sent, "a branch is looked up each time"

    def test_offline_a_cached_sha_is_found_and_all_else_is_refused(self, place, monkeypatch):
        sha = place.commit({"adapter_config.json": CONFIG})
        folder = place.fetch(sha)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert place.fetch(sha) == folder
        with pytest.raises(LocalEntryNotFoundError):
            place.fetch("0" * 40)
        with pytest.raises(OfflineModeIsEnabled):
            place.api.list_repo_refs(place.repo)

    def test_a_deleted_repository_is_gone(self, place):
        place.api.delete_repo(place.repo)
        with pytest.raises(RepositoryNotFoundError):
            place.api.repo_info(place.repo)
        with pytest.raises(RepositoryNotFoundError):
            place.api.delete_repo(place.repo)


class TestOnlyTheTestHub:
    @pytest.mark.slow
    def test_eight_writers_of_five_commits_lose_nothing(self, place):
        conflicts: list[int] = []
        failures: list[BaseException] = []
        start = threading.Barrier(8)

        def write(writer: int) -> None:
            try:
                start.wait()
                for turn in range(5):
                    while True:
                        try:
                            place.commit({f"{writer}-{turn}.txt": b"%d %d" % (writer, turn)}, parent_commit=place.head)
                            break
                        except HfHubHTTPError as error:
                            conflicts.append(error.response.status_code)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert place.paths() - {".gitattributes"} == {f"{w}-{t}.txt" for w in range(8) for t in range(5)}
        assert len(place.api.list_repo_commits(place.repo)) == 41
        assert set(conflicts) == {412}, "no conflict: the writers did not meet, and the test says nothing"

    def test_a_reader_may_not_write(self, hub, place):
        place.api.create_repo("acme/open")
        reader = HfApi(endpoint=hub.url, token=hub.read_token)
        assert reader.repo_info("acme/open").id == "acme/open"
        for act in (
            lambda: reader.create_repo("acme/mine"),
            lambda: reader.create_tag("acme/open", tag="v1"),
            lambda: reader.create_commit("acme/open", [CommitOperationAdd("a.txt", b"a")], commit_message="a"),
            lambda: reader.delete_repo("acme/open"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                act()
            assert status(error) == 403
        with pytest.raises(HfHubHTTPError) as error:
            place.api.create_repo("acme/mine", token="hf_wrong")
        assert status(error) == 401

    def test_a_gated_and_a_disabled_repository_say_so(self, hub, place, tmp_path):
        place.api.create_repo("acme/gated")
        reader = HfApi(endpoint=hub.url, token=hub.read_token)
        hub.store.configure("acme/gated", gated=True)
        assert reader.repo_info("acme/gated").gated
        with pytest.raises(GatedRepoError):
            reader.hf_hub_download("acme/gated", ".gitattributes", cache_dir=tmp_path)
        hub.store.configure("acme/gated", disabled=True)
        with pytest.raises(DisabledRepoError):
            reader.repo_info("acme/gated")
        with pytest.raises(LocalEntryNotFoundError) as error:
            reader.snapshot_download("acme/gated", cache_dir=tmp_path)
        assert isinstance(error.value.__cause__, DisabledRepoError)

    def test_siblings_are_found_by_tag(self, place):
        card = b"---\nbase_model: Qwen/Qwen2.5-3B\ntags:\n- curriculum:gsm\n- stage:2\n---\n"
        place.commit({"README.md": card})
        filters = ["base_model:adapter:Qwen/Qwen2.5-3B", "curriculum:gsm"]
        assert [model.id for model in place.api.list_models(filter=filters, author="writer")] == [place.repo]
        assert not list(place.api.list_models(filter=["curriculum:other"]))

    @pytest.mark.parametrize("kind", [500, 503, 429])
    def test_a_commit_is_sent_once_and_its_failure_raises_at_once(self, hub, place, kind):
        before = place.head
        fault = hub.fault("POST .*/commit/", kind, times=None)
        with pytest.raises(HfHubHTTPError) as error:
            place.commit({"a.txt": b"a"})
        assert (status(error), fault.hits, place.head) == (kind, 1, before)

    @pytest.mark.parametrize(("kind", "landed"), [("drop_before", False), ("drop_after", True)])
    def test_a_lost_answer_does_not_tell_whether_the_commit_landed(self, hub, place, kind, landed):
        before = place.head
        hub.fault("POST .*/commit/", kind)
        with pytest.raises(httpx2.RemoteProtocolError):
            place.commit({"a.txt": b"a"}, commit_description="adapter-digest: sha256:1", parent_commit=before)
        assert (place.head != before) == landed
        messages = [commit.message for commit in place.api.list_repo_commits(place.repo)]
        assert ("adapter-digest: sha256:1" in messages) == landed

    def test_a_500_may_come_after_the_commit_landed(self, hub, place):
        before = place.head
        hub.fault("POST .*/commit/", "500_after")
        with pytest.raises(HfHubHTTPError) as error:
            place.commit({"a.txt": b"a"}, parent_commit=before)
        assert status(error) == 500
        assert place.head != before

    def test_an_upload_is_tried_again(self, hub, place, monkeypatch):
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        fault = hub.fault("PUT /_lfs/", 503, times=2)
        place.commit({"adapter_model.safetensors": WEIGHTS})
        assert (fault.hits, len(hub.seen("PUT /_lfs/"))) == (2, 3)

    def test_an_upload_with_a_flipped_bit_is_refused(self, hub, place):
        before = place.head
        hub.fault("PUT /_lfs/", "flip")
        with pytest.raises(RuntimeError, match="Error while uploading"):
            place.commit({"adapter_model.safetensors": WEIGHTS})
        assert place.head == before

    @pytest.mark.parametrize("path", ["adapter_config.json", "adapter_model.safetensors"])
    def test_a_download_with_a_flipped_bit_is_taken_for_good(self, hub, place, path):
        content = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
        sha = place.commit(content)
        hub.fault(f"GET .*{path}", "flip", times=1 if path.endswith("json") else None)
        fetched = (place.fetch(sha) / path).read_bytes()
        assert len(fetched) == len(content[path])
        assert fetched != content[path], "if the client now checks, plyfold's own check is one of two"

    def test_a_file_that_rotted_at_rest_is_taken_for_good_too(self, hub, place):
        sha = place.commit({"adapter_model.safetensors": WEIGHTS})
        hub.store.rot(place.repo, "adapter_model.safetensors")
        assert (place.fetch(sha) / "adapter_model.safetensors").read_bytes() != WEIGHTS

    def test_a_truncated_download_is_resumed(self, hub, place, monkeypatch):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", len(WEIGHTS) // 8)  # what is resumed is whole chunks
        sha = place.commit({"adapter_model.safetensors": WEIGHTS})
        hub.fault("GET /_lfs/", "truncate")
        assert (place.fetch(sha) / "adapter_model.safetensors").read_bytes() == WEIGHTS
        assert [request.headers.get("range", "")[:6] for request in hub.seen("GET /_lfs/")] == ["", "bytes="]

    def test_a_hub_that_fails_gives_the_stale_branch_without_a_word(self, hub, place, monkeypatch):
        old = place.commit({"a.txt": b"old"})
        folder = place.fetch("main")
        place.commit({"a.txt": b"new"})
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        hub.fault("GET ", 503, times=None)
        assert place.fetch("main") == folder
        assert folder.name == old
        hub.heal()
        assert (place.fetch("main") / "a.txt").read_bytes() == b"new"

    def test_a_hub_that_hangs_is_left_only_by_a_timeout(self, hub, place):
        hub.fault("GET .*/refs", "hang")
        with httpx2.Client(timeout=0.2) as client, pytest.raises(httpx2.ReadTimeout):
            client.get(f"{hub.url}/api/models/{place.repo}/refs")
        assert default_client_factory().timeout == httpx2.Timeout(None), "the client itself has no timeout"
