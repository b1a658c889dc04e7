"""`plyfold serve` as typed: what it plans, prints and refuses, without starting vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.engines import vllm_options
from plyfold.serving import launch


@pytest.fixture(scope="module")
def registry(make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / ".plyfold"
    make_store(root, tiny_base(dtype="float32"), r=8)
    return root


@pytest.fixture(autouse=True)
def _vllm_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vllm_options, launch):
        monkeypatch.setattr(module, "vllm_version", lambda: "0.32.0+cpu")


def serve(registry: Path, *arguments: str) -> int:
    return run(["serve", *arguments, "--registry", str(registry)])


def test_a_dry_run_prints_the_plan_and_the_exact_command(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(registry, "base", "1", "1+2+3", "--port", "0", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "1 tiny-1 + 2 tiny-2 + 3 tiny-3" in out
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=0" in out
    assert "-m plyfold.engines.vllm_main serve" in out
    assert not (registry / "cache" / "twins").exists()


def test_json_is_one_object_and_nothing_else(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(registry, "1+2", "--port", "0", "--dry-run", "--json", "--max-model-len", "128") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["schema"], value["dry_run"], value["max_model_len"]) == (1, True, 128)
    assert [variant["name"] for variant in value["variants"]] == ["1+2"]
    assert all(digest.startswith("sha256:") for digest in value["variants"][0]["digests"])


def test_without_a_name_it_serves_every_step(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(registry, "--port", "0", "--dry-run", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert [variant["name"] for variant in value["variants"]] == ["base", "1", "1+2", "1+2+3"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["4"], 3, "tiny-3"),
        (["one+two"], 2, "not a variant"),
        (["1+1"], 2, "twice"),
        (["base", "--max-model-len", "100000"], 2, "512"),
        (["base", "--curriculum", "other"], 3, "other"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    registry: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(registry, *arguments, "--port", "0") == code
    errors = capsys.readouterr().err
    assert words in errors
    assert "Traceback" not in errors


def test_an_interrupted_server_ends_the_command_with_130(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "prepare_server", lambda plan, store: None)
    monkeypatch.setattr(launch, "run_server", lambda plan, on_ready: 130)
    assert serve(registry, "base", "--port", "0") == 130


def test_what_is_printed_when_ready_can_be_pasted(
    registry: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    def ready(plan: object, on_ready: Any) -> int:
        on_ready()
        return 0

    monkeypatch.setattr(launch, "prepare_server", lambda plan, store: None)
    monkeypatch.setattr(launch, "run_server", ready)
    assert serve(registry, "base", "1+2", "--port", "0") == 0
    out = capsys.readouterr().out
    assert out.startswith("serving http://127.0.0.1:")
    words = shlex.split(next(line for line in out.splitlines() if line.startswith("try")))[1:]
    assert words[0] == "curl"
    assert words[1].startswith("http://127.0.0.1:")
    assert json.loads(words[-1])["model"] == "1+2"


def test_every_kind_of_variant_is_served_and_a_checkpoint_alone(
    registry: Path,
    make_adapter: Any,
    tiny_base: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_adapter(tmp_path / "my-lora", r=8)
    shutil.copytree(tiny_base(dtype="bfloat16"), tmp_path / "folded")
    assert run(["merge", "--stages", "1,2", "--rank", "3", "--registry", str(registry)]) == 0
    capsys.readouterr()
    asked = ["base", "tiny-1", "tiny-s1.s2-svd3", "./my-lora", "--port", "0", "--dry-run"]
    assert serve(registry, *asked, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert [variant["name"] for variant in value["variants"]] == ["base", "1", "tiny-s1.s2-svd3", "./my-lora"]
    assert "./my-lora" in str(value["command"])
    assert serve(registry, *asked) == 0
    assert "a folder" in capsys.readouterr().out
    assert serve(registry, "./folded", "--port", "0", "--dry-run", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    folder = str(tmp_path / "folded")
    assert (value["base"]["names"], value["twin"], value["dtype"]) == (["./folded"], folder, "bfloat16")
    assert "--enable-lora" not in value["command"]
    assert serve(registry, "base", "./folded", "--port", "0", "--dry-run") == 2
    assert "plyfold serve ./folded" in capsys.readouterr().err


def test_folders_need_no_registry(
    make_adapter: Any,
    tiny_base: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    make_adapter(tmp_path / "my-lora", r=8)
    make_adapter(tmp_path / "foreign", r=8, repo="acme/another")
    where = ["--base", str(tiny_base(dtype="float32")), "--port", "0", "--dry-run"]
    assert run(["serve", "base", "./my-lora", *where]) == 0
    assert "acme/tiny-qwen2" in capsys.readouterr().out
    assert run(["serve", "./my-lora", "1", "--port", "0", "--dry-run"]) == 3
    assert "no registry" in capsys.readouterr().err
    assert not (tmp_path / ".plyfold").exists()
