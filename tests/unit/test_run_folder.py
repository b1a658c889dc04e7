"""Whose a run folder is: one fingerprint's, and what another one finds there is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from plyfold.core.errors import ConflictError, IncompatibleError
from plyfold.stages.run_folder import ADAPTER, RunFolder

ONE, OTHER = (f"sha256:{digit * 64}" for digit in "12")


def folder(path: Path, fingerprint: str, processes: int = 1) -> RunFolder:
    return RunFolder(path=path / "2-brevity", fingerprint=fingerprint, processes=processes)


def test_a_run_that_made_room_for_another_is_taken_up_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "2-brevity"
    with folder(tmp_path, ONE).held():
        (path / "checkpoint").write_text("of one")
    with folder(tmp_path, OTHER).held():
        assert not (path / "checkpoint").exists()
        (path / "checkpoint").write_text("of the other")
    with folder(tmp_path, ONE).held():
        assert (path / "checkpoint").read_text() == "of one"
    assert "taken up again" in capfd.readouterr().err
    with folder(tmp_path, OTHER).held():
        assert (path / "checkpoint").read_text() == "of the other"
    kept = [each.name for each in tmp_path.iterdir() if each.is_dir()]
    assert sorted(kept) == ["2-brevity", "2-brevity.11111111"]


def test_a_run_is_finished_once_its_adapter_and_its_note_are_there(tmp_path: Path) -> None:
    run = folder(tmp_path, ONE)
    with run.held():
        assert run.finished() is None
        (run.path / ADAPTER).mkdir()
        assert run.finished() is None
        made = run.finish(5, {"rows": 3})
    assert folder(tmp_path, ONE).finished() == made
    assert made.steps == 5


def test_two_cannot_hold_it_and_another_number_of_processes_cannot_go_on(tmp_path: Path) -> None:
    with (
        folder(tmp_path, ONE, 2).held(),
        pytest.raises(ConflictError, match="another process"),
        folder(tmp_path, ONE, 2).held(),
    ):
        pass
    with pytest.raises(IncompatibleError, match="number of processes"), folder(tmp_path, ONE, 1).held():
        pass
