"""Signatures: real keys and the real library, every file changed, hostile bundles, and what works without the extra."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import AuthError, ConfigError, IntegrityError, NotFoundError, PlyfoldError
from plyfold.registry.store import Store, attestations, find_store
from plyfold.registry.trust.signing import (
    BESIDE,
    SIGNATURE,
    check_signatures,
    keep_signature,
    sign,
    signature_of,
    signs,
    verify_signature,
)
from plyfold.registry.trust.signing_keys import MAKE_PRIVATE, MAKE_PUBLIC, is_encrypted

from ...support.hostile_bundles import bundles, contents, sealed
from ...support.key_files import write_key

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None,
    reason="model-signing is not installed: pip install 'plyfold[sign]'",
)
PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of key files: NAME.pem and NAME.pub of several kinds."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        write_key(folder, name)
    write_key(folder, "locked", password=PASSWORD)
    for kind in ("p384", "p521", "k1", "ed25519", "rsa"):
        write_key(folder, kind, kind)
    return folder


@pytest.fixture
def store(tmp_path: Path, make_record: Any) -> Store:
    """Stages 1 and 2; each has a file in a folder too."""
    store = find_store(tmp_path / "store", create=True)
    for number, name in enumerate(("structure", "brevity"), start=1):
        folder = tmp_path / name
        (folder / "more").mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(bytes([number]) * 5000)
        (folder / "more/notes.txt").write_text("notes")
        store.set_ref("toy", number, store.publish(folder, make_record(number, name)))
    return store


@pytest.fixture
def one(store: Store) -> str:
    return store.ref("toy", 1)


# ---- signing and checking


@needs_library
@pytest.mark.parametrize("name", ["mine", "p384", "p521", "locked"])
def test_a_signature_covers_payload_and_record_and_leaves_the_object_as_it_is(
    store: Store, one: str, keys: Path, name: str
) -> None:
    entry = store.load(one)
    before = {path: path.lstat() for path in [entry.path, *entry.path.rglob("*")]}
    assert verify_signature(store, one, keys / f"{name}.pub").verdict == "missing"
    data = sign(store, one[:12], keys / f"{name}.pem", PASSWORD)
    resources = contents(data)[1]["predicate"]["resources"]
    assert {item["name"]: f"sha256:{item['digest']}" for item in resources} == {
        "lineage.json": one,
        **{file.path: file.sha256 for file in entry.record.files},
    }
    assert {path: path.lstat() for path in [entry.path, *entry.path.rglob("*")]} == before
    assert signature_of(store, one) == data
    assert [item.kind for item in store.attestations(one)] == [SIGNATURE]
    check = verify_signature(store, one, keys / f"{name}.pub")
    assert (check.verdict, check.expected, check.found) == ("good", "", "")
    sums = subprocess.run(["sha256sum", keys / f"{name}.pub"], capture_output=True, text=True, check=True)
    assert check.key == f"sha256:{sums.stdout.split()[0]}"
    check.require()


@needs_library
def test_signing_again_gives_the_same_signature_unless_what_is_there_is_not_good(
    store: Store, one: str, keys: Path
) -> None:
    data = sign(store, one, keys / "mine.pem")
    assert sign(store, one, keys / "mine.pem") == data
    assert len(store.attestations(one, SIGNATURE)) == 1
    other = sign(store, one, keys / "other.pem")
    assert signature_of(store, one) == other != data
    assert sign(store, one, keys / "mine.pem") == data  # newest again
    assert signature_of(store, one) == data

    two = store.ref("toy", 2)
    signed = contents(sign(store, two, keys / "other.pem"))[0]
    signed["verificationMaterial"] = contents(data)[0]["verificationMaterial"]  # says it is by `mine`
    keep_signature(store, two, json.dumps(signed).encode())
    assert sign(store, two, keys / "mine.pem") != json.dumps(signed).encode()
    assert verify_signature(store, two, keys / "mine.pub").good


@needs_library
def test_only_the_named_keys_count_and_any_of_them_will_do(store: Store, one: str, keys: Path) -> None:
    sign(store, one, keys / "mine.pem")
    check = verify_signature(store, one, keys / "other.pub", keys / "p384.pub")
    mine = verify_signature(store, one, keys / "other.pub", keys / "mine.pub", keys / "p384.pub")
    assert (check.verdict, mine.verdict) == ("bad", "good")
    other = verify_signature(store, store.ref("toy", 2), keys / "other.pub")
    assert (other.verdict, other.found) == ("missing", "no signature")
    assert mine.key in check.found
    assert check.expected.count("sha256:") == 2
    with pytest.raises(IntegrityError, match="no good signature") as error:
        check.require("hf://acme/toy")
    assert error.value.where == "hf://acme/toy"
    with pytest.raises(IntegrityError, match="is not signed"):
        other.require()


@needs_library
def test_any_changed_missing_or_added_file_is_bad(store: Store, one: str, keys: Path, tmp_path: Path) -> None:
    data = sign(store, one, keys / "mine.pem")
    entry = store.load(one)

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    changes: list[Callable[[Path], object]] = [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("renamed")),
    ]
    names = ["lineage.json", *(file.path for file in entry.record.files)]
    for change in changes:
        for name in names:
            assert_bad_after(change, name, store, one, data, keys, tmp_path)
    for name in ("adapter_model.bin", "more/other.txt", *BESIDE[:3], ".git/config"):
        (entry.path / name).parent.mkdir(exist_ok=True)
        (entry.path / name).write_text("added")
        check = verify_signature(store, one, keys / "mine.pub")
        assert (check.verdict, name in check.found) == ("bad", True)
        (entry.path / name).unlink()
    shutil.rmtree(entry.path / ".git")
    assert verify_signature(store, one, keys / "mine.pub").good


def assert_bad_after(
    change: Callable[[Path], object], name: str, store: Store, one: str, data: bytes, keys: Path, tmp_path: Path
) -> None:
    """In the store, and in a folder that is to come into it."""
    entry, record = store.read_record(one), store.read_record(one).record
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    for copy in (kept, folder):
        shutil.copytree(entry.path, copy)
        for path in copy.rglob("*.*"):
            path.chmod(0o644)
    change(folder / name)
    shutil.rmtree(entry.path)
    folder.rename(entry.path)
    check = verify_signature(store, one, keys / "mine.pub")
    assert check.verdict == "bad", (name, change)
    assert check.found
    if (entry.path / "lineage.json").is_file():
        check = check_signatures(entry.path, record, one, [data], keys / "mine.pub")
        assert (check.verdict, name in check.expected) == ("bad", True), (name, change)
    shutil.rmtree(entry.path)
    kept.rename(entry.path)
    assert check_signatures(entry.path, record, one, [data], keys / "mine.pub").good


@needs_library
def test_a_signature_of_another_adapter_is_refused_and_never_good(store: Store, one: str, keys: Path) -> None:
    data = sign(store, store.ref("toy", 2), keys / "mine.pem")
    assert not signs(store, one, data)
    assert signs(store, store.ref("toy", 2), data)
    with pytest.raises(IntegrityError, match="of another adapter") as error:
        keep_signature(store, one, data, "hf://acme/toy")
    assert "sha256:" in error.value.expected
    assert signature_of(store, one) is None
    store.attest(one, SIGNATURE, {"bundle": data.decode()})  # as if somebody had put it there
    check = verify_signature(store, one, keys / "mine.pub")
    assert (check.verdict, "adapter_model.safetensors" in check.found) == ("bad", True)


@needs_library
def test_forgeries_are_bad_and_take_nothing_from_a_good_signature(
    store: Store, one: str, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sign(store, one, keys / "mine.pem")
    value, statement = contents(good)
    theirs, _ = contents(sign(store, one, keys / "other.pem"))
    other, sig = store.read_record(one), value["dsseEnvelope"]["signatures"][0]["sig"]
    forged = {
        "another key's signature under my key's name": json.dumps(
            {**theirs, "verificationMaterial": value["verificationMaterial"]}
        ).encode(),
        "the same statement in other bytes": sealed(value, statement),
        "my signature under no name": json.dumps({**value, "verificationMaterial": {"tlogEntries": []}}).encode(),
        "a certificate": json.dumps(
            {**value, "verificationMaterial": {"certificate": {"rawBytes": "/slash+first=="}}}
        ).encode(),
        "two halves of the signature exchanged": good.replace(
            sig.encode(), (sig[40:80] + sig[:40] + sig[80:]).encode()
        ),
    }
    for name, data in forged.items():
        assert signs(store, one, data), name
        check = check_signatures(other.path, other.record, one, [data], keys / "mine.pub")
        assert (check.verdict, bool(check.expected and check.found)) == ("bad", True), name
        keep_signature(store, one, data)
        assert verify_signature(store, one, keys / "mine.pub").good, name
    kept = len(store.attestations(one, SIGNATURE))
    monkeypatch.setattr(attestations, "utc_now", lambda: "2099-01-01T00:00:00Z")  # a second later, nothing is alike
    for data in (*forged.values(), good):
        keep_signature(store, one, data)
    assert len(store.attestations(one, SIGNATURE)) == kept  # known ones change nothing


# ---- what comes from strangers


@needs_library
def test_hostile_bundles_are_refused_and_leave_nothing(store: Store, one: str, keys: Path) -> None:
    good = sign(store, one, keys / "mine.pem")
    entry, kept = store.read_record(one), store.attestations(one)
    for name, data in bundles(good).items():
        with pytest.raises(IntegrityError) as error:
            keep_signature(store, one, data, "hf://acme/toy")
        assert error.value.where == "hf://acme/toy", name
        assert len(str(error.value)) < 1000, name
        assert check_signatures(entry.path, entry.record, one, [data], keys / "mine.pub").verdict == "bad", name
    for length in range(0, len(good), 97):
        with pytest.raises(IntegrityError):
            keep_signature(store, one, good[:length])
    assert store.attestations(one) == kept
    keep_signature(store, one, good)
    assert store.attestations(one) == kept


@needs_library
def test_what_is_kept_and_damaged_is_an_error_without_a_traceback(store: Store, one: str, keys: Path) -> None:
    for payload in ({}, {"bundle": None}, {"bundle": "{}"}, {"bundle": {"a": 1}}):
        path = store.attest(one, SIGNATURE, payload)
        with pytest.raises(IntegrityError, match="not a signature"):
            signature_of(store, one)
        assert verify_signature(store, one, keys / "mine.pub").verdict == "bad"
        path.unlink()


# ---- model-signing itself


@pytest.fixture
def repository(store: Store, one: str, keys: Path, tmp_path: Path) -> Path:
    """What someone has who downloaded the adapter's repository: its files, and all that lies beside them."""
    folder = tmp_path / "download"
    shutil.copytree(store.load(one).path, folder)
    (folder / "model.sig").write_bytes(sign(store, one, keys / "mine.pem"))
    beside = ("README.md", "revocations.json", "evaluations.json", ".gitattributes")
    for name in (*beside, ".eval_results/gsm8k.yaml", ".cache/hub/x.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("beside")
    return folder


@pytest.mark.slow
@needs_library
def test_model_signings_own_command_verifies_a_downloaded_repository(repository: Path, keys: Path) -> None:
    shutil.copyfile(keys / "mine.pub", repository.parent / "signing.pub")

    def verify(folder: Path) -> subprocess.CompletedProcess[str]:
        command = "-m model_signing verify key FOLDER --signature FOLDER/model.sig --public_key signing.pub"
        arguments = command.replace("FOLDER", folder.name).split()
        return subprocess.run(
            [sys.executable, *arguments], cwd=folder.parent, capture_output=True, text=True, timeout=60
        )

    good = verify(repository)
    assert (good.returncode, good.stdout) == (0, "Verification succeeded\n")
    (repository / "adapter_model.bin").write_bytes(b"a pickle")
    (repository / "lineage.json").chmod(0o644)
    (repository / "lineage.json").write_text("{}")
    bad = verify(repository)
    assert (bad.returncode, "adapter_model.bin" in bad.stderr, "lineage.json" in bad.stderr) == (1, True, True)


@pytest.mark.slow
@needs_library
def test_a_signature_made_by_model_signings_own_command_is_good(
    store: Store, one: str, keys: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.sig"
    command = [sys.executable, "-m", "model_signing", "sign", "key", store.load(one).path]
    subprocess.run([*command, "--signature", out, "--private_key", keys / "mine.pem"], check=True, timeout=60)
    keep_signature(store, one, out.read_bytes(), out)
    assert verify_signature(store, one, keys / "mine.pub").good


# ---- keys


@needs_library
def test_keys_that_cannot_sign_say_why_and_how_to_make_one(store: Store, one: str, keys: Path) -> None:
    (keys / "text.pem").write_text("not a key")
    (keys / "huge.pem").write_bytes(b"x" * 200_000)
    (keys / "cut.pem").write_bytes((keys / "mine.pem").read_bytes()[:100])
    (keys / "folder.pem").mkdir(exist_ok=True)
    wrong: dict[str, tuple[type[PlyfoldError], str]] = {
        "none.pem": (NotFoundError, MAKE_PRIVATE),
        "text.pem": (ConfigError, MAKE_PRIVATE),
        "huge.pem": (ConfigError, MAKE_PRIVATE),
        "cut.pem": (ConfigError, MAKE_PRIVATE),
        "folder.pem": (ConfigError, "Is a directory"),
        "mine.pub": (ConfigError, "a public key"),
        "rsa.pem": (ConfigError, "RSA"),
        "ed25519.pem": (ConfigError, "Ed25519"),
        "k1.pem": (ConfigError, "secp256k1"),
    }
    for name, (kind, words) in wrong.items():
        with pytest.raises(kind) as error:
            sign(store, one, keys / name)
        assert words in str(error.value), name
        assert name in error.value.where
    with pytest.raises(AuthError, match="no password was given"):
        sign(store, one, keys / "locked.pem")
    with pytest.raises(AuthError, match="does not open") as auth:
        sign(store, one, keys / "locked.pem", "hunter2")
    secrets = ["hunter2", *(line for line in (keys / "locked.pem").read_text().splitlines() if "-" not in line)]
    assert not [secret for secret in secrets if secret in f"{auth.value}{auth.value.__cause__}"]
    assert signature_of(store, one) is None
    assert (is_encrypted(keys / "locked.pem"), is_encrypted(keys / "mine.pem")) == (True, False)


@needs_library
def test_keys_that_cannot_verify_say_why(store: Store, one: str, keys: Path) -> None:
    sign(store, one, keys / "mine.pem")
    for name, words in {
        "none.pub": MAKE_PUBLIC,
        "mine.pem": "keep it to yourself",
        "rsa.pub": "RSA",
        "k1.pub": "secp256k1",
    }.items():
        with pytest.raises((NotFoundError, ConfigError)) as error:
            verify_signature(store, one, keys / "mine.pub", keys / name)
        assert words in str(error.value), name
    with pytest.raises(ConfigError, match="no public key"):
        verify_signature(store, one)


# ---- without the extra


@needs_library
def test_without_the_extra_signatures_are_kept_and_the_rest_says_what_to_install(
    store: Store, one: str, keys: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.sig"
    path.write_bytes(sign(store, one, keys / "mine.pem"))
    shutil.rmtree(store.root / "attest")
    code = f"""
import sys
from pathlib import Path
sys.modules["model_signing"] = sys.modules["cryptography"] = None
from plyfold.cli.main import run
from plyfold.registry.trust.signing import keep_signature, signature_of
from plyfold.registry.store import Store
store, data = Store(Path({str(store.root)!r})), Path({str(path)!r}).read_bytes()
keep_signature(store, {one!r}, data)
assert signature_of(store, {one!r}) == data
assert not {{"cryptography.hazmat", "sigstore"}} & set(sys.modules)
where = ["--registry", str(store.root)]
assert run(["verify", *where]) == 0
print(run(["sign", "1", "--key", {str(keys / "mine.pem")!r}, *where]))
print(run(["verify", "--public-key", {str(keys / "mine.pub")!r}, *where]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["3", "3"]
    assert done.stderr.count("pip install 'plyfold[sign]'") == 2
    assert "Traceback" not in done.stderr
