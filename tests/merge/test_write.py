"""What a merge leaves on disk: a whole folder or nothing, whatever interrupts it."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from plyfold.adapters.spec import read_spec
from plyfold.core.errors import ConflictError, DiskFullError
from plyfold.merge.compose.write import compose
from plyfold.merge.fold.fold import fold
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

from ..support.peft_folders import BASE_REPO, BASE_REVISION, write_adapter_folder, write_base_folder

WEIGHTS = (1.0, 0.7, -0.5)


@pytest.fixture
def parts(tmp_path):
    paths = [write_adapter_folder(tmp_path / f"a{i}", seed=i).path for i in range(3)]
    return [
        Part(path, weight, digest=f"sha256:{i}") for i, (path, weight) in enumerate(zip(paths, WEIGHTS, strict=True))
    ]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_is_a_canonical_peft_folder(tmp_path, parts):
    done = compose(plan_compose(parts), tmp_path / "out")
    assert listing(tmp_path / "out") == ["adapter_config.json", "adapter_model.safetensors", "composition.json"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE_REPO, BASE_REVISION)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (12, 12, False)
    assert config["target_modules"] == ["down_proj", "k_proj", "q_proj"]
    assert {module.scale for module in read_spec(tmp_path / "out").modules.values()} == {1.0}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "out").iterdir())
    assert done.bucket == 16


def test_composition_json_names_inputs_and_error(tmp_path, parts):
    done = compose(plan_compose(parts), tmp_path / "out")
    value = json.loads((tmp_path / "out" / "composition.json").read_text())
    assert value["schema"] == "plyfold/composition/1"
    assert [entry["weight"] for entry in value["inputs"]] == [1, 0.7, -0.5]
    assert [entry["record"] for entry in value["inputs"]] == ["sha256:0", "sha256:1", "sha256:2"]
    assert len({entry["digest"] for entry in value["inputs"]}) == 3
    assert value["certificate"]["relative_error"] == done.certificate.relative > 0
    assert str(tmp_path) not in json.dumps(value)
    assert done.to_json()["digest"].startswith("sha256:")


def test_the_same_inputs_give_the_same_bytes(tmp_path, parts):
    first = compose(plan_compose(parts), tmp_path / "one")
    second = compose(plan_compose(parts), tmp_path / "two")
    assert first.digest == second.digest
    for name in listing(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_folder_that_exists_is_kept(tmp_path, parts):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ConflictError):
        compose(plan_compose(parts), tmp_path / "out")
    write_base_folder(tmp_path / "base")
    with pytest.raises(ConflictError):
        fold(parts, tmp_path / "base", tmp_path / "out")
    assert listing(tmp_path / "out") == ["mine"]


def test_a_full_disk_is_seen_before_the_first_byte(tmp_path, parts, monkeypatch):
    plan = plan_compose(parts)
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000, "total": usage.f_blocks})())
    with pytest.raises(DiskFullError) as caught:
        compose(plan, tmp_path / "out")
    assert "1,000 bytes free" in caught.value.found
    assert listing(tmp_path) == ["a0", "a1", "a2"]


@pytest.mark.parametrize("into", ["adapter", "model"])
def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path, parts, into):
    write_base_folder(tmp_path / "base")
    before = listing(tmp_path)
    plan = plan_compose(parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # the kernel then ends writes as a full quota does
    try:
        with pytest.raises(DiskFullError):
            if into == "adapter":
                compose(plan, tmp_path / "out")
            else:
                fold(parts, tmp_path / "base", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_a_kill_leaves_no_result_and_the_next_run_sweeps(tmp_path, parts):
    write_base_folder(tmp_path / "base")
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from plyfold.merge.fold import fold as room\n"
        "from plyfold.merge.inputs import Part\n"
        "room.copy_other_files = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "room.fold([Part(Path('a0'))], Path('base'), Path('out'))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert any(name.startswith(".out.fold-") for name in listing(tmp_path))
    fold([parts[0]], tmp_path / "base", tmp_path / "out")
    assert listing(tmp_path) == ["a0", "a1", "a2", "base", "out"]


def test_an_interruption_leaves_nothing(tmp_path, parts, monkeypatch):
    write_base_folder(tmp_path / "base")

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("plyfold.merge.fold.fold.copy_other_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fold(parts, tmp_path / "base", tmp_path / "out")
    assert listing(tmp_path) == ["a0", "a1", "a2", "base"]
