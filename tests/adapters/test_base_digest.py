"""A base is its weights: the digest on record, taken once per file stamp, and refused where other weights lie."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.adapters.base import digest as module
from plyfold.adapters.base.digest import base_digest
from plyfold.adapters.base.resolve import BaseRef
from plyfold.adapters.base.twin import ensure_twin
from plyfold.cli.main import run
from plyfold.core.errors import BaseMismatchError, IntegrityError
from plyfold.registry.record import BaseRecord, parse_record
from plyfold.registry.store import Store
from plyfold.stages.curriculum import with_weights
from plyfold.variants import parse_variant
from plyfold.variants.base import base_of

from ..conftest import REPO, REVISION
from ..support.peft_folders import write_base_folder

DIGEST = f"sha256:{'a' * 64}"


def alter(folder: Path) -> None:
    """Change one number of a base and set the file's times back."""
    file = folder / "model.safetensors"
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-4, os.SEEK_END)
        last = handle.read(1)
        handle.seek(-4, os.SEEK_END)
        handle.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_it_is_of_the_numbers_and_not_of_the_files(tmp_path: Path) -> None:
    write_base_folder(tmp_path / "whole")
    write_base_folder(tmp_path / "parts", shards=3)
    write_base_folder(tmp_path / "other", seed=1)
    digests = [base_digest(tmp_path / name) for name in ("whole", "parts", "other")]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name].view(torch.int16).view(tensors[name].dtype).reshape(1, -1)
    save_file(tensors, tmp_path / "whole" / "model.safetensors", metadata={"about": "the same bytes, another shape"})
    assert base_digest(tmp_path / "whole") != digests[0]


def test_it_is_taken_once_for_files_that_did_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base_folder(tmp_path / "base")
    cache = tmp_path / "cache"
    first = base_digest(tmp_path / "base", cache)
    reads: list[str] = []
    real = module._bytes_digest
    monkeypatch.setattr(module, "_bytes_digest", lambda header, name: (reads.append(name), real(header, name))[1])
    assert base_digest(tmp_path / "base", cache) == first
    assert reads == []
    alter(tmp_path / "base")
    assert base_digest(tmp_path / "base", cache) != first
    assert reads
    (cache / module.NOTES_NAME).write_text("torn")
    assert base_digest(tmp_path / "base", cache) != first


def test_records_without_it_keep_their_digest(make_record: Any) -> None:
    record = make_record()
    assert "weights_digest" not in record.to_json()["base"]
    assert b"weights_digest" not in record.to_bytes()
    said = make_record(base=BaseRecord(repo=REPO, revision=REVISION, weights_digest=DIGEST))
    assert parse_record(said.to_bytes()).base.weights_digest == DIGEST
    spelled = json.loads(record.to_bytes())
    spelled["base"]["weights_digest"] = None
    with pytest.raises(IntegrityError):  # a second spelling of one record
        parse_record(json.dumps(spelled, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


@pytest.fixture
def store(tmp_path: Path, make_store: Any, tiny_base: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stages whose records hold the digest of a base that lies here and can be altered."""
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    base = Path(shutil.copytree(tiny_base(dtype="float32"), tmp_path / "base"))
    store: Store = make_store(tmp_path / ".plyfold", base)
    for number, digest in store.stages("tiny").items():
        entry = store.load(digest)
        named = entry.record.base.model_copy(update={"weights_digest": base_digest(base)})
        published = store.publish(entry.path, entry.record.model_copy(update={"base": named}))
        store.set_ref("tiny", number, published)
    return store


COMMANDS: Sequence[Sequence[str]] = (
    ["merge", "--stages", "1,2", "--into", "model", "-o", "out"],
    ["merge", "--stages", "1,2", "--into", "model", "--base-view", "original", "-o", "out"],
    ["merge", "--stages", "1,2", "--into", "model", "--base", "base", "-o", "out"],
    ["serve", "--dry-run", "base", "1"],
    ["eval", "-c", "sandbox", "base", "1", "--limit", "2"],
    ["verify", "--base"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_another_base_under_that_name_is_refused(
    store: Store, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base_of(store, [parse_variant("1", "tiny")])  # its digest is noted
    alter(Path("base"))
    assert run(command) == 4
    told = " ".join(capsys.readouterr().err.split())
    assert "other weights" in told
    assert not Path("out").exists()
    assert not (store.cache / "twins").exists()


def test_verify_says_what_lies_here(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--base", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["bases"]
    assert {(base["repo"], base["fault"]) for base in found} == {(REPO, "")}
    assert {base["note"] for base in found} == {"", "its weights are not on record"}  # the first records say nothing
    shutil.rmtree("base")
    assert run(["verify", "--base", "--json"]) == 0
    assert {base["note"] for base in json.loads(capsys.readouterr().out)["bases"]} == {"not on this machine"}


def test_a_twin_of_other_weights_is_made_anew(store: Store) -> None:
    ref, quantisation = base_of(store, [parse_variant("1", "tiny")])
    plain = BaseRef(repo=ref.repo, revision=ref.revision, path=ref.path)
    right = load_file(ensure_twin(ref, quantisation, store.cache) / "model.safetensors")
    shutil.rmtree(store.cache / "twins")
    good = (ref.path / "model.safetensors").read_bytes()
    tensors = load_file(ref.path / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, ref.path / "model.safetensors")
    twin = ensure_twin(plain, quantisation, store.cache)  # by somebody who does not look
    (ref.path / "model.safetensors").write_bytes(good)
    ref, quantisation = base_of(store, [parse_variant("1", "tiny")])
    again = load_file(ensure_twin(ref, quantisation, store.cache) / "model.safetensors")
    assert twin == ensure_twin(ref, quantisation, store.cache)
    assert all(torch.equal(again[name], right[name]) for name in right)


def test_training_goes_on_only_on_the_same_weights(store: Store) -> None:
    class Plan:
        config = type("Config", (), {"curriculum": "tiny"})()
        base = BaseRef(repo=REPO, revision=REVISION, path=Path("base"))

    alter(Path("base"))
    with pytest.raises(BaseMismatchError, match="other weights"):
        with_weights(Plan(), store)  # type: ignore[arg-type]
