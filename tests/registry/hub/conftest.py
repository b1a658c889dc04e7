"""Stores at both ends of a Hub on a local port."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.push.push import push
from plyfold.registry.store import Store, find_store

from ...conftest import Hub, MakeAdapter, MakeRecord


@pytest.fixture
def client(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    """Without the pauses of the Hub's own library, 23 s for some requests."""
    pauseless = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", pauseless)
    return HubClient(timeout_s=2, first_wait_s=0.01)


@pytest.fixture
def store(tmp_path: Path, make_adapter: MakeAdapter, make_record: MakeRecord) -> Store:
    """Three stages of `toy`, each trained on those before it."""
    from plyfold.adapters.tensors import tensor_digest
    from plyfold.registry.record import Weights

    store = find_store(tmp_path / "home", create=True)
    parents: list[str] = []
    for number, name in enumerate(("structure", "brevity", "remedy"), start=1):
        folder = make_adapter(tmp_path / name, seed=number)
        weights = Weights(digest=tensor_digest(folder), dtype="float32", r=4, alpha=8, targets=[])
        parents.append(store.publish(folder, make_record(number, name, parents, weights=weights)))
        store.set_ref("toy", number, parents[-1])
    return store


@pytest.fixture
def colleague(store: Store, tmp_path: Path) -> Store:
    """Another registry with the same three stages."""
    shutil.copytree(store.root, tmp_path / "colleague")
    return find_store(tmp_path / "colleague")


@pytest.fixture
def away(tmp_path: Path) -> Store:
    return find_store(tmp_path / "away", create=True)


def stages(store: Store) -> list[str]:
    return list(store.stages("toy").values())


def commits(hub: Hub, repo: str) -> list[str]:
    """Descriptions of the commits of a repository that brought an adapter."""
    return [row["message"] for row in hub.store.history(repo, "main") if row["message"]]


def is_empty(store: Store) -> bool:
    return not store.digests() and not store.curricula() and not list((store.root / "tmp").iterdir())


@pytest.fixture
def pushed(hub: Hub, store: Store, client: HubClient) -> Store:
    push(store, stages(store), "acme", client=client)
    hub.log.clear()
    return store
