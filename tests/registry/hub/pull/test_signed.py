"""pull and signatures: kept where they come along, required where the user names keys."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import IntegrityError, OfflineError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import locations
from plyfold.registry.hub.pull.pull import Options, pull
from plyfold.registry.hub.push.push import push
from plyfold.registry.store import Store
from plyfold.registry.trust.signing import sign, signature_of

from ....conftest import Hub, MakeAdapter, MakeRecord
from ....support.hub_filling import put
from ....support.key_files import write_key
from ..conftest import is_empty, stages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("model_signing") is None,
        reason="model-signing is not installed: pip install 'plyfold[sign]'",
    ),
]
ONE = "acme/toy-s01-structure"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        write_key(folder, name)
    return folder


@pytest.fixture
def signed(pushed: Store, client: HubClient, keys: Path, hub: Hub) -> Store:
    """Stage 1 is signed by `mine`, on the Hub as well."""
    sign(pushed, pushed.ref("toy", 1), keys / "mine.pem")
    push(pushed, stages(pushed)[:1], "acme", client=client)
    hub.log.clear()
    return pushed


def by(keys: Path, *names: str, **others: bool) -> Options:
    return Options(public_keys=tuple(keys / f"{name}.pub" for name in names), **others)


def test_a_signature_comes_along_and_is_checked_where_keys_are_named(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path
) -> None:
    one = signed.ref("toy", 1)
    (got,) = pull(away, "acme/toy", stages=[1], client=client)
    assert (got.signature, got.on_trust) == ("not verified", True)
    assert signature_of(away, one) == signature_of(signed, one)
    hub.log.clear()
    assert pull(away, got.location, client=client, options=by(keys, "other", "mine"))[0].signature == "verified"
    assert not hub.log  # the signature is here
    new = Store(away.root.parent / "new")
    (got,) = pull(new, "acme/toy", stages=[1], client=client, options=by(keys, "mine"))
    assert (got.signature, got.on_trust) == ("verified", False)
    (got,) = pull(new, "acme/toy", stages=[2], client=client)
    assert got.signature == "none"


@pytest.mark.parametrize("names", [("mine",), ("other",), ("mine", "other")])
def test_what_is_not_signed_is_refused_before_the_first_byte(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path, names: tuple[str, ...]
) -> None:
    for dry_run in (True, False):
        with pytest.raises(IntegrityError, match="is not signed") as error:
            pull(away, "acme/toy", client=client, options=by(keys, *names, dry_run=dry_run))
        assert "toy-s02-brevity" in error.value.where
    assert not hub.seen("safetensors|adapter_config|_lfs")
    assert is_empty(away)


def test_another_key_or_other_bytes_are_refused_and_nothing_is_kept(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path
) -> None:
    with pytest.raises(IntegrityError, match="no good signature") as error:
        pull(away, "acme/toy", stages=[1], client=client, options=by(keys, "other"))
    assert (error.value.exit_code, is_empty(away), list((away.root / "attest").iterdir())) == (4, True, [])
    two = stages(signed)[1]
    put(hub, "acme/toy-s02-brevity", {"model.sig": hub.store.read(ONE, "main", "model.sig")})
    with pytest.raises(IntegrityError, match="no good signature"):
        pull(away, "acme/toy", stages=[2], client=client, options=by(keys, "mine"))
    heard: list[str] = []
    (got,) = pull(away, "acme/toy", stages=[2], client=client, options=Options(notice=heard.append))
    assert (got.signature, signature_of(away, two)) == ("none", None)
    assert "the signature beside toy 2 brevity was left out: the signature is of another adapter" in heard.pop()
    with pytest.raises(IntegrityError, match="no good signature"):  # held, and still not signed
        pull(away, "acme/toy", stages=[2], client=client, options=by(keys, "mine"))
    put(hub, "acme/toy-s02-brevity", {"model.sig": b"{"})
    with pytest.raises(IntegrityError, match="no good signature"):
        pull(away, "acme/toy", stages=[2], client=client, options=by(keys, "mine"))
    pull(away, "acme/toy", stages=[2], client=client, options=Options(notice=heard.append))
    assert "not a signature this version understands" in heard.pop()


def test_what_is_held_is_asked_for_its_signature(
    hub: Hub, pushed: Store, away: Store, client: HubClient, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pushed.ref("toy", 1)
    (place,) = locations(pushed, one)
    pull(away, place, client=client)
    with pytest.raises(IntegrityError, match="is not signed"):
        pull(away, place, client=client, options=by(keys, "mine"))
    sign(pushed, one, keys / "mine.pem")
    push(pushed, [one], "acme", client=client)
    (got,) = pull(away, place, client=client, options=by(keys, "mine"))
    assert (got.status, got.signature) == ("already here", "verified")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull(away, place, client=client, options=by(keys, "mine"))[0].signature == "verified"
    with pytest.raises((IntegrityError, OfflineError)):
        pull(away, place, client=client, options=by(keys, "other"))


def test_an_older_commit_has_its_own_signature(
    hub: Hub,
    signed: Store,
    away: Store,
    client: HubClient,
    keys: Path,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
) -> None:
    one = signed.ref("toy", 1)
    old = locations(signed, one)[-1]  # before it was signed
    new = signed.publish(make_adapter(away.root.parent / "again", seed=9), make_record(1, "structure"))
    sign(signed, new, keys / "other.pem")
    push(signed, [new], "acme", client=client)
    (got,) = pull(away, old, client=client, options=by(keys, "mine"))
    assert (got.digest, got.signature) == (one, "verified")
    with pytest.raises(IntegrityError, match="no good signature"):
        pull(away, "acme/toy", stages=[1], client=client, options=by(keys, "mine"))
    assert away.ref("toy", 1) == one
    assert pull(away, "acme/toy", stages=[1], client=client, options=by(keys, "other"))[0].digest == new


def test_ancestors_are_vouched_for_by_the_record_that_is_signed(
    hub: Hub, signed: Store, away: Store, client: HubClient, keys: Path
) -> None:
    sign(signed, signed.ref("toy", 3), keys / "mine.pem")
    push(signed, stages(signed)[2:], "acme", client=client)
    options = by(keys, "mine", with_parents=True)
    got = pull(away, "acme/toy", stages=[3], client=client, options=options)
    assert [(each.stage, each.signature) for each in got] == [(1, "not verified"), (2, "none"), (3, "verified")]


def test_the_command(
    hub: Hub, signed: Store, away: Store, keys: Path, capsys: pytest.CaptureFixture[str], client: HubClient
) -> None:
    arguments = ["pull", "acme/toy", "--stages", "1", "--registry", str(away.root)]
    pems = ["--public-key", str(keys / "other.pub"), "--public-key", str(keys / "mine.pub")]
    assert run([*arguments, *pems[:2]]) == 4
    assert run([*arguments, "--public-key", str(keys / "none.pub")]) == 3
    assert run([*arguments, "--public-key", str(keys / "mine.pem")]) == 2
    assert is_empty(away)
    capsys.readouterr()
    assert run([*arguments, *pems, "--json"]) == 0
    shown = capsys.readouterr()
    assert [row["signature"] for row in json.loads(shown.out)["pulled"]] == ["verified"]
    assert "on trust" not in shown.err
    assert run(["show", "1", "--registry", str(away.root)]) == 0
    assert "signed by sha256:" in capsys.readouterr().out
