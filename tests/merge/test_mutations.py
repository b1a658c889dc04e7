"""Adapters broken in hundreds of ways: a right sum or one clear refusal. benchmarks/mutations.py does ten thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plyfold.cli.main import run

from ..support.mutations import KINDS, Case, mutate
from ..support.peft_folders import write_adapter_folder

REPOSITORY = Path(__file__).parents[2]
CASES_OF_A_KIND = 7


@pytest.mark.slow
def test_hundreds_of_broken_adapters_give_a_right_sum_or_one_clear_refusal() -> None:
    command = [sys.executable, "benchmarks/mutations.py", "--json", "--seed", "500000"]
    done = subprocess.run(
        [*command, "--num", str(CASES_OF_A_KIND * len(KINDS))],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert {kind: sum(counts.values()) for kind, counts in report["counts"].items()} == dict.fromkeys(
        KINDS, CASES_OF_A_KIND
    )
    outcomes = {outcome for counts in report["counts"].values() for outcome in counts}
    assert {"right", "IntegrityError", "NotFoundError", "UnsupportedAdapterError", "FailedError"} <= outcomes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_adapter_folder(tmp_path / "good", seed=1)
    write_adapter_folder(tmp_path / "bad", seed=2)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], here: Path, *arguments: str) -> tuple[int, str]:
    before = sorted(os.listdir(here))
    code = run(["merge", *arguments, "-o", "out"])
    shown = capsys.readouterr()
    assert shown.err.count("error[") == 1
    assert "Traceback" not in shown.err
    assert "unexpected" not in shown.err
    assert shown.err.replace("\n", "").isprintable()
    assert len(shown.err) < 2000
    assert sorted(os.listdir(here)) == before
    return code, shown.err


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("weights truncated", 4),
        ("header length", 4),
        ("offsets: overlaps, holes, huge", 4),
        ("a name twice", 4),
        ("NaN and infinity", 4),
        ("a pickle", 4),
        ("a folder for a file", 3),
        ("a FIFO or socket for a file", 3),
    ],
)
def test_the_command_line_says_it_once_and_ends_with_its_code(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str, code: int, seed: int
) -> None:
    mutate(Case(here / "bad"), kind, seed)
    assert refused(capsys, here, "bad", "good")[0] == code


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"use_dora": "\x1b[2J" * 5000}, 8, "DoRA"),
        ({"peft_type": "x" * 100_000}, 8, "not a LoRA adapter"),
        ({"init_lora_weights": "pissa\x1b[2J" * 5000}, 8, "not known to leave the base weights"),
        ({"rank_pattern": {"(a|a)" * 30 + "b": 4}}, 8, "too complex"),
        ({"rank_pattern": {"a?" * 30 + "a" * 30: 4}}, 8, "too complex"),
        ({"alpha_pattern": {".*" * 12 + "!": 4}}, 8, "too complex"),
        ({"alpha_pattern": {f"q_proj{index}": 4 for index in range(20_000)}}, 8, "too complex"),
        ({"alpha_pattern": {"(" * 495 + ")" * 495: 4}}, 4, "regular expression"),
        ({"base_model_name_or_path": "acme/\ud800"}, 4, "base_model_name_or_path"),
        ({"base_model_name_or_path": ["acme/tiny"]}, 4, "base_model_name_or_path"),
        ({"revision": "a\nb"}, 4, "revision"),
        ({"use_rslora": "false"}, 4, "use_rslora"),
        ({"target_modules": [1, "q_proj"]}, 4, "target_modules"),
        ({"lora_alpha": float("nan")}, 4, "lora_alpha"),
    ],
)
def test_a_config_that_means_harm_is_one_short_message(
    here: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], code: int, message: str
) -> None:
    path = here / "bad" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found, shown = refused(capsys, here, "bad", "good")
    assert found == code
    assert message in shown


def test_a_folder_that_cannot_be_reached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "loop").symlink_to("loop")
    assert refused(capsys, here, "loop", "good")[0] == 3
    code, shown = refused(capsys, here, "x" * 300, "good")
    assert code == 2
    assert "longer than the file system takes" in shown


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\x1b[2Jb", b"[red]x", "ä".encode()])
def test_a_folder_of_any_name_is_merged(here: Path, capsys: pytest.CaptureFixture[str], name: bytes) -> None:
    os.rename(b"bad", name)
    assert run(["merge", os.fsdecode(name), "good", "-o", "out"]) == 0
    shown = capsys.readouterr()
    assert (shown.out + shown.err).replace("\n", "").isprintable()
    assert (here / "out" / "adapter_model.safetensors").is_file()


def test_numbers_beyond_the_dtype_of_the_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = refused(capsys, here, "bad", "good", "--dtype", "fp16", "--weights", "1e7,1")
    assert code == 1
    assert "range of fp16" in shown
    assert "--dtype fp32" in shown
    assert "range of fp32" in refused(capsys, here, "bad", "good", "--weights", "1e300,1")[1]
