"""pull as a process of its own: killed, interrupted, twice at once, and what it says about the token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.pull.pull import pull
from plyfold.registry.store import Store, find_store

from ....conftest import Hub
from ..conftest import stages

pytestmark = pytest.mark.slow

CODE = "import sys; from plyfold.cli.main import run; sys.exit(run(sys.argv[1:]))"


def start(hub: Hub, *arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, **hub.environment}
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + 60
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.01)


def check_whole(home: Store, got: Store) -> None:
    """Everything named and every byte as it left."""
    assert stages(got) == stages(home)
    for digest in stages(home):
        got.load(digest)


@pytest.mark.parametrize(("match", "skip"), [("resolve/.*revocations|commits/|tree/", 1), ("_lfs/", 2)])
def test_a_pull_that_is_killed_leaves_no_name_and_is_continued(
    hub: Hub, pushed: Store, client: HubClient, tmp_path: Path, match: str, skip: int
) -> None:
    fault = hub.fault(match, "hang", None, skip=skip)
    process = start(hub, "pull", "acme/toy", "--registry", tmp_path / "new")
    wait_for(lambda: fault.hits, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    new = find_store(tmp_path / "new")
    assert not new.curricula()
    whole = new.digests()
    assert len(whole) == skip if "_lfs" in match else not whole
    for digest in whole:
        new.load(digest)
    hub.heal()
    got = pull(new, "acme/toy", client=client)
    assert [each.status for each in got].count("already here") == len(whole)
    check_whole(pushed, new)


def test_a_pull_that_is_killed_between_an_object_and_its_name_is_continued(
    hub: Hub, pushed: Store, client: HubClient, tmp_path: Path
) -> None:
    new = Store(tmp_path / "new")
    with new.locked():  # where the pull waits to write down that it moved an object in
        process = start(hub, "pull", "acme/toy", "--registry", new.root)
        wait_for(new.digests, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (len(new.digests()), new.curricula()) == (1, [])
    pull(new, "acme/toy", client=client)
    check_whole(pushed, new)


def test_parents_that_a_killed_pull_had_fetched_get_their_names(
    hub: Hub, pushed: Store, client: HubClient, tmp_path: Path
) -> None:
    fault = hub.fault("_lfs/", "hang", None, skip=2)
    process = start(hub, "pull", "acme/toy", "--stages", "3", "--with-parents", "--registry", tmp_path / "new")
    wait_for(lambda: fault.hits, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.heal()
    new = find_store(tmp_path / "new")
    assert sorted(new.digests()) == sorted(stages(pushed)[:2])
    pull(new, "acme/toy", stages=[3], with_parents=True, client=client)
    check_whole(pushed, new)


def test_an_interrupted_pull_cleans_up_and_says_so(hub: Hub, pushed: Store, tmp_path: Path) -> None:
    fault = hub.fault("_lfs/", "hang", None)
    process = start(hub, "pull", "acme/toy", "--registry", tmp_path / "new")
    wait_for(lambda: fault.hits, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    new = find_store(tmp_path / "new")
    assert (new.digests(), new.curricula(), list((new.root / "tmp").iterdir())) == ([], [], [])


def test_two_pulls_at_once_into_one_registry(hub: Hub, pushed: Store, tmp_path: Path) -> None:
    hold = hub.fault("_lfs/", "503", 2)  # both are in the middle of it at the same time
    both = [start(hub, "pull", "acme/toy", "--registry", tmp_path / "new") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert hold.hits == 2
    new = find_store(tmp_path / "new")
    check_whole(pushed, new)
    assert list((new.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("fault", ["", "403"])
def test_the_token_is_in_no_output_and_no_file(hub: Hub, pushed: Store, tmp_path: Path, fault: str) -> None:
    if fault:
        hub.fault("_lfs|adapter_config", fault, None)
    done = hub.run(["pull", "acme/toy", "--debug", "-v", "--registry", tmp_path / "new"])
    assert done.returncode == (7 if fault else 0), done.stderr
    assert ("Traceback" in done.stderr) == bool(fault)  # --debug was obeyed
    assert hub.token not in done.stdout + done.stderr
    for path in (tmp_path / "new").rglob("*"):
        assert path.is_dir() or hub.token.encode() not in path.read_bytes()
