"""Processes of a server without vLLM: whoever loses its parent ends, and a launcher notices what it has lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plyfold.engines.processes import PARENT, Watch, launched, stop_server

pytestmark = pytest.mark.slow

GONE_S = 10
ENGINE = """
    import multiprocessing, os, sys, time
    from plyfold.engines.processes import follow_parent

    def worker():
        follow_parent()
        print("worker", os.getpid(), flush=True)
        time.sleep(600)

    def engine():
        follow_parent()
        child = CONTEXT.Process(target=worker)
        child.start()
        print("engine", os.getpid(), flush=True)
        time.sleep(600)

    CONTEXT = multiprocessing.get_context(sys.argv[1])
    if __name__ == "__main__":
        CONTEXT.Process(target=engine).start()
        time.sleep(600)
"""


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(*pids: int, within_s: float = GONE_S) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if not any(map(running, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "engine.py"
    path.write_text(textwrap.dedent(ENGINE))
    return path


@pytest.fixture
def chain(script: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A process that started an engine, which started a worker; and the ids of both."""
    environment = {**os.environ, PARENT: "0"}
    parent = subprocess.Popen(
        [sys.executable, str(script), request.param], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    said = dict(parent.stdout.readline().split() for _ in range(2))
    yield parent, {name: int(pid) for name, pid in said.items()}
    for pid in (parent.pid, *map(int, said.values())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    parent.wait()


@pytest.mark.parametrize("chain", ["spawn", "fork"], indirect=True)
def test_engines_and_workers_end_with_whoever_started_them(
    chain: tuple[subprocess.Popen[str], dict[str, int]],
) -> None:
    parent, pids = chain
    time.sleep(1)
    assert not ended(*pids.values(), within_s=0.1)
    parent.kill()
    parent.wait()
    assert ended(*pids.values())


@pytest.mark.parametrize("module", [False, True])
def test_an_engine_follows_before_it_has_read_what_it_is_to_do(module: bool, tmp_path: Path) -> None:
    """As vLLM's, which imports for seconds and then waits minutes for its parent's first word."""
    (tmp_path / "slow.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "__main__.py").write_text(
        textwrap.dedent("""
        import multiprocessing, time
        from plyfold.engines.processes import followed

        class Job:
            def __reduce__(self):
                return __import__, ("slow",)

        if __name__ == "__main__":
            import operator
            with followed():
                multiprocessing.get_context("spawn").Process(target=operator.index, args=(Job(),)).start()
            assert __spec__ is None or "start" in __spec__.name
            time.sleep(600)
    """)
    )
    command = [sys.executable, *(["-m", "start"] if module else ["start/__main__.py"])]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    engine = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert ended(engine)


def test_what_others_start_is_left_alone(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != PARENT}
    parent = subprocess.Popen(
        [sys.executable, str(script), "spawn"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline().split()[1]) for _ in range(2)]
    parent.kill()
    parent.wait()
    try:
        assert not ended(*pids, within_s=2)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_a_server_takes_its_session_along_when_its_launcher_is_killed() -> None:
    stubborn = "import signal, time; signal.signal(15, 1); signal.signal(2, 1); print(1, flush=True); time.sleep(600)"
    server = f"""
import subprocess, sys, time
from plyfold.engines.processes import follow_launcher
follow_launcher()
child = subprocess.Popen([sys.executable, "-c", {stubborn!r}])
print(child.pid, flush=True)
time.sleep(600)
"""
    launcher = f"""
import sys
from plyfold.engines.processes import launched
with launched([sys.executable, "-c", {server!r}], {{}}, stdout=sys.stdout, stderr=None) as process:
    print(process.pid, flush=True)
    process.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(3)]
    process.kill()
    process.wait()
    assert ended(*(pid for pid in pids if pid != 1))


@pytest.fixture
def server(tmp_path: Path) -> list[str]:
    """A command with a worker, by vLLM's name for one, and a helper that ends soon."""
    worker = tmp_path / "VLLM::Worker"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", worker)
    worker.chmod(0o755)
    code = f"import subprocess; subprocess.Popen(['sleep', '1']); subprocess.Popen([{str(worker)!r}, '600']).wait()"
    return [sys.executable, "-c", f"{code}; import time; time.sleep(600)"]


def test_a_launcher_notices_that_a_worker_is_gone_and_ends_the_rest(server: list[str]) -> None:
    with launched(server, {}, stdout=sys.stderr, stderr=None) as process:
        watch, root = Watch(process), psutil.Process(process.pid)
        deadline_s = time.monotonic() + 10
        while not (workers := [each for each in root.children() if each.name() == "VLLM::Worker"]):
            assert time.monotonic() < deadline_s
            watch.look()
            time.sleep(0.05)
        watch.look()
        watch.look()
        time.sleep(1.5)  # the helper has ended
        assert watch.lost() is None
        workers[0].kill()
        time.sleep(0.1)
        assert watch.lost() == f"vLLM lost a process: VLLM::Worker, pid {workers[0].pid}"
        assert ended(process.pid)
        assert watch.lost() is not None


def test_a_server_that_ends_says_how() -> None:
    with launched([sys.executable, "-c", "raise SystemExit(3)"], {}, stdout=sys.stderr, stderr=None) as process:
        process.wait()
        assert Watch(process).lost() == "vLLM ended with code 3"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system does not show its shared memory")
def test_shared_memory_goes_with_its_server_though_its_sweeper_is_gone_before(tmp_path: Path) -> None:
    server = f"""
import os, signal, time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
segment = shared_memory.SharedMemory(create=True, size=100)
os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
Path({str(tmp_path / "name")!r}).write_text(segment.name)
time.sleep(600)
"""
    with launched([sys.executable, "-c", server], {}, stdout=sys.stderr, stderr=None) as process:
        deadline_s = time.monotonic() + 30
        while not (tmp_path / "name").exists() or not (tmp_path / "name").read_text():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        segment = Path("/dev/shm") / (tmp_path / "name").read_text()
        assert segment.exists()
        stop_server(process, 0.1)
    assert not segment.exists()
