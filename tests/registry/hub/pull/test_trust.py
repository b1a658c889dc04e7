"""pull from a repository that somebody without the key controls, or that was put back: at most it makes one refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.disk.digest import short
from plyfold.core.errors import IntegrityError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import locations
from plyfold.registry.hub.pull.pull import Options, Pulled, pull
from plyfold.registry.hub.push.push import push
from plyfold.registry.lineage.scores import attest_scores, scores
from plyfold.registry.lineage.shared_scores import evaluations
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store, find_store
from plyfold.registry.trust.revocation import refuse_revoked, revocations, revoke, withdraw
from plyfold.registry.trust.shared_statements import to_bytes
from plyfold.registry.trust.statements import STATEMENTS, Statement, parse_statements, statements
from plyfold.registry.trust.trust import PUBLIC_KEY_VARIABLE, Signer

from ....conftest import Hub, MakeAdapter, MakeRecord
from ....support.hub_filling import put
from ....support.key_files import write_key
from ..conftest import stages

pytestmark = pytest.mark.slow

FILE = "revocations.json"
ONE = "acme/toy-s01-structure"
needs_keys = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None,
    reason="model-signing is not installed: pip install 'plyfold[sign]'",
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PUBLIC_KEY_VARIABLE, "PLYFOLD_SIGNING_KEY", "PLYFOLD_SIGNING_PASSWORD", "PLYFOLD_REGISTRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        write_key(folder, name)
    return folder


@pytest.fixture
def signed(pushed: Store, client: HubClient, keys: Path) -> Store:
    """All stages signed by `mine`."""
    push(pushed, stages(pushed), "acme", signer=mine(keys), client=client)
    return pushed


def mine(keys: Path) -> Signer:
    return Signer(key=keys / "mine.pem")


def by(keys: Path, notice: Any = lambda line: None, name: str = "mine") -> Options:
    return Options(public_keys=(keys / f"{name}.pub",), notice=notice)


def reasons(found: Pulled) -> list[str]:
    return [item.reason for item in found.revoked]


def said(store: Store, digest: str) -> list[str]:
    return [item.reason for item in revocations(store, [digest]).get(digest, [])]


def there(hub: Hub) -> list[Statement]:
    return parse_statements(hub.store.read(ONE, "main", FILE))


def withdrawal(*of: Statement) -> Statement:
    payload = {"reason": "never mind", "label": "toy 1 structure", "withdraws": [item.id for item in of]}
    row = {"digest": of[0].digest, "kind": "withdrawn", "created": "2026-11-20T10:00:00Z", "payload": payload}
    return Statement.model_validate(row)


# ---- with a key named


@needs_keys
@pytest.mark.parametrize("signed_revocation", [True, False])
@pytest.mark.parametrize("known_before", [True, False])
def test_a_withdrawal_without_the_key_lifts_nothing(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path, signed_revocation: bool, known_before: bool
) -> None:
    one, two, _ = stages(signed)
    revoke(signed, one, "trained on the test rows", mine(keys) if signed_revocation else None)
    push(signed, [one], "acme", client=client)
    if known_before:
        pull(away, "acme/toy", client=client, options=by(keys))
    own = there(hub)
    for forged in (withdrawal(*own), withdrawal(*own).signed(Signer(key=keys / "other.pem"))):
        for rows in ([*own, forged], [item.model_copy(update={"signature": None}) for item in own] + [forged]):
            put(hub, ONE, {FILE: to_bytes(rows)})
            heard: list[str] = []
            got = pull(away, "acme/toy", client=client, options=by(keys, heard.append))
            assert [reasons(each) for each in got] == [["trained on the test rows"]] * 3
            assert any("no key that was named signed it" in line for line in heard)
    pull(away, "acme/toy", client=client)  # nor without naming the key again
    for digest in (one, two):
        with pytest.raises(IntegrityError, match="revoked"):
            refuse_revoked(away, [digest])
    withdraw(signed, one, "they were other rows", mine(keys))
    push(signed, [one], "acme", client=client)
    assert [reasons(each) for each in pull(away, "acme/toy", client=client, options=by(keys))] == [[], [], []]
    assert not said(away, two)


@needs_keys
def test_a_withdrawal_believed_without_a_key_does_not_count_with_one(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path
) -> None:
    one = signed.ref("toy", 1)
    revoke(signed, one, "bad")
    push(signed, [one], "acme", client=client)
    put(hub, ONE, {FILE: to_bytes([*there(hub), withdrawal(*there(hub))])})
    assert reasons(pull(away, "acme/toy", stages=[1], client=client)[0]) == []
    assert reasons(pull(away, "acme/toy", stages=[1], client=client, options=by(keys))[0]) == ["bad"]
    assert said(away, one) == ["bad"]


@needs_keys
def test_a_signed_withdrawal_counts_wherever_it_stands(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path
) -> None:
    one = signed.ref("toy", 1)
    revoke(signed, one, "bad", mine(keys))
    push(signed, [one], "acme", client=client)
    pull(away, "acme/toy", stages=[1], client=client, options=by(keys))
    withdraw(signed, one, "fine", mine(keys))
    own = {path.name: path.read_bytes() for path in signed.load(one).path.iterdir()}
    own["model.sig"] = hub.store.read(ONE, "main", "model.sig")
    put(hub, "mirror/toy-s01-structure", own | {FILE: to_bytes(statements(signed, one))}, f"adapter-digest: {one}")
    assert reasons(pull(away, "mirror/toy", client=client, options=by(keys))[0]) == []


@needs_keys
def test_scores_count_only_signed(hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path) -> None:
    one = signed.ref("toy", 1)
    score(signed, 0.25)
    push(signed, [one], "acme", signer=mine(keys), client=client)
    forged = Store(away.root.parent / "forger")
    pull(forged, "acme/toy", stages=[1], client=client)
    score(forged, 1.0, n=9000)
    push(forged, [one], "acme", signer=Signer(key=keys / "other.pem"), client=client)
    put(hub, ONE, {"model.sig": hub_signature(signed, one)})
    heard: list[str] = []
    pull(away, "acme/toy", stages=[1], client=client, options=by(keys, heard.append))
    assert scores(away, "toy")["1"][0].value == 0.25
    assert any("of 2 scores beside toy 1 structure were left out" in line for line in heard)
    pull(away, "acme/toy", stages=[1], client=client)  # nor afterwards without naming it
    assert len(evaluations(away, one)) == 1
    trusting = Store(away.root.parent / "trusting")
    pull(trusting, "acme/toy", stages=[1], client=client)
    assert scores(trusting, "toy")["1"][0].value == 1.0


@needs_keys
def test_a_score_believed_without_a_key_does_not_count_with_one(
    signed: Store, away: Store, client: HubClient, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(signed, 1.0, n=9000)
    push(signed, stages(signed)[:1], "acme", client=client)
    pull(away, "acme/toy", stages=[1], client=client)
    assert scores(away, "toy")["1"][0].value == 1.0
    monkeypatch.setenv(PUBLIC_KEY_VARIABLE, str(keys / "mine.pub"))
    assert scores(away, "toy") == {}


@needs_keys
def test_pushing_signed_statements_again_changes_nothing(
    hub: Hub, signed: Store, client: HubClient, keys: Path
) -> None:
    one = signed.ref("toy", 1)
    revoke(signed, one, "bad")
    score(signed, 0.5)
    for status in ("companions updated", "already there", "already there"):
        assert push(signed, [one], "acme", signer=mine(keys), client=client)[0].status == status
    assert all(item.signer for item in there(hub))


def score(store: Store, accuracy: float, n: int = 100) -> None:
    data = DataRef(id="openai/gsm8k", split="test", rows=n, sha256="sha256:" + "5" * 64)
    metrics = [Metric(name="accuracy", value=accuracy, n=n, ci95=(0.0, 1.0), protocol="zero-shot")]
    attest_scores(store, "toy", [1], metrics, {"engine": "hf"}, data)


def hub_signature(store: Store, digest: str) -> bytes:
    from plyfold.registry.trust.signing import signature_of

    return signature_of(store, digest) or b""


# ---- older than what was seen


@pytest.fixture
def followed(
    pushed: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path
) -> tuple[str, str]:
    """Stage 1 on the Hub, old and new."""
    one = pushed.ref("toy", 1)
    record = make_record(1, "structure").model_copy(update={"created": "2099-01-01T00:00:00Z"})
    new = pushed.publish(make_adapter(tmp_path / "again", seed=9), record)
    push(pushed, [new], "acme", client=client)
    return one, new


def test_main_put_back_is_said_each_time_until_it_is_forward_again(
    hub: Hub, pushed: Store, away: Store, client: HubClient, followed: tuple[str, str]
) -> None:
    one, new = followed
    heard: list[str] = []
    options = Options(notice=heard.append)
    head = hub.store.resolve(ONE, "main")
    (got,) = pull(away, "acme/toy", stages=[1], client=client, options=options)
    assert (got.digest, got.freshness.state, heard) == (new, "first seen", [])
    hub.store.put_back(ONE, locations(pushed, one)[-1].partition("@")[2])
    for dry_run in (True, False, False):
        heard.clear()
        (got,) = pull(
            away, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append, dry_run=dry_run)
        )
        assert (got.digest, got.freshness.state, got.freshness.seen) == (one, "older", head)
        assert any(f"main of {ONE} is at" in line and "put back" in line for line in heard)
    hub.store.put_back(ONE, head)
    heard.clear()
    (got,) = pull(away, "acme/toy", stages=[1], client=client, options=options)
    assert (got.digest, got.freshness.state, heard) == (new, "unchanged", [])


@pytest.mark.parametrize("known_by", ["made", "here", "there"])
def test_a_replay_that_looks_new_is_known_by_when_it_was_made_or_came_first(
    hub: Hub,
    pushed: Store,
    away: Store,
    client: HubClient,
    followed: tuple[str, str],
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    tmp_path: Path,
    known_by: str,
) -> None:
    one, _ = followed
    if known_by != "made":  # made within the same second
        record = make_record(1, "structure").model_copy(update={"created": pushed.read_record(one).record.created})
        again = pushed.publish(make_adapter(tmp_path / "third", seed=10), record)
        if known_by == "here":
            pull(away, locations(pushed, one)[-1], client=client)
        push(pushed, [again], "acme", client=client)
    pull(away, "acme/toy", stages=[1], client=client)
    heard: list[str] = []
    pull(away, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    assert not heard
    old = {path.name: path.read_bytes() for path in pushed.load(one).path.iterdir()}
    put(hub, ONE, old, f"adapter-digest: {one}")
    heard: list[str] = []
    (got,) = pull(away, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    assert (got.digest, got.freshness.state) == (one, "newer")
    assert any(f"toy 1 structure {short(one)} takes the place of" in line and "is older" in line for line in heard)


def test_a_history_that_was_rewritten_is_said_once(
    hub: Hub, pushed: Store, away: Store, client: HubClient, followed: tuple[str, str]
) -> None:
    pull(away, "acme/toy", stages=[1], client=client)
    hub.store.squash(ONE)
    heard: list[str] = []
    (got,) = pull(away, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    assert got.freshness.state == "rewritten"
    assert any("is not part of its history any more" in line for line in heard)
    heard.clear()
    (got,) = pull(away, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    assert (got.freshness.state, heard) == ("unchanged", [])


def test_an_older_commit_that_is_asked_for_is_given_and_said(
    hub: Hub, pushed: Store, away: Store, client: HubClient, followed: tuple[str, str], capsys: Any
) -> None:
    one, _ = followed
    place = locations(pushed, one)[-1]
    heard: list[str] = []
    (got,) = pull(away, place, client=client, options=Options(notice=heard.append))
    assert got.digest == one
    assert any("was asked for: main is 1 commit further" in line for line in heard)
    hub.log.clear()
    assert run(["pull", place, "--registry", str(away.root), "--json"]) == 0
    assert not hub.log
    (row,) = json.loads(capsys.readouterr().out)["pulled"]
    assert (row["freshness"]["state"], row["freshness"]["seen"]) == ("not asked", hub.store.resolve(ONE, "main"))
    assert run(["pull", place, "--registry", str(away.root)]) == 0
    assert "whether something newer, or a revocation, is there is not known" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("how", ["file gone", "other file", "put back"])
def test_a_revocation_that_vanished_is_named_and_stays(
    hub: Hub, pushed: Store, away: Store, client: HubClient, how: str
) -> None:
    one, _, three = stages(pushed)
    before = hub.store.resolve(ONE, "main")
    revoke(pushed, one, "trained on the test rows")
    push(pushed, [one], "acme", client=client)
    pull(away, "acme/toy", stages=[3], client=client)  # heard of an ancestor that stays away
    if how == "put back":
        hub.store.put_back(ONE, before)
    elif how == "other file":
        put(hub, ONE, {FILE: b'{"schema":1,"statements":[]}'})
    else:
        hub.store.commit(ONE, "main", [{"key": "deletedFile", "value": {"path": FILE}}], "mallory")
    for _ in range(2):
        heard: list[str] = []
        (got,) = pull(away, "acme/toy", stages=[3], client=client, options=Options(notice=heard.append))
        assert reasons(got) == ["trained on the test rows"]
        (line,) = [line for line in heard if "says so no longer" in line]
        assert all(part in line for part in (ONE, "toy 1 structure", short(one), "trained on the test rows"))
    with pytest.raises(IntegrityError):
        refuse_revoked(away, [three])


def test_a_withdrawn_revocation_did_not_vanish(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    one = pushed.ref("toy", 1)
    revoke(pushed, one, "bad")
    push(pushed, [one], "acme", client=client)
    pull(away, "acme/toy", stages=[1], client=client)
    withdraw(pushed, one, "fine")
    push(pushed, [one], "acme", client=client)
    heard: list[str] = []
    (got,) = pull(away, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    assert (got.freshness.state, reasons(got), heard) == ("newer", [], [])


def test_who_pushed_knows_what_was_there(hub: Hub, pushed: Store, client: HubClient) -> None:
    first = hub.store.history(ONE, "main")[-1]["id"]
    hub.store.put_back(ONE, first)
    heard: list[str] = []
    with pytest.raises(Exception, match="no adapter with a record"):
        pull(pushed, "acme/toy", stages=[1], client=client, options=Options(notice=heard.append))
    done = push(pushed, stages(pushed)[:1], "acme", client=client)
    assert "put back or rewritten" in done[0].note
    assert push(pushed, stages(pushed)[:1], "acme", client=client)[0].note == ""
    two = "acme/toy-s02-brevity"
    (got,) = pull(pushed, "acme/toy", stages=[2], client=client)
    assert (got.freshness.repo, got.freshness.state) == (two, "unchanged")


# ---- floods


def flooded(digest: str, count: int, size: int) -> bytes:
    rows = [
        Statement.model_validate(
            {
                "digest": digest,
                "kind": "revoked",
                "created": "2020-01-01T00:00:00Z",
                "payload": {"reason": f"{number} {'x' * size}", "label": "toy 1 structure", "withdraws": []},
            }
        )
        for number in range(count)
    ]
    return to_bytes(rows)


@pytest.mark.parametrize(("count", "size"), [(4000, 20), (450, 1900)])
def test_a_repository_full_of_revocations_is_one_small_file_here_and_can_be_pushed_to(
    hub: Hub, pushed: Store, away: Store, client: HubClient, count: int, size: int
) -> None:
    one = pushed.ref("toy", 1)
    put(hub, ONE, {FILE: flooded(one, count, size)})
    assert reasons(pull(away, "acme/toy", stages=[1], client=client)[0])
    (path,) = (away.root / "attest" / one.removeprefix("sha256:")).glob("*tatements.json")
    assert path.stat().st_size < 2 * STATEMENTS.max_bytes
    pull(pushed, "acme/toy", stages=[1], client=client)  # the owner hears of it, and takes it back
    withdraw(pushed, one, "not by us")
    (done,) = push(pushed, [one], "acme", client=client)
    assert len(there(hub)) <= STATEMENTS.max_kept
    assert f"statements about {short(one)} there and here" in done.note
    put(hub, ONE, {FILE: flooded(one, count, size)})
    push(pushed, [one], "acme", replace_statements=True, client=client)
    assert len(there(hub)) <= STATEMENTS.max_kept
    assert reasons(pull(away, "acme/toy", stages=[1], client=client)[0]) == []
    revoke(pushed, one, "really bad")
    push(pushed, [one], "acme", client=client)
    assert reasons(pull(away, "acme/toy", stages=[1], client=client)[0]) == ["really bad"]


@pytest.mark.parametrize("file", ["revocations.json", "evaluations.json"])
@pytest.mark.parametrize("data", [b"{}", b"[" * 5000, b" " * 1_000_001])
def test_an_unreadable_file_there_is_mended_by_the_command_that_the_error_names(
    hub: Hub, pushed: Store, away: Store, client: HubClient, capsys: Any, file: str, data: bytes
) -> None:
    one = pushed.ref("toy", 1)
    put(hub, ONE, {file: data})
    revoke(pushed, one, "bad")
    score(pushed, 0.5)
    where = ["acme/toy", "--stages", "1", "--registry", str(pushed.root), "--no-collection"]
    assert run(["push", *where]) == 4
    error = " ".join(capsys.readouterr().err.split())
    assert "--replace-statements" in error
    assert hub.store.read(ONE, "main", file) == data
    assert run(["push", *where, "--replace-statements"]) == 0
    assert "what is said here is in its place" in " ".join(capsys.readouterr().err.split())
    assert reasons(pull(away, "acme/toy", stages=[1], client=client)[0]) == ["bad"]
    assert run(["push", *where, "--replace-statements"]) == 0
    assert "already there" in capsys.readouterr().out


def test_of_a_hundred_thousand_statements_nothing_is_read(
    hub: Hub, pushed: Store, away: Store, client: HubClient
) -> None:
    one = pushed.ref("toy", 1)
    row = to_bytes(parse_statements(flooded(one, 1, 1)))[len(b'{"schema":1,"statements":[') : -2]
    put(hub, ONE, {FILE: b'{"schema":1,"statements":[' + b",".join([row] * 100_000) + b"]}"})
    with pytest.raises(IntegrityError, match="too large") as error:
        pull(away, "acme/toy", stages=[1], client=client)
    assert "--replace-statements" in error.value.next_step
    assert not hub.seen(f"resolve/.*/{FILE}")
    assert find_store(away.root).digests() == []
