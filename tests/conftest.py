"""Fixtures that several rooms use, and `--require`, which turns skips for want of something into failures."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from .support.hub_server import HubServer

REPO, REVISION = "acme/tiny-qwen2", "0123456789abcdef0123456789abcdef01234567"
HIDDEN, INTERMEDIATE, KV, LAYERS = 64, 128, 32, 2
TINY_MODULES: dict[str, tuple[int, int]] = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(LAYERS)
    for name, shape in {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV, HIDDEN),
        "self_attn.v_proj": (KV, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }.items()
}
"""Module name -> (O, I) of the linear modules of `tiny_base`."""


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
REQUIRABLE = {
    "vllm": "vLLM is not installed",
    "data": "PLYFOLD_DATA",
    "browser": "no browser",
    "sign": "model-signing is not installed",
}
"""Name for `--require` -> words of the skips it forbids."""


if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would all that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help=f"fail instead of skipping for want of: {', '.join(REQUIRABLE)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module's tests stay on one worker, with its fixtures; slow modules come first, so that none is left at the end.

    Where a module is named by an `xdist_group` of its own, several share a worker: one vLLM runs at a time.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _required(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _required(collector.config, (yield))


def _required(config: pytest.Config, report: Report) -> Report:
    reasons = [REQUIRABLE[name] for name in config.getoption("--require").split(",") if name]
    if report.skipped and any(reason in str(report.longrepr) for reason in reasons):
        report.outcome, report.longrepr = "failed", f"skipped in spite of --require: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command sets or learns for its whole process, as loud as `-v` or what the environment holds, ends here."""
    from plyfold.core import environment
    from plyfold.core.console import set_verbosity, verbosity

    monkeypatch.setattr(environment, "_spellings", {})
    before = verbosity()
    yield
    set_verbosity(before)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Finds a file of real data by its name below the folder PLYFOLD_DATA; skips the test where it is not at hand."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("PLYFOLD_DATA", "no folder")) / name
        if not path.is_file():
            pytest.skip(f"{name} is not at hand: set PLYFOLD_DATA to the folder that holds it")
        return path

    return find


class TinyBase(Protocol):
    def __call__(self, *, seed: int = 0, dtype: str = "bfloat16", tie: bool = True) -> Path: ...


class MakeAdapter(Protocol):
    def __call__(
        self,
        folder: Path,
        *,
        modules: Mapping[str, tuple[int, int]] = ...,
        r: int = 4,
        alpha: float = 8,
        rslora: bool = False,
        rank_pattern: Mapping[str, int] = ...,
        alpha_pattern: Mapping[str, float] = ...,
        dtype: str = "float32",
        seed: int = 0,
        repo: str = REPO,
        revision: str | None = REVISION,
        **config: Any,
    ) -> Path: ...


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    """A factory of random 2-layer Qwen2 folders (hidden 64) with the sandbox's tokenizer; one folder per choice."""
    made: dict[tuple[int, str, bool], Path] = {}

    def make(*, seed: int = 0, dtype: str = "bfloat16", tie: bool = True) -> Path:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from plyfold.adapters.base.resolve import sandbox_folder

        if (seed, dtype, tie) in made:
            return made[seed, dtype, tie]
        path = tmp_path_factory.mktemp("base") / "tiny"
        sandbox = sandbox_folder()
        vocab_size = json.loads((sandbox / "config.json").read_text())["vocab_size"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Qwen2ForCausalLM(
                Qwen2Config(
                    vocab_size=vocab_size,
                    hidden_size=HIDDEN,
                    intermediate_size=INTERMEDIATE,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=2,  # head_dim 32, the smallest vLLM takes on a CPU
                    num_key_value_heads=1,
                    max_position_embeddings=512,
                    initializer_range=0.1,  # large enough for a bad weight to show in the logits
                    tie_word_embeddings=tie,
                )
            )
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
        model.to(getattr(torch, dtype)).save_pretrained(path)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copyfile(sandbox / file, path / file)
        made[seed, dtype, tie] = path
        return path

    return make


@pytest.fixture(scope="session")
def make_adapter() -> MakeAdapter:
    """A factory of random PEFT LoRA folders, written without PEFT or plyfold so that both can be tested on them."""

    def make(
        folder: Path,
        *,
        modules: Mapping[str, tuple[int, int]] = TINY_MODULES,
        r: int = 4,
        alpha: float = 8,
        rslora: bool = False,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        dtype: str = "float32",
        seed: int = 0,
        repo: str = REPO,
        revision: str | None = REVISION,
        **config: Any,
    ) -> Path:
        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, (out_features, in_features) in modules.items():
            matching = (value for key, value in (rank_pattern or {}).items() if re.fullmatch(rf"(.*\.)?({key})", name))
            rank = next(matching, r)
            for half, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
                tensor = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = tensor.to(getattr(torch, dtype))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        fields = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": repo,
            "revision": revision,
            "r": r,
            "lora_alpha": alpha,
            "use_rslora": rslora,
            "rank_pattern": dict(rank_pattern or {}),
            "alpha_pattern": dict(alpha_pattern or {}),
            "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
            "inference_mode": True,
            "bias": "none",
            **config,
        }
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        return folder

    return make


class MakeStore(Protocol):
    def __call__(
        self,
        root: Path,
        base: Path,
        *,
        stages: int = 3,
        compute_dtype: str = "float32",
        curriculum: str = "tiny",
        r: int = 4,
        revision: str = REVISION,
        seed: int = 0,
        **adapter: Any,
    ) -> Any: ...


@pytest.fixture(scope="session")
def make_store(make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """A factory of stores in which random adapters stand for the stages of a trained curriculum."""

    def make(
        root: Path,
        base: Path,
        *,
        stages: int = 3,
        compute_dtype: str = "float32",
        curriculum: str = "tiny",
        r: int = 4,
        revision: str = REVISION,
        seed: int = 0,
        **adapter: Any,
    ) -> Any:
        from plyfold.adapters.base.resolve import Quantisation
        from plyfold.adapters.tensors import tensor_digest
        from plyfold.registry.record import BaseRecord, Code, Record, StageId, Weights
        from plyfold.registry.store import find_store

        store = find_store(root, create=True)
        quantisation = Quantisation(compute_dtype=compute_dtype)
        for number in range(1, stages + 1):
            name = f"{curriculum}-{number}"
            folder = tmp_path_factory.mktemp("stage") / name
            make_adapter(folder, r=r, alpha=2 * r, seed=seed + number, revision=revision, **adapter)
            targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
            record = Record(
                kind="stage",
                curriculum=curriculum,
                stage=StageId(number=number, name=name),
                base=BaseRecord(repo=REPO, revision=revision, quantisation=quantisation.to_json()),
                code=Code(version="0"),
                weights=Weights(digest=tensor_digest(folder), dtype="float32", r=r, alpha=2 * r, targets=targets),
            )
            store.set_ref(curriculum, number, store.publish(folder, record))
        store.remember_base(REPO, revision, base)
        return store

    return make


class MakeRecord(Protocol):
    def __call__(self, stage: int | None = 1, name: str = "structure", parents: Any = (), **fields: Any) -> Any: ...


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """A factory of records of the curriculum `toy`, made without torch; stage None gives a merge."""

    def make(stage: int | None = 1, name: str = "structure", parents: Any = (), **fields: Any) -> Any:
        from plyfold.registry.record import BaseRecord, Code, Parent, Record, StageId, Weights

        role: Any = "active_during_training" if stage else "merge_input"
        return Record(
            **{
                "kind": "stage" if stage else "merge",
                "curriculum": "toy",
                "stage": StageId(number=stage, name=name) if stage else None,
                "base": BaseRecord(repo=REPO, revision=REVISION),
                "parents": [Parent(role=role, digest=digest) for digest in parents],
                "code": Code(version="0"),
                "weights": Weights(digest=f"sha256:{'0' * 64}", dtype="float32", r=4, alpha=8, targets=["q_proj"]),
                "created": "2026-01-02T03:04:05Z",
                **fields,
            }
        )

    return make


class Hub(HubServer):
    """A Hub on a local port, and how plyfold runs against it.

    Attributes:
        environment: The variables that send a process to this Hub with an empty Hugging Face home.
    """

    environment: dict[str, str]

    def run(self, arguments: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs `plyfold` in a process of its own; `environment` adds to or replaces what leads to this Hub."""
        code = "import sys; from plyfold.cli.main import run; sys.exit(run(sys.argv[1:]))"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        env = {**os.environ, **self.environment, **environment}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process and its children use, with an empty cache, until the test ends.

    The variables are set for children; in this process, where huggingface_hub may have read them already, its constants
    are set too. `huggingface_hub.HfApi()` made inside the test is sent here; the module's own functions may not be.
    """
    from huggingface_hub import close_session, constants

    home = tmp_path_factory.mktemp("hf")
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        server.environment = {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": server.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        close_session()  # an open one keeps the proxies of before
        yield server
    close_session()
