"""pull --lock: exactly what the file names, or nothing; and what a pull by name says where a lock file differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.places import locations
from plyfold.registry.hub.pull.lock import pull_locked
from plyfold.registry.hub.pull.pull import Options
from plyfold.registry.hub.push.push import push
from plyfold.registry.lineage.lockfile import LOCK_FILE, make_lock, write_lock
from plyfold.registry.store import Store
from plyfold.registry.trust.revocation import revoke

from ....conftest import Hub, MakeAdapter, MakeRecord
from ..conftest import is_empty, stages

pytestmark = pytest.mark.slow


@pytest.fixture
def lock(pushed: Store, tmp_path: Path) -> Path:
    """The lock of what was pushed, in a project's folder of its own."""
    (tmp_path / "project").mkdir()
    write_lock(tmp_path / "project" / LOCK_FILE, make_lock(pushed, "toy"))
    return tmp_path / "project" / LOCK_FILE


@pytest.fixture
def newer(pushed: Store, client: HubClient, make_adapter: MakeAdapter, make_record: MakeRecord, tmp_path: Path) -> str:
    """Another stage 1, pushed after the lock was written."""
    digest: str = pushed.publish(make_adapter(tmp_path / "again", seed=9), make_record(1, "structure"))
    push(pushed, [digest], "acme", client=client)
    return digest


def edit(lock: Path, stage: int, **fields: object) -> None:
    value = json.loads(lock.read_text())
    value["stages"][str(stage)] |= fields
    lock.write_text(json.dumps(value))


def test_a_lock_is_fetched_whatever_came_later(
    hub: Hub, pushed: Store, away: Store, client: HubClient, lock: Path, newer: str
) -> None:
    got = pull_locked(away, lock, client=client)
    assert [(each.digest, each.status, each.on_trust) for each in got] == [
        (digest, "pulled", False) for digest in stages(pushed)
    ]
    assert stages(away) == stages(pushed) != [newer, *stages(pushed)[1:]]
    hub.log.clear()
    assert [each.status for each in pull_locked(away, lock, client=client)] == ["already here"] * 3
    assert not hub.log
    assert locations(away, stages(away)[0]) == locations(pushed, stages(pushed)[0])


def test_some_stages_of_a_lock(hub: Hub, pushed: Store, away: Store, client: HubClient, lock: Path) -> None:
    revoke(pushed, pushed.ref("toy", 1), "wrong data")
    push(pushed, [pushed.ref("toy", 1)], "acme", client=client)
    (got,) = pull_locked(away, lock, stages=[2], client=client)
    assert ([*away.stages("toy")], [item.reason for item in got.revoked]) == ([2], ["wrong data"])
    with pytest.raises(NotFoundError, match="no stage 4") as error:
        pull_locked(away, lock, stages=[4], client=client)
    assert error.value.expected == "one of 1, 2, 3"
    got = pull_locked(away, lock, stages=[3], client=client, options=Options(with_parents=True))[0]
    assert [*away.stages("toy")] == [1, 2, 3]


def test_a_stage_that_lies_nowhere_is_named_unless_it_is_here(
    hub: Hub, pushed: Store, away: Store, client: HubClient, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(lock, 2, location=None)
    hub.log.clear()
    with pytest.raises(NotFoundError, match="where toy stage 2 lies") as error:
        pull_locked(away, lock, client=client)
    assert (error.value.expected, "plyfold push" in error.value.next_step) == (stages(pushed)[1], True)
    assert not hub.log
    assert is_empty(away)
    entry = pushed.load(stages(pushed)[1])
    away.publish(entry.path, entry.record)
    got = pull_locked(away, lock, client=client)
    assert [(each.status, each.location[:5]) for each in got] == [
        ("pulled", "hf://"),
        ("already here", ""),
        ("pulled", "hf://"),
    ]
    assert stages(away) == stages(pushed)
    assert run(["pull", "--lock", str(lock), "--registry", str(away.root)]) == 0
    assert "(only here)" in capsys.readouterr().out


def test_what_is_held_needs_no_hub(
    hub: Hub, pushed: Store, client: HubClient, lock: Path, newer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(lock, 3, location=f"hf://acme/elsewhere@{'1' * 40}")
    pushed.set_ref("toy", 1, newer)
    before = locations(pushed, stages(pushed)[2])
    hub.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    got = pull_locked(pushed, lock, client=client)
    assert (got[0].previous, got[0].digest) == (newer, stages(pushed)[0])
    assert not hub.log
    assert locations(pushed, stages(pushed)[2]) == before  # nobody has seen it there


def test_another_adapter_at_the_location_stops_all(
    hub: Hub, pushed: Store, away: Store, client: HubClient, lock: Path
) -> None:
    edit(lock, 2, digest=f"sha256:{'7' * 64}")
    with pytest.raises(IntegrityError, match="another adapter") as error:
        pull_locked(away, lock, client=client)
    assert (error.value.expected, error.value.found) == (f"sha256:{'7' * 64}", stages(pushed)[1])
    assert error.value.where == locations(pushed, stages(pushed)[1])[0]
    assert not hub.seen("safetensors|adapter_config")
    assert is_empty(away)
    edit(lock, 2, digest=stages(pushed)[1], location=locations(pushed, stages(pushed)[0])[0])
    with pytest.raises(IntegrityError, match="another adapter"):
        pull_locked(away, lock, client=client)
    assert is_empty(away)


def test_a_location_cannot_leave_its_repository(
    hub: Hub, pushed: Store, away: Store, client: HubClient, lock: Path
) -> None:
    edit(lock, 2, location=f"{locations(pushed, stages(pushed)[1])[0]}/../../x")
    hub.log.clear()
    with pytest.raises(ConfigError):
        pull_locked(away, lock, client=client)
    assert not hub.log


def test_names_move_only_when_all_is_sound(hub: Hub, pushed: Store, away: Store, client: HubClient, lock: Path) -> None:
    hub.fault("GET .*toy-s03.*safetensors", "flip", None)
    hub.fault(f"GET .*/_lfs/{_weights(pushed, 3)}", "flip", None)
    with pytest.raises(IntegrityError, match="does not match its record"):
        pull_locked(away, lock, client=client)
    assert not away.curricula()
    hub.heal()
    statuses = [each.status for each in pull_locked(away, lock, client=client)]
    assert statuses == ["already here", "already here", "pulled"]  # whole adapters are not fetched again


def _weights(store: Store, stage: int) -> str:
    record = store.read_record(store.ref("toy", stage)).record
    return next(file.sha256 for file in record.files if file.path.endswith(".safetensors")).removeprefix("sha256:")


def test_a_pull_by_name_says_where_a_lock_file_differs(
    hub: Hub,
    pushed: Store,
    lock: Path,
    newer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(lock.parent)
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    assert run(["pull", "acme/toy", "--json"]) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    (notice,) = told["notices"]
    assert newer in notice
    assert stages(pushed)[0] in notice
    assert "plyfold lock accepts it" in shown.err
    assert [row["on_trust"] for row in told["pulled"]] == [True, False, False]
    assert run(["pull", "--lock", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (notice,) = told["notices"]  # nothing differs from the lock file, and it leads back to an older adapter
    assert "takes the place of" in notice
    assert "is older" in notice
    assert [row["digest"] for row in told["pulled"]] == stages(pushed)
    other = lock.parent / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)  # the one beside the registry counts as well
    assert run(["pull", "acme/toy", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notices"]) == 1
    lock.write_text("{")
    hub.log.clear()
    assert run(["pull", "acme/toy"]) == 4
    assert run(["pull", "--lock", str(lock)]) == 4
    assert run(["pull", "--lock", str(other / "none.json")]) == 3
    assert not hub.log
