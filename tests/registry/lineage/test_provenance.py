"""What a record says about the code that made an adapter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from plyfold.registry.provenance import describe_code


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of plyfold in small, one commit old, from which plyfold runs."""
    for name in ("pyproject.toml", "README.md", "stages/provenance.py", "merge/plan.py", "tests/test_plan.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr("plyfold.registry.provenance.__file__", str(tmp_path / "stages" / "provenance.py"))
    return tmp_path


def test_a_commit_and_whether_its_code_was_changed(checkout: Path) -> None:
    clean = describe_code()
    assert clean.dirty is False
    assert clean.git is not None
    assert len(clean.git) == 40
    for name in ("README.md", "tests/test_plan.py"):  # no adapter comes out otherwise for these
        (checkout / name).write_text("second\n")
    (checkout / "merge" / "notes.txt").write_text("not of the checkout\n")
    assert describe_code() == clean
    (checkout / "merge" / "plan.py").write_text("second\n")
    assert describe_code() == clean.model_copy(update={"dirty": True})


def test_an_installed_package_has_a_version_alone(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    code = describe_code()
    assert (code.git, code.dirty) == (None, None)
    assert code.version
