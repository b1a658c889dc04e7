"""Ctrl-C while a command is still being imported, or has just begun: a line, exit code 130, nothing of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plyfold.core import interrupts

STRIKE = """
import os, signal, sys

class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["STRIKE"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Strike())
from plyfold.__main__ import main
main()
"""
"""Runs a command in a process that strikes itself the moment a module is looked for."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["click", "traceback", "plyfold.cli.main", "plyfold.core.console", "plyfold.cli.records.lineage",
               "plyfold.registry.store.store", "pydantic", "rich.console"]
)  # fmt: skip
def test_ctrl_c_during_an_import_is_a_line(module: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRIKE, "tree", "--registry", str(tmp_path / "none")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "STRIKE": module},
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("interrupted")


def test_a_library_and_a_spawned_process_keep_their_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import signal, plyfold; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setitem(sys.modules, "multiprocessing.spawn", sys)
        interrupts.end_quietly()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.delitem(sys.modules, "multiprocessing.spawn")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupts.end_quietly()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
