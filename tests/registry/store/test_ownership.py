"""A registry that nobody named: used where it is surely this user's, else named and refused before it is read."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import IntegrityError, NotFoundError
from plyfold.registry.store import Store, find_store

NOBODY = 65534
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in a project that has a registry; the working directory."""
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Store(tmp_path / "our work" / ".plyfold")
    folder = tmp_path / "our work" / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refused(why: str, registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of command says whose it is and changes nothing; the next step, typed as it stands, works."""
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in (registry, *registry.rglob("*")))
    for command in (
        ["tree"],
        ["verify"],
        ["gc", "--delete"],
        ["import", "x"],
        ["train", "--dry-run"],
        ["merge", "./a"],
    ):
        assert run(command) == 4, command
        said = " ".join(capsys.readouterr().err.split())
        assert why in said
        assert str(registry) in said
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in (registry, *registry.rglob("*"))) == before
    with pytest.raises(IntegrityError) as caught:
        find_store()
    option, value = shlex.split(caught.value.next_step.split("name it: ")[1].split(" or ")[0])
    assert run(["gc", option, value]) == 0
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PLYFOLD_REGISTRY", value)
        assert run(["gc"]) == 0
    capsys.readouterr()


def test_ones_own_is_found(project: Path) -> None:
    assert find_store().root == project.parent / ".plyfold"
    (project.parent / ".plyfold").chmod(0o2775)  # shared with a group, by the one who made it
    project.parent.chmod(0o2775)
    assert find_store().root == project.parent / ".plyfold"


@only_root
def test_another_users_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = project.parent / ".plyfold"
    for path in (registry, *registry.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("SUDO_UID", str(NOBODY))  # who calls sudo means the own
    assert find_store().root == registry
    monkeypatch.setenv("SUDO_UID", "1000")
    refused("it belongs to", registry, capsys)


@only_root
@pytest.mark.parametrize("name", ["refs", "objects/sha256", "cache"])
def test_one_with_a_folder_of_another_user_is_refused(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(project.parent / ".plyfold" / name, NOBODY, NOBODY)
    refused("belongs to", project.parent / ".plyfold", capsys)


@only_root
def test_a_link_that_another_user_laid_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = project.parent / ".plyfold"
    registry.rename(project.parent / "moved")
    registry.symlink_to("moved")
    assert find_store().root == project.parent / "moved"
    os.chown(registry, NOBODY, NOBODY, follow_symlinks=False)
    refused("it belongs to", registry, capsys)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_one_in_a_folder_that_everybody_may_write_to_is_refused(
    project: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    project.parent.chmod(mode)
    refused(f"every user may write to {project.parent}", project.parent / ".plyfold", capsys)


@pytest.mark.parametrize("name", ["", "refs", "objects", "objects/sha256", "cache", "tmp"])
def test_one_that_everybody_may_write_to_is_refused(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.parent / ".plyfold" / name).chmod(0o777)
    refused("every user may write to", project.parent / ".plyfold", capsys)


def test_one_above_the_home_folder_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project.parent))
    assert find_store().root == project.parent / ".plyfold"  # in it
    monkeypatch.setenv("HOME", str(project))
    refused("above your home folder", project.parent / ".plyfold", capsys)


def test_none_is_made_unnamed_where_everybody_may_write(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project.parent / ".plyfold")
    project.chmod(0o1777)
    with pytest.raises(NotFoundError):
        find_store()
    assert run(["import", "x"]) == 4
    assert "every user may write to" in " ".join(capsys.readouterr().err.split())
    assert list(project.iterdir()) == []
    assert find_store(project / ".plyfold", create=True).root.is_dir()


def test_none_that_is_made_is_for_everybody(project: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(project / ".plyfold")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (store.root, *store.root.rglob("*"))} == {"0o775"}
    assert find_store().root == project / ".plyfold"
