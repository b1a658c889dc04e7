"""push against a Hub on a local port: one commit for an adapter, whatever happens on the way."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import ConflictError, IntegrityError, NotFoundError, OfflineError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import locations
from plyfold.registry.hub.push.push import push
from plyfold.registry.store import Store

from ....conftest import Hub, MakeAdapter, MakeRecord
from ..conftest import commits, stages


def test_push_again_changes_nothing(hub: Hub, pushed: Store, client: HubClient) -> None:
    again = push(pushed, stages(pushed), "acme", client=client)
    assert [each.status for each in again] == ["already there"] * 3
    assert not hub.seen("POST .*/commit/")
    assert all(len(pushed.attestations(digest)) == 1 for digest in stages(pushed))


def test_a_new_adapter_follows_the_old_one_and_both_stay(
    hub: Hub, pushed: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path
) -> None:
    old = pushed.ref("toy", 1)
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    (done,) = push(pushed, [new], "acme", client=client)
    assert commits(hub, done.repo) == [f"adapter-digest: {new}", f"adapter-digest: {old}"]
    (again,) = push(pushed, [old], "acme", client=client)
    assert (again.status, again.head) == ("already there", done.commit)
    assert again.commit != done.commit


def test_a_tag_names_the_commit_and_never_moves(
    hub: Hub, pushed: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path
) -> None:
    one = pushed.ref("toy", 1)
    (tagged,) = push(pushed, [one], "acme", tag="v1", client=client)
    assert client.refs(tagged.repo).tags == {"v1": tagged.commit}
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    with pytest.raises(ConflictError, match="v1 is taken"):
        push(pushed, [new], "acme", tag="v1", client=client)
    assert len(commits(hub, tagged.repo)) == 1  # refused before the commit


def test_a_dry_run_and_a_refusal_send_nothing(
    hub: Hub, store: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path
) -> None:
    planned = push(store, stages(store), "acme", dry_run=True, client=client)
    assert [(each.status, each.commit) for each in planned] == [("would be pushed", None)] * 3
    pickled = make_adapter(tmp_path / "pickled")
    (pickled / "optimizer.pt").write_bytes(b"x")
    local = make_adapter(tmp_path / "local", repo="/data/models/qwen")
    paged = make_adapter(tmp_path / "paged")
    (paged / "README.md").write_text("mine")
    scored = make_adapter(tmp_path / "scored")
    (scored / ".eval_results").mkdir()
    (scored / ".eval_results" / "own.yaml").write_text("[]")
    for folder, word in ((pickled, "pickle"), (local, "base"), (paged, "README.md"), (scored, "own.yaml")):
        digest = store.publish(folder, make_record(4, "more", stages(store)))
        with pytest.raises(ValueError, match=word) as refused:
            push(store, [digest], "acme", client=client)
        assert refused.value.exit_code == 8  # type: ignore[attr-defined]
    orphan = store.publish(make_adapter(tmp_path / "orphan"), make_record(4, "more", [f"sha256:{'7' * 64}"]))
    with pytest.raises(NotFoundError, match="ancestor"):
        push(store, [orphan], "acme", client=client)
    weights = store.load(stages(store)[0]).path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="does not match"):
        push(store, stages(store)[2:], "acme", client=client)
    assert not hub.log


UPWARD = [
    "repos/create",
    "/refs",
    "/commits/",
    "validate-yaml",
    "/preupload/",
    "/info/lfs/",
    "PUT ",
    "/verify",
    "/commit/",
    "/tree/",
]


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ("/commit/", "412"),
        *product(UPWARD, ["500", "503", "429", "drop_before", "500_after", "503_after", "drop_after"]),
    ],
)
def test_a_fault_on_the_way_up_ends_in_one_commit(
    hub: Hub, store: Store, client: HubClient, request_: str, kind: str
) -> None:
    fault = hub.fault(request_, kind)
    (done,) = push(store, stages(store)[:1], "acme", client=client)
    assert fault.hits == 1
    assert commits(hub, done.repo) == [f"adapter-digest: {done.digest}"]
    assert client.refs(done.repo).branches == {"main": done.commit}


def test_a_hub_that_goes_silent_is_asked_again(hub: Hub, store: Store, client: HubClient) -> None:
    impatient = HubClient(timeout_s=0.3, first_wait_s=0.01)
    faults = {request: hub.fault(request, "hang") for request in UPWARD}
    (done,) = push(store, stages(store)[:1], "acme", client=impatient)
    assert {request: fault.hits for request, fault in faults.items()} == dict.fromkeys(UPWARD, 1)
    assert commits(hub, done.repo) == [f"adapter-digest: {done.digest}"]


def test_a_hub_that_stays_down_is_said_after_five_tries(hub: Hub, store: Store, client: HubClient) -> None:
    hub.fault("/commit/", "503", None)
    with pytest.raises(OfflineError, match="cannot be reached") as error:
        push(store, stages(store)[:1], "acme", client=client)
    assert error.value.exit_code == 6
    assert len(hub.seen("POST .*/commit/")) == 5
    assert len(hub.seen("GET .*/commits/")) == 6  # looked before each, and once more


def test_who_is_always_overtaken_gives_up_with_a_conflict(hub: Hub, store: Store, client: HubClient) -> None:
    hub.fault("/commit/", "412", None)
    with pytest.raises(ConflictError, match="others keep changing") as error:
        push(store, stages(store)[:1], "acme", client=client)
    assert (error.value.exit_code, len(hub.seen("POST .*/commit/"))) == (5, 20)
    assert "same command again" in str(error.value)


def test_another_adapter_in_between_is_a_conflict_that_names_both(
    hub: Hub, store: Store, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stages(store)[:2]
    commit, repo = client.commit, "acme/toy-s01-structure"

    def overtaken(*arguments: Any, description: str, **options: Any) -> str:
        monkeypatch.setattr(client, "commit", commit)
        note = {"key": "file", "value": {"path": "note", "content": ""}}
        header = {"key": "header", "value": {"summary": "x", "description": f"adapter-digest: {two}"}}
        hub.store.commit(repo, "main", [header, note], "another")
        return commit(*arguments, description=description, **options)

    monkeypatch.setattr(client, "commit", overtaken)
    with pytest.raises(ConflictError) as error:
        push(store, [one], "acme", client=client)
    assert (error.value.exit_code, one in str(error.value), two in str(error.value)) == (5, True, True)
    assert commits(hub, repo) == [f"adapter-digest: {two}"]


def test_an_edited_page_in_between_is_followed(
    hub: Hub, store: Store, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, repo = client.commit, "acme/toy-s01-structure"

    def overtaken(*arguments: Any, **options: Any) -> str:
        monkeypatch.setattr(client, "commit", commit)
        hub.store.commit(repo, "main", [{"key": "file", "value": {"path": "note", "content": ""}}], "another")
        return commit(*arguments, **options)

    monkeypatch.setattr(client, "commit", overtaken)
    (done,) = push(store, stages(store)[:1], "acme", client=client)
    assert done.status == "pushed"
    assert "note" in client.files(repo, str(done.commit))


def test_bytes_changed_on_the_way_up_are_found_out(hub: Hub, store: Store, client: HubClient) -> None:
    commit = client.commit

    def rotten(repo: str, *arguments: Any, **options: Any) -> str:
        sha = commit(repo, *arguments, **options)
        files = client.files(repo, sha)
        client.files = lambda *_: {**files, "lineage.json": files["README.md"]}  # type: ignore[method-assign]
        return sha

    client.commit = rotten  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="other bytes than were sent"):
        push(store, stages(store)[:1], "acme", client=client)
    assert not locations(store, stages(store)[0])


def test_a_listing_that_came_changed_once_makes_no_second_commit(hub: Hub, pushed: Store, client: HubClient) -> None:
    files, looks = client.files, []

    def garbled(repo: str, sha: str) -> Any:
        looks.append(sha)
        found = files(repo, sha)
        return {**found, "lineage.json": found["README.md"]} if len(looks) == 1 else found

    client.files = garbled  # type: ignore[method-assign]
    (again,) = push(pushed, stages(pushed)[:1], "acme", client=client)
    assert again.status == "already there"
    assert len(looks) == 2
    assert not hub.seen("POST .*/commit/")
