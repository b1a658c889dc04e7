"""pull of several references, of merges by their names, and without changing anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.disk.digest import short
from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError, PlyfoldError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import DIGEST_LINE, locations
from plyfold.registry.hub.pull.pull import Options, pull
from plyfold.registry.hub.push.push import push
from plyfold.registry.record import Recipe
from plyfold.registry.store import Store, find_store
from plyfold.registry.trust.revocation import revoke

from ....conftest import Hub, MakeAdapter, MakeRecord
from ....support.hub_filling import put
from ..conftest import is_empty, stages

pytestmark = pytest.mark.slow

MakeMerge = Callable[..., str]


@pytest.fixture
def make_merge(pushed: Store, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path) -> MakeMerge:
    """A factory of merges of stages in the store at home, by the slug their record gives."""

    def make(slug: object, seed: int = 1, created: str = "2026-01-02T03:04:05Z") -> str:
        folder = make_adapter(tmp_path / f"merge-{seed}", seed=100 + seed)
        recipe = Recipe(details={"slug": slug, "seed": seed})
        return pushed.publish(folder, make_record(None, parents=stages(pushed)[:2], recipe=recipe, created=created))

    return make


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below a folder with its time and contents."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# ---- several references


def test_several_references_are_all_looked_at_before_the_first_byte(
    hub: Hub, pushed: Store, away: Store, client: HubClient
) -> None:
    entry = pushed.load(pushed.ref("toy", 2))
    files = {path.name: path.read_bytes() for path in entry.path.iterdir()}
    put(hub, "else/toy-s02-brevity", files)
    put(hub, "else/pickled", {"lineage.json": files["lineage.json"].replace(b"adapter_model.safetensors", b"a.bin")})
    one, three = (f"hf://acme/toy-s0{part}" for part in ("1-structure", "3-remedy"))
    bad: list[tuple[list[str], type[PlyfoldError], str]] = [
        ([one, "hf://acme/none"], NotFoundError, "no such repository"),
        ([one, "hf://else/pickled"], PlyfoldError, "pickle"),
        (["acme/toy", "acme/two"], NotFoundError, "no acme/two"),
        ([one, "hf://else"], ConfigError, "not a place"),
        ([one, f"{three}@{'1' * 40}"], NotFoundError, "no such repository"),
    ]
    for refs, error, word in bad:
        with pytest.raises(error, match=word):
            pull(away, refs, client=client)
    assert not hub.seen("safetensors|adapter_config|_lfs")
    assert is_empty(away)
    assert not list((away.root / "attest").iterdir())
    got = pull(away, [three, one, "else/toy", one], client=client)
    assert [each.stage for each in got] == [3, 1, 2]
    assert stages(away) == stages(pushed)


def test_two_adapters_for_one_stage_are_refused(
    hub: Hub, pushed: Store, away: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord
) -> None:
    old = locations(pushed, pushed.ref("toy", 1))[0]
    new = pushed.publish(make_adapter(away.root.parent / "again", seed=9), make_record(1, "structure"))
    push(pushed, [new], "acme", client=client)
    with pytest.raises(ConfigError, match="two adapters for toy stage 1"):
        pull(away, ["acme/toy", old], client=client)
    assert is_empty(away)


# ---- without changing anything


def test_a_dry_run_tells_all_and_changes_nothing(
    hub: Hub, pushed: Store, away: Store, client: HubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = stages(pushed)
    revoke(pushed, one, "wrong data")
    push(pushed, [one], "acme", client=client)
    pull(away, "acme/toy", stages=[2], client=client)
    before = snapshot(away.root)
    hub.log.clear()
    arguments = ["pull", "acme/toy", "--stages", "2,3", "--registry", str(away.root), "--dry-run"]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["digest"]: row for row in told["pulled"]}
    assert (told["dry_run"], told["registry"]) == (True, str(away.root))
    assert {each: rows[each]["status"] for each in rows} == {two: "already here", three: "would be pulled"}
    assert rows[three]["size_bytes"] == sum(file.size for file in pushed.load(three).record.files)
    assert (rows[two]["size_bytes"], rows[three]["missing"]) == (0, [one])
    assert [item["reason"] for item in rows[three]["revoked"]] == ["wrong data"]
    assert run([*arguments, "--with-parents"]) == 0
    shown = capsys.readouterr()
    for word in (
        short(one),
        "toy 3 remedy",
        "would be pulled",
        "already here",
        "revoked ancestor",
        "hf://",
    ):
        assert word in shown.out, word
    assert "nothing was changed" in shown.out
    assert "revoked ancestor 1 structure: wrong data; merge refuses it" in shown.err
    assert not hub.seen("safetensors|adapter_config|_lfs")
    assert snapshot(away.root) == before


def test_a_dry_run_makes_no_registry(
    hub: Hub, pushed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    assert run(["pull", "acme/toy", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["registry"], len(told["pulled"])) == (None, 3)
    assert run(["pull", "acme/toy", "--dry-run", "--registry", str(tmp_path / "none")]) == 0
    assert not list((tmp_path / "empty").iterdir())
    assert not (tmp_path / "none").exists()


# ---- merges


def test_merges_get_their_own_names_back(
    hub: Hub, pushed: Store, away: Store, client: HubClient, make_merge: MakeMerge
) -> None:
    made = [make_merge("toy-s1.s2"), make_merge("toy-s1.s2-svd8", 2)]
    push(pushed, made, "acme", client=client)
    (got,) = pull(away, "acme/toy", merges=["toy-s1.s2-svd8"], client=client)
    assert (got.digest, got.alias, away.merges("toy")) == (made[1], "toy-s1.s2-svd8", {"toy-s1.s2-svd8": made[1]})
    got_all = pull(away, "acme/toy", stages=[1, 2], merges=["all"], client=client)
    assert {each.digest for each in got_all} == {*made, *stages(pushed)[:2]}
    names = {"toy-s1.s2": made[0], "toy-s1.s2-svd8": made[1]}
    assert away.merges("toy") == names
    assert len(pull(away, "acme/toy", client=client)) == 3  # stages alone, unless merges are named
    assert away.merges("toy") == names
    with pytest.raises(NotFoundError, match=r"no merge toy-s2") as error:
        pull(away, "acme/toy", merges=["toy-s2"], client=client)
    assert error.value.expected == "one of toy-s1.s2, toy-s1.s2-svd8"
    with pytest.raises(NotFoundError, match="no merge of acme/to on the Hub"):
        pull(away, "acme/to", merges=["all"], client=client)


def test_a_name_that_is_taken_or_misleads_is_not_given(
    hub: Hub, pushed: Store, away: Store, client: HubClient, make_merge: MakeMerge
) -> None:
    taken = [make_merge("toy-s1.s2", 1, "2026-01-02T03:04:05Z"), make_merge("toy-s1.s2", 2, "2026-02-02T03:04:05Z")]
    odd = [make_merge(slug, number) for number, slug in enumerate(["1", "structure", "abcdef12", "../x", 7, ".a"], 3)]
    push(pushed, [*taken, *odd], "acme", client=client)
    pull(away, "acme/toy", merges=["all"], client=client)
    assert away.merges("toy") == {  # the newest has the name
        "toy-s1.s2": taken[1],
        **{f"pulled-{short(digest)}": digest for digest in [taken[0], *odd]},
    }
    pull(away, "acme/toy", merges=["all"], client=client)
    assert len(away.merges("toy")) == 8
    with pytest.raises(ConfigError, match="several merges of acme/toy are named"):
        pull(away, "acme/toy", merges=["toy-s1.s2"], client=client)


def test_a_merge_has_to_be_the_one_its_repository_is_named_after(
    hub: Hub, pushed: Store, away: Store, client: HubClient, make_merge: MakeMerge
) -> None:
    digest = make_merge("toy-s1.s2")
    entry = pushed.load(digest)
    files = {path.name: path.read_bytes() for path in entry.path.iterdir()}
    put(hub, "else/toy-merge-0123456789ab", files, DIGEST_LINE + digest)
    with pytest.raises(IntegrityError, match="named after"):
        pull(away, "else/toy", merges=["all"], client=client)
    stage = pushed.load(pushed.ref("toy", 1))
    files = {path.name: path.read_bytes() for path in stage.path.iterdir()}
    put(hub, f"other/toy-merge-{short(stage.digest)}", files, DIGEST_LINE + stage.digest)
    with pytest.raises(IntegrityError, match="another adapter"):
        pull(away, "other/toy", merges=["all"], client=client)
    assert is_empty(away)


def test_merges_work_with_the_hub_switched_off(
    hub: Hub, pushed: Store, away: Store, client: HubClient, make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = make_merge("toy-s1.s2")
    push(pushed, [digest], "acme", client=client)
    pull(away, "acme/toy", merges=["all"], client=client)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.log.clear()
    for merges in (["all"], ["toy-s1.s2"]):
        (got,) = pull(away, "acme/toy", merges=merges, client=client)
        assert (got.digest, got.status) == (digest, "already here")
    assert not hub.log


def test_the_command_takes_all_of_it(
    hub: Hub,
    pushed: Store,
    tmp_path: Path,
    make_merge: MakeMerge,
    client: HubClient,
    capsys: pytest.CaptureFixture[str],
) -> None:
    push(pushed, [make_merge("toy-s1.s2")], "acme", client=client)
    there: list[Any] = ["--registry", str(tmp_path / "new")]
    assert run(["pull", "acme/toy", "hf://acme/toy-s01-structure", *there]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("toy 1 structure") == 1
    assert "taken on trust: toy 1 structure, toy 2 brevity, toy 3 remedy; plyfold lock pins" in shown.err
    assert run(["pull", "acme/toy", "--merges", "toy-s1.s2", "--json", *there]) == 0
    shown = capsys.readouterr()
    assert [row["alias"] for row in json.loads(shown.out)["pulled"]] == ["toy-s1.s2"]
    assert run(["pull", "acme/toy", *there]) == 0
    assert "on trust" not in capsys.readouterr().err  # all of it is here already
    assert find_store(tmp_path / "new").merges("toy")
    assert run(["pull", "acme/toy", "--merges", *there]) == 0
    assert "toy merge" in capsys.readouterr().out
    for wrong in (
        ["--merges", "acme/toy"],
        [],
        ["acme/toy", "--lock"],
        ["--lock", "x.json", "--merges", "all"],
        ["hf://a/b", "--merges", "all"],
    ):
        assert run(["pull", *wrong, *there]) == 2, wrong


def test_parents_come_before_what_was_made_from_them(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    done: list[str] = []
    pull(away, "acme/toy", stages=[3], client=client, options=Options(with_parents=True, done=done.append))
    assert done == ["toy 1 structure", "toy 2 brevity", "toy 3 remedy"]
