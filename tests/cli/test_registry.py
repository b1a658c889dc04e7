"""`tree`, `log`, `show` and `verify`: what they print, their JSON and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.registry.lineage.scores import attest_scores
from plyfold.registry.record import Metric
from plyfold.registry.store import Store, find_store


@pytest.fixture
def store(tmp_path: Path, make_record: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    store = find_store(create=True)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    parents: list[str] = []
    for number, name in enumerate(("structure", "brevity"), start=1):
        parents.append(store.publish(folder, make_record(number, name, parents)))
        store.set_ref("toy", number, parents[-1])
    metrics = [
        Metric(name="accuracy", value=0.625, n=400, ci95=(0.576, 0.671)),
        Metric(name="tokens", value=41.25, n=400),
    ]
    attest_scores(store, "toy", [1, 2], metrics)
    return store


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == code
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == 1
    return dict(value)


def test_tree_draws_stages_scores_and_marks(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    two = store.ref("toy", 2)
    assert [line.lstrip(" └─├│").split("  ")[0] for line in lines] == [
        "toy",
        "acme/tiny-qwen2",
        "1 structure",
        "2 brevity",
    ]
    assert two[7:19] in lines[3]
    assert two[7:20] not in lines[3]
    assert "as 1+2: 62.5 % [57.6, 67.1] (n=400)  41.2 tokens" in lines[3]
    (store.load(two).path / "surprise").write_text("")
    assert run(["tree", "toy"]) == 0
    assert "surprise is not in the record" in " ".join(capsys.readouterr().out.split())


def test_tree_json_names_whole_digests(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    base = json_of(["tree"], capsys)["curricula"][0]["children"][0]
    assert base["kind"] == "base"
    assert base["children"][0]["digest"] == store.ref("toy", 1)
    second = base["children"][0]["children"][0]
    assert second["stage"] == {"number": 2, "name": "brevity"}
    assert second["metrics"][0]["value"] == 0.625


def test_log_lists_the_chain(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    digests = [store.ref("toy", 2), store.ref("toy", 1)]
    assert [link["digest"] for link in json_of(["log"], capsys)["chain"]] == digests
    assert [link["digest"] for link in json_of(["log", "structure"], capsys)["chain"]] == digests[1:]
    assert run(["log", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("toy 2 brevity") < shown.index("toy 1 structure")


def test_show_prints_the_record(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    digest = store.ref("toy", 2)
    value = json_of(["show", "brevity"], capsys)
    assert (value["digest"], value["record"]) == (digest, store.load(digest).record.to_json())
    assert value["attestations"][0]["payload"]["variant"] == "1+2"
    assert run(["show", digest[:20]]) == 0
    shown = capsys.readouterr().out
    for part in (digest, "acme/tiny-qwen2@", store.ref("toy", 1), "adapter_config.json", "variant 1+2"):
        assert part in shown


def test_show_verifies_before_it_prints(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (store.stage("toy", 2).path / "surprise").write_text("")
    assert run(["show", "2"]) == 4
    output = capsys.readouterr()
    assert not output.out
    assert "error[integrity]" in output.err


def test_verify_ends_with_4_and_names_the_fault(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert json_of(["verify"], capsys)["ok"] is True
    (store.stage("toy", 2).path / "surprise").write_text("")
    value = json_of(["verify"], capsys, code=4)
    assert value["ok"] is False
    assert [check["problems"][0]["path"] for check in value["checks"] if not check["ok"]] == ["surprise"]
    assert run(["verify"]) == 4
    output = capsys.readouterr()
    assert "surprise is not in the record" in output.out
    assert "1 of 2 checks failed" in output.err


def test_what_is_not_there_ends_with_3(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["show", "7"], ["log", "nope"], ["tree", "joy"], ["tree", "--registry", str(tmp_path / "none")]):
        assert run(arguments) == 3, arguments
        error = capsys.readouterr().err
        assert "next " in error
        assert "Traceback" not in error
    find_store(tmp_path / "empty", create=True)
    assert run(["tree", "--registry", str(tmp_path / "empty")]) == 3
    assert run(["log", "--registry", str(tmp_path / "empty")]) == 3
    assert run(["verify", "--registry", str(tmp_path / "empty")]) == 0


def test_no_command_of_the_registry_loads_torch(store: Store) -> None:
    code = (
        "import sys\nfrom plyfold.cli.main import run\n"
        "for command in (['tree'], ['log'], ['show', '1'], ['verify']):\n"
        "    assert run([*command, '--registry', sys.argv[1]]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
