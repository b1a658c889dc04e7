"""What push takes along and what it refuses: merges, code nobody can look up, the collection, the dry run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from plyfold.cli.main import run
from plyfold.core.errors import IncompatibleError, NotFoundError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.pull.pull import pull
from plyfold.registry.hub.push.collection import update_collection
from plyfold.registry.hub.push.push import choose, push
from plyfold.registry.record import Code, Recipe
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import revoke

from ....conftest import Hub, MakeAdapter, MakeRecord
from ....support.hub_collections import collections
from ..conftest import stages

pytestmark = pytest.mark.slow

DIRTY = Code(version="0.1.0", git="0123abcd" * 5, dirty=True)
Command = Callable[..., dict[str, Any]]


@pytest.fixture
def command(
    hub: Hub, store: Store, client: HubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs plyfold on the three stages and returns what it reports as JSON; it does not wait between tries."""
    monkeypatch.setattr(HubClient, "pause", lambda self, attempt: None)

    def reported(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert run([*arguments, "--registry", str(store.root), "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    return reported


@pytest.fixture
def merged(command: Command, store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """A merge of stages 1 and 2 made from a clean checkout."""
    monkeypatch.setattr("plyfold.variants.publish.describe_code", lambda: Code(version="0.1.0", dirty=False))
    command("merge", "--stages", "1,2", "--weights", "1,0.5")
    return store.merges("toy")["toy-s1.s2x0.5"]


def page(hub: Hub, repo: str) -> tuple[dict[str, Any], str]:
    _, head, body = hub.store.read(repo, "main", "README.md").decode().split("---\n", 2)
    return dict(yaml.safe_load(head)), body


# ---- merges


def test_a_merge_travels_after_what_it_was_made_of(hub: Hub, store: Store, command: Command, merged: str) -> None:
    done = command("push", "acme/toy", "--merges", "all")["pushed"]
    assert [each["digest"] for each in done] == [*stages(store)[:2], merged]
    assert [each["asked_for"] for each in done] == [False, False, True]
    repo = done[-1]["repo"]
    assert repo == f"acme/toy-merge-{merged[7:19]}"
    assert done[-1]["name"] == "toy merge toy-s1.s2x0.5"
    head, body = page(hub, repo)
    assert (head["base_model"], head["base_model_relation"]) == ("acme/tiny-qwen2", "adapter")
    assert head["tags"][:2] == ["curriculum:toy", "merge"]
    one, two = done[0]["commit"], done[1]["commit"]
    for text in (
        "# toy: merge 1+2\\*0.5",
        f"| [toy 1 structure](https://huggingface.co/acme/toy-s01-structure/tree/{one}) `{stages(store)[0]}` | 1 | ",
        f"| [toy 2 brevity](https://huggingface.co/acme/toy-s02-brevity/tree/{two}) `{stages(store)[1]}` | 0.5 | ",
        "Method `exact`, rank 8. It is the weighted sum of its inputs to the bit",
    ):
        assert text in body
    assert "composition.json" in hub.store.files(repo, hub.store.resolve(repo, "main"))


def test_a_lossy_merge_tells_its_error(hub: Hub, store: Store, command: Command, merged: str) -> None:
    command("merge", "--stages", "1,2,3", "--method", "svd", "--rank", "4")
    (slug,) = (slug for slug in store.merges("toy") if "svd" in slug)
    done = command("push", "acme/toy", "--merges", slug)["pushed"]
    composition = json.loads((store.load(done[-1]["digest"]).path / "composition.json").read_text())
    error = composition["certificate"]["relative_error"]
    assert error > 0.1
    _, body = page(hub, done[-1]["repo"])
    assert f"relative to that sum, is {error:.3g} (Frobenius norm)" in body
    assert f"`{composition['certificate']['worst_module']['name']}`" in body


def test_a_merge_is_fetched_as_push_says(
    hub: Hub, store: Store, away: Store, merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["push", "acme/toy", "--stages", "3", "--registry", str(store.root), "--merges"]) == 0
    lines = [
        line.partition(": plyfold ")[2] for line in capsys.readouterr().out.splitlines() if "fetch anywhere" in line
    ]
    assert lines == ["pull acme/toy --stages 3", "pull acme/toy --merges toy-s1.s2x0.5"]
    for line in lines:
        assert run([*line.split(), "--registry", str(away.root)]) == 0
    assert {merged, stages(store)[2]} <= set(away.digests())
    assert away.merges("toy") == {"toy-s1.s2x0.5": merged}


@pytest.mark.parametrize("slug", ["x\nadapter-digest: sha256:00", "\x1b[2J", "", "a b", 3, None])
def test_a_name_that_somebody_made_up_gets_into_no_commit(
    hub: Hub,
    store: Store,
    client: HubClient,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    tmp_path: Path,
    slug: Any,
) -> None:
    record = make_record(None, parents=stages(store)[:1], recipe=Recipe(details={"slug": slug}))
    done = push(store, [store.publish(make_adapter(tmp_path / "merge"), record)], "acme", client=client)[-1]
    assert (done.name, done.slug) == ("toy merge", None)
    assert hub.store.history(done.repo, "main")[0]["title"] == "toy merge"


def test_stages_and_merges_are_chosen_together_or_apart(store: Store, merged: str) -> None:
    assert choose(store, "toy", None, None) == stages(store)
    assert choose(store, "toy", [3], ["all"]) == [stages(store)[2], merged]
    assert choose(store, "toy", None, ["toy-s1.s2x0.5"]) == [merged]
    with pytest.raises(NotFoundError, match=r"no merge 'none' of toy.*\n.*\n.*toy-s1\.s2x0\.5"):
        choose(store, "toy", None, ["toy-s1.s2x0.5", "none"])
    with pytest.raises(ValueError, match="twice"):
        choose(store, "toy", None, ["toy-s1.s2x0.5", "toy-s1.s2x0.5"])


def test_all_merges_of_a_curriculum_without_one_is_an_error(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no merge of toy yet"):
        choose(store, "toy", None, ["all"])


# ---- code nobody can look up


def test_an_adapter_of_uncommitted_code_stays_here_unless_that_is_wanted(
    hub: Hub, store: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path
) -> None:
    dirty = store.publish(make_adapter(tmp_path / "dirty"), make_record(4, "more", stages(store)[:1], code=DIRTY))
    child = store.publish(make_adapter(tmp_path / "child", seed=5), make_record(5, "most", [dirty]))
    for digest in (dirty, child):
        with pytest.raises(IncompatibleError, match="uncommitted") as error:
            push(store, [digest], "acme", client=client)
        assert error.value.exit_code == 8
        assert all(text in str(error.value) for text in ("toy 4 more", DIRTY.git or "", "--allow-dirty"))
    assert not hub.log
    done = push(store, [child], "acme", allow_dirty=True, client=client)
    bodies = [page(hub, each.repo)[1] for each in done]
    assert ["changes that were not committed" in body for body in bodies] == [False, True, False]


# ---- the collection


def test_a_collection_lists_the_stages_in_order_then_the_merges(
    hub: Hub, store: Store, command: Command, merged: str
) -> None:
    first = command("push", "acme/toy", "--stages", "3")["collection"]
    collection = collections(hub)["toy"]
    assert (collection["owner"], collection["private"]) == ("acme", True)
    assert (first["slug"], first["fault"]) == (collection["slug"], "")
    assert first["url"] == f"{hub.url}/collections/{collection['slug']}"
    assert [(each["id"], each["note"]["text"]) for each in collection["items"]] == [
        ("acme/toy-s01-structure", "Stage 1, structure: a LoRA of rank 4"),
        ("acme/toy-s02-brevity", "Stage 2, brevity: a LoRA of rank 4"),
        ("acme/toy-s03-remedy", "Stage 3, remedy: a LoRA of rank 4"),
    ]
    again = command("push", "acme/toy", "--merges", "all")["collection"]
    assert again["added"] == [f"acme/toy-merge-{merged[7:19]}"]
    assert (again["slug"], len(collections(hub))) == (first["slug"], 1)
    note = collections(hub)["toy"]["items"][-1]["note"]["text"]
    assert note == "Stages 1+2*0.5 merged into one LoRA of rank 8, exact"
    hub.log.clear()
    assert command("push", "acme/toy", "--merges", "all")["collection"]["added"] == []
    assert [each.method for each in hub.seen("/api/collections")] == ["POST", "GET"]


def test_public_repositories_get_a_public_collection_and_none_is_made_where_none_is_wanted(
    hub: Hub, command: Command
) -> None:
    assert command("push", "acme/toy", "--stages", "1", "--public", "--no-collection")["collection"] is None
    assert not hub.seen("/api/collections")
    command("push", "acme/toy", "--stages", "1", "--public")
    assert collections(hub)["toy"]["private"] is False


def test_in_whatever_order_they_come(hub: Hub, store: Store, client: HubClient, make_record: MakeRecord) -> None:
    for name in ("b", "a"):
        hub.store.create(f"acme/{name}", private=True, author="writer", url="")
    records = [("acme/a", make_record(None)), ("acme/b", make_record(2))]
    done = update_collection(client, "acme", "toy", [*records, records[1]], private=True)
    assert done.added == ("acme/b", "acme/a")
    assert update_collection(client, "acme", "other", records, private=True).added == ()


def test_an_answer_that_is_no_collection_is_a_fault(
    hub: Hub, store: Store, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(*arguments: Any, **options: Any) -> Any:
        raise KeyError("slug")  # what the library makes of a 409 without one

    monkeypatch.setattr("huggingface_hub.HfApi.create_collection", answered)
    done = update_collection(client, "acme", "toy", [], private=True)
    assert "KeyError" in done.fault


KINDS = ["500", "503", "429", "drop_before", "500_after", "503_after", "drop_after"]


@pytest.mark.parametrize("request_", ["POST /api/collections$", "GET /api/collections/", "POST .*/items$"])
def test_a_fault_around_the_collection_is_outlasted_and_doubles_nothing(
    hub: Hub, command: Command, request_: str
) -> None:
    if request_.startswith("GET"):
        command("push", "acme/toy", "--stages", "1")
    for kind in KINDS:
        if not request_.startswith("GET"):
            forget(hub)
        fault = hub.fault(request_, kind)
        done = command("push", "acme/toy", "--stages", "2")
        assert (fault.hits, done["collection"]["fault"]) == (1, ""), kind
        ids = [each["id"] for each in collections(hub)["toy"]["items"]]
        assert ids == ["acme/toy-s01-structure", "acme/toy-s02-brevity"]


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        *(("POST /api/collections$", kind) for kind in ("500", "401", "403", "truncate", "drop_after")),
        *(("POST .*/items$", kind) for kind in ("503", "401", "403", "truncate", "drop_before")),
    ],
)
def test_whatever_is_wrong_with_the_collection_the_push_stands(
    hub: Hub,
    store: Store,
    client: HubClient,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request_: str,
    kind: str,
) -> None:
    monkeypatch.setattr(HubClient, "pause", lambda self, attempt: None)
    hub.fault(request_, kind, None)
    assert run(["push", "acme/toy", "--stages", "1", "--registry", str(store.root), "--json"]) == 0
    shown = capsys.readouterr()
    value = json.loads(shown.out)
    assert [each["status"] for each in value["pushed"]] == ["pushed"]
    assert value["collection"]["fault"]
    warning = " ".join(shown.err.split())
    assert warning.count("collection is not complete") == 1
    assert value["collection"]["fault"].split(" (")[0] in warning
    assert "Traceback" not in shown.err
    assert pull(store, "acme/toy", stages=[1], client=client)[0].status == "already here"


def forget(hub: Hub) -> None:
    for path in (hub.store.root / "collections").glob("*/*"):
        path.unlink()


# ---- the dry run


def test_a_dry_run_shows_all_of_it_and_asks_nothing(
    hub: Hub, store: Store, command: Command, merged: str, tmp_path: Path
) -> None:
    one = stages(store)[0]
    revoke(store, one, "bad")
    before = sorted(path for path in store.root.rglob("*"))
    key = tmp_path / "key.pem"
    key.write_text("only read when there is something to sign")
    plan = command("push", "acme/toy", "--merges", "all", "--dry-run", "--sign", str(key))
    assert (plan["dry_run"], plan["private"]) == (True, True)
    assert plan["collection"] == {"title": "toy", "slug": None, "url": None, "added": [], "fault": ""}
    assert [(each["repo"], each["status"], each["companions"]) for each in plan["pushed"]] == [
        ("acme/toy-s01-structure", "would be pushed", ["revocations.json"]),
        ("acme/toy-s02-brevity", "would be pushed", []),
        (f"acme/toy-merge-{merged[7:19]}", "would be pushed", ["model.sig"]),
    ]
    for each in plan["pushed"]:
        folder = store.load(each["digest"]).path
        assert each["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        assert each["commit"] is each["location"] is None
    assert not hub.log
    assert sorted(path for path in store.root.rglob("*")) == before


def test_a_dry_run_says_it_to_people(store: Store, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["push", "acme/toy", "--dry-run", "--public", "--registry", str(store.root)]) == 0
    shown = capsys.readouterr().out
    assert "would be public; listed in the collection 'toy'; nothing was sent" in " ".join(shown.split())
    assert "MB" in shown
    assert not hub.log


def test_people_are_told_of_what_leads_and_what_was_left(
    hub: Hub,
    store: Store,
    client: HubClient,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = stages(store)[0]
    new = store.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    push(store, [one], "acme", client=client)
    value = {"path": "README.md", "content": base64.b64encode(b"by hand").decode()}
    hub.store.commit("acme/toy-s01-structure", "main", [{"key": "file", "value": value}], "ada")
    revoke(store, one, "bad")
    there = ["push", "acme/toy", "--stages", "1", "--registry", str(store.root)]
    assert run(there) == 0
    shown = capsys.readouterr()
    assert "README.md of acme/toy-s01-structure was edited on the Hub" in " ".join(shown.err.split())
    assert "leads now" not in shown.err
    for line in ("companions updated", "collection: http", "fetch anywhere: plyfold pull acme/toy --stages 1"):
        assert line in shown.out
    push(store, [new], "acme", client=client)
    assert run(there) == 0
    assert "where a later commit" in " ".join(capsys.readouterr().err.split())


def test_signing_without_a_key_is_refused_first(
    store: Store, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLYFOLD_SIGNING_KEY", raising=False)
    assert run(["push", "acme/toy", "--registry", str(store.root), "--sign"]) == 2
    assert "PLYFOLD_SIGNING_KEY" in capsys.readouterr().err
    monkeypatch.setenv("PLYFOLD_SIGNING_KEY", str(store.root / "none.pem"))
    assert run(["push", "acme/toy", "--registry", str(store.root), "--sign"]) == 3
    assert not hub.log
