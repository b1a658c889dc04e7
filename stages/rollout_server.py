"""The vLLM server that a curriculum's completions can be drawn from, decided before it is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.base import BaseRef, Quantisation, ensure_twin, resolve_base, twin_path
from ..core.config import CurriculumConfig
from ..core.errors import ConfigError
from ..serving.options import runs_on_cpu, shell_line
from ..serving.rollouts import server_command
from .tasks import SUPERVISED


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
    """Variables set for vLLM beside the present ones."""

    @property
    def shell_command(self) -> str:
        """The exact command with its environment, to be pasted into a shell."""
        return shell_line(self.command, self.environment)

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
        only_show: It will not be started: a base is not downloaded for it.

    Raises:
        ConfigError: No stage that has completions drawn, or several GPUs on a machine without one.
        NotFoundError, IncompatibleError: As `resolve_base` and `server_command`.
    """
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
        base.path, twin, quantisation.compute_dtype, rank=sum(ranks), host=host, port=port,
        max_model_len=max_model_len, gpus=gpus,
    )  # fmt: skip
    return RolloutServer(
        base=base,
        quantisation=quantisation,
        twin=twin,
        rank=sum(ranks),
        url=f"http://{host}:{port}",
        command=tuple(command),
        environment=environment,
    )


def make_twin(server: RolloutServer, cache: Path) -> None:
    """Make the twin the server reads; what is there is kept."""
    ensure_twin(server.base, server.quantisation, cache)
