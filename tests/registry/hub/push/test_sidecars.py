"""push of what lies beside an adapter: revocations are joined, signatures travel, and no adapter changes for it."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import AuthError, IntegrityError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.push.push import Signer, push
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import revoke, withdraw
from plyfold.registry.trust.signing import signs

from ....conftest import Hub, MakeAdapter, MakeRecord
from ..conftest import stages

pytestmark = pytest.mark.slow

REPO = "acme/toy-s01-structure"


@pytest.fixture
def one(store: Store) -> str:
    return stages(store)[0]


@pytest.fixture(scope="module")
def make_key(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Signer]:
    if importlib.util.find_spec("model_signing") is None:
        pytest.skip("model-signing is not installed: pip install 'plyfold[sign]'")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    def make() -> Signer:
        path = tmp_path_factory.mktemp("key") / "signing.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Signer(key=path)

    return make


def reasons(hub: Hub, repo: str = REPO) -> list[str]:
    """What `revocations.json` at the head says, sorted."""
    said = json.loads(hub.store.read(repo, "main", "revocations.json"))["statements"]
    return sorted(item["payload"]["reason"] for item in said)


def titles(hub: Hub, repo: str = REPO) -> list[str]:
    return [row["title"] for row in hub.store.history(repo, "main")][:-1]


def files(hub: Hub, repo: str = REPO, revision: str = "main") -> dict[str, Any]:
    return hub.store.files(repo, hub.store.resolve(repo, revision))


def page(hub: Hub, repo: str = REPO) -> str:
    return hub.store.read(repo, "main", "README.md").decode()


def edit(hub: Hub, path: str, content: bytes) -> None:
    """A commit by somebody who uses no plyfold."""
    value = {"path": path, "content": base64.b64encode(content).decode()}
    hub.store.commit(REPO, "main", [{"key": "file", "value": value}], "ada")


def meanwhile(monkeypatch: pytest.MonkeyPatch, client: HubClient, act: Callable[[], object]) -> None:
    """Have something happen after the next push has looked and before it commits."""
    commit = client.commit

    def overtaken(*arguments: Any, **options: Any) -> str:
        monkeypatch.setattr(client, "commit", commit)
        act()
        return commit(*arguments, **options)

    monkeypatch.setattr(client, "commit", overtaken)


def test_a_revocation_is_one_more_commit_that_leaves_the_adapter(
    hub: Hub, pushed: Store, client: HubClient, one: str
) -> None:
    before = files(hub)
    revoke(pushed, one, "trained on the *test* split")
    (done,) = push(pushed, [one], "acme", client=client)
    assert (done.status, done.superseded) == ("companions updated", False)
    assert done.commit != done.head == hub.store.resolve(REPO, "main")
    assert titles(hub) == ["revocations of toy 1 structure", "toy 1 structure"]
    after = files(hub)
    assert {name for name in after if after[name] != before.get(name)} == {"README.md", "revocations.json"}
    assert reasons(hub) == ["trained on the *test* split"]
    head, body = page(hub).split("\n---\n", 1)
    assert "- revoked" in head
    assert body.lstrip().startswith("> [!WARNING]")
    assert "trained on the \\*test\\* split" in body
    assert "revoked" not in page(hub, "acme/toy-s02-brevity")


def test_nothing_new_to_say_is_no_commit_and_no_more_requests(
    hub: Hub, pushed: Store, client: HubClient, one: str
) -> None:
    push(pushed, [one], "acme", client=client)
    plain = len(hub.log)
    revoke(pushed, one, "bad")
    push(pushed, [one], "acme", client=client)
    hub.log.clear()
    (again,) = push(pushed, [one], "acme", client=client)
    assert again.status == "already there"
    assert len(titles(hub)) == 2
    assert len(hub.log) == plain + 1, "only the tree of the head, which is another commit now"


def test_saying_nothing_costs_a_push_no_request(hub: Hub, store: Store, client: HubClient, one: str) -> None:
    push(store, [one], "acme", client=client)
    asked = [re.sub(r"[0-9a-f]{40,}", "*", str(each)).split("?")[0].split("/")[-2:] for each in hub.log]
    steps = ["create", "refs", "*", "validate-yaml", "main", "batch", "*", "verify", "main", "*"]
    assert [each[-1] for each in asked] == steps, "look, send, look at what came"
    hub.log.clear()
    push(store, [one], "acme", client=client)
    assert len(hub.log) == 4


def test_it_comes_with_the_first_push_and_reaches_the_pages_of_descendants(
    hub: Hub, store: Store, client: HubClient, one: str
) -> None:
    revoke(store, one, "bad")
    done = push(store, stages(store), "acme", client=client)
    assert [each.status for each in done] == ["pushed"] * 3
    assert titles(hub) == ["toy 1 structure"]
    assert reasons(hub) == ["bad"]
    assert "revocations.json" not in files(hub, "acme/toy-s02-brevity")  # it is said of stage 1
    assert "through 1 structure" in page(hub, "acme/toy-s02-brevity")


def test_a_withdrawal_travels_too(hub: Hub, pushed: Store, client: HubClient, one: str) -> None:
    revoke(pushed, one, "bad")
    push(pushed, [one], "acme", client=client)
    withdraw(pushed, one, "a mistake")
    push(pushed, [one], "acme", client=client)
    assert reasons(hub) == ["a mistake", "bad"]
    assert "revoked" not in page(hub).lower()


def test_two_who_revoke_at_once_are_both_heard(
    hub: Hub, pushed: Store, colleague: Store, client: HubClient, one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke(pushed, one, "mine")
    revoke(colleague, one, "theirs")
    meanwhile(monkeypatch, client, lambda: push(colleague, [one], "acme", client=HubClient(timeout_s=2)))
    (done,) = push(pushed, [one], "acme", client=client)
    assert done.status == "companions updated"
    assert reasons(hub) == ["mine", "theirs"]
    assert all(f": {reason}\n" in page(hub) for reason in ("mine", "theirs"))
    (again,) = push(colleague, [one], "acme", client=client)
    assert again.status == "already there"


def test_of_a_superseded_adapter_only_what_is_said_goes_to_the_head(
    hub: Hub,
    pushed: Store,
    client: HubClient,
    one: str,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    make_key: Callable[[], Signer],
    tmp_path: Path,
) -> None:
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    push(pushed, [new], "acme", client=client)
    before = files(hub)
    revoke(pushed, one, "old")
    (done,) = push(pushed, [one], "acme", signer=make_key(), client=client)
    assert (done.status, done.superseded) == ("companions updated", True)
    after = files(hub)
    assert {name for name in after if after[name] != before.get(name)} == {"revocations.json"}
    revoke(pushed, new, "new")
    (done,) = push(pushed, [new], "acme", client=client)
    assert reasons(hub) == ["new", "old"]
    assert (": new\n" in page(hub), ": old\n" in page(hub)) == (True, False)


def test_an_adapter_that_follows_keeps_what_was_said_and_drops_the_signature(
    hub: Hub,
    pushed: Store,
    client: HubClient,
    one: str,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    make_key: Callable[[], Signer],
    tmp_path: Path,
) -> None:
    revoke(pushed, one, "old")
    push(pushed, [one], "acme", signer=make_key(), client=client)
    assert "model.sig" in files(hub)
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    (done,) = push(pushed, [new], "acme", client=client)
    assert done.status == "pushed"
    assert "model.sig" not in files(hub)
    assert "model.sig" in files(hub, revision=f"{hub.store.history(REPO, 'main')[1]['id']}")
    assert reasons(hub) == ["old"]
    assert "Revoked" not in page(hub)
    newest = pushed.publish(make_adapter(tmp_path / "third", seed=10), make_record(1, "structure"))
    revoke(pushed, newest, "newest")
    push(pushed, [newest], "acme", client=client)
    assert reasons(hub) == ["newest", "old"]
    assert len(titles(hub)) == 4


def test_a_signature_travels_once_and_is_replaced_only_on_request(
    hub: Hub, pushed: Store, colleague: Store, client: HubClient, one: str, make_key: Callable[[], Signer]
) -> None:
    mine, theirs = make_key(), make_key()
    before = files(hub)
    two = stages(pushed)[1]
    signed = push(pushed, [two], "acme", signer=mine, client=client)
    assert [(each.status, each.companions) for each in signed] == [
        ("already there", ()),  # an ancestor is not asked for
        ("companions updated", ("model.sig",)),
    ]
    push(pushed, [one], "acme", signer=mine, client=client)
    after = files(hub)
    assert {name for name in after if after[name] != before.get(name)} == {"model.sig"}
    assert titles(hub) == ["signature of toy 1 structure", "toy 1 structure"]
    first = hub.store.read(REPO, "main", "model.sig")
    assert signs(pushed, one, first)
    assert [push(pushed, [one], "acme", signer=mine, client=client)[0].status] == ["already there"]
    assert push(colleague, [one], "acme", signer=theirs, client=client)[0].status == "companions updated"
    second = hub.store.read(REPO, "main", "model.sig")
    assert second != first
    assert push(pushed, [one], "acme", client=client)[0].status == "already there"
    assert hub.store.read(REPO, "main", "model.sig") == second


def test_a_signature_comes_in_the_commit_of_a_first_push(
    hub: Hub, store: Store, client: HubClient, one: str, make_key: Callable[[], Signer]
) -> None:
    push(store, [one], "acme", signer=make_key(), client=client)
    assert titles(hub) == ["toy 1 structure"]
    assert signs(store, one, hub.store.read(REPO, "main", "model.sig"))


def test_a_key_that_cannot_sign_is_refused_before_the_first_request(
    hub: Hub, store: Store, client: HubClient, one: str, make_key: Callable[[], Signer], tmp_path: Path
) -> None:
    make_key()
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ValueError, match="not a private key"):
        push(store, [one], "acme", signer=Signer(key=tmp_path / "key.pem"), client=client)
    assert not hub.log


def test_a_page_that_people_edited_is_left_to_them(hub: Hub, pushed: Store, client: HubClient, one: str) -> None:
    text = page(hub) + "\nAsk Ada before you use it.\n"
    edit(hub, "README.md", text.encode())
    revoke(pushed, one, "bad")
    (done,) = push(pushed, [one], "acme", client=client)
    assert reasons(hub) == ["bad"]
    assert page(hub) == text
    assert "edited on the Hub" in done.note


def test_what_cannot_be_read_there_is_never_written_over(hub: Hub, pushed: Store, client: HubClient, one: str) -> None:
    edit(hub, "revocations.json", b"{}")
    revoke(pushed, one, "bad")
    with pytest.raises(IntegrityError, match="is not what this version understands") as error:
        push(pushed, [one], "acme", client=client)
    assert REPO in error.value.where
    assert hub.store.read(REPO, "main", "revocations.json") == b"{}"


def test_a_companion_that_comes_changed_twice_is_refused(
    hub: Hub, pushed: Store, colleague: Store, client: HubClient, one: str
) -> None:
    revoke(colleague, one, "theirs")
    push(colleague, [one], "acme", client=client)
    revoke(pushed, one, "mine")
    hub.fault("resolve/.*/revocations.json", "flip", None)
    with pytest.raises(IntegrityError, match="came changed from the Hub, twice"):
        push(pushed, [one], "acme", client=client)
    assert reasons(hub) == ["theirs"]


def test_a_companion_changed_on_the_way_up_is_found_out(hub: Hub, pushed: Store, client: HubClient, one: str) -> None:
    revoke(pushed, one, "bad")
    commit = client.commit

    def rotten(repo: str, files: Any, **options: Any) -> str:
        return commit(repo, files | {"revocations.json": files["revocations.json"].replace(b"bad", b"bed")}, **options)

    client.commit = rotten  # type: ignore[method-assign]
    with pytest.raises(IntegrityError, match="other bytes than were sent"):
        push(pushed, [one], "acme", client=client)


ASKED = ["repos/create", "/refs", "/commits/", "/tree/", "resolve/", "validate-yaml", "/preupload/", "/commit/"]
KINDS = ["500", "503", "429", "drop_before", "500_after", "503_after", "drop_after"]


@pytest.mark.parametrize("request_", ASKED)
def test_a_fault_on_the_way_ends_in_one_commit_with_what_both_said(
    hub: Hub, pushed: Store, colleague: Store, client: HubClient, one: str, request_: str
) -> None:
    extra = {"/commit/": ["412"], "resolve/": ["flip", "truncate"]}.get(request_, [])
    for number, kind in enumerate([*KINDS, *extra], start=1):
        revoke(colleague, one, f"theirs {number}")
        push(colleague, [one], "acme", client=client)
        revoke(pushed, one, f"mine {number}")
        earlier = len(titles(hub))
        fault = hub.fault(f"{request_}.*revocations" if request_ == "resolve/" else request_, kind)
        (done,) = push(pushed, [one], "acme", client=client)
        assert (fault.hits, done.status, len(titles(hub)) - earlier) == (1, "companions updated", 1), kind
        assert {f"theirs {number}", f"mine {number}"} <= set(reasons(hub))
    assert len(reasons(hub)) == 2 * number


def test_a_hub_that_goes_silent_is_asked_again(
    hub: Hub, pushed: Store, colleague: Store, client: HubClient, one: str
) -> None:
    revoke(colleague, one, "theirs")
    push(colleague, [one], "acme", client=client)
    revoke(pushed, one, "mine")
    faults = {request: hub.fault(request, "hang") for request in ASKED}
    (done,) = push(pushed, [one], "acme", client=HubClient(timeout_s=0.3, first_wait_s=0.01))
    assert {request: fault.hits for request, fault in faults.items()} == dict.fromkeys(ASKED, 1)
    assert (done.status, len(titles(hub)), reasons(hub)) == ("companions updated", 3, ["mine", "theirs"])


@pytest.mark.parametrize("kind", ["401", "403"])
def test_a_token_that_may_not_write_is_said(hub: Hub, pushed: Store, client: HubClient, one: str, kind: str) -> None:
    revoke(pushed, one, "bad")
    hub.fault("/commit/", kind, None)
    with pytest.raises(AuthError):
        push(pushed, [one], "acme", client=client)
    assert titles(hub) == ["toy 1 structure"]
