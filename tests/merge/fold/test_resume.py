"""A fold that was killed is continued, never mixed with another, and checked before it gets its name."""

import json
import os
import shutil
import subprocess

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from plyfold.adapters.base.checkpoint import open_checkpoint
from plyfold.core.errors import DiskFullError, FailedError, IntegrityError
from plyfold.merge.compose.prepare import prepare
from plyfold.merge.fold import fold as room
from plyfold.merge.fold.checkpoint import BaseReader
from plyfold.merge.fold.direct import ALIGNMENT
from plyfold.merge.fold.fold import fold, plan_fold, write_fold
from plyfold.merge.fold.journal import JOURNAL_FILE, Journal
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

from ...support.peft_folders import SHAPES, load_checkpoint, write_adapter_folder, write_base_folder


@pytest.fixture
def work(tmp_path):
    """Base and adapters in tmp_path."""
    write_base_folder(tmp_path / "base", shards=2)
    parts = [Part(tmp_path / "a"), Part(tmp_path / "b", 0.5)]
    for seed, part in enumerate(parts):
        write_adapter_folder(part.path, seed=seed)
    return parts


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up after it; tests/merge/fold/test_kill.py kills in earnest."""


@pytest.fixture
def killed(tmp_path, work):
    """The folder of a fold that ended after it had noted three tensors."""
    real, left = Journal.record, [3]

    def record(self, entry):
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(self, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "record", record)
        patch.setattr("plyfold.merge.fold.journal.shutil.rmtree", lambda path, **options: None)
        with pytest.raises(Killed):
            fold(work, tmp_path / "base", tmp_path / "out")
    return staging(tmp_path)


def staging(tmp_path):
    found = list(tmp_path.glob(".out.fold-*"))
    assert len(found) == 1
    return found[0]


def journalled(folder):
    lines = (folder / JOURNAL_FILE).read_text().splitlines()
    return [json.loads(line)["name"] for line in lines[1:]]


@pytest.fixture
def recorded(monkeypatch):
    """Names of the tensors that runs in this process write."""
    names = []
    real = Journal.record

    def record(self, entry):
        names.append(entry["name"])
        real(self, entry)

    monkeypatch.setattr(Journal, "record", record)
    return names


def test_finished_tensors_are_kept_and_the_result_is_the_same(tmp_path, work, killed, recorded):
    kept = journalled(killed)
    assert len(kept) == 3
    resumed = fold(work, tmp_path / "base", tmp_path / "out")
    assert resumed.num_resumed == 3
    assert not set(recorded) & set(kept)
    assert set(recorded) | set(kept) == set(resumed.tensors)
    assert not killed.exists()
    whole = fold(work, tmp_path / "base", tmp_path / "whole")
    assert (whole.num_resumed, whole.digest, whole.tensors) == (0, resumed.digest, resumed.tensors)
    assert whole.modules == resumed.modules  # the rounding of kept ones is on record
    for file in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_a_finished_tensor_that_is_damaged_is_written_again(tmp_path, work, killed, recorded):
    kept = journalled(killed)
    for file in killed.glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))
    resumed = fold(work, tmp_path / "base", tmp_path / "out")
    assert resumed.num_resumed == 0
    assert set(kept) < set(recorded)
    assert resumed.digest == fold(work, tmp_path / "base", tmp_path / "whole").digest


@pytest.mark.parametrize("change", ["base", "dtype", "weight", "adapter"])
def test_other_inputs_start_anew(tmp_path, work, killed, change):
    dtype = None
    if change == "base":
        (tmp_path / "base2").mkdir()
        for path in (tmp_path / "base").iterdir():
            shutil.copyfile(path, tmp_path / "base2" / path.name)
        shutil.rmtree(tmp_path / "base")
        (tmp_path / "base2").rename(tmp_path / "base")
    elif change == "dtype":
        dtype = "fp32"
    elif change == "weight":
        work[1] = Part(work[1].path, 0.25)
    else:
        shutil.rmtree(work[1].path)
        write_adapter_folder(work[1].path, seed=7)
    assert fold(work, tmp_path / "base", tmp_path / "out", dtype=dtype).num_resumed == 0
    assert not killed.exists()


def test_a_config_that_only_pythons_json_reads_is_no_obstacle(tmp_path, work):
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "limit": float("inf")}))
    fold(work, tmp_path / "base", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()


def test_a_moved_adapter_does_not_lose_the_work(tmp_path, work, killed):
    (tmp_path / "b").rename(tmp_path / "c")
    assert fold([work[0], Part(tmp_path / "c", 0.5)], tmp_path / "base", tmp_path / "out").num_resumed == 3


# ---- what changes meanwhile


@pytest.mark.parametrize("step", ["copy_other_files", "check_fold"])
@pytest.mark.parametrize("change", ["touched", "cut", "replaced"])
def test_a_base_that_changes_during_the_fold_is_refused(tmp_path, work, monkeypatch, step, change):
    file = sorted((tmp_path / "base").glob("*.safetensors"))[0]
    real = getattr(room, step)

    def then_alter(*args, **options):
        done = real(*args, **options)
        if change == "touched":
            os.utime(file, ns=(0, 0))
        elif change == "cut":
            os.truncate(file, file.stat().st_size - 1)
        else:
            file.with_suffix(".new").write_bytes(file.read_bytes())
            file.with_suffix(".new").replace(file)
        return done

    monkeypatch.setattr(room, step, then_alter)
    with pytest.raises(IntegrityError, match="base changed"):
        fold(work, tmp_path / "base", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base"]


def test_a_base_that_changed_since_the_plan_is_refused(tmp_path, work):
    plan = plan_fold(plan_compose(work), tmp_path / "base")
    write_base_folder(tmp_path / "other", shards=2, seed=1)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "other").rename(tmp_path / "base")
    with pytest.raises(IntegrityError, match="base changed"):
        write_fold(plan, prepare(plan.compose), tmp_path / "out")


def test_a_base_that_is_cut_short_under_the_reader_is_an_error(tmp_path, work):
    base = open_checkpoint(tmp_path / "base")
    file = sorted(base.shards)[0]
    with BaseReader(base) as reader:
        os.truncate(tmp_path / "base" / file, 100)
        with pytest.raises(IntegrityError, match="ended inside"):
            reader.read_into(file, 50, memoryview(bytearray(100)))


# ---- the check


def tamper(monkeypatch, alter):
    """Alter the finished files before they are checked."""
    real = room.copy_other_files

    def copy(source, target):
        real(source, target)
        alter(target)

    monkeypatch.setattr(room, "copy_other_files", copy)


def flip(name):
    def alter(folder):
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                if name not in opened.keys():  # noqa: SIM118
                    continue
            data = bytearray(file.read_bytes())
            length = int.from_bytes(data[:8], "little")
            start = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
            data[start] ^= 0x04  # four units in the last place of a bf16
            file.write_bytes(data)

    return alter


@pytest.mark.parametrize("module", SHAPES)
def test_a_damaged_sum_is_found(tmp_path, work, monkeypatch, module):
    tamper(monkeypatch, flip(f"{module}.weight"))
    with pytest.raises(FailedError, match="read back is not the sum"):
        fold(work, tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_a_damaged_untouched_tensor_is_found(tmp_path, work, monkeypatch, name):
    tamper(monkeypatch, flip(name))
    with pytest.raises(FailedError, match="differs from the base"):
        fold(work, tmp_path / "base", tmp_path / "out")


def test_a_header_that_is_not_the_planned_one_is_found(tmp_path, work, monkeypatch):
    def rename(folder):
        file = sorted(folder.glob("*.safetensors"))[0]
        tensors = {f"{name}2": tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file)

    tamper(monkeypatch, rename)
    with pytest.raises(FailedError, match="what was planned"):
        fold(work, tmp_path / "base", tmp_path / "out")


def test_a_module_that_is_not_added_once_is_found(tmp_path, work, monkeypatch):
    real = room.check_fold
    for wrong in (lambda folds: folds[1:], lambda folds: [*folds, folds[0]]):
        monkeypatch.setattr(
            room, "check_fold", lambda *args, wrong=wrong, **seed: real(*args[:3], wrong(args[3]), **seed)
        )
        with pytest.raises(FailedError, match="exactly once"):
            fold(work, tmp_path / "base", tmp_path / "out")


def test_the_report_says_what_was_checked(tmp_path, work):
    checked = fold(work, tmp_path / "base", tmp_path / "out").to_json()["checked"]
    assert checked["adapter_tensors"] == 2 * 2 * len(SHAPES)
    assert sorted(checked["modules"]) == sorted(f"{name}.weight" for name in SHAPES)
    assert checked["rows"] == sum(shape[0] for shape in SHAPES.values())
    assert 0 < checked["worst"] <= 1
    assert len(checked["untouched"]) == 4
    assert checked["untouched_bytes"] == 2 * (50 * 20 * 2 + 20 + 24)
    assert checked["is_base"] is False


def test_a_sum_of_zero_is_the_base_and_said(tmp_path, work):
    one = write_adapter_folder(tmp_path / "zero", seed=1, zero=True)
    report = fold([Part(one.path)], tmp_path / "base", tmp_path / "out")
    assert report.checked.is_base
    assert any("the result is the base" in warning for warning in report.warnings)


def test_deltas_that_all_vanish_in_the_rounding_are_refused(tmp_path, work):
    one = write_adapter_folder(tmp_path / "tiny", seed=1, size=1e-7)
    with pytest.raises(FailedError, match="equals the base"):
        fold([Part(one.path)], tmp_path / "base", tmp_path / "out")
    fold([Part(one.path)], tmp_path / "base", tmp_path / "wide", dtype="fp32")


# ---- files


def test_any_mixture_of_tensors_keeps_its_bytes(tmp_path):
    """Odd lengths, scalars, empty tensors, 8-bit and integer ones: data need not lie on whole elements."""
    name = "model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.odd": torch.randint(0, 255, (4097,), dtype=torch.uint8, generator=generator),
        "b.scalar": torch.tensor(3.5, dtype=torch.bfloat16),
        "c.empty": torch.empty(0, 5),
        "d.count": torch.arange(7),
        "e.cube": torch.randn(3, 5, 7, generator=generator).half(),
        "f.eight": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        f"{name}.weight": torch.randn(24, 20, generator=generator).bfloat16(),
    }
    write_base_folder(tmp_path / "base")
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt", "note": "kept"})
    one = write_adapter_folder(tmp_path / "a", seed=1, shapes={name: (24, 20)})
    for dtype in (None, "fp32"):
        fold([Part(one.path)], tmp_path / "base", tmp_path / f"out-{dtype}", dtype=dtype)
        result = load_checkpoint(tmp_path / f"out-{dtype}")
        for key, tensor in tensors.items():
            if key != f"{name}.weight":
                wide = dtype and tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)
                expected = tensor.float() if wide else tensor
                assert (result[key].dtype, result[key].shape) == (expected.dtype, expected.shape)
                assert result[key].reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))
    with safe_open(tmp_path / "out-None" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "note": "kept"}


def test_weights_at_odd_places_of_the_base_are_summed_all_the_same(tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    base = write_base_folder(tmp_path / "base")
    pad, weight = b"\x01" * 4097, base[f"{name}.weight"]
    header = {
        "pad": {"dtype": "U8", "shape": [4097], "data_offsets": [0, 4097]},
        f"{name}.weight": {"dtype": "BF16", "shape": [24, 20], "data_offsets": [4097, 4097 + weight.nbytes]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + pad + weight.view(torch.uint8).numpy().tobytes()
    (tmp_path / "base" / "model.safetensors").write_bytes(data)
    one = write_adapter_folder(tmp_path / "a", seed=1, shapes={name: (24, 20)})
    for dtype in (None, "fp32"):
        fold([Part(one.path)], tmp_path / "base", tmp_path / f"out-{dtype}", dtype=dtype)
        result = load_checkpoint(tmp_path / f"out-{dtype}")
        assert bytes(result["pad"].numpy()) == pad
        expected = weight.float() + one.delta(name).float()
        torch.testing.assert_close(result[f"{name}.weight"].float(), expected, rtol=2**-8, atol=1e-6)


def test_data_begins_on_a_page_and_digests_are_of_the_bytes(tmp_path, work):
    report = fold(work, tmp_path / "base", tmp_path / "out")
    composition = json.loads((tmp_path / "out" / "composition.json").read_text())
    assert (composition["tensors"], composition["digest"]) == (report.tensors, report.digest)
    seen = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert (8 + length) % ALIGNMENT == 0
        header = json.loads(data[8 : 8 + length])
        for name in header.keys() - {"__metadata__"}:
            start, stop = header[name]["data_offsets"]
            seen[name] = f"xxh3:{xxhash.xxh3_128_hexdigest(data[8 + length + start : 8 + length + stop])}"
    assert seen == report.tensors


def test_files_the_index_does_not_name_are_ignored(tmp_path, work):
    expected = fold(work, tmp_path / "base", tmp_path / "clean")
    stale = tmp_path / "base" / "model-00009-of-00009.safetensors"
    save_file({"model.norm.weight": torch.zeros(20)}, stale)
    (tmp_path / "base" / "consolidated.safetensors").write_bytes(b"stale")
    report = fold(work, tmp_path / "base", tmp_path / "out")
    assert report.digest == expected.digest
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "clean").iterdir()
    }


def test_a_small_disk_that_is_full_says_how_much_it_takes(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes the rights of root")
    try:
        shapes = {"model.layers.0.mlp.up_proj": (1200, 1000)}
        write_base_folder(tmp_path / "base", shapes=shapes)
        one = write_adapter_folder(tmp_path / "a", seed=1, shapes=shapes)
        with pytest.raises(DiskFullError, match="no space left"):
            fold([Part(one.path)], tmp_path / "base", disk / "out")
        monkeypatch.setattr(room, "require_space", lambda where, need_bytes: None)  # filled by another meanwhile
        with pytest.raises(DiskFullError) as caught:
            fold([Part(one.path)], tmp_path / "base", disk / "out")
        assert (
            caught.value.expected
            == f"{plan_fold(plan_compose([Part(one.path)]), tmp_path / 'base').bytes_out + (1 << 20):,} bytes free"
        )
        assert list(disk.iterdir()) == []
        write_base_folder(tmp_path / "small")
        fits = write_adapter_folder(tmp_path / "b", seed=1)
        assert fold([Part(fits.path)], tmp_path / "small", disk / "out").checked.rows  # no direct writes needed
    finally:
        subprocess.run(["umount", str(disk)], check=True)
