"""The plug-in vLLM loads in each of its processes (entry point group `vllm.general_plugins`)."""

from __future__ import annotations

import logging

from .processes import follow_parent

logger = logging.getLogger("vllm.plyfold")


def register() -> None:
    """Let engines and workers end with whoever started them, and mend CPU LoRA where this vLLM has it wrong.

    They wait for work on a queue and would hold their memory for good after their parent was killed.
    vLLM calls this in every process, also for servers that have nothing to do with plyfold, and an exception would
    stop them: whatever fails here is logged and leaves vLLM as it is. Servers that plyfold launches keep a spare LoRA
    slot empty, which alone keeps base rows right.
    """
    try:
        follow_parent()
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        from .cpu_lora import install

        logger.info("plyfold: %s", install())
    except Exception as error:  # a later vLLM may have moved what the self-test touches
        logger.warning("plyfold: CPU LoRA was not checked: %s: %s", type(error).__name__, error)
