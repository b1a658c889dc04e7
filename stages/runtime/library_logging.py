"""The training libraries without their noise: what they log, warn and draw stays off the screen unless `-v` asks."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ...core.console import verbosity

LOGGERS = ("transformers", "trl", "accelerate", "peft", "datasets", "bitsandbytes.backends.cpu.ops")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries inside the block, and keep TRL from importing vLLM.

    TRL loads its vLLM client wherever vLLM is installed, which takes seconds and warns about versions. plyfold never
    uses that client: it would merge adapters into the quantised base.
    """
    with _without_vllm():
        if verbosity() > 0:
            yield
            return
        import datasets

        loggers = [logging.getLogger(name) for name in LOGGERS]
        levels = [logger.level for logger in loggers]
        bars = not datasets.are_progress_bars_disabled()
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            datasets.disable_progress_bars()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                datasets.enable_progress_bars()


@contextmanager
def _without_vllm() -> Iterator[None]:
    if "trl.trainer.grpo_trainer" in sys.modules:
        yield
        return
    import trl.import_utils as availability

    known = availability.is_vllm_available
    availability.is_vllm_available = lambda *_, **__: False
    try:
        yield
    finally:
        availability.is_vllm_available = known
