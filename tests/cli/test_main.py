from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plyfold.cli.main import COMMANDS, plyfold, run

HEAVY = ("torch", "transformers", "vllm", "huggingface_hub", "pydantic", "omegaconf", "rich", "numpy")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom plyfold.cli.main import run\nassert run(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_and_the_common_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--debug" in shown
    assert "--quiet" in shown


def test_an_unknown_command_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tre"]) == 2
    assert "did you mean tree?" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tree", "--no-such-option"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["tree"], ["train", "--dry-run", "-c", "sandbox"], ["diff", "./a", "./b"],
                                     ["gc", "--registry", "/tmp"]])  # fmt: skip
def test_a_removed_working_folder_is_told(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(command) == 3
    assert "the folder this was started in is gone" in capsys.readouterr().err
    assert run(["--help"]) == 0


@pytest.mark.parametrize("command", [
    ["tree", "--registry", "~nobody-here/x"], ["diff", "~nobody-here/a", "./b"],
    ["train", "--dry-run", "-c", "sandbox", "base.path=~nobody-here/x"],
    ["train", "--dry-run", "-c", "sandbox", "data.path=~nobody-here/x"],
    ["merge", "./a", "--base", "~nobody-here/x"],
])  # fmt: skip
def test_the_home_of_nobody_is_told(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command) in (2, 3)
    assert "unexpected" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_registry_is_not_found(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    assert run(["tree"]) == 3
    assert "next" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        "",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_running_out_of_memory_anywhere_is_told_as_such(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def full(**_: object) -> None:
        if said:
            raise RuntimeError(said)  # only a GPU says so
        torch.empty(1 << 60, dtype=torch.uint8)  # torch refuses on any machine

    monkeypatch.setattr(plyfold, "main", full)
    assert run(["tree"]) == 1
    shown = capsys.readouterr().err
    assert "out of memory" in shown
    assert "unexpected" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("into", [">&-", "2>&-", ">&- 2>&-", "| cat"])
def test_a_closed_stream_or_a_poor_encoding_ends_no_command(into: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -m plyfold data preview structure -n 1 {into}', sys.executable],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PLYFOLD_REGISTRY": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert ("=== row 1" in done.stdout) == (">&-" not in into.replace("2>&-", ""))
