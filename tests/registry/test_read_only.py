"""A registry that may only be read: what only reads works, what would write says so in one error."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import NotAllowedError
from plyfold.registry.lineage.exported_copies import read_copy
from plyfold.registry.maintenance.gc import lease
from plyfold.registry.store import Store, find_store

NOBODY = 65534

Run = Callable[..., int]


@pytest.fixture(scope="module", params=["whole", "without its empty folders"])
def world(request: pytest.FixtureRequest, make_store: Any, make_adapter: Any, tiny_base: Any) -> Iterator[Path]:
    """A folder that everybody may enter, with a registry that nobody may write and a folder that everybody may."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "out").mkdir()
    (folder / "out").chmod(0o777)
    make_adapter(folder / "alice", seed=9)
    shutil.copytree(tiny_base(dtype="float32"), folder / "base")
    for path in (*(folder / "alice").iterdir(), *(folder / "base").iterdir()):
        path.chmod(0o644)
    store = make_store(folder / ".plyfold", folder / "base", stages=2)
    if request.param == "without its empty folders":
        (store.root / "locks" / "refs.lock").unlink()
        for name in ("locks", "tmp", "attest", "cache"):
            (store.root / name).rmdir()
    _chmod(store.root, 0o555, 0o444)
    yield folder
    _chmod(store.root, 0o755, 0o644)
    shutil.rmtree(folder)


def _chmod(root: Path, folder: int, file: int) -> None:
    root.chmod(0o755)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else file)
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(folder)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may write everywhere: drop it for a while. Modules have to be loaded before."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def ask(
    world: Path, monkeypatch: pytest.MonkeyPatch, make_store: Any, tiny_base: Any, tmp_path: Path, capsys: Any
) -> Run:
    """Runs a command as somebody who may not write, after the same on a registry that may be written: for imports."""
    monkeypatch.setenv("PLYFOLD_REGISTRY", "")
    for module in ("plyfold.engines.vllm_options", "plyfold.serving.launch"):
        monkeypatch.setattr(f"{module}.vllm_version", lambda: "0.32.0+cpu")

    def asked(*arguments: str) -> int:
        other = tmp_path / "other"
        if not other.exists():
            make_store(other / ".plyfold", tiny_base(dtype="float32"), stages=2)
            (other / "out").mkdir()
            shutil.copytree(world / "alice", other / "alice")
        monkeypatch.chdir(other)
        run([*arguments, "--dry-run"] if arguments[0] == "serve" else [*arguments])
        capsys.readouterr()
        monkeypatch.chdir(world)
        with _as_nobody():
            return run([*arguments])

    return asked


@pytest.mark.parametrize(
    "arguments",
    [
        "tree",
        "log",
        "show 1",
        "verify --deep",
        "diff 1 2",
        "gc",
        "lock -o out/lock.json",
        "merge --stages 1,2 --dry-run",
    ],
)
def test_what_reads_works(ask: Run, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*arguments.split()) == 0, capsys.readouterr().err


def test_a_merge_goes_elsewhere_with_its_record(ask: Run, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = world / "out" / "merged"
    assert ask("merge", "--stages", "1,2", "-o", "out/merged", "--json") == 0
    shown, told = capsys.readouterr()
    assert json.loads(shown)["written"]["path"] == "out/merged"
    assert "cannot be written" in told
    copy = read_copy(out)
    assert copy is not None
    store = find_store(world / ".plyfold")
    assert [parent.digest for parent in copy.record.parents] == list(store.stages("tiny").values())
    assert {path.name for path in out.parent.iterdir() if path.name.startswith(".")} == set()
    assert ask("merge", "out/merged", "-o", "out/again") == 0
    shutil.rmtree(out)
    shutil.rmtree(world / "out" / "again")


@pytest.mark.parametrize(
    "arguments",
    ["revoke 1 --reason bad", "pin 1", "gc --delete", "import alice", "merge --stages 1,2", "serve 1 --port 0"],
)
def test_what_writes_is_one_error(ask: Run, world: Path, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*arguments.split()) == 1
    told = capsys.readouterr().err
    assert "unexpected" not in told
    assert str(world / ".plyfold") in told
    assert "PLYFOLD_REGISTRY" in told
    assert "--registry" in told


def test_from_python_too(world: Path, make_record: Any) -> None:
    store = Store(world / ".plyfold")
    digest = store.ref("tiny", 1)
    find_store(world / ".plyfold").attestations(digest)
    for write in (
        lambda: store.publish(world / "alice", make_record(1)),
        lambda: store.set_ref("tiny", 2, store.ref("tiny", 2), "v1"),
        lambda: store.attest(digest, "eval", {}),
        lambda: store.scratch().__enter__(),
        lambda: lease(store, [digest]).__enter__(),
        lambda: store.remember_base("acme/base", "0" * 40, world),
    ):
        with _as_nobody():
            assert not store.writable
            with pytest.raises(NotAllowedError) as caught:
                write()
        assert str(store.root) in caught.value.where
    with _as_nobody(), pytest.raises(NotAllowedError, match="no registry can be made"):
        Store(world / "another")


def test_one_that_may_not_even_be_read(ask: Run, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = world / ".plyfold"
    root.chmod(0o000)
    try:
        assert ask("tree") == 1
    finally:
        root.chmod(0o555)
    told = capsys.readouterr().err
    assert "cannot be read" in told
    assert str(root) in told


def test_a_folder_that_turns_read_only_while_it_is_written(world: Path, tmp_path: Path, make_record: Any) -> None:
    """What `writable` has not seen, such as a file of another user, is the same error."""
    store = find_store(tmp_path / "toy", create=True)
    store.set_ref("toy", 1, store.publish(world / "alice", make_record(1)))
    path = store.root / "refs" / "toy" / "1"
    for name, number in (("EACCES", 13), ("EROFS", 30)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.replace", _failing(PermissionError(number, name, str(path / "latest")), number, path))
            with pytest.raises(NotAllowedError) as caught:
                store.set_ref("toy", 1, store.ref("toy", 1), "best")
        assert caught.value.where == str(path / "latest")


def _failing(error: OSError, number: int, path: Path) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, str(error), str(path / "latest"))

    return fail
