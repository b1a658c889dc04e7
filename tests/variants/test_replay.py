"""`verify --replay`: every kind of merge comes out of its record again, and what was tampered with does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.adapters.tensors import tensor_digest
from plyfold.cli.main import run
from plyfold.merge.plan import METHODS
from plyfold.registry.record import Record
from plyfold.registry.store import Store, find_store
from plyfold.variants.replay import Replay, replay

from ..support.peft_folders import write_adapter_folder

REPO, REVISION = "acme/tiny-qwen2", "0123456789abcdef0123456789abcdef01234567"
BASE = {"base_model_name_or_path": REPO, "revision": REVISION}
MERGES = {
    "exact": [],
    "exact weighted": ["--weights", "1,0.7,-0.5"],
    "exact bf16": ["--dtype", "bf16"],
    "svd": ["--method", "svd", "--rank", "5", "--dtype", "fp16"],
    "svd to an error": ["--max-error", "0.4"],
    "linear": ["--method", "linear"],
    "linear cut": ["--method", "linear", "--rank", "6"],
    "linear peft": ["--method", "linear", "--numerics", "peft"],
    "ties": ["--method", "ties", "--density", "0.3"],
    "ties peft": ["--method", "ties", "--numerics", "peft", "--density", "0.4"],
    "dare_linear": ["--method", "dare_linear", "--seed", "7", "--rank", "8"],
    "dare_ties": ["--method", "dare_ties", "--seed", "9", "--density", "0.6", "--rank", "8"],
    "dare_ties to an error": ["--method", "dare_ties", "--seed", "9", "--max-error", "0.5"],
    "knots": ["--method", "knots", "--rank", "8"],
    "core": ["--method", "core", "--rank", "8", "--density", "0.25"],
}


@pytest.fixture
def store(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(tmp_path / ".plyfold", create=True)
    for number in (1, 2, 3):
        folder = write_adapter_folder(tmp_path / f"stage-{number}", seed=number, **BASE).path
        store.set_ref("toy", number, store.publish(folder, make_record(number, f"s{number}")))
    return store


def merge(store: Store, *options: str) -> str:
    before = set(store.digests())
    assert run(["merge", "--stages", "1,2,3", *options]) == 0
    (digest,) = set(store.digests()) - before
    return digest


def altered(store: Store, digest: str, folder: Path | None = None, **change: Any) -> Replay:
    """Publishes the merge under another record, as a forger would, and composes it again from that."""
    entry = store.load(digest)
    record = Record.model_validate(entry.record.model_copy(update=change).to_json())
    return replay(store, store.publish(folder or entry.path, record))


def details(store: Store, digest: str, **change: Any) -> dict[str, Any]:
    recipe = store.read_record(digest).record.recipe
    return {"recipe": recipe.model_copy(update={"details": {**recipe.details, **change}})}


def test_every_method_is_among_the_merges() -> None:
    assert {name.split()[0] for name in MERGES} == set(METHODS) - {"activation"}


@pytest.mark.parametrize("options", MERGES.values(), ids=MERGES)
def test_a_merge_comes_out_of_its_record_again(store: Store, options: list[str]) -> None:
    found = replay(store, merge(store, *options))
    assert (found.verdict, found.reason, found.found) == ("same", "", found.expected)
    assert list((store.root / "tmp").iterdir()) == []


class TestTampering:
    def test_other_weights_than_the_recipe_gives(self, store: Store, tmp_path: Path) -> None:
        digest = merge(store)
        entry = store.load(digest)
        folder = tmp_path / "forged"
        shutil.copytree(entry.path, folder)
        path = folder / "adapter_model.safetensors"
        path.chmod(0o644)
        tensors = load_file(path)
        key = next(name for name in tensors if "lora_B" in name)
        tensors[key] = tensors[key] * 1.01
        save_file(tensors, path, metadata={"format": "pt"})
        weights = entry.record.weights.model_copy(update={"digest": tensor_digest(folder)})
        found = altered(store, digest, folder, weights=weights)
        assert (found.verdict, found.reason) == ("differs", "the deltas differ")
        assert found.relative is not None
        assert 1e-4 < found.relative < 0.01

    def test_another_recipe_than_gave_the_weights(self, store: Store) -> None:
        digest = merge(store)
        parents = store.read_record(digest).record.parents
        halved = [parents[0].model_copy(update={"scale": 0.5}), *parents[1:]]
        found = altered(store, digest, parents=halved)
        assert found.verdict == "differs"
        assert found.relative == pytest.approx(0.3, abs=0.2)
        assert altered(store, digest, parents=parents[:2]).verdict == "differs"
        seeded = merge(store, "--method", "dare_ties", "--seed", "1", "--rank", "8")
        other = details(store, seeded, settings={"density": 0.5, "seed": 2, "numerics": "sum"})
        assert altered(store, seeded, **other).verdict == "differs"

    def test_another_digest_than_the_weights_have(self, store: Store) -> None:
        digest = merge(store)
        weights = store.read_record(digest).record.weights.model_copy(update={"digest": f"sha256:{'1' * 64}"})
        found = altered(store, digest, weights=weights)
        assert (found.verdict, found.relative) == ("differs", 0.0)
        assert "the record names others" in found.reason

    def test_where_it_was_made_is_said(self, store: Store) -> None:
        digest = merge(store)
        record = store.read_record(digest).record
        change = {"env": {"torch": "1.0"}, "code": record.code.model_copy(update={"version": "9.9"})}
        assert altered(store, digest, **change).verdict == "same"
        weights = record.weights.model_copy(update={"digest": f"sha256:{'1' * 64}"})
        reason = altered(store, digest, weights=weights, **change).reason
        assert "made with plyfold 9.9" in reason
        assert "made with torch 1.0" in reason

    def test_the_same_deltas_in_other_factors(self, store: Store, tmp_path: Path) -> None:
        digest = merge(store)
        entry = store.load(digest)
        folder = tmp_path / "turned"
        shutil.copytree(entry.path, folder)
        path = folder / "adapter_model.safetensors"
        path.chmod(0o644)
        tensors = {name: tensor * (2 if "lora_A" in name else 0.5) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        weights = entry.record.weights.model_copy(update={"digest": tensor_digest(folder)})
        found = altered(store, digest, folder, weights=weights)
        assert found.verdict == "differs"
        assert found.relative is not None
        assert found.relative < 1e-12
        assert found.reason == "the same deltas in other factors"


class TestCannot:
    def test_inputs_that_are_missing_or_damaged(self, store: Store) -> None:
        digest = merge(store)
        one = store.read_record(store.ref("toy", 1))
        (one.path / "surprise").write_text("")
        assert replay(store, digest).verdict == "cannot"
        assert "does not match its record" in replay(store, digest).reason
        shutil.rmtree(one.path)
        found = replay(store, digest)
        assert (found.verdict, found.reason) == ("cannot", f"an input is not in this registry: {one.digest[7:19]}")

    @pytest.mark.parametrize(
        "change",
        [
            {"method": "magic"},
            {"method": ["svd"]},
            {"settings": None},
            {"settings": {"max_error": "x"}},
            {"settings": {"max_error": 7}},
            {"settings": {"max_error": True}},
            {"rank": "8"},
            {"rank": 2.5},
            {"rank": 0},
            {"settings": {"density": 0.5}},
        ],
    )
    def test_recipes_that_no_merge_has(self, store: Store, change: dict[str, Any]) -> None:
        digest = merge(store, "--method", "svd", "--rank", "5")
        found = altered(store, digest, **details(store, digest, **change))
        assert found.verdict == "cannot"
        assert found.reason

    def test_activation_knows_only_the_digest_of_its_prompts(self, store: Store) -> None:
        digest = merge(store, "--method", "svd", "--rank", "5")
        found = altered(store, digest, **details(store, digest, method="activation"))
        assert (found.verdict, found.reason) == ("cannot", "what its prompts did is not on record, only their digest")

    def test_the_same_input_twice(self, store: Store) -> None:
        digest = merge(store)
        parents = store.read_record(digest).record.parents
        assert altered(store, digest, parents=[parents[0], parents[0]]).reason == "the same adapter is given twice"


class TestCommand:
    def test_merges_in_a_table_and_as_json(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        digest = merge(store, "--method", "svd", "--rank", "5")
        capsys.readouterr()
        assert run(["verify", "--replay", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["replays"]
        assert (row["digest"], row["name"], row["verdict"]) == (digest, "toy merge toy-s1.s2.s3-svd5", "same")
        assert run(["verify", "--replay"]) == 0
        assert "same" in capsys.readouterr().out
        assert run(["verify", "2", "--replay", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["replays"] == []
        assert run(["verify", "1", "--replay"]) == 0
        assert "no merge to compose again" in capsys.readouterr().out

    def test_a_merge_that_differs_ends_with_4(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        digest = merge(store)
        weights = store.read_record(digest).record.weights.model_copy(update={"digest": f"sha256:{'1' * 64}"})
        forged = altered(store, digest, weights=weights).digest
        store.set_ref("toy", "merges", forged, "forged")
        capsys.readouterr()
        assert run(["verify", "--replay"]) == 4
        shown = capsys.readouterr()
        assert "differs" in shown.out
        assert f"sha256:{'1' * 64}" in "".join(shown.err.split())
        assert run(["verify", "forged", "--replay", "--json"]) == 4
        value = json.loads(capsys.readouterr().out)
        assert (value["ok"], len(value["replays"])) == (False, 1)
        assert run(["verify", "toy-s1.s2.s3", "--replay"]) == 0
        assert run(["verify"]) == 0


def test_a_registry_that_may_only_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = merge(store)
    monkeypatch.setattr(Store, "writable", property(lambda self: False))
    assert replay(store, digest).verdict == "same"


def test_torch_is_seeded_for_nobody_else(store: Store) -> None:
    digest = merge(store, "--method", "dare_linear", "--seed", "7", "--rank", "8")
    torch.manual_seed(1)
    assert replay(store, digest).verdict == "same"
    torch.manual_seed(2)
    assert replay(store, digest).verdict == "same"
