"""A signature's whole way: push signs, anyone verifies with model-signing alone, pull requires it."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.registry.hub.client import HubClient
from plyfold.registry.store import Store
from plyfold.registry.trust.signing import signature_of

from ...conftest import Hub, MakeAdapter, MakeRecord
from ...support.key_files import write_key
from .conftest import is_empty, stages

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None,
    reason="model-signing is not installed: pip install 'plyfold[sign]'",
)
REPO = "acme/toy-s01-structure"


@pytest.fixture
def signed(hub: Hub, client: HubClient, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The three stages on the Hub, signed with `mine.pem` of this folder, where `other.pem` lies too."""
    for name in ("REGISTRY", "SIGNING_KEY", "SIGNING_PASSWORD", "PUBLIC_KEY"):
        monkeypatch.delenv(f"PLYFOLD_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        write_key(tmp_path, name)
    assert run(["push", "acme/toy", "--sign", "mine.pem", "--registry", str(store.root)]) == 0
    return store


def pull(away: Store, key: str, *arguments: str) -> int:
    return run(["pull", f"hf://{REPO}", "--public-key", key, "--registry", str(away.root), *arguments])


def replace(hub: Hub, **files: bytes) -> None:
    """A commit by whoever has the repository's token, without the key."""
    rows: list[dict[str, Any]] = [
        {"key": "file", "value": {"path": name, "content": base64.b64encode(content).decode()}}
        for name, content in files.items()
    ]
    hub.store.commit(REPO, "main", rows, "mallory")


@pytest.mark.slow
def test_model_signing_alone_verifies_what_push_published(signed: Store, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    HfApi().snapshot_download(REPO, local_dir=tmp_path / "DIR")
    assert {"README.md", "model.sig", "lineage.json", ".cache"} <= {path.name for path in (tmp_path / "DIR").iterdir()}
    command = "model_signing verify key DIR --signature DIR/model.sig --public_key"
    for key, code in (("mine.pub", 0), ("other.pub", 1)):
        done = subprocess.run([sys.executable, "-m", *command.split(), key], cwd=tmp_path, capture_output=True)
        assert done.returncode == code, done.stderr


def test_pull_takes_what_a_named_key_signed_and_nothing_else(
    signed: Store, away: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    one = stages(signed)[0]
    assert pull(away, "other.pub") == 4
    assert "signature" in capsys.readouterr().err
    assert is_empty(away)
    assert pull(away, "mine.pub") == 0
    assert away.digests() == [one]
    assert signature_of(away, one) == signature_of(signed, one)
    assert pull(away, "other.pub") == 4  # held, and still not theirs
    capsys.readouterr()
    assert run(["verify", "--public-key", "mine.pub", "--registry", str(away.root), "--json"]) == 0
    assert [item["verdict"] for item in json.loads(capsys.readouterr().out)["signatures"]] == ["good"]


def test_an_adapter_remade_by_someone_without_the_key_is_refused(
    hub: Hub,
    signed: Store,
    away: Store,
    tmp_path: Path,
    make_adapter: MakeAdapter,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from plyfold.adapters.tensors import tensor_digest
    from plyfold.registry.record import Weights

    folder = make_adapter(tmp_path / "poisoned", seed=66)
    weights = Weights(digest=tensor_digest(folder), dtype="float32", r=4, alpha=8, targets=[])
    poisoned = away.load(away.publish(folder, make_record(1, "structure", weights=weights)))
    files = {path.name: path.read_bytes() for path in poisoned.path.iterdir()}
    replace(hub, **files)  # record and files agree: only the old signature tells
    elsewhere = Store(tmp_path / "elsewhere")
    assert run(["sign", poisoned.digest, "--key", "other.pem", "--registry", str(away.root)]) == 0
    theirs = signature_of(away, poisoned.digest) or b""
    for signature in (hub.store.read(REPO, "main", "model.sig"), theirs, b'{"mediaType": "' + b"x" * 1000):
        replace(hub, **{"model.sig": signature})
        capsys.readouterr()
        assert pull(elsewhere, "mine.pub") == 4
        error = capsys.readouterr().err
        assert "sign" in error.splitlines()[0]
        assert "Traceback" not in error
        assert is_empty(elsewhere)
    replace(hub, **{"model.sig": theirs})
    assert pull(elsewhere, "other.pub") == 0  # nothing else was wrong with it
