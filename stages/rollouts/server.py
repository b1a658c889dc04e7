"""The vLLM server that a curriculum's completions can be drawn from, decided before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...adapters.base.resolve import BaseRef, Quantisation, resolve_base
from ...adapters.base.twin import ensure_twin, twin_note, twin_path
from ...core.config import CurriculumConfig
from ...core.disk.digest import digest_json
from ...core.errors import ConfigError
from ...engines.vllm_options import runs_on_cpu
from ...serving.access import KEY_VARIABLE, api_key, check_reach, gateway_environment, server_url, shell_line
from ...serving.gateway import TWIN
from ..prompts.tasks import SUPERVISED
from .vllm_server import server_command


@dataclass(frozen=True, kw_only=True)
class RolloutServer:
    """A server that can be started."""

    base: BaseRef
    quantisation: Quantisation
    twin: Path
    """Folder of the dequantised base, made or not."""
    rank: int
    """Largest an adapter will have: the stages together, up to the last that has completions drawn."""
    url: str
    command: tuple[str, ...]
    environment: dict[str, str]
    """Variables set for vLLM beside the present ones; the key is not among them."""
    key: str | None = field(default=None, repr=False)
    """That the server asks for; never shown."""
    key_file: Path | None = None
    """Where it was read; null with a key is VLLM_API_KEY."""

    @property
    def secret(self) -> dict[str, str]:
        """The variable that hands the key on."""
        return {} if self.key is None else {KEY_VARIABLE: self.key}

    @property
    def shell_command(self) -> str:
        """The exact command with its environment, to be pasted into a shell."""
        return shell_line(self.command, self.environment, self.key_file)

    @property
    def overrides(self) -> str:
        """What `plyfold train` is told to use it."""
        return f"rollout.engine=http rollout.url={self.url}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "base": {"repo": self.base.repo, "revision": self.base.revision},
            "twin": str(self.twin),
            "rank": self.rank,
            "url": self.url,
            "key": None if self.key is None else str(self.key_file or KEY_VARIABLE),
            "overrides": self.overrides,
            "environment": self.environment,
            "command": list(self.command),
        }


def plan_rollout_server(
    config: CurriculumConfig,
    cache: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    max_model_len: int | None = None,
    gpus: int = 1,
    runs: Sequence[Path] = (Path("runs"),),
    key_file: Path | None = None,
    only_show: bool = False,
) -> RolloutServer:
    """Decide how the server is started, without making or starting anything.

    Args:
        config: The curriculum.
        cache: The registry's cache, for the twin.
        host: Address to listen on.
        port: TCP port.
        max_model_len: Longest prompt plus completion, in tokens; null takes the base's, on a CPU at most 4096.
        gpus: That share the model.
        runs: Folders of runs; adapters are read from below them alone.
        key_file: Holds the key that requests have to carry; null takes VLLM_API_KEY, and without one none is asked for.
        only_show: It will not be started: a base is not downloaded for it.

    Raises:
        ConfigError: No stage that has completions drawn, several GPUs on a machine without one, an address that others
            reach without a key, or a key that is none.
        NotFoundError, IncompatibleError: As `resolve_base` and `server_command`.
    """
    key = api_key(key_file)
    check_reach(host, key)
    drawing = [stage for stage in config.stages.values() if stage.task not in SUPERVISED]
    if not drawing:
        raise ConfigError("no stage of this curriculum has completions drawn", where=config.curriculum)
    if gpus > 1 and runs_on_cpu():
        raise ConfigError("several GPUs on a machine without one", found=gpus, expected="1")
    base, quantisation = resolve_base(config.base, local_only=only_show), Quantisation.of(config.base)
    last = max(stage.number for stage in drawing)
    ranks = [(stage.adapter or config.adapter).r for stage in config.stages.values() if stage.number <= last]
    twin = twin_path(base, quantisation, cache)
    command, environment = server_command(
        base.path, twin, quantisation.compute_dtype, rank=sum(ranks), host=host, port=port, runs=runs,
        max_model_len=max_model_len, gpus=gpus,
    )  # fmt: skip
    return RolloutServer(
        base=base,
        quantisation=quantisation,
        twin=twin,
        rank=sum(ranks),
        url=server_url(host, port),
        command=tuple(command),
        environment=environment | gateway_environment(key) | {TWIN: digest_json(twin_note(base, quantisation))},
        key=key,
        key_file=key_file,
    )


def make_twin(server: RolloutServer, cache: Path) -> None:
    """Make the twin the server reads; what is there is kept."""
    ensure_twin(server.base, server.quantisation, cache)
