from __future__ import annotations

import errno
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plyfold.cli.main import run
from plyfold.core import errors
from plyfold.core.disk.digest import canonical_json, digest_json, sha256_bytes, sha256_file, short
from plyfold.core.disk.files import require_space, staged_folder, sweep_staged, write_bytes, write_json
from plyfold.core.disk.locks import file_lock
from plyfold.registry.store import Store


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_finished_block_becomes_the_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(errors.ConflictError), staged_folder(tmp_path / "out"):
        pass
    with staged_folder(tmp_path / "out", replace=True) as folder:
        (folder / "newer").write_text("y")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["newer"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.DiskFullError, match="bytes free"):
        write_bytes(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_writing(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1)
    with pytest.raises(errors.DiskFullError) as caught:
        require_space(tmp_path / "not" / "there", 1 << 62)
    assert caught.value.exit_code == 1


def test_json_is_canonical(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'.encode()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})
    write_json(tmp_path / "x.json", {"a": 1})
    assert sha256_file(tmp_path / "x.json") == sha256_bytes((tmp_path / "x.json").read_bytes())
    assert short("sha256:" + "ab" * 32) == "abababababab"


def test_every_error_pickles_and_has_the_documented_exit_code() -> None:
    codes = {
        errors.FailedError: 1,
        errors.DiskFullError: 1,
        errors.ConfigError: 2,
        errors.NotFoundError: 3,
        errors.IntegrityError: 4,
        errors.ConflictError: 5,
        errors.GateError: 5,
        errors.OfflineError: 6,
        errors.AuthError: 7,
        errors.IncompatibleError: 8,
        errors.BaseMismatchError: 8,
        errors.ShapeMismatchError: 8,
        errors.UnsupportedAdapterError: 8,
    }
    for leaf, code in codes.items():
        error = leaf("what", where="w", expected="e", found=3, next_step="n")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is leaf
        assert str(again) == str(error)
        assert again.exit_code == code
        assert "next" in str(again)


REPLACE = """
import os, signal, sys
from pathlib import Path
from plyfold.core.disk import files

target, points = Path(sys.argv[1]), int(sys.argv[2])

def counted(owner, name):
    real = getattr(owner, name)

    def act(*paths, **options):
        global points
        if points == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        points -= 1
        return real(*paths, **options)

    setattr(owner, name, act)

counted(files.os, "rename")
counted(files.shutil, "rmtree")
if sys.argv[3] == "exchange":
    counted(files, "_exchange")
else:
    files._exchange = lambda one, other: False
with files.staged_folder(target, replace=True) as staged:
    for name in "ab":
        (staged / name).write_text("new")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new(tmp_path: Path, way: str) -> None:
    target, outcomes = tmp_path / "out", []
    for point in range(5):
        with staged_folder(target, replace=True) as staged:
            for name in "ab":
                (staged / name).write_text("old")
        done = subprocess.run([sys.executable, "-c", REPLACE, str(target), str(point), way])
        if way == "exchange":
            assert target.is_dir()  # at once, whoever looks
        sweep_staged(target)  # what the next start does first
        found = {name: (target / name).read_text() for name in "ab"}
        assert found in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        outcomes.append((done.returncode, found["a"]))
    assert outcomes[0] == (-signal.SIGKILL, "old")
    assert outcomes[-1] == (0, "new")
    assert (-signal.SIGKILL, "new") in outcomes
    assert len(set(outcomes)) == 3


def test_whoever_looks_finds_a_folder_that_is_being_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged_folder(target):
        pass
    missing, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            missing.extend([1] if not target.is_dir() else [])

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(100):
            with staged_folder(target, replace=True):
                pass
        stop.set()
        looking.result()
    assert missing == []


def test_one_that_is_being_replaced_by_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    old = tmp_path / ".out.old-0123456789ab"
    old.mkdir()
    owner = os.open(old, os.O_RDONLY)
    fcntl.flock(owner, fcntl.LOCK_EX)
    sweep_staged(tmp_path / "out")
    assert old.is_dir()
    os.close(owner)
    sweep_staged(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_a_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "nowhere").symlink_to("gone")
    for name in ("file", "link", "nowhere"):
        with pytest.raises(errors.ConflictError), staged_folder(tmp_path / name, replace=True):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_clear_error(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / ".plyfold")
    (store.root / "locks" / "leases").mkdir()
    (store.root / "locks" / "leases" / f"{'0' * 32}.json").write_text("{}")

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(errors.FailedError, match="no file locks"), staged_folder(tmp_path / "out"):
        pass
    with pytest.raises(errors.FailedError, match="no file locks"), file_lock(tmp_path / "out", ""):
        pass
    assert not list(tmp_path.glob(".out.tmp-*"))
    with pytest.raises(errors.FailedError, match="no file locks"):
        store.require_writable()
    for command in (["gc"], ["gc", "--delete"]):
        assert run([*command, "--registry", str(store.root)]) == 1, command
    assert (store.root / "locks" / "leases" / f"{'0' * 32}.json").exists()


def unfit(tmp_path: Path) -> dict[str, Path]:
    """Paths at which nothing can be made."""
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to("nowhere")
    return {
        "through a file": tmp_path / "file" / "x",
        "through a circle": tmp_path / "circle" / "x",
        "through a link to nowhere": tmp_path / "lost" / "x",
        "a long name": tmp_path / ("n" * 300),
        "a name too long for those beside it": tmp_path / ("n" * 240),
        "deep": tmp_path.joinpath(*["d" * 200] * 25),
    }


@pytest.mark.slow
def test_where_nothing_can_be_made_is_one_clear_error(tmp_path: Path) -> None:
    paths = unfit(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for kind, path in paths.items():
        with pytest.raises(errors.ConfigError) as caught:
            write_bytes(path, b"data")
        assert len(str(caught.value)) < 600
        with pytest.raises(errors.ConfigError), staged_folder(path):
            pass
        if "beside" not in kind:  # a registry has none
            for command in (["tree"], ["import", "x"]):
                assert run([*command, "--registry", str(path)]) == 2, (command, kind)
    runs = str(paths["through a file"])
    assert run(["train", "--dry-run", "--registry", str(tmp_path / "r"), "--runs", runs]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_a_pipe_and_a_folder_are_no_files_to_replace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        before = path.lstat()
        with pytest.raises(errors.ConfigError):
            write_bytes(path, b"data")
        assert path.lstat() == before


def test_an_error_of_a_path_from_anywhere_is_one_of_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", "x" * 300, "x" * 300, "--registry", str(Store(tmp_path / "r").root)]) == 2
    assert "longer than the file system takes" in " ".join(capsys.readouterr().err.split())
