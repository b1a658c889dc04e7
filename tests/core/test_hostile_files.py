"""A file of someone else is refused by its name, with the exit code of its kind, within bounds, whatever it holds."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base.checkpoint import open_checkpoint
from plyfold.adapters.base.model_config import model_config
from plyfold.adapters.base.resolve import check_weights
from plyfold.adapters.spec import read_config, read_spec
from plyfold.cli.main import run
from plyfold.core.errors import IntegrityError
from plyfold.engines.protocol import end_token_ids
from plyfold.engines.vllm_options import engine_options
from plyfold.registry.lineage.lockfile import read_lock
from plyfold.stages.runtime.metrics import read_metrics
from plyfold.stages.training.curves import read_stages, render_curves

BAD: dict[str, bytes] = {
    "NaN": b'{"a": NaN}',
    "minus infinity in a list": b'{"a": [-1e999]}',
    "1e999": b'{"a": 1e999}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "twice": b'{"a": 1, "a": 2}',
    "deep": b'{"a": ' * 1000 + b"1" + b"}" * 1000,
    "very deep": b"[" * 500_000,
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a mark": b'\xef\xbb\xbf{"a": 1}',
    "half a pair": b'{"a": "\\ud800"}',
    "a list": b"[]",
    "nothing": b"",
    "cut": b'{"a": "x',
    "40 MB": b'{"a": "' + b"x" * 40_000_000 + b'"}',
    "40 MB of brackets": b"[" + b"[]," * 13_000_000 + b"[]]",
}


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest) -> bytes:
    return BAD[request.param]


READERS: dict[str, tuple[str, Any]] = {
    "an adapter's config": ("adapter_config.json", read_config),
    "an adapter": ("adapter_config.json", read_spec),
    "a base's config": ("config.json", model_config),
    "a base, to fold into": ("config.json", open_checkpoint),
    "a base, to serve": ("config.json", lambda folder: engine_options(folder, "float32", [8], cpu=True)),
    "end tokens": ("generation_config.json", end_token_ids),
    "an index": ("model.safetensors.index.json", check_weights),
    "a lock file": ("curriculum.lock.json", lambda folder: read_lock(folder / "curriculum.lock.json")),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_bad_file_is_refused_by_name(reader: str, bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(bad)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 150_000
    assert name in caught.value.where
    assert len(str(caught.value)) < 600


@pytest.mark.slow
def test_a_bad_line_of_metrics_is_left_out_and_the_page_is_drawn(bad: bytes, tmp_path: Path) -> None:
    run_dir = tmp_path / "1-structure"
    run_dir.mkdir()
    line = {"step": 1, "loss": 0.5, "alarms": [{"name": "\x1b[31m<b>", "step": 1}]}
    odd = [
        {"step": "2"},
        {"step": 2, "alarms": 7},
        {"step": 3, "alarms": [{}]},
        {"loss": 1.0},
        {"step": 4, "wall_s": "x"},
    ]
    lines = [json.dumps(each).encode() for each in [line, *odd]]
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join([bad[:2_000_000], *lines, b'{"step": 5, "lo']))
    assert read_metrics(run_dir / "metrics.jsonl") == [line]
    page = render_curves("toy", read_stages(tmp_path), running=False)
    assert "\\x1b[31m&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eos_token_id", "2"),
        ("eos_token_id", [1.0]),
        ("eos_token_id", True),
        ("eos_token_id", -1),
        ("eos_token_id", {"a": 1}),
    ],
)
def test_end_tokens_that_are_none_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(IntegrityError, match=field):
        end_token_ids(tmp_path)


@pytest.mark.parametrize(
    "field", ["max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"]
)
@pytest.mark.parametrize("value", ["64", 64.5, True, -1, 10**30, [64]])
def test_sizes_of_a_base_that_are_none_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    sizes = {"max_position_embeddings": 256, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "model_type": "qwen2", field: value}))
    with pytest.raises(IntegrityError, match=field):
        engine_options(tmp_path, "float32", [8], cpu=True)


def test_the_commands_end_with_4(tmp_path: Path, bad: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_bytes(bad)
    assert run(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out")]) == 4
    assert "adapter_config.json" in capsys.readouterr().err
