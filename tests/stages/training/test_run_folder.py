"""Whose a run folder is: one fingerprint's, and what another one finds there is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plyfold.core.errors import ConflictError, IncompatibleError
from plyfold.stages.training.checkpoints import CHECKPOINTS, last_checkpoint, seal_checkpoint, sweep_checkpoints
from plyfold.stages.training.run_folder import ADAPTER, RunFolder

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


def test_a_run_is_finished_once_its_adapter_and_its_note_are_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder(tmp_path, ONE)
    with run.held():
        assert run.finished() is None
        (run.path / ADAPTER).mkdir()
        save_file({"w": torch.ones(2)}, run.path / ADAPTER / "adapter_model.safetensors")
        assert run.finished() is None
        made = run.finish(5, {"rows": 3})
    assert folder(tmp_path, ONE).finished() == made
    assert made.steps == 5
    save_file({"w": torch.zeros(2)}, run.path / ADAPTER / "adapter_model.safetensors")
    assert folder(tmp_path, ONE).finished() is None
    assert "not as it was written" in capfd.readouterr().err


def test_two_cannot_hold_it_and_another_number_of_processes_cannot_go_on(tmp_path: Path) -> None:
    with (
        folder(tmp_path, ONE, 2).held(),
        pytest.raises(ConflictError, match="another process"),
        folder(tmp_path, ONE, 2).held(),
    ):
        pass
    with pytest.raises(IncompatibleError, match="number of processes"), folder(tmp_path, ONE, 1).held():
        pass


def test_a_run_keeps_what_it_goes_on_from_and_what_is_older(tmp_path: Path) -> None:
    """A half-written checkpoint counts among those kept, and the last sound one would go for it."""
    for step in (20, 40, 60, 80):
        (tmp_path / CHECKPOINTS / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / CHECKPOINTS / f"checkpoint-{step}" / "weights").write_text("sound")
        if step != 60:  # killed while it was written
            seal_checkpoint(tmp_path / CHECKPOINTS / f"checkpoint-{step}", ONE)
    (tmp_path / CHECKPOINTS / "checkpoint-80" / "weights").write_text("damaged")
    sweep_checkpoints(tmp_path, last_checkpoint(tmp_path, ONE))
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["checkpoint-20", "checkpoint-40"]
    sweep_checkpoints(tmp_path, None)
    assert not list((tmp_path / CHECKPOINTS).iterdir())
