"""pull and revocations: what a repository says of its own adapters arrives, whatever is pulled of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plyfold.core.disk.digest import short
from plyfold.core.errors import IntegrityError, NotFoundError, OfflineError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import DIGEST_LINE, locations
from plyfold.registry.hub.pull.pull import Options, Pulled, pull
from plyfold.registry.hub.push.push import push
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import refuse_revoked, revocations, revoke, withdraw
from plyfold.registry.trust.shared_statements import to_bytes
from plyfold.registry.trust.statements import Statement, statements

from ....conftest import Hub, MakeAdapter, MakeRecord
from ....support.hub_filling import put
from ..conftest import is_empty, stages

pytestmark = pytest.mark.slow

FILE = "revocations.json"
ONE = "acme/toy-s01-structure"


def reasons(found: Pulled) -> list[str]:
    return [item.reason for item in found.revoked]


def said(store: Store, digest: str) -> list[str]:
    """Reasons by which the registry takes an adapter for revoked."""
    return [item.reason for item in revocations(store, [digest]).get(digest, [])]


def mirror(hub: Hub, store: Store, digest: str, repo: str, **files: bytes) -> None:
    """Publish a copy of an adapter elsewhere, as a commit that says so."""
    entry = store.load(digest)
    own = {path.name: path.read_bytes() for path in entry.path.iterdir()}
    put(hub, repo, own | {FILE: files["said"]}, DIGEST_LINE + digest)


def test_a_revocation_arrives_and_reaches_what_stands_on_it(
    hub: Hub, pushed: Store, away: Store, client: HubClient
) -> None:
    one, two, three = stages(pushed)
    revoke(pushed, two, "trained on the test rows")
    push(pushed, stages(pushed), "acme", client=client)
    got = pull(away, "acme/toy", client=client)
    assert [reasons(each) for each in got] == [[], ["trained on the test rows"], ["trained on the test rows"]]
    assert [item["digest"] for item in got[2].to_json()["revoked"]] == [two]
    assert {each: said(away, each) for each in (one, two, three)} == {each.digest: reasons(each) for each in got}
    with pytest.raises(IntegrityError, match="stands on a revoked adapter"):
        refuse_revoked(away, [three])
    withdraw(pushed, two, "they were other rows")
    push(pushed, stages(pushed), "acme", client=client)
    assert [reasons(each) for each in pull(away, "acme/toy", client=client)] == [[], [], []]
    assert not said(away, three)


def test_a_name_is_asked_again_and_a_commit_is_not(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    one = pushed.ref("toy", 1)
    (place,) = locations(pushed, one)
    pull(away, place, client=client)
    revoke(pushed, one, "wrong data")
    push(pushed, [one], "acme", client=client)
    hub.log.clear()
    assert reasons(pull(away, place, client=client)[0]) == []
    assert not hub.log
    assert reasons(pull(away, "acme/toy", stages=[1], client=client)[0]) == ["wrong data"]
    assert reasons(pull(away, place, client=client)[0]) == ["wrong data"]


def test_a_pinned_commit_hides_no_revocation(
    hub: Hub,
    pushed: Store,
    away: Store,
    client: HubClient,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    tmp_path: Path,
) -> None:
    one = pushed.ref("toy", 1)
    (old,) = locations(pushed, one)
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    push(pushed, [new], "acme", client=client)
    revoke(pushed, one, "wrong data")
    push(pushed, [one], "acme", client=client)
    (got,) = pull(away, old, client=client)
    assert (got.digest, reasons(got), said(away, one)) == (one, ["wrong data"], ["wrong data"])
    (after,) = pull(away, "acme/toy", stages=[1], client=client)
    assert (after.digest, reasons(after), after.previous) == (new, [], one)


def test_a_revoked_ancestor_is_told_though_it_stays_away(
    hub: Hub,
    pushed: Store,
    away: Store,
    client: HubClient,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    tmp_path: Path,
) -> None:
    one, _, three = stages(pushed)
    merge = pushed.publish(make_adapter(tmp_path / "merge", seed=7), make_record(None, parents=[three]))
    push(pushed, [merge], "acme", client=client)
    revoke(pushed, one, "wrong data")
    push(pushed, [one], "acme", client=client)
    (got,) = pull(away, "acme/toy", stages=[3], client=client)
    assert (reasons(got), got.missing) == (["wrong data"], tuple(sorted(stages(pushed)[:2])))
    assert said(away, three) == ["wrong data"]
    other = Store(tmp_path / "other")
    (got,) = pull(other, f"hf://acme/toy-merge-{short(merge)}", client=client)
    assert other.digests() == [merge]
    assert (reasons(got), said(other, merge)) == (["wrong data"], ["wrong data"])  # two steps up, nothing between held
    known = other.root / "attest" / three.removeprefix("sha256:") / "lineage.known"
    known.write_bytes(known.read_bytes()[:-1] + b" ")
    with pytest.raises(IntegrityError, match="record of an ancestor is damaged"):
        revocations(other, [merge])


def test_others_cannot_speak_about_an_adapter(
    hub: Hub,
    pushed: Store,
    away: Store,
    client: HubClient,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    tmp_path: Path,
) -> None:
    one = pushed.ref("toy", 1)
    slander = to_bytes(_revoked(pushed, one, "slander", tmp_path))
    mine = pushed.publish(make_adapter(tmp_path / "mine", seed=8), make_record(1, "structure"))
    entry = pushed.load(mine)
    files = {path.name: path.read_bytes() for path in entry.path.iterdir()} | {FILE: slander}
    put(hub, "evil/toy-s01-structure", files, DIGEST_LINE + mine)
    heard: list[str] = []
    pull(away, "acme/toy", stages=[1], client=client)
    pull(away, "evil/toy", client=client, options=Options(notice=heard.append))
    assert not statements(away, one)
    assert "it never brought that adapter" in heard.pop()
    put(hub, "evil/toy-s01-structure", {"a": b"a"}, DIGEST_LINE + one)  # a lie in a commit
    put(hub, "evil/toy-s01-structure", files, DIGEST_LINE + mine)
    pull(away, "evil/toy", client=client, options=Options(notice=heard.append))
    assert not statements(away, one)
    assert "it is known here from acme" in heard.pop()
    unknown = Store(tmp_path / "unknown")
    pull(unknown, "evil/toy", client=client)
    assert not statements(unknown, one)  # an adapter that is not known here: nothing to say


def test_a_copy_can_warn_and_cannot_take_a_warning_back(
    hub: Hub, pushed: Store, away: Store, client: HubClient, tmp_path: Path
) -> None:
    one = pushed.ref("toy", 1)
    revoke(pushed, one, "wrong data")
    push(pushed, [one], "acme", client=client)
    apart = Store(tmp_path / "apart")
    pull(apart, "acme/toy", stages=[1], client=client)
    withdraw(apart, one, "never mind")
    mirror(hub, pushed, one, "evil/toy-s01-structure", said=to_bytes(statements(apart, one)))
    heard: list[str] = []
    pull(away, "acme/toy", stages=[1], client=client)
    (got,) = pull(away, "evil/toy", client=client, options=Options(notice=heard.append))
    assert (reasons(got), said(away, one)) == (["wrong data"], ["wrong data"])
    assert "takes a revocation of toy 1 structure" in heard.pop()
    first = Store(tmp_path / "first")  # who met the copy first is told when the owner says otherwise
    assert reasons(pull(first, "evil/toy", client=client)[0]) == []
    pull(first, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    assert heard == [f"{ONE} says toy 1 structure ({one[7:19]}) is revoked: wrong data; here that is withdrawn"]
    mirror(hub, pushed, one, "evil/toy-s01-structure", said=to_bytes(_revoked(pushed, one, "a warning", tmp_path)))
    pull(away, "evil/toy", client=client)
    assert sorted(said(away, one)) == ["a warning", "wrong data"]


@pytest.mark.parametrize("data", [b"{", b'{"schema":2,"statements":[]}', b"[" * 5000, b" " * 1_000_001])
def test_an_unreadable_file_of_revocations_stops_the_pull(
    hub: Hub, pushed: Store, away: Store, client: HubClient, data: bytes
) -> None:
    put(hub, ONE, {FILE: data})
    for ref in ("acme/toy", locations(pushed, pushed.ref("toy", 1))[0], "hf://acme/toy-s03-remedy"):
        with pytest.raises(IntegrityError) as error:
            pull(away, ref, client=client)
        assert (FILE in error.value.where, ONE in error.value.where, error.value.exit_code) == (True, True, 4)
    assert is_empty(away)


@pytest.mark.parametrize("asked", ["refs", "tree/", "resolve/.*revocations", "commits/"])
def test_no_fault_hides_a_revocation(hub: Hub, pushed: Store, client: HubClient, asked: str, tmp_path: Path) -> None:
    one, _, three = stages(pushed)
    revoke(pushed, one, "wrong data")
    push(pushed, [one], "acme", client=client)
    place = locations(pushed, three)[0]
    flips = ["flip"] if "resolve" in asked else []  # nothing tells a listing from another, save the way it came
    for kind in ["truncate", "500", "drop_after", *flips]:
        fault = hub.fault(f"GET .*{asked}", kind)
        (got,) = pull(Store(tmp_path / kind), place, client=client)
        assert (fault.hits, reasons(got)) == (1, ["wrong data"]), kind
    for kind in ["truncate", "500", "drop_before", *flips]:
        hub.fault(f"GET .*{asked}", kind, None)
        nothing = Store(tmp_path / f"no-{kind}")
        with pytest.raises((OfflineError, IntegrityError)):
            pull(nothing, place, client=client)
        assert is_empty(nothing), kind
        hub.heal()


def test_an_ancestor_that_is_closed_or_gone_is_told_and_stops_nothing(
    hub: Hub, pushed: Store, away: Store, client: HubClient, tmp_path: Path
) -> None:
    three = pushed.ref("toy", 3)
    heard: list[str] = []
    hub.fault("GET .*toy-s01-structure/tree", "403", None)
    (got,) = pull(away, "acme/toy", stages=[3], client=client, options=Options(notice=heard.append))
    assert got.digest == three
    assert f"whether {ONE} revokes what it holds is not known" in heard.pop()
    hub.heal()
    pull(away, "acme/toy", client=client, options=Options(notice=heard.append))
    assert not heard
    hub.fault("GET .*toy-s01-structure/resolve", "403", None)
    revoke(pushed, pushed.ref("toy", 1), "wrong data")
    push(pushed, stages(pushed)[:1], "acme", client=client)
    pull(away, "acme/toy", stages=[3], client=client, options=Options(notice=heard.append))
    assert f"whether {ONE} revokes what it holds is not known" in heard.pop()
    hub.store.delete(ONE, hub.users[hub.token])
    pull(away, "acme/toy", stages=[3], client=client, options=Options(notice=heard.append))
    assert f"whether {ONE} revokes what it holds is not known" in heard.pop()
    with pytest.raises(NotFoundError, match="in no repository of acme"):
        pull(Store(tmp_path / "new"), "acme/toy", stages=[3], with_parents=True, client=client)


def _revoked(store: Store, digest: str, reason: str, folder: Path) -> list[Statement]:
    """Statements of a registry in which only this was said."""
    apart = Store(folder / f"only-{reason.replace(' ', '-')}")
    entry = store.load(digest)
    apart.publish(entry.path, entry.record)
    revoke(apart, digest, reason)
    return statements(apart, digest)
