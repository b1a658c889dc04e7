"""pull from a Hub on a local port: what arrives is what left, whatever happens on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import AuthError, IntegrityError, NotFoundError, OfflineError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import locations
from plyfold.registry.hub.push.push import pull, push
from plyfold.registry.store import Store

from ....conftest import Hub
from ....support.hub_filling import put
from ..conftest import commits, is_empty, stages

pytestmark = pytest.mark.slow


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
        monkeypatch.setattr(
            "plyfold.registry.record.utc_now", lambda day=name: f"2026-01-01T0{int(day, 16) - 9}:00:00Z"
        )
        reported("merge", "--stages", "1,2,3", "-o", str(tmp_path / name), *options)
    from plyfold.adapters.tensors import tensor_digest

    assert tensor_digest(tmp_path / "a") == tensor_digest(tmp_path / "b")
    records = [(tmp_path / name / "lineage.json").read_bytes() for name in ("a", "b")]
    assert [parent["digest"] for parent in json.loads(records[1])["parents"]] == here
    assert records[0] == records[1]  # so the merge has the same identity, too


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
        (["a", "a/b"], "record"),
        ([], "file list"),
        (["adapter_model.bin"], "pickle"),
    ],
)
def test_a_hostile_record_is_refused_and_leaves_nothing(
    hub: Hub, store: Store, away: Store, client: HubClient, paths: list[str], word: str
) -> None:
    from plyfold.core.disk.digest import canonical_json, sha256_bytes

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
