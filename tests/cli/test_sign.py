"""`plyfold sign`, and `verify` with a public key: what they print, their JSON and their exit codes."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from plyfold.cli.main import run
from plyfold.cli.records import sign as sign_module
from plyfold.registry.store import Store, find_store
from plyfold.registry.trust.signing import signature_of, verify_signature
from plyfold.registry.trust.signing_keys import MAKE_PRIVATE, MAKE_PUBLIC

from ..support.key_files import write_key

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None,
    reason="model-signing is not installed: pip install 'plyfold[sign]'",
)
PASSWORD = "correct horse battery staple"


@pytest.fixture
def store(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stages 1 and 2 in the registry of this folder, where `key.pem`, `locked.pem` and `other.pub` lie too."""
    for name in ("REGISTRY", "SIGNING_KEY", "SIGNING_PASSWORD", "PUBLIC_KEY"):
        monkeypatch.delenv(f"PLYFOLD_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("key", "other"):
        write_key(tmp_path, name)
    write_key(tmp_path, "locked", password=PASSWORD)
    store = find_store(create=True)
    for number, name in enumerate(("structure", "brevity"), start=1):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": number}))
        store.set_ref("toy", number, store.publish(folder, make_record(number, name)))
    return store


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == code
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_sign_then_verify(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = store.stages("toy").values()
    value = json_of(["verify", "--signature", "--public-key", "key.pub"], capsys, code=4)
    assert (value["ok"], {item["verdict"] for item in value["signatures"]}) == (False, {"missing"})

    signed = json_of(["sign", "1", "--key", "key.pem"], capsys)
    assert signed["signed"] == [one]
    value = json_of(["verify", "--public-key", "key.pub"], capsys, code=4)  # a key that is named is never passed over
    assert {item["digest"]: item["verdict"] for item in value["signatures"]} == {one: "good", two: "missing"}
    assert [item["key"] for item in value["signatures"] if item["digest"] == one] == [signed["key"]]
    assert run(["verify", "--public-key", "key.pub"]) == 4
    printed = capsys.readouterr()
    assert "missing" in printed.out
    assert f"adapter {two[7:19]} is not signed" in printed.err

    assert json_of(["sign", "1", "brevity", "--key", "key.pem"], capsys)["signed"] == [one, two]
    assert json_of(["verify", "--signature", "--public-key", "key.pub"], capsys)["ok"] is True
    assert json_of(["verify", "--public-key", "other.pub"], capsys, code=4)["ok"] is False
    assert json_of(["verify", "--public-key", "other.pub", "--public-key", "key.pub"], capsys)["ok"] is True
    assert run(["show", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"signed by {signed['key']}" in shown
    assert "dsseEnvelope" not in shown


def test_a_damaged_file_is_both_faults(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run(["sign", "1", "2", "--key", "key.pem"])
    path = store.read_record(store.ref("toy", 2)).path / "adapter_config.json"
    path.chmod(0o644)
    path.write_text('{"r": 3}')
    capsys.readouterr()
    value = json_of(["verify", "--signature", "--public-key", "key.pub"], capsys, code=4)
    assert {item["verdict"] for item in value["signatures"]} == {"good", "bad"}
    assert sum(not item["ok"] for item in value["checks"]) == 1


def test_keys_from_the_environment(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["sign", "1"]) == 2
    assert "PLYFOLD_SIGNING_KEY" in capsys.readouterr().err
    assert run(["verify", "--signature"]) == 2
    assert "--public-key" in capsys.readouterr().err
    monkeypatch.setenv("PLYFOLD_SIGNING_KEY", "key.pem")
    assert run(["sign", "1", "2"]) == 0
    monkeypatch.setenv("PLYFOLD_PUBLIC_KEY", "other.pub:key.pub")
    assert run(["verify", "--signature"]) == 0
    monkeypatch.setenv("PLYFOLD_PUBLIC_KEY", "other.pub")
    assert run(["verify", "--signature"]) == 4
    capsys.readouterr()
    assert "signatures" not in json_of(["verify"], capsys)  # nobody asked


def test_passwords_come_from_the_environment_or_a_terminal_and_are_never_shown(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.ref("toy", 1)
    arguments = ["sign", "1", "--key", "locked.pem", "--debug"]
    assert run(arguments) == 7
    assert "PLYFOLD_SIGNING_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("PLYFOLD_SIGNING_PASSWORD", "hunter2")
    assert run(arguments) == 7
    printed = capsys.readouterr()
    assert "hunter2" not in printed.out + printed.err
    assert signature_of(store, one) is None
    monkeypatch.setenv("PLYFOLD_SIGNING_PASSWORD", PASSWORD)
    assert run([*arguments, "-v"]) == 0
    assert verify_signature(store, one, Path("locked.pub")).good

    monkeypatch.delenv("PLYFOLD_SIGNING_PASSWORD")
    asked: list[Any] = []

    def prompt(text: str, **options: Any) -> str:
        asked.append((text, options))
        return PASSWORD

    monkeypatch.setattr(click, "prompt", prompt)
    monkeypatch.setattr(sign_module.sys.stdin, "isatty", lambda: True)
    assert run(["sign", "2", "--key", "locked.pem"]) == 0
    assert asked == [("password of locked.pem", {"hide_input": True, "err": True})]
    assert verify_signature(store, store.ref("toy", 2), Path("locked.pub")).good
    assert run(["sign", "1", "--key", "key.pem"]) == 0  # no password, no question
    assert len(asked) == 1
    printed = capsys.readouterr()
    assert PASSWORD not in printed.out + printed.err


def test_wrong_keys_and_refs_are_one_clear_error_each(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in {
        ("sign", "1", "--key", "none.pem"): 3,
        ("sign", "1", "--key", "key.pub"): 2,
        ("sign", "7", "--key", "key.pem"): 3,
        ("sign", "--key", "key.pem"): 2,
        ("verify", "--public-key", "none.pub"): 3,
        ("verify", "--public-key", "key.pem"): 2,
    }.items():
        assert run(list(arguments)) == code, arguments
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on the path")
def test_the_commands_that_messages_name_make_keys_that_work(store: Store) -> None:
    for text in (MAKE_PRIVATE, MAKE_PUBLIC):
        subprocess.run(shlex.split(text.partition(": ")[2]), check=True, capture_output=True)
    assert run(["sign", "1", "2", "--key", "signing.pem"]) == 0
    assert run(["verify", "--public-key", "signing.pub"]) == 0
