"""Scores travel beside adapters: a later push brings them, everybody's are kept, and pull takes in those of its own."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import IntegrityError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.pull.pull import Options, pull
from plyfold.registry.hub.push.push import push
from plyfold.registry.lineage.scores import attest_scores, scores
from plyfold.registry.record import DataRef, Metric
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import revoke

from ...conftest import Hub
from .conftest import stages

REPO = "acme/toy-s02-brevity"


def measure(store: Store, accuracy: float, n: int, on: tuple[int, ...] = (1, 2)) -> None:
    metrics = [Metric(name="accuracy", value=accuracy, n=n, ci95=(accuracy - 0.1, accuracy + 0.1))]
    data = DataRef(id="openai/gsm8k", split="test", rows=n, sha256="sha256:" + "5" * 64)
    attest_scores(store, "toy", on, metrics, data=data)


def read(hub: Hub, path: str, repo: str = REPO) -> str:
    return hub.store.read(repo, "main", path).decode()


def listed(hub: Hub) -> list[float]:
    said = json.loads(read(hub, "evaluations.json"))["statements"]
    return sorted(item["payload"]["metrics"][0]["value"] for item in said)


def put(hub: Hub, path: str, content: bytes) -> None:
    """A commit by somebody who uses no plyfold."""
    value = {"path": path, "content": base64.b64encode(content).decode()}
    hub.store.commit(REPO, "main", [{"key": "file", "value": value}], "ada")


def statuses(store: Store, client: HubClient) -> list[str]:
    return [each.status for each in push(store, stages(store), "acme", client=client)]


def test_scores_measured_after_a_push_go_with_the_next(hub: Hub, pushed: Store, client: HubClient) -> None:
    assert "0.61" not in read(hub, "README.md")
    measure(pushed, 0.61, 200)
    assert statuses(pushed, client) == ["already there", "companions updated", "already there"]
    assert "0.61" in read(hub, "README.md")
    assert "n=200" in read(hub, "README.md")
    assert "on [openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k), split test." in read(hub, "README.md")
    assert "id: openai/gsm8k" in read(hub, ".eval_results/plyfold.yaml")
    assert "0.61" in read(hub, ".eval_results/plyfold.yaml")
    assert hub.store.history(REPO, "main")[0]["title"] == "scores of toy 2 brevity"
    assert statuses(pushed, client) == ["already there"] * 3


def test_what_others_measured_stays_on_the_page(hub: Hub, pushed: Store, colleague: Store, client: HubClient) -> None:
    measure(pushed, 0.61, 200)
    measure(colleague, 0.64, 500)
    assert "companions updated" in statuses(pushed, client)
    assert "companions updated" in statuses(colleague, client)
    assert listed(hub) == [0.61, 0.64]
    assert "0.64" in read(hub, "README.md")  # on the most problems
    assert statuses(pushed, client) == ["already there"] * 3  # who knows less has nothing to add, and takes nothing


def test_who_revokes_without_knowing_the_scores_keeps_them(
    hub: Hub, pushed: Store, colleague: Store, client: HubClient
) -> None:
    measure(pushed, 0.61, 200)
    statuses(pushed, client)
    revoke(colleague, stages(colleague)[1], "leak")
    assert "companions updated" in statuses(colleague, client)
    assert listed(hub) == [0.61]
    assert "leak" in read(hub, "README.md")
    assert "0.61" in read(hub, "README.md")
    assert "0.61" in read(hub, ".eval_results/plyfold.yaml")


def test_pull_brings_them_and_a_later_one_more(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    measure(pushed, 0.61, 200)
    measure(pushed, 0.2, 200, on=())
    statuses(pushed, client)
    pull(away, "acme/toy", client=client)
    assert scores(away, "toy") == scores(pushed, "toy")
    assert {name: found[0].value for name, found in scores(away, "toy").items()} == {"base": 0.2, "1+2": 0.61}
    measure(pushed, 0.7, 900)
    measure(pushed, 0.3, 900, on=())
    statuses(pushed, client)
    pull(away, "acme/toy", client=client)
    assert scores(away, "toy")["1+2"][0].value == 0.7
    before = sorted((away.root / "attest").rglob("*.json"))
    pull(away, "acme/toy", client=client)
    assert sorted((away.root / "attest").rglob("*.json")) == before


def test_a_dry_run_takes_none(hub: Hub, pushed: Store, away: Store, client: HubClient) -> None:
    measure(pushed, 0.61, 200)
    statuses(pushed, client)
    pull(away, "acme/toy", client=client, options=Options(dry_run=True))
    assert not list((away.root / "attest").iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {"2": "sha256:" + "a" * 64}},
        {"base": "acme/other@" + "0" * 40},
    ],
)
def test_scores_of_other_adapters_or_bases_are_left_out_and_said(
    hub: Hub, pushed: Store, away: Store, client: HubClient, change: dict[str, Any]
) -> None:
    measure(pushed, 0.61, 200)
    statuses(pushed, client)
    value = json.loads(read(hub, "evaluations.json"))
    value["statements"][0]["payload"] |= change
    put(hub, "evaluations.json", json.dumps(value).encode())
    lines: list[str] = []
    pull(away, "acme/toy", client=client, options=Options(notice=lines.append))
    assert scores(away, "toy") == {}
    assert [line for line in lines if "1 of 1 scores beside toy 2 brevity were left out" in line]
    assert stages(away) == stages(pushed)


def test_a_file_that_cannot_be_read_stops_no_pull_and_is_never_written_over(
    hub: Hub, pushed: Store, away: Store, client: HubClient, tmp_path: Path
) -> None:
    put(hub, "evaluations.json", b"scores: good")
    lines: list[str] = []
    pull(away, "acme/toy", client=client, options=Options(notice=lines.append))
    assert stages(away) == stages(pushed)
    assert [line for line in lines if "the scores beside toy 2 brevity were left out" in line]
    measure(pushed, 0.61, 200)
    with pytest.raises(IntegrityError, match="is not what this version understands"):
        statuses(pushed, client)
    assert read(hub, "evaluations.json") == "scores: good"
