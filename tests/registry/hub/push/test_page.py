"""What the page of a repository tells to do is done, word for word, by somebody who has nothing but the page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.push.push import push
from plyfold.registry.record import Code, Parent
from plyfold.registry.store import Store, find_store

from ....conftest import Hub

pytestmark = pytest.mark.slow

CODE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def home(make_store: Any, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two stages of a real small model, the second trained on the first, and their merge."""
    monkeypatch.setattr("plyfold.variants.publish.describe_code", lambda: Code(version="0.1.0"))
    store: Store = make_store(tmp_path / "home", tiny_base(), stages=2, r=8)
    one, two = (store.load(digest) for digest in store.stages("tiny").values())
    record = two.record.model_copy(
        update={
            "parents": [Parent(role="active_during_training", digest=one.digest)],
            "requires": [one.digest],
            "files": [],
        }
    )
    folder = tmp_path / "second"
    folder.mkdir()
    for item in two.record.files:
        (folder / item.path).write_bytes((two.path / item.path).read_bytes())
    store.set_ref("tiny", 2, store.publish(folder, type(record).model_validate(record.to_json())))
    assert run(["merge", "--stages", "1,2", "--registry", str(store.root)]) == 0
    return store


def blocks(hub: Hub, repo: str) -> dict[str, list[str]]:
    """Language -> code of a page, in order."""
    found: dict[str, list[str]] = {}
    for language, code in CODE.findall(hub.store.read(repo, "main", "README.md").decode()):
        found.setdefault(language, []).append(code)
    return found


def test_every_line_of_the_pages_runs(
    hub: Hub, home: Store, client: HubClient, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (merge,) = home.merges("tiny").values()
    done = push(home, [merge], "acme", client=client)
    for each in done[1:]:
        here = tmp_path / each.repo.replace("/", "-")
        here.mkdir()
        monkeypatch.chdir(here)
        code = blocks(hub, each.repo)
        served = []
        for line in "".join(code["bash"]).replace("\\\n", "").splitlines():
            program, *arguments = shlex.split(line)
            if program == "vllm":
                served = arguments
            else:
                assert run(arguments) == 0, line
        store = find_store()
        assert each.digest in store.digests()
        assert set(home.stages("tiny").values()) <= set(store.digests())
        name, _, source = served[-1].partition("=")
        if each.stage:  # composed with what lies below it, as the line before said
            assert (Path(source) / "adapter_config.json").is_file()
            assert name == source == "tiny-s1.s2"
        else:
            assert source == each.repo
        rank = int(served[served.index("--max-lora-rank") + 1])
        assert rank == 16


LOAD = """
import sys, torch
from pathlib import Path
for path in sys.argv[2:]:
    scope = {}
    exec(Path(path).read_text(), scope)
    layer = dict(scope["model"].named_modules())["base_model.model." + sys.argv[1]]
    torch.save(sum(layer.get_delta_weight(name).float() for name in layer.active_adapters), path + ".pt")
"""


def test_the_python_of_both_pages_loads_the_same_model(
    hub: Hub, home: Store, client: HubClient, tiny_base: Any, tmp_path: Path
) -> None:
    """PEFT fetches from the Hub: stage 2 with stage 1 below it, and their merge, are each the sum of both updates."""
    import torch
    from safetensors.torch import load_file

    (merge,) = home.merges("tiny").values()
    paths = []
    for each in push(home, [merge], "acme", client=client)[1:]:
        (code,) = blocks(hub, each.repo)["python"]
        base = home.load(each.digest).record.base
        known = f'"{base.repo}", revision="{base.revision}"'
        assert known in code
        paths.append(tmp_path / f"{each.repo.replace('/', '-')}.py")
        paths[-1].write_text(code.replace(known, repr(str(tiny_base()))))
    module = "model.layers.0.self_attn.q_proj"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, module, *map(str, paths)],
        env={**os.environ, **hub.environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected: Any = 0
    for digest in home.stages("tiny").values():
        tensors = load_file(home.load(digest).path / "adapter_model.safetensors")
        A_RI, B_OR = (tensors[f"base_model.model.{module}.lora_{half}.weight"] for half in ("A", "B"))
        expected = expected + 2 * B_OR @ A_RI  # alpha is twice the rank
    assert expected.abs().max() > 0.5
    for path in paths:
        torch.testing.assert_close(torch.load(f"{path}.pt"), expected, rtol=0, atol=0.05)  # bf16
