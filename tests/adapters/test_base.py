"""Where a base comes from: the sandbox, a folder, the Hub cache, or a Hub that refuses, lacks or cannot be reached."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base.checkpoint import open_checkpoint
from plyfold.adapters.base.digest import base_digest
from plyfold.adapters.base.load import load_tokenizer
from plyfold.adapters.base.resolve import (
    BaseRef,
    Quantisation,
    check_weights,
    content_revision,
    resolve_base,
    sandbox_folder,
)
from plyfold.adapters.header import read_header
from plyfold.core.config import BaseConfig
from plyfold.core.errors import AuthError, ConfigError, IntegrityError, NotFoundError, OfflineError, PlyfoldError

QWEN = "Qwen/Qwen2.5-3B"
COMMIT = "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b"


@pytest.fixture
def base(tmp_path: Path, tiny_base: Any) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_base(), tmp_path / "base"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """huggingface_hub's own settings, with an empty cache, on line, at a closed port of this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return constants


def _local(path: Path, revision: str = "auto") -> BaseRef:
    return resolve_base(BaseConfig(repo="acme/tiny", revision=revision, path=str(path)))


def _remote(revision: str = COMMIT) -> BaseRef:
    return resolve_base(BaseConfig(repo=QWEN, revision=revision))


def test_the_sandbox_is_found_under_its_own_revision() -> None:
    ref = resolve_base(BaseConfig(repo="plyfold/sandbox-base", revision="auto", path="sandbox"))
    folder = sandbox_folder()
    assert (ref.repo, ref.revision, ref.path) == ("plyfold/sandbox-base", content_revision(folder), folder.resolve())


def test_the_sandbox_is_found_by_its_name_wherever_plyfold_lies_now(hub: Any) -> None:
    folder = sandbox_folder()
    ref = resolve_base(BaseConfig(repo="plyfold/sandbox-base", revision=content_revision(folder)))
    assert ref.path == folder  # where a registry remembers another place, or comes from another machine
    assert resolve_base(BaseConfig(repo="plyfold/sandbox-base", revision="auto")) == ref
    with pytest.raises(OfflineError):  # another sandbox's adapters do not belong to this one
        resolve_base(BaseConfig(repo="plyfold/sandbox-base", revision="0" * 40))


def test_an_automatic_revision_changes_with_every_byte_that_counts(base: Path) -> None:
    revision = _local(base).revision
    assert len(revision) == 40
    assert _local(base, "b" * 40).revision == "b" * 40
    (base / "README.md").write_text("words")
    assert content_revision(base) == revision
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (base / name).read_bytes()
        (base / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert content_revision(base) != revision, name
        (base / name).write_bytes(whole)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sandbox_folder(), tmp_path / "base"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None
    tokenizer(["1 + 2", "3"], padding=True)


def test_folders_that_are_no_base_are_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(NotFoundError, match="folder"):
        _local(tmp_path / "nowhere")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match="truncated"):
        _local(base)
    weights.rename(base / "pytorch_model.bin")
    with pytest.raises(IntegrityError, match="pickled"):
        _local(base)
    (base / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"config\.json"):
        _local(base)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": {"a": "../../secret"}}', '{"weight_map": {"a": 3}}']
)
def test_an_unsound_index_is_an_integrity_error(base: Path, index: str) -> None:
    (base / "model.safetensors.index.json").write_text(index)
    with pytest.raises(IntegrityError, match="index"):
        _local(base)


@pytest.mark.parametrize("read", [check_weights, open_checkpoint, base_digest, _local])
def test_a_file_of_weights_beside_an_index_of_others_is_refused_by_every_reader(base: Path, read: Any) -> None:
    (base / "other.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    names = list(read_header(base / "model.safetensors").tensors)
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "other.safetensors")}))
    with pytest.raises(IntegrityError, match="two sets of weights") as refused:
        read(base)
    assert "model.safetensors beside an index of other.safetensors" in refused.value.found
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    read(base)  # of the one file
    assert open_checkpoint(base).shards.keys() == {"model.safetensors"}


def test_quantisation_follows_the_config_and_refuses_unknown_dtypes() -> None:
    config = BaseConfig(repo="a/b", revision="auto", compute_dtype="float32", double_quant=False)
    assert Quantisation.of(config) == Quantisation(compute_dtype="float32", double_quant=False)
    assert Quantisation.of(config).digest() != Quantisation().digest()
    with pytest.raises(ConfigError, match="float7"):
        Quantisation.of(BaseConfig(repo="a/b", revision="auto", compute_dtype="float7"))


# ---- the Hub ----


def test_a_cached_snapshot_is_used_without_a_network(hub: Any, base: Path) -> None:
    snapshot = Path(hub.HF_HUB_CACHE) / "models--Qwen--Qwen2.5-3B" / "snapshots" / COMMIT
    shutil.copytree(base, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert _remote() == BaseRef(repo=QWEN, revision=COMMIT, path=snapshot)
    assert _remote("main").revision == COMMIT


def test_a_hub_base_needs_its_commit(hub: Any) -> None:
    with pytest.raises(ConfigError, match="commit"):
        _remote("auto")


def test_offline_without_a_cache_says_how_to_go_on(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError) as caught:
        _remote()
    assert "HF_HUB_OFFLINE" in caught.value.next_step
    assert caught.value.exit_code == 6


def test_a_hub_out_of_reach_says_how_to_go_on(hub: Any) -> None:
    with pytest.raises(OfflineError) as caught:
        _remote()
    assert f"hf download {QWEN} --revision {COMMIT}" in caught.value.next_step


def test_a_snapshot_cached_in_part_is_not_taken_for_the_base(
    hub: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Path(hub.HF_HUB_CACHE) / "models--Qwen--Qwen2.5-3B" / "snapshots" / COMMIT
    shutil.copytree(base, snapshot)
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError):
        _remote()


class _Refusing(BaseHTTPRequestHandler):
    """A hub that answers every request with one status and error code."""

    status, code = 404, "RepoNotFound"

    def do_GET(self) -> None:
        body = json.dumps({"error": "no"}).encode()
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def refusing(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Refusing]]:
    handler = type("Handler", (_Refusing,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "GatedRepo", AuthError),
        (403, "GatedRepo", AuthError),
        (401, "RepoNotFound", NotFoundError),
        (404, "RepoNotFound", NotFoundError),
        (404, "RevisionNotFound", NotFoundError),
        (418, "", OfflineError),
    ],
)
def test_what_the_hub_refuses_has_an_error_of_its_own(
    refusing: type[_Refusing], status: int, code: str, expected: type[PlyfoldError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    refusing.status, refusing.code = status, code
    with pytest.raises(expected) as caught:
        _remote()
    assert "hf_secret" not in str(caught.value)
