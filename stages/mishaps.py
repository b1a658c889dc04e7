"""What ends training from outside, told with the step it stopped at and what to do: no memory left, a lost process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.errors import FailedError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from .recorder import RunRecorder

_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")


@contextmanager
def clear_mishaps(where: str, recorder: RunRecorder, arguments: TrainingArguments) -> Iterator[None]:
    """Turn running out of memory, and losing another process, into one clear error.

    Args:
        where: Number and name of the stage.
        recorder: Knows the steps done.
        arguments: TRL's; what is said about the batch is theirs.

    Raises:
        FailedError: Either happened. The checkpoints before are sound.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(f"{where}, step {recorder.step + 1}", arguments, error) from error
    except RuntimeError as error:
        if "not enough memory" in str(error):  # of torch's CPU allocator
            raise out_of_memory(f"{where}, step {recorder.step + 1}", arguments, error) from error
        if arguments.world_size > 1 and _lost(error):
            raise FailedError(
                "another process of this run has ended",
                where=f"{where}, step {recorder.step + 1}",
                next_step="see what that process said; the same command continues from the last checkpoint",
            ) from error
        raise


def _lost(error: RuntimeError) -> bool:
    return not isinstance(error, FailedError) and any(sign in str(error) for sign in _LOST)


def out_of_memory(where: str, arguments: TrainingArguments, error: BaseException) -> FailedError:
    """The error of a stage that does not fit, with what would make it smaller."""
    batch, times = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    ways = []
    if batch > 1:
        ways.append(f"trainer.per_device_train_batch_size={batch // 2} trainer.gradient_accumulation_steps={2 * times}")
    if not arguments.gradient_checkpointing:
        ways.append("trainer.gradient_checkpointing=true")
    limit = "max_completion_length" if hasattr(arguments, "num_generations") else "max_length"
    return FailedError(
        "out of memory",
        where=where,
        found=str(error).strip().split("\n")[0][:300] or type(error).__name__,
        next_step=f"{', '.join(ways) or f'a smaller trainer.{limit}'}; plyfold train --dry-run estimates what a stage "
        "needs. With the same settings the run continues from its last checkpoint, with others it starts afresh and "
        "keeps this one aside",
    )
