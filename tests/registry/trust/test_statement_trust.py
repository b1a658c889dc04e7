"""Whose statements lift: signatures over statements, keys that are named, and what a flood of statements cannot do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.disk.digest import short
from plyfold.core.errors import AuthError, ConfigError, IntegrityError, NotFoundError
from plyfold.registry.lineage.graph import tree
from plyfold.registry.maintenance.gc import delete, plan_sweep
from plyfold.registry.maintenance.pins import pin, pins
from plyfold.registry.maintenance.verify import verify
from plyfold.registry.store import Store, attestations
from plyfold.registry.trust import shared_statements
from plyfold.registry.trust.revocation import MAX_TOLD, refuse_revoked, revocations, revoke, withdraw
from plyfold.registry.trust.shared_statements import MAX_TRAVEL_BYTES, Known, remember_keys, sign_own, to_bytes
from plyfold.registry.trust.statements import STATEMENTS, Statement, adopt, parse_statements, standing, statements
from plyfold.registry.trust.trust import PUBLIC_KEY_VARIABLE, Signer, Trust, signer_of

from ...support.key_files import write_key

needs_keys = pytest.mark.skipif(
    importlib.util.find_spec("cryptography") is None,
    reason="cryptography is not installed: pip install 'plyfold[sign]'",
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
    write_key(folder, "p384", "p384")
    write_key(folder, "p521", "p521")
    write_key(folder, "hidden", password="open")
    return folder


@pytest.fixture
def store(tmp_path: Path, make_record: Any, make_adapter: Any) -> Store:
    """Stage 1, and stage 2 trained on it."""
    store = Store(tmp_path / "store")
    folder = make_adapter(tmp_path / "adapter")
    one = store.publish(folder, make_record(1, "structure", []))
    store.set_ref("toy", 1, one)
    store.set_ref("toy", 2, store.publish(folder, make_record(2, "brevity", [one])))
    return store


def signer(keys: Path, name: str = "mine") -> Signer:
    return Signer(key=keys / f"{name}.pem", password="open" if name == "hidden" else None)


def revocation(digest: str, reason: str = "bad", **changes: Any) -> Statement:
    payload = {"reason": reason, "label": "toy 1 structure", "withdraws": []}
    value = {"digest": digest, "kind": "revoked", "created": "2026-11-20T10:00:00Z", "payload": payload}
    return Statement.model_validate({**value, **changes})


def withdrawal(digest: str, *of: Statement) -> Statement:
    payload = {"reason": "never mind", "label": "toy", "withdraws": [item.id for item in of]}
    return revocation(digest, kind="withdrawn", payload=payload)


def said(store: Store, digest: str) -> list[str]:
    return [item.reason for item in revocations(store, [digest]).get(digest, [])]


def files_of(store: Store, digest: str) -> list[Path]:
    return sorted((store.root / "attest" / digest.removeprefix("sha256:")).iterdir())


# ---- signatures


@needs_keys
@pytest.mark.parametrize("name", ["mine", "p384", "p521", "hidden"])
def test_a_signature_is_over_every_part_and_survives_the_way(keys: Path, name: str) -> None:
    plain = revocation("sha256:" + "a" * 64)
    signed = plain.signed(signer(keys, name))
    assert (signed.id, plain.signer, signed.signer) == (plain.id, None, signed.claimed)
    assert signed.signer in Trust([keys / f"{name}.pub"]).named
    (back,) = parse_statements(to_bytes([signed]))
    assert (back, back.signer) == (signed, signed.signer)
    for change in (
        {"digest": "sha256:" + "b" * 64},
        {"created": "2026-11-20T10:00:01Z"},
        {"kind": "withdrawn", "payload": {"reason": "bad", "label": "toy 1 structure", "withdraws": [plain.id]}},
        {"payload": {"reason": "bad.", "label": "toy 1 structure", "withdraws": []}},
    ):
        moved = Statement.model_validate({**signed.model_dump(), **change})
        assert moved.signer is None
        assert moved.sound().signature is None


@needs_keys
def test_another_spelling_of_a_key_is_no_signature(keys: Path) -> None:
    signed = revocation("sha256:" + "a" * 64).signed(signer(keys))
    assert signed.signature is not None
    pem = signed.signature.key
    body = pem.split("\n", 1)[1].rsplit("-----END", 1)[0].replace("\n", "")
    respelt = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"
    assert respelt != pem
    value = {**signed.model_dump(), "signature": {"key": respelt, "sig": signed.signature.sig}}
    assert Statement.model_validate(value).signer is None


@needs_keys
@pytest.mark.parametrize(
    "signature",
    [
        {"key": "x", "sig": "AAAAAAAA"},
        {"key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "sig": "x" * 2000},
        {"key": "-----BEGIN PUBLIC KEY-----\n" + "A" * 2000 + "\n-----END PUBLIC KEY-----\n", "sig": "AAAAAAAA"},
        {"sig": "AAAAAAAA"},
        {"key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "sig": "AAAAAAAA", "own": True},
        [],
        "mine",
    ],
)
def test_what_is_no_signature_is_refused_when_read(signature: Any) -> None:
    row = {**revocation("sha256:" + "a" * 64).to_json(), "signature": signature}
    with pytest.raises(IntegrityError, match="is not what this version understands"):
        parse_statements(json.dumps({"schema": 1, "statements": [row]}).encode())


@pytest.mark.parametrize("mark", ["own", "verified"])
def test_nobody_else_says_that_something_was_said_here_or_verified(mark: str) -> None:
    row = {**revocation("sha256:" + "a" * 64).to_json(), mark: True}
    with pytest.raises(IntegrityError, match="is not what this version understands"):
        parse_statements(json.dumps({"schema": 1, "statements": [row]}).encode())


@needs_keys
def test_a_signature_is_verified_once_and_again_where_its_file_was_changed(
    keys: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.ref("toy", 1)
    first = revocation(one).signed(signer(keys))
    adopt(store, [first, withdrawal(one, first).signed(signer(keys))])
    verified: list[object] = []
    monkeypatch.setattr(shared_statements, "signer_of", lambda *of: verified.append(of) or signer_of(*of))
    assert (said(store, one), verified) == ([], [])
    (path,) = files_of(store, one)
    kept = path.read_text()
    # What is written next keeps the mark; what was not verified when it was kept has none.
    adopt(store, [revocation(one, "other").signed(signer(keys, "other"))])
    assert len(verified) == 1
    assert path.read_text().count('"verified":true') == 3
    path.write_text(kept.replace("never mind", "never mine"))  # not what the key signed
    assert said(store, one) == ["bad"]
    path.write_text(kept.replace(kept[-10:-4], "000000"))  # a false digest of the file costs time and no more
    verified.clear()
    assert (said(store, one), len(verified)) == ([], 1)
    sig = json.loads(kept)["statements"][0]["signature"]["sig"]
    swapped = kept.replace(json.loads(kept)["statements"][1]["signature"]["sig"], sig)
    path.write_text(swapped)
    assert said(store, one) == ["bad"]
    assert [item.problems[0].found for item in verify(store) if item.problems] == [
        "a statement was changed: its signature is not of its key"
    ]


@needs_keys
def test_what_could_not_be_verified_is_not_marked_as_if(
    keys: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.ref("toy", 1)
    first = revocation(one).signed(signer(keys))
    false = withdrawal(one, first).model_copy(update={"signature": first.signature})
    monkeypatch.setattr(shared_statements, "can_verify", lambda: False)
    adopt(store, [first, false])
    monkeypatch.undo()
    assert said(store, one) == ["bad"]
    assert '"verified"' not in files_of(store, one)[0].read_text()


# ---- what lifts


@needs_keys
def test_what_a_key_revoked_only_this_key_takes_back(keys: Path, store: Store) -> None:
    one = store.ref("toy", 1)
    first = revocation(one).signed(signer(keys))
    adopt(store, [first])
    plain = withdrawal(one, first)
    # Nor does taking the signature off the revocation, or adding another to it, make it another's.
    others = [
        plain,
        plain.signed(signer(keys, "other")),
        revocation(one),
        revocation(one).signed(signer(keys, "other")),
    ]
    adopt(store, others)
    assert said(store, one) == ["bad"]
    with pytest.raises(IntegrityError, match="was revoked"):
        refuse_revoked(store, [one])
    adopt(store, [plain.signed(signer(keys))])
    assert said(store, one) == []


@needs_keys
def test_a_false_signature_takes_nothing_back(keys: Path, store: Store) -> None:
    one = store.ref("toy", 1)
    first = revocation(one).signed(signer(keys))
    stolen = withdrawal(one, first).model_copy(update={"signature": first.signature})
    adopt(store, [first, stolen])
    assert said(store, one) == ["bad"]
    assert [item.signature is None for item in statements(store, one)] == [False, True]


@needs_keys
def test_with_a_key_named_only_what_it_signed_lifts(keys: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = store.stages("toy").values()
    first = revocation(one)
    adopt(store, [first, withdrawal(one, first)])
    assert said(store, two) == []
    monkeypatch.setenv(PUBLIC_KEY_VARIABLE, str(keys / "mine.pub"))
    assert (said(store, one), said(store, two)) == (["bad"], ["bad"])
    assert tree(store, "toy").children[0].children[0].marks[0] == "revoked: bad"
    adopt(store, [withdrawal(one, first).signed(signer(keys, "other"))])
    assert said(store, two) == ["bad"]
    adopt(store, [withdrawal(one, first).signed(signer(keys))])
    assert said(store, two) == []


@needs_keys
def test_keys_named_once_hold_until_others_are_named(keys: Path, store: Store) -> None:
    one = store.ref("toy", 1)
    first = revocation(one)
    remember_keys(store, one, Trust([keys / "mine.pub"]).named)
    adopt(store, [first, withdrawal(one, first)])
    assert said(store, one) == ["bad"]
    with pytest.raises(ConfigError, match="take nothing back"):
        withdraw(store, one, "no key")
    withdraw(store, one, "mine", signer(keys))
    assert said(store, one) == []
    remember_keys(store, one, Trust([keys / "other.pub"]).named)
    assert said(store, one) == ["bad"]


@needs_keys
def test_the_command_signs_and_refuses_what_would_take_nothing_back(
    keys: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--registry", str(store.root)]
    one = store.ref("toy", 1)
    assert run(["revoke", "1", "--reason", "bad", "--sign", str(keys / "mine.pem"), *where]) == 0
    for extra in ([], ["--sign", str(keys / "other.pem")]):
        before = [path.read_bytes() for path in files_of(store, one)]
        capsys.readouterr()
        assert run(["revoke", "1", "--withdraw", "--reason", "no", *extra, *where]) == 2
        error = capsys.readouterr().err
        assert statements(store, one)[0].claimed in error.replace("\n", "").replace(" ", "")
        assert "--sign" in error
        assert [path.read_bytes() for path in files_of(store, one)] == before
    monkeypatch.setenv("PLYFOLD_SIGNING_KEY", str(keys / "mine.pem"))
    assert run(["revoke", "1", "--withdraw", "--reason", "no", *where, "--sign"]) == 0
    assert said(store, one) == []


@needs_keys
def test_signing_what_was_said_here_makes_nobody_elses_word_its_own(keys: Path, store: Store) -> None:
    one = store.ref("toy", 1)
    heard = revocation(one, "heard")
    adopt(store, [heard, withdrawal(one, heard)])
    revoke(store, one, "mine")
    for _ in range(2):
        sign_own(store, one, signer(keys), STATEMENTS)
        found = statements(store, one)
        assert [item.payload.reason for item in found if item.signature] == ["mine"]
        assert len(found) == 3
    assert revoke(store, one, "heard", signer(keys)).reason == "heard"  # said again here
    assert {item.payload.reason for item in statements(store, one) if item.signature} == {"mine", "heard"}


@needs_keys
def test_verify_names_a_statement_that_was_changed_here(keys: Path, store: Store) -> None:
    one = store.ref("toy", 1)
    revoke(store, one, "bad", signer(keys))
    assert all(not check.problems for check in verify(store))
    (path,) = files_of(store, one)
    path.write_bytes(path.read_bytes().replace(b'"bad"', b'"good"'))
    (fault,) = [check for check in verify(store) if check.problems]
    assert fault.name.startswith("attest/")
    assert said(store, one) == ["good"]  # without its signature it is a caution all the same


# ---- empty variables, and keys that are none


@pytest.mark.parametrize("value", ["", " ", ":", "a.pub:", ":a.pub"])
def test_an_empty_name_of_a_key_is_no_key_and_no_permission(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    where = ["--registry", str(store.root)]
    revoke(store, store.ref("toy", 1), "bad")
    monkeypatch.setenv(PUBLIC_KEY_VARIABLE, value)
    for command in (["pull", "acme/toy"], ["verify"], ["tree"], ["log"], ["merge", "--stages", "1,2", "--dry-run"]):
        assert run([*command, *where]) == 2, command
        assert PUBLIC_KEY_VARIABLE in capsys.readouterr().err
    monkeypatch.delenv(PUBLIC_KEY_VARIABLE)
    assert run(["pull", "acme/toy", "--public-key", "", *where]) == 2


@needs_keys
def test_an_empty_signing_key_or_password_is_an_error(
    store: Store, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--registry", str(store.root)]
    monkeypatch.setenv("PLYFOLD_SIGNING_KEY", "")
    for command in (
        ["sign", "1", *where],
        ["revoke", "1", "--reason", "x", *where, "--sign"],
        ["push", "acme/toy", *where, "--sign"],
        ["sign", "1", "--key", "", *where],
    ):
        assert run(command) == 2, command
    assert "PLYFOLD_SIGNING_KEY is empty" in capsys.readouterr().err
    monkeypatch.setenv("PLYFOLD_SIGNING_PASSWORD", "")
    for command in (
        ["sign", "1", "--key", str(keys / "hidden.pem"), *where],
        ["revoke", "1", "--reason", "x", "--sign", str(keys / "hidden.pem"), *where],
    ):
        assert run(command) == 2
        assert "PLYFOLD_SIGNING_PASSWORD" in capsys.readouterr().err
    assert run(["revoke", "1", "--reason", "x", "--sign", str(keys / "mine.pem"), *where]) == 0  # it needs none
    assert run(["revoke", "1", "--reason", "y", "--sign", str(keys / "mine.pub"), *where]) == 2
    assert run(["revoke", "1", "--reason", "y", "--sign", str(keys / "none.pem"), *where]) == 3


@needs_keys
def test_a_named_key_that_cannot_verify_is_an_error_where_it_decides(
    store: Store, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.ref("toy", 1)
    first = revocation(one)
    adopt(store, [first, withdrawal(one, first)])
    for value, error in ((keys / "mine.pem", ConfigError), (keys / "none.pub", NotFoundError)):
        monkeypatch.setenv(PUBLIC_KEY_VARIABLE, str(value))
        with pytest.raises(error):
            revocations(store, [one])
    monkeypatch.delenv(PUBLIC_KEY_VARIABLE)
    with pytest.raises(AuthError):
        revoke(store, one, "x", Signer(key=keys / "hidden.pem", password="wrong"))


@needs_keys
def test_a_key_is_looked_at_before_the_hub_is_asked(store: Store, keys: Path, tmp_path: Path) -> None:
    where = ["--registry", str(tmp_path / "new")]
    for name, code in (("none.pub", 3), (":", 3), ("mine.pem", 2)):
        assert run(["pull", "acme/toy", "--public-key", str(keys / name), *where]) == code
    assert not (tmp_path / "new").exists()


# ---- floods


def flood(digest: str, count: int, reason: str = "flood") -> list[Statement]:
    return [revocation(digest, f"{reason} {number}", created="2020-01-01T00:00:00Z") for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "reason"), [(4000, "flood"), (9999, "x"), (60, "y" * 1980)])
def test_a_flood_is_one_small_file_and_pushes_nothing_out(
    store: Store, count: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = store.stages("toy").values()
    revoke(store, one, "mine")
    adopt(store, [revocation(one, "known before")])
    many = flood(one, count, reason)
    assert standing(map(Known, many)) == many
    capsys.readouterr()
    adopt(store, many)
    kept = sum(item.payload.reason.startswith(reason) for item in statements(store, one))
    assert 0 < kept <= STATEMENTS.max_heard
    assert f"{count - kept:,} statements about {short(one)} were left out" in capsys.readouterr().err
    adopt(store, [withdrawal(one, *many[:5000])])  # what it takes back was not all kept
    (path,) = files_of(store, one)
    assert path.stat().st_size < 2 * STATEMENTS.max_bytes
    assert len(statements(store, one)) <= STATEMENTS.max_kept
    assert {"mine", "known before"} <= {item.payload.reason for item in statements(store, one)}
    assert len(revocations(store, [two])[two]) <= MAX_TOLD
    assert withdraw(store, one, "all of it")  # the cure
    assert said(store, two) == []
    revoke(store, one, "again")
    assert said(store, two) == ["again"]


@pytest.mark.slow
@needs_keys
def test_a_flood_that_takes_itself_back_lifts_nothing_that_a_named_key_said(keys: Path, store: Store) -> None:
    one = store.ref("toy", 1)
    remember_keys(store, one, Trust([keys / "mine.pub"]).named)
    many = flood(one, 3000)
    signed = revocation(one, "signed").signed(signer(keys))
    adopt(store, [*many, *[item.signed(signer(keys, "other")) for item in many[:100]], signed])
    adopt(store, [withdrawal(one, *many)])
    assert "signed" in {item.payload.reason for item in statements(store, one)}
    adopt(store, [withdrawal(one, signed)])
    assert said(store, one)


def test_pins_are_no_statements(store: Store) -> None:
    one = store.ref("toy", 1)
    pin(store, one, "keep")
    adopt(store, flood(one, 200))
    legacy(store, one, flood(one, 10, "older"))
    delete(store, grace_s=0)
    assert [item.reason for item in pins(store)] == ["keep"]


def legacy(store: Store, digest: str, items: list[Statement]) -> None:
    """As older versions kept them."""
    folder = store.root / "attest" / digest.removeprefix("sha256:")
    folder.mkdir(exist_ok=True)
    for item in items:
        (folder / f"{item.kind}-{item.id}.json").write_text(json.dumps({"schema": 1, **item.to_json()}))


def test_an_older_registry_reads_the_same_and_becomes_one_file(store: Store) -> None:
    one, two = store.stages("toy").values()
    first, second = revocation(one, "first"), revocation(one, "second")
    legacy(store, one, [first, second, withdrawal(one, first)])
    assert said(store, two) == ["second"]
    plan = [item for item in plan_sweep(store).garbage if item.kind == "statements"]
    assert [(item.name, item.label) for item in plan] == [(one, "3 statements, kept in one file")]
    assert len(files_of(store, one)) == 3  # nothing was changed
    assert run(["gc", "--delete", "--registry", str(store.root)]) == 0
    assert [path.name for path in files_of(store, one)] == [attestations.TRAVELLING_FILE]
    assert (said(store, two), len(statements(store, one))) == (["second"], 3)
    assert not [item for item in plan_sweep(store).garbage if item.kind == "statements"]
    legacy(store, one, flood(one, 300, "more"))
    adopt(store, [revocation(one, "third")])  # so does whatever is said next
    assert [path.name for path in files_of(store, one)] == [attestations.TRAVELLING_FILE]
    assert len(statements(store, one)) == STATEMENTS.max_heard
    withdraw(store, one, "all")
    assert said(store, two) == []


@pytest.mark.slow
def test_a_long_withdrawal_of_an_older_registry_is_kept(store: Store) -> None:
    one, two = store.stages("toy").values()
    many = flood(one, 4000)
    legacy(store, one, [*many, withdrawal(one, *many)])
    assert said(store, two) == []
    delete(store, grace_s=0)
    assert (said(store, two), len(files_of(store, one))) == ([], 1)


@needs_keys
def test_new_signatures_and_places_every_day_stay_few(store: Store, keys: Path) -> None:
    from plyfold.registry.hub.places import MAX_LOCATIONS, attest_location, locations
    from plyfold.registry.trust.signing import MAX_SIGNATURES, SIGNATURE, keep_signature, sign, verify_signature

    pytest.importorskip("model_signing")
    one = store.ref("toy", 1)
    bundles = [sign(store, one, keys / f"{name}.pem") for name in ("mine", "other")]
    away = Store(store.root.parent / "away")
    away.publish(store.read_record(one).path, store.read_record(one).record)
    for number in range(MAX_SIGNATURES):
        value = json.loads(bundles[1])
        value["verificationMaterial"]["publicKey"]["hint"] = f"{number:064x}"
        keep_signature(away, one, json.dumps(value).encode())
    with pytest.raises(IntegrityError, match="as many are kept"):
        keep_signature(away, one, bundles[0])
    keep_signature(away, one, bundles[0], verified=True)
    assert verify_signature(away, one, keys / "mine.pub").good
    assert len(away.attestations(one, SIGNATURE)) == MAX_SIGNATURES + 1
    for number in range(MAX_LOCATIONS + 5):
        attest_location(away, one, f"hf://acme/toy@{number:040x}")
    assert len(locations(away, one)) == MAX_LOCATIONS
    assert locations(away, one)[0].endswith(f"{MAX_LOCATIONS + 4:040x}")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of the registry that are read."""
    found: list[Path] = []
    original = attestations.read_capped
    monkeypatch.setattr(attestations, "read_capped", lambda path, most: (found.append(path), original(path, most))[1])
    return found


@pytest.mark.slow
def test_a_flood_costs_a_tree_no_more_files_and_few_more_marks(store: Store, opened: list[Path]) -> None:
    one = store.ref("toy", 1)
    revoke(store, one, "mine")
    opened.clear()
    tree(store, "toy")
    before = len(opened)
    adopt(store, [*flood(one, 9000), *flood(store.ref("toy", 2), 500)])
    opened.clear()
    drawn = tree(store, "toy")
    assert len(opened) <= before + 1  # stage 2 has a file now
    assert max(len(node.marks) for node in drawn.children[0].children) <= MAX_TOLD


def test_what_is_written_can_be_read_again_at_its_largest(store: Store) -> None:
    one = store.ref("toy", 1)
    wide = [revocation(one, "\u00e9" * 1990 + str(number)) for number in range(100)]
    adopt(store, wide)
    assert statements(Store(store.root), one)
    assert files_of(store, one)[0].stat().st_size < MAX_TRAVEL_BYTES
