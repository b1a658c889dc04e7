"""Folders in the making: found again by the same work after a kill, never by other work, never by two at once."""

import fcntl
import os

import pytest

from plyfold.core.disk.digest import sha256_bytes, short
from plyfold.core.errors import ConflictError
from plyfold.merge.fold.journal import JOURNAL_FILE, Journal, resumable_folder, staged_bytes

KEY, OTHER = sha256_bytes(b"key"), sha256_bytes(b"other")


def leftover(target, key=KEY):
    return target.parent / f".{target.name}.fold-{short(key)}"


def killed(target, key=KEY, names=("a",)):
    """What a killed run leaves: its folder with a data file and a journal, and nobody's lock."""
    folder = leftover(target, key)
    folder.mkdir()
    journal = Journal(folder / JOURNAL_FILE, key)
    for name in names:
        journal.record({"name": name, "xxh3": "x"})
    journal.close()
    (folder / "data").write_text("data")
    (folder / "config.json").write_text("old")
    return folder


def test_a_finished_folder_takes_its_name_without_the_journal(tmp_path):
    with resumable_folder(tmp_path / "out", KEY, keep=["data"]) as staging:
        (staging.folder / "data").write_text("new")
        staging.journal.record({"name": "a"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_the_same_work_finds_what_a_kill_left(tmp_path):
    killed(tmp_path / "out", names=("a", "b"))
    with resumable_folder(tmp_path / "out", KEY, keep=["data"]) as staging:
        assert list(staging.journal.finished) == ["a", "b"]
        assert sorted(path.name for path in staging.folder.iterdir()) == [JOURNAL_FILE, "data"]
    assert (tmp_path / "out" / "data").read_text() == "data"


def test_other_work_starts_anew_and_sweeps_what_is_dead(tmp_path):
    killed(tmp_path / "out")
    with resumable_folder(tmp_path / "out", OTHER, keep=["data"]) as staging:
        assert staging.journal.finished == {}
        assert not leftover(tmp_path / "out").exists()
        assert list(staging.folder.iterdir()) == [staging.folder / JOURNAL_FILE]


def test_other_work_that_is_alive_stays(tmp_path):
    folder = killed(tmp_path / "out")
    owner = os.open(folder, os.O_RDONLY)
    fcntl.flock(owner, fcntl.LOCK_EX)
    with resumable_folder(tmp_path / "out", OTHER, keep=[]):
        assert folder.exists()
    os.close(owner)


def test_folders_of_other_targets_stay(tmp_path):
    others = [killed(tmp_path / name) for name in ("out2", f"out.fold-{short(KEY)}")]
    with resumable_folder(tmp_path / "out", OTHER, keep=[]):
        pass
    assert all(folder.exists() for folder in others)


def test_two_at_once_do_not_mix(tmp_path):
    with resumable_folder(tmp_path / "out", KEY, keep=["data"]) as staging:
        (staging.folder / "data").write_text("mine")
        with (
            pytest.raises(ConflictError, match="another process"),
            resumable_folder(tmp_path / "out", KEY, keep=["data"]),
        ):
            pass
        assert (staging.folder / "data").read_text() == "mine"
    assert (tmp_path / "out" / "data").read_text() == "mine"


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(ConflictError, match="exists already"),
        resumable_folder(tmp_path / "out", KEY, keep=[]),
    ):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), resumable_folder(tmp_path / "deep" / "out", KEY, keep=[]):
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("tail", [b'{"name": "c", "sha', b"{}garbage\n", b"\xff\xfe\n", b"[1]\n"])
def test_a_line_that_is_not_whole_ends_what_is_believed(tmp_path, tail):
    path = tmp_path / "journal"
    first = Journal(path, KEY)
    first.record({"name": "a", "xxh3": "1"})
    first.close()
    sound = path.read_bytes()
    path.write_bytes(sound + tail + b'{"name": "d", "xxh3": "4"}\n')
    second = Journal(path, KEY)
    assert list(second.finished) == ["a"]
    second.record({"name": "b", "xxh3": "2"})
    second.close()
    assert path.read_bytes() == sound + b'{"name": "b", "xxh3": "2"}\n'


def test_a_journal_of_another_key_is_emptied(tmp_path):
    for key in (KEY, OTHER):
        journal = Journal(tmp_path / "journal", key)
        assert journal.finished == {}
        journal.record({"name": "a"})
        journal.close()


def test_space_that_is_taken_already_is_counted(tmp_path):
    assert staged_bytes(tmp_path / "out") == 0
    folder = killed(tmp_path / "out")
    (folder / "data").write_bytes(bytes(1 << 20))
    assert 1 << 20 <= staged_bytes(tmp_path / "out") < 2 << 20
