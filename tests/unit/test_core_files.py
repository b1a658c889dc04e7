from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from plyfold.core import errors
from plyfold.core.digest import canonical_json, digest_json, sha256_bytes, sha256_file, short
from plyfold.core.files import require_space, staged_folder, write_bytes, write_json


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
