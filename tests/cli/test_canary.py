"""A canary in the environment, in every place a config may read it from, through every command: it is seen nowhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.config import config_dict
from plyfold.registry.record import DataRef, Record
from plyfold.registry.store import Store, find_store
from plyfold.sandbox.problems import make_problems

from ..conftest import Hub

pytestmark = pytest.mark.slow

CANARY = "CANARY77VALUE"
CONFIG = """
curriculum: tiny
base: {repo: acme/tiny-qwen2, revision: auto, path: "${oc.env:PLYFOLD_CANARY}/base", compute_dtype: float32}
adapter: {r: 4, alpha: 8}
data: {path: "${oc.env:PLYFOLD_CANARY}/train.jsonl"}
eval: {data: {path: "${oc.env:PLYFOLD_ROWS}", split: test}, max_new_tokens: 4}
rollout: {engine: http, url: "${oc.env:PLYFOLD_URL}/v1"}
threads: 1
stages:
  structure:
    number: 1
    task: reconstruct
    data: {path: "${data.path}", rows: [0, 30]}
    trainer: {per_device_train_batch_size: 4, max_steps: 2, save_steps: 2, report_to: REPORTER}
  brevity:
    number: 2
    task: complete
    trainer: {per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8, max_steps: 2}
"""
OWN = ["-c", "own.yaml"]
COMMANDS = [
    ["train", *OWN, "--stages", "1", "--dry-run"],
    ["train", *OWN, "--stages", "1", "--dry-run", "--json"],
    ["train", *OWN, "--stages", "1", "seed=1", "--dry-run", "-v"],
    ["data", "check", *OWN],
    ["data", "check", *OWN, "--json"],
    ["data", "preview", "1", *OWN],
    ["merge", "--stages", "1"],
    ["merge", "--stages", "1", "--into", "model", "--base-view", "original", "-o", "folded"],
    ["merge", "--stages", "1", "--into", "model", "--base-view", "original", "-o", "again", "--json"],
    ["eval", "base", "1", *OWN, "--limit", "2"],
    ["eval", "base", "1", "--data", "held-out.jsonl", "--limit", "2", "--json"],
    *(["show", "1", *more] for more in ([], ["--json"])),
    ["tree"],
    ["tree", "--json"],
    ["log", "1"],
    ["diff", "1", "1"],
    ["verify", "--deep"],
    ["verify", "--base", "--json"],
    ["verify", "--replay"],
]
FAILING = [
    (["base.path=${oc.env:PLYFOLD_CANARY}/none"], 3),
    (["base.path=${oc.env:PLYFOLD_CANARY}/torn"], 4),
    (["data.path=${oc.env:PLYFOLD_CANARY}/none.jsonl"], 3),
    (["data.path=${oc.env:PLYFOLD_CANARY}/torn.parquet"], 4),
    (["data.path=org/${oc.env:PLYFOLD_NAME}"], 2),
    (["base.licence=${oc.env:PLYFOLD_NAME}"], 2),
    (["rollout.url=${oc.env:PLYFOLD_NAME}"], 2),
    (["rollout.url=http://127.0.0.1:9/${oc.env:PLYFOLD_NAME}"], 2),
    (["data.columns.question=${oc.env:PLYFOLD_NAME}"], 2),
]  # fmt: skip
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Any) -> Iterator[Path]:
    """A project in which one stage was trained on a base and rows that only the environment knows."""
    project = tmp_path_factory.mktemp("project")
    hidden = tmp_path_factory.mktemp("hidden") / CANARY
    shutil.copytree(tiny_base(), hidden / "base")
    shutil.copytree(tiny_base(), hidden / "torn")
    (hidden / "torn/model.safetensors").write_bytes(b"torn")
    (hidden / "torn.parquet").write_bytes(b"torn")
    for split, path in (("train", hidden / "train"), ("test", hidden / "test"), ("test", project / "held-out")):
        rows = [json.dumps(dict(row)) for row in make_problems(split, 30)]  # type: ignore[arg-type]
        path.with_suffix(".jsonl").write_text("\n".join(rows) + "\n")
    reporter = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
    (project / "own.yaml").write_text(CONFIG.replace("REPORTER", reporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYFOLD_CANARY", str(hidden))
        patch.setenv("PLYFOLD_ROWS", str(hidden / "test.jsonl"))
        patch.setenv("PLYFOLD_URL", f"http://127.0.0.1:9/{CANARY}")
        patch.setenv("PLYFOLD_NAME", CANARY)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(project)
        assert run(["train", *OWN, "--stages", "1"]) == 0
        yield project


def _unseen(project: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What was printed, once it and every file are without the canary."""
    told = capfd.readouterr()
    assert CANARY not in told.out + told.err
    assert not [path for path in project.rglob("*") if CANARY in str(path.relative_to(project))]
    files = [path for path in project.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert not files
    return told.out + told.err


def test_training_leaves_it_nowhere(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _unseen(trained, capfd)
    record = find_store().stage("tiny", 1).record
    assert record.data[0].id == "train.jsonl"
    config: Any = record.recipe.config
    assert config["stages"]["structure"]["data"]["path"] == config["data"]["path"] == "train.jsonl"
    assert config["eval"]["data"]["path"] == "${oc.env:PLYFOLD_ROWS}"
    saved = (trained / "runs/tiny/1-structure/config.resolved.yaml").read_text()
    assert "path: ${oc.env:PLYFOLD_CANARY}/base" in saved
    assert find_store().base_path(record.base.repo, record.base.revision)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_says_it(command: list[str], trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 0, capfd.readouterr().err
    assert _unseen(trained, capfd)


@needs_vllm
@pytest.mark.parametrize("command", [["serve", "--dry-run"], ["rollouts", *OWN, "--dry-run"]], ids=" ".join)
def test_no_server_is_told_it(command: list[str], trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 0, capfd.readouterr().err
    assert "command" in _unseen(trained, capfd)


@pytest.mark.parametrize(("overrides", "code"), FAILING, ids=str)
def test_no_error_quotes_it(overrides: list[str], code: int, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "--dry-run"], ["train", "--dry-run", "--debug"]):
        own = [each.replace("data.path", "stages.structure.data.path") for each in overrides]
        assert run([*command, *OWN, *own]) == code
        assert "${oc.env:" in _unseen(trained, capfd)


def test_an_http_engine_that_is_not_there_is_named_as_it_is_spelt(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *OWN, "--stages", "1,2"]) == 6
    assert "${oc.env:PLYFOLD_URL}" in _unseen(trained, capfd)


class _Teacher(BaseHTTPRequestHandler):
    seen: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.seen.append(f"{self.path} {self.headers} {body}")
        answer = json.dumps({"choices": [{"message": {"content": "I do not know."}}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


def test_no_teacher_is_told_it(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_Teacher, "seen", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Teacher)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    asked = ["data", "rationales", *OWN, "-o", "out.jsonl", "--endpoint", f"http://127.0.0.1:{server.server_port}/v1",
             "--model", "teacher", "--attempts", "1", "--stage", "1"]  # fmt: skip
    for more in (["--dry-run"], []):
        assert run([*asked, *more]) == 0, capfd.readouterr().err
        assert "out.jsonl" in _unseen(trained, capfd)
    server.shutdown()
    assert len(_Teacher.seen) == 30
    assert CANARY not in "".join(_Teacher.seen)


def test_no_hub_is_told_it(hub: Hub, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for more in (["--dry-run"], []):
        assert run(["push", "acme/tiny", "--stages", "1", "--allow-dirty", *more]) == 0, capfd.readouterr().err
        assert "tiny-s01-structure" in _unseen(trained, capfd)
    assert any(each.method == "POST" for each in hub.log)
    assert not [each for each in hub.log if CANARY in f"{each} {each.headers}" or CANARY.encode() in (each.body or b"")]


def _planted(store: Store, text: str) -> Record:
    """The stage's record with a text of a stranger in the place of every text of its configuration."""

    def planted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: planted(item) for key, item in value.items()}
        if isinstance(value, list):
            return [planted(item) for item in value]
        return text if isinstance(value, str) else value

    record = store.stage("tiny", 1).record
    config = planted(record.recipe.config)
    config["curriculum"] = "tiny"
    data = [DataRef(**{**record.data[0].model_dump(), "id": text, "split": text})]
    recipe = record.recipe.model_copy(update={"config": config})
    return record.model_copy(update={"recipe": recipe, "data": data, "licence": text})


@pytest.mark.parametrize("text", ["${oc.env:PLYFOLD_NAME}", "${oc.decode:${oc.env:PLYFOLD_NAME}}", "${base.licence}"])
def test_a_strangers_record_learns_nothing(
    text: str, trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(trained / ".plyfold", tmp_path / ".plyfold", symlinks=True)
    shutil.copyfile(trained / "held-out.jsonl", tmp_path / "held-out.jsonl")
    monkeypatch.chdir(tmp_path)
    store = find_store()
    entry = store.stage("tiny", 1)
    store.set_ref("tiny", 1, store.publish(entry.path, _planted(store, text)))
    own, columns = str(trained / "own.yaml"), ("question", "answer", "rationale")
    readable = ["eval.protocol=zero-shot", "eval.engine=hf", *(f"eval.data.columns.{name}=answer" for name in columns)]
    for command, codes in (
        (["eval", "base", "--limit", "1"], {2, 3}),
        (
            ["eval", "base", "--limit", "1", "--data", "held-out.jsonl", *readable],
            {0},
        ),
        (["show", "1"], {0}),
        (["show", "1", "--json"], {0}),
        (["tree"], {0}),
        (["log", "1"], {0}),
        (["verify", "--deep", "--replay"], {0}),
        (["train", "-c", own, "--stages", "1", "--dry-run"], {0}),
        (["merge", "--stages", "1"], {0}),
        (["push", "acme/tiny", "--stages", "1", "--allow-dirty", "--dry-run"], {0, 6}),
    ):
        assert run(command) in codes, capfd.readouterr().err
        _unseen(tmp_path, capfd)
    assert text in json.dumps(config_dict_of(store))


def config_dict_of(store: Store) -> dict[str, Any]:
    """The configuration on record, as `eval` reads it."""
    from plyfold.core.config import build_config

    return config_dict(build_config(store.stage("tiny", 1).record.recipe.config))
