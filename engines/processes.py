"""The processes of one vLLM server: started together, watched together, and none of them left behind.

vLLM is a tree: an API server, its engine core, workers below that, and Python's sweepers of shared memory. Each of
them can be killed, and each kill has to end all:

* a process that loses its parent ends itself (`follow_parent`); the API server then takes its whole session along;
* a launcher that sees one of them gone ends the rest (`Watch`).

Whoever lost its parent is told by the parent's id changing, which is asked for twice a second. A parent-death signal
would be quicker, but is sent when the parent's *thread* ends, and does not outlive a fork.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

PARENT = "PLYFOLD_SERVER_PARENT"
"""Variable that names the process which starts vLLM; without it nothing follows anything."""
DRAIN_S = 4
"""Time requests in flight have when the server is asked to stop; vLLM's `--shutdown-timeout`."""
STOP_TIMEOUT_S = DRAIN_S + 2.0
"""Time from asking vLLM to stop until it is killed; with DYING_S below ten seconds in all."""
DYING_S = 1.0
"""Time the sweepers of shared memory have once all others are gone."""
GRACE_S = 2.0
"""Time an engine or worker has, once its parent is gone, to end by itself and give its shared memory back."""
KILL_TIMEOUT_S = 5.0
"""Longest wait for killed processes to be gone; one that hangs in the kernel ends when it returns."""
POLL_S = 0.5


def follow_launcher() -> None:
    """End this process and its session with the launcher that PLYFOLD_SERVER_PARENT names; for the API server."""
    launcher = os.environ.get(PARENT)
    if launcher is not None:
        _follow(int(launcher))


def follow_parent() -> None:
    """End this process with the one that started it through `multiprocessing`; for engines and workers.

    Only where PLYFOLD_SERVER_PARENT is set: what others start is left alone. May be called more than once.
    """
    if PARENT not in os.environ:
        return
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _follow(parent.pid, GRACE_S)
    elif "__mp_main__" in sys.modules:  # a spawned child that is still being set up
        _follow(os.getppid(), GRACE_S)


@contextmanager
def followed() -> Iterator[None]:
    """What `multiprocessing` spawns inside this block ends with this process, from its first moment on.

    A spawned child first runs what was its parent's main module, under another name; inside the block that is this
    one, whose last lines follow. Without it an engine follows only once vLLM is imported and its parent has answered.
    """
    main, variable = sys.modules["__main__"], os.environ.get(PARENT)
    spec = main.__spec__
    main.__spec__, os.environ[PARENT] = importlib.util.find_spec("plyfold.engines.processes"), str(os.getpid())
    try:
        yield
    finally:
        main.__spec__ = spec
        if variable is None:
            del os.environ[PARENT]
        else:
            os.environ[PARENT] = variable


_followed: tuple[int, int] | None = None
"""This process and the parent it follows; after a fork the first differs."""


def _follow(parent: int, grace_s: float = 0.0) -> None:
    global _followed
    if os.getppid() != parent:
        _end()
    if _followed == (os.getpid(), parent):
        return
    _followed = (os.getpid(), parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        time.sleep(grace_s)
        _end()

    threading.Thread(target=watch, name="plyfold-parent", daemon=True).start()


def _end() -> None:
    """End this process at once, and before it the session it leads."""
    if os.getsid(0) == os.getpid():
        _kill_session(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def launched(
    command: Sequence[str], environment: Mapping[str, str], *, stdout: IO[Any], stderr: IO[Any] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own; when the block ends, however it does, none of its processes is left.

    Args:
        command: That starts it.
        environment: Variables set for it beside the present ones.
        stdout: Of the server.
        stderr: Of the server; null shares this process's.
    """
    server = subprocess.Popen(
        command,
        env={**os.environ, **environment, PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C reaches only this process, which then stops the server in order
    )
    try:
        yield server
    finally:
        stop_server(server)


class Watch:
    """Notices that a server has lost one of its processes."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        """Watch a server that was started by `launched`."""
        self._server = server
        self._known: dict[int, tuple[psutil.Process, str]] = {}
        self._candidates: dict[int, str] = {}

    def look(self) -> None:
        """Take note of the processes there are now; one counts once it was met twice under one name.

        Between fork and exec a helper looks like whoever starts it.
        """
        import psutil

        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._server.pid)
            lasting, before, self._candidates = {root.pid}, self._candidates, {}
            for process in root.children(recursive=True):  # parents before their children
                with suppress(psutil.Error):
                    if process.pid not in self._known:
                        name = _lasting(process)
                        if not name or process.ppid() not in lasting:
                            continue
                        self._candidates[process.pid] = name
                        if before.get(process.pid) == name:
                            self._known[process.pid] = process, name
                    lasting.add(process.pid)

    def lost(self) -> str | None:
        """What has ended, if anything; then the others are ended too, as there is nothing left to wait for."""
        if (code := self._server.poll()) is not None:
            return f"vLLM ended with code {code}"
        for process, name in self._known.values():
            if _is_gone(process):
                stop_server(self._server, DYING_S)
                return f"vLLM lost a process: {name}, pid {process.pid}"
        return None


def _lasting(process: psutil.Process) -> str | None:
    """What to call a process that lives as long as its server; None for helpers that come and go."""
    name = str(process.name())
    if name.startswith("VLLM::"):
        return name
    return "the sweeper of shared memory" if _is_sweeper(process) else None


def _is_gone(process: psutil.Process) -> bool:
    import psutil

    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_sweeper(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's resource tracker, which ends by itself once nobody is left that uses it."""
    return any("multiprocessing.resource_tracker" in word for word in process.cmdline())


def stop_server(server: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ask a server to stop, wait for `timeout_s`, and kill whatever is left of its session.

    A second Ctrl-C skips the wait.
    """
    try:
        if server.poll() is None:
            server.terminate()
            server.wait(timeout_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        _kill_session(server.pid)
        with suppress(ProcessLookupError):  # it left nothing
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _kill_session(session: int) -> None:
    """Kill all processes of a session but this one; sweepers only if they do not end by themselves.

    Shared memory that was theirs goes, too, where no sweeper is left to see to it.
    """
    import psutil

    start_s, shared = time.monotonic(), set[Path]()
    while time.monotonic() < start_s + KILL_TIMEOUT_S:
        alive = 0
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or os.getsid(process.pid) != session or _is_gone(process):
                    continue
                shared |= _shared_memory(process.pid)
                if not _is_sweeper(process) or time.monotonic() > start_s + DYING_S:
                    process.kill()
                elif session == os.getpid():
                    continue  # it waits for the caller to end
                alive += 1
        if not alive:
            for segment in shared:
                with suppress(OSError):
                    segment.unlink()
            return
        time.sleep(0.05)


def _shared_memory(pid: int) -> set[Path]:
    """Segments of `multiprocessing.shared_memory` that a process has mapped, where the system tells (Linux)."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {Path(line.split()[-1]) for line in maps.splitlines() if "/dev/shm/psm_" in line and line[-1] != ")"}


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM, like Ctrl-C, raises KeyboardInterrupt inside."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__mp_main__":
    follow_parent()
