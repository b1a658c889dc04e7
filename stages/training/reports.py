"""A stage's run at Weights & Biases, which goes on with whatever run the process has open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments


@contextmanager
def own_report(arguments: TrainingArguments, project: str) -> Iterator[None]:
    """Let what is trained inside the block report to a W&B run of its own, as it does to the other reporters.

    A run that is open before is the caller's: it gets the numbers and stays open.

    Args:
        arguments: TRL's, of the stage.
        project: Name of the W&B project where WANDB_PROJECT names none.
    """
    if "wandb" not in arguments.report_to:
        yield
        return
    import wandb

    theirs, named = wandb.run is not None, "WANDB_PROJECT" in os.environ
    if not named:
        os.environ["WANDB_PROJECT"] = project
    failed = 1
    try:
        yield
        failed = 0
    finally:
        if not named:
            del os.environ["WANDB_PROJECT"]
        if wandb.run is not None and not theirs:
            wandb.finish(exit_code=failed)
