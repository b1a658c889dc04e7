"""The measurements behind benchmarks/results/registry.md, small enough for every day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def measured(tmp_path: Path, part: str, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "benchmarks/registry.py", part, "--json", *options],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout)[part])


def test_killed_writers_of_every_kind_break_nothing(tmp_path: Path) -> None:
    found = measured(tmp_path, "writers", "--kills", "4")
    assert found["faults"] == []
    assert len(found["rows"]) == 5
    assert all(
        row["kills"] == 4 and row["entries read"] and row["refs, locks, statements read"]
        for row in found["rows"].values()
    )


def test_a_sample_of_all_faults_at_all_requests_loses_and_doubles_nothing(tmp_path: Path) -> None:
    found = measured(tmp_path, "faults", "--every", "120")
    assert found["faults"] == []
    assert all(number > 5 for number in found["requests"].values())
    assert {"done", "HubBusyError", "AuthError"} <= {name for row in found["counts"].values() for name in row}


def test_killed_pushes_and_pulls_leave_whole_adapters_and_are_finished_by_a_rerun(tmp_path: Path) -> None:
    found = measured(tmp_path, "kills", "--hub-kills", "3")
    assert found["faults"] == []
    assert [row["kills"] >= 3 for row in found["rows"].values()] == [True, True]
