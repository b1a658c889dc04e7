"""A vLLM server for rollouts: the twin of a base, adapters loaded and unloaded over HTTP while it runs.

Whoever reaches such a server, with its key where it has one, can make it read adapters below the folders of runs it was
told of; a server for anybody else is `serving.launch`, which takes no adapters over HTTP.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...core.console import say
from ...core.errors import FailedError
from ...core.interrupts import INTERRUPTED
from ...engines.processes import DRAIN_S, POLL_S, Watch, launched, sigterm_interrupts
from ...engines.vllm_options import engine_options
from ...serving.access import gateway_flags
from ...serving.gateway import RUNS
from ...variants import BASE

SLOTS = 2
"""LoRA slots: the version that is sampled from, and the next one while it comes."""


def server_command(
    model: Path,
    twin: Path,
    dtype: str,
    *,
    rank: int,
    host: str = "127.0.0.1",
    port: int = 8001,
    runs: Sequence[Path] = (Path("runs"),),
    max_model_len: int | None = None,
    gpus: int = 1,
) -> tuple[list[str], dict[str, str]]:
    """The command that starts the server, and the variables that go with it.

    Args:
        model: Folder of the base, or of its twin, for the config.
        twin: Folder of the dequantised base, which need not be made yet.
        dtype: Its dtype.
        rank: Largest an adapter will have.
        host: Address to listen on.
        port: TCP port.
        runs: Folders of runs; adapters are read from below them alone.
        max_model_len: Longest prompt plus completion, in tokens; null takes the base's, on a CPU at most 4096.
        gpus: That share the model.

    Raises:
        NotFoundError: vLLM is not installed; the command that installs it is named.
        IncompatibleError: A rank above vLLM's largest, or attention heads its CPU kernels lack.
        ConfigError: `max_model_len` does not fit the base.
    """
    options = engine_options(model, dtype, [rank] * SLOTS, max_model_len=max_model_len)
    command = [sys.executable, "-m", "plyfold.engines.vllm_main", "serve", str(twin), "--host", host]
    command += ["--port", str(port), "--served-model-name", BASE, "--shutdown-timeout", str(DRAIN_S)]
    command += [*options.flags(), *gateway_flags("RolloutGateway")]
    command += ["--logprobs-mode", "processed_logprobs"]  # of the distribution that was sampled from
    if gpus > 1:
        command += ["--tensor-parallel-size", str(gpus)]
    allowed = os.pathsep.join(str(folder.resolve()) for folder in runs)
    return command, options.environment() | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", RUNS: allowed}


def run_rollout_server(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start the server, its messages on this terminal, and stay until it ends; Ctrl-C and SIGTERM stop all of it.

    Returns:
        130 when interrupted.

    Raises:
        FailedError: vLLM ended by itself, or lost one of its processes.
    """
    with sigterm_interrupts(), launched(command, environment, stdout=sys.stderr, stderr=None) as server:
        watch = Watch(server)
        try:
            while not (lost := watch.lost()):
                watch.look()
                time.sleep(2 * POLL_S)
        except KeyboardInterrupt:
            say("stopping …")
            return INTERRUPTED
    raise FailedError(lost, next_step="see vLLM's messages above")
