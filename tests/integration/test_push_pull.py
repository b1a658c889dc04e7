"""push and pull against a Hub on a local port: what arrives is what left, whatever happens on the way."""

from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import AuthError, ConflictError, IntegrityError, NotFoundError, OfflineError
from plyfold.registry.hub import pull, push
from plyfold.registry.hub_client import HubClient
from plyfold.registry.hub_places import locations
from plyfold.registry.store import Store, find_store

from ..conftest import Hub, MakeAdapter, MakeRecord


@pytest.fixture
def client(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    """Without the pauses of the Hub's own library, 23 s for some requests."""
    pauseless = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", pauseless)
    return HubClient(timeout_s=2, first_wait_s=0.01)


@pytest.fixture
def store(tmp_path: Path, make_adapter: MakeAdapter, make_record: MakeRecord) -> Store:
    """Three stages of `toy`, each trained on those before it."""
    from plyfold.adapters.tensors import tensor_digest
    from plyfold.registry.record import Weights

    store = find_store(tmp_path / "home", create=True)
    parents: list[str] = []
    for number, name in enumerate(("structure", "brevity", "remedy"), start=1):
        folder = make_adapter(tmp_path / name, seed=number)
        weights = Weights(digest=tensor_digest(folder), dtype="float32", r=4, alpha=8, targets=[])
        parents.append(store.publish(folder, make_record(number, name, parents, weights=weights)))
        store.set_ref("toy", number, parents[-1])
    return store


@pytest.fixture
def away(tmp_path: Path) -> Store:
    return find_store(tmp_path / "away", create=True)


def stages(store: Store) -> list[str]:
    return list(store.stages("toy").values())


def commits(hub: Hub, repo: str) -> list[str]:
    """Descriptions of the commits of a repository that brought an adapter."""
    return [row["message"] for row in hub.store.history(repo, "main") if row["message"]]


def is_empty(store: Store) -> bool:
    return not store.digests() and not store.curricula() and not list((store.root / "tmp").iterdir())


@pytest.fixture
def pushed(hub: Hub, store: Store, client: HubClient) -> Store:
    push(store, stages(store), "acme", client=client)
    hub.log.clear()
    return store


def test_stages_arrive_as_they_left(hub: Hub, store: Store, away: Store, client: HubClient) -> None:
    done = push(store, stages(store)[2:], "acme", client=client)
    assert [each.name for each in done] == ["toy 1 structure", "toy 2 brevity", "toy 3 remedy"]  # ancestors first
    assert [each.status for each in done] == ["pushed"] * 3
    for each in done:
        assert commits(hub, each.repo) == [f"adapter-digest: {each.digest}"]
        assert hub.store.check_access(each.repo, hub.users[hub.token])["private"] is True
        assert locations(store, each.digest) == [f"hf://{each.repo}@{each.commit}"]
    got = pull(away, "acme/toy", stages=[1, 2, 3], client=client)
    assert [(each.digest, each.status, each.missing) for each in got] == [
        (digest, "pulled", ()) for digest in stages(store)
    ]
    assert stages(away) == stages(store)
    for digest in stages(store):
        entry, original = away.load(digest), store.load(digest)
        assert (entry.path / "lineage.json").read_bytes() == (original.path / "lineage.json").read_bytes()
        assert locations(away, digest) == locations(store, digest)


def test_the_whole_way_gives_the_same_merge(
    hub: Hub, make_store: Any, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    home = make_store(tmp_path / "home", tiny_base())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)

    def reported(*arguments: str) -> dict[str, Any]:
        assert run([*arguments, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    there = ["--registry", str(home.root)]
    assert len(reported("push", "acme/tiny", "--stages", "1,2,3", *there)["pushed"]) == 3
    reported("pull", "acme/tiny", "--stages", "1,2,3")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here = [each["digest"] for each in reported("pull", "acme/tiny", "--stages", "1,2,3")["pulled"]]
    assert here == list(home.stages("tiny").values())
    for name, options in (("a", there), ("b", [])):
        reported("merge", "--stages", "1,2,3", "-o", str(tmp_path / name), *options)
    from plyfold.adapters.tensors import tensor_digest

    assert tensor_digest(tmp_path / "a") == tensor_digest(tmp_path / "b")
    records = [json.loads((tmp_path / name / "lineage.json").read_bytes()) for name in ("a", "b")]
    assert [parent["digest"] for parent in records[1]["parents"]] == here
    assert records[0]["weights"] == records[1]["weights"]


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
    for folder, word in ((pickled, "pickle"), (local, "base")):
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


UPWARD = ["repos/create", "/refs", "/commits/", "/preupload/", "/info/lfs/", "PUT ", "/verify", "/commit/", "/tree/"]


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


def test_a_hub_that_stays_down_is_said_after_five_tries(hub: Hub, store: Store, client: HubClient) -> None:
    hub.fault("/commit/", "503", None)
    with pytest.raises(OfflineError, match="cannot be reached") as error:
        push(store, stages(store)[:1], "acme", client=client)
    assert error.value.exit_code == 6
    assert len(hub.seen("POST .*/commit/")) == 5
    assert len(hub.seen("GET .*/commits/")) == 6  # looked before each, and once more


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


def test_a_commit_that_was_pulled_is_not_asked_for_again(
    hub: Hub, pushed: Store, away: Store, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = pushed.ref("toy", 3)
    (place,) = locations(pushed, three)
    (first,) = pull(away, place, client=client)
    assert first.missing == tuple(sorted(stages(pushed)[:2]))
    hub.log.clear()
    (again,) = pull(away, place, client=client)
    assert (again.digest, again.status) == (three, "already here")
    assert not hub.log
    got = pull(away, place, with_parents=True, client=client)
    assert {each.digest: (each.status, each.asked_for) for each in got} == {
        three: ("already here", True),
        **dict.fromkeys(stages(pushed)[:2], ("pulled", False)),
    }
    assert stages(away) == stages(pushed)
    hub.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(pull(away, place, with_parents=True, client=client)) == 1
    assert len(pull(away, "acme/toy", client=client)) == 3
    assert pull(away, "hf://acme/toy-s03-remedy", client=client)[0].digest == three
    for ref in ("acme/toy-two", "hf://acme/other", f"hf://acme/other@{'1' * 40}"):
        with pytest.raises(OfflineError, match="switched off"):
            pull(away, ref, client=client)
    with pytest.raises(OfflineError, match="switched off"):
        pull(away, "acme/toy", stages=[1, 4], client=client)
    assert not hub.log


def test_a_moved_branch_is_seen_though_the_old_commit_is_here(
    hub: Hub, pushed: Store, away: Store, client: HubClient, make_adapter: Any, make_record: Any, tmp_path: Path
) -> None:
    pull(away, "acme/toy", stages=[1], client=client)
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    push(pushed, [new], "acme", client=client)
    hub.fault("/refs", "503", None)
    with pytest.raises(OfflineError):
        pull(away, "acme/toy", stages=[1], client=client)
    hub.heal()
    (got,) = pull(away, "acme/toy", stages=[1], client=client)
    assert (got.digest, got.previous, away.ref("toy", 1)) == (new, pushed.ref("toy", 1), new)


@pytest.mark.parametrize("kind", ["flip", "truncate", "500", "503", "429", "drop_before", "drop_after"])
@pytest.mark.parametrize("file", ["lineage.json", "adapter_config.json", "resolve/.*safetensors", "/_lfs/"])
def test_a_fault_on_the_way_down_is_mended_or_refused(
    hub: Hub, pushed: Store, away: Store, client: HubClient, file: str, kind: str
) -> None:
    place = locations(pushed, pushed.ref("toy", 1))[0]
    fault = hub.fault(f"GET .*({file})", kind)
    if file == "lineage.json" and kind == "flip":  # nothing says yet which record it should be
        with pytest.raises((IntegrityError, NotFoundError)):
            pull(away, place, client=client)
        assert is_empty(away)
        return
    (got,) = pull(away, place, client=client)
    assert fault.hits == 1
    assert got.digest == pushed.ref("toy", 1)
    assert away.load(got.digest)


@pytest.mark.parametrize("stage", [1, 3])
def test_bytes_that_stay_wrong_are_refused_and_nothing_is_left(
    hub: Hub, pushed: Store, away: Store, client: HubClient, stage: int
) -> None:
    hub.fault("GET .*/_lfs/|GET .*adapter_model.safetensors", "flip", None)
    with pytest.raises(IntegrityError, match="does not match its record") as error:
        pull(away, "acme/toy", stages=[stage], client=client)
    assert error.value.exit_code == 4
    assert len(hub.seen("GET .*resolve/.*adapter_model.safetensors")) == 2  # one refetch
    assert is_empty(away)


@pytest.mark.parametrize(
    ("code", "error", "exit_code"), [("401", AuthError, 7), ("403", AuthError, 7), ("503", OfflineError, 6)]
)
def test_refusals_have_their_own_exit_code(
    hub: Hub, pushed: Store, away: Store, client: HubClient, code: str, error: type[Exception], exit_code: int
) -> None:
    hub.fault(".", code, None)
    for attempt in (
        lambda: pull(away, "acme/toy", client=client),
        lambda: pull(away, locations(pushed, pushed.ref("toy", 1))[0], client=client),
        lambda: push(pushed, stages(pushed), "acme", client=client),
    ):
        with pytest.raises(error) as raised:
            attempt()
        assert raised.value.exit_code == exit_code  # type: ignore[attr-defined]
        assert hub.token not in str(raised.value)
    assert is_empty(away)


def test_a_hub_that_hangs_is_given_up(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    hub.fault(".", "hang", None)
    with pytest.raises(OfflineError, match="cannot be reached"):
        pull(away, "acme/toy", client=HubClient(timeout_s=0.1, first_wait_s=0.01))


def put(hub: Hub, repo: str, files: dict[str, bytes]) -> None:
    """A repository somebody else has filled."""
    import base64

    hub.store.create(repo, private=False, author="another", url=hub.url)
    lines = [
        {"key": "file", "value": {"path": path, "content": base64.b64encode(data).decode()}}
        for path, data in files.items()
    ]
    hub.store.commit(repo, "main", lines, "another")


def test_a_foreign_adapter_is_sent_to_import(hub: Hub, away: Store, client: HubClient) -> None:
    put(hub, "else/lora", {"adapter_config.json": b"{}"})
    with pytest.raises(NotFoundError, match=r"lineage\.json") as error:
        pull(away, "hf://else/lora", client=client)
    assert "plyfold import" in error.value.next_step
    assert is_empty(away)


def test_a_folder_of_a_repository_is_pulled(hub: Hub, store: Store, away: Store, client: HubClient) -> None:
    entry = store.load(store.ref("toy", 1))
    put(hub, "else/many", {f"stages/1/{path.name}": path.read_bytes() for path in entry.path.iterdir()})
    (got,) = pull(away, "hf://else/many/stages/1", client=client)
    assert got.digest == entry.digest
    with pytest.raises(ValueError, match="payload file"):
        pull(away, "hf://else/many/../1", client=client)


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        (["../evil"], "record"),
        (["/etc/passwd"], "record"),
        (["a", "a/b"], "file list"),
        ([], "file list"),
        (["adapter_model.bin"], "pickle"),
    ],
)
def test_a_hostile_record_is_refused_and_leaves_nothing(
    hub: Hub, store: Store, away: Store, client: HubClient, paths: list[str], word: str
) -> None:
    from plyfold.core.digest import canonical_json, sha256_bytes

    value = store.load(store.ref("toy", 1)).record.to_json()
    value["files"] = [{"path": path, "size": 1, "sha256": sha256_bytes(b"x")} for path in paths]
    put(hub, "else/evil", {"lineage.json": canonical_json(value), **{p: b"x" for p in paths if p[0] not in "./"}})
    with pytest.raises(ValueError, match=word) as error:
        pull(away, "hf://else/evil", client=client)
    assert error.value.exit_code in (4, 8)  # type: ignore[attr-defined]
    assert is_empty(away)
    assert sorted(path.name for path in away.root.parent.iterdir()) == [
        "away",
        "brevity",
        "home",
        "remedy",
        "structure",
    ]


def test_another_stage_under_a_stages_name_is_refused(hub: Hub, store: Store, away: Store, client: HubClient) -> None:
    entry = store.load(store.ref("toy", 2))
    put(hub, "else/toy-s01-structure", {path.name: path.read_bytes() for path in entry.path.iterdir()})
    with pytest.raises(IntegrityError, match="another adapter") as error:
        pull(away, "else/toy", client=client)
    assert (error.value.expected, error.value.found) == ("toy stage 1", "toy 2 brevity")
    with pytest.raises(NotFoundError, match="no stage 2"):
        pull(away, "else/toy", stages=[2], client=client)


def test_a_digest_that_was_promised_is_held_to(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    with pytest.raises(IntegrityError, match="another adapter"):
        pull(away, "acme/toy", stages=[1], expected={1: f"sha256:{'7' * 64}"}, client=client)
    assert is_empty(away)
    assert len(pull(away, "acme/toy", stages=[1], expected={1: pushed.ref("toy", 1)}, client=client)) == 1


def test_the_commands_say_what_happened(hub: Hub, store: Store, tmp_path: Path) -> None:
    done = hub.run(["push", "acme/toy", "--stages", "3", "--registry", store.root])
    assert done.returncode == 0, done.stderr
    assert "toy 1 structure" in done.stdout
    assert "plyfold pull acme/toy --stages 3" in done.stdout
    there = ["--registry", tmp_path / "new"]
    done = hub.run(["pull", "acme/toy", "--stages", "3", *there])
    assert done.returncode == 0, done.stderr
    assert "add --with-parents" in done.stderr
    offline = hub.run(["pull", "acme/toy", "--stages", "1,3", *there], HF_HUB_OFFLINE="1")
    assert (offline.returncode, "error[offline]" in offline.stderr) == (6, True)
    denied = hub.run(["pull", "acme/toy", *there], HF_TOKEN="hf_wrongSecret")
    assert denied.returncode == 7
    assert "hf_wrongSecret" not in denied.stdout + denied.stderr
    for wrong in (["push", "acme"], ["pull", "acme"], ["pull", "https://x/y"], ["pull", "hf://a"]):
        assert hub.run([*wrong, *there]).returncode == 2, wrong
