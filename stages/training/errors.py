"""What torch ends training with, told with the step it stopped at and what to do: no memory, no number, no peer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...core.errors import FailedError, PlyfoldError, first_line, ran_out_of_memory

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from .recorder import RunRecorder

GENERATING = "while completions were generated"
"""Note on an error: there the batch of a step is not what has to be smaller."""
_NOT_FINITE = ("probability tensor contains either", "device-side assert")
"""What sampling from logits with a NaN says on a CPU and on a GPU."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")


@contextmanager
def translate_training_errors(
    number: int, name: str, recorder: RunRecorder, arguments: TrainingArguments
) -> Iterator[None]:
    """Turn what torch says of no memory, of numbers that blew up and of a lost process into one clear error each.

    Args:
        number: Of the stage.
        name: Of the stage.
        recorder: Knows the steps done.
        arguments: TRL's; what is said about the batch is theirs.

    Raises:
        FailedError: One of them happened. The checkpoints before are sound.
    """
    from .recorder import not_finite

    where = f"stage {number} {name}"
    try:
        yield
    except PlyfoldError as error:
        if error.where.startswith("step "):
            error.where = f"{where}, {error.where}"
        raise
    except (RuntimeError, MemoryError) as error:
        at, said = f"{where}, step {recorder.step + 1}", str(error)
        if ran_out_of_memory(error):
            raise out_of_memory(at, name, arguments, error) from error
        if _says(said, _NOT_FINITE):
            raise not_finite("distribution that completions are sampled from", at, first_line(error)) from error
        if arguments.world_size > 1 and _says(said, _LOST):
            raise FailedError(
                "another process of this run has ended",
                where=at,
                next_step="see what that process said; the same command continues from the last checkpoint",
            ) from error
        raise


@contextmanager
def translate_loading_errors(number: int, name: str) -> Iterator[None]:
    """The same of the base with its adapters, before anything is computed.

    Raises:
        FailedError: It does not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise FailedError(
            "out of memory",
            where=f"stage {number} {name}, as its base was loaded",
            found=first_line(error)[:300],
            next_step="free the device of what else it holds; plyfold train --dry-run estimates what a stage needs",
        ) from error


@contextmanager
def translate_sampling_errors(number: int, name: str) -> Iterator[None]:
    """The same for mining, and for what is measured before and after training.

    Args:
        number: Of the stage.
        name: Of the stage.

    Raises:
        FailedError: No memory, or numbers that blew up. What was drawn is kept.
    """
    from .recorder import not_finite

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        at, mining = f"stage {number} {name}, its mining", f"stages.{name}.mining"
        if ran_out_of_memory(error):
            raise FailedError(
                "out of memory",
                where=at,
                found=first_line(error)[:300],
                next_step=f"a smaller {mining}.max_new_tokens, which mines anew; or {mining}.unaided_samples=0, where "
                "only the measurement before or after training does not fit",
            ) from error
        if _says(str(error), _NOT_FINITE):
            raise not_finite("distribution that samples are drawn from", at, first_line(error)) from error
        raise


def _says(text: str, signs: tuple[str, ...]) -> bool:
    return any(sign in text for sign in signs)


def out_of_memory(where: str, name: str, arguments: TrainingArguments, error: BaseException) -> FailedError:
    """The error of a stage that does not fit, with what would make it smaller."""
    batch, times = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    trainer = f"stages.{name}.trainer"
    limit = "max_completion_length" if hasattr(arguments, "num_generations") else "max_length"
    ways = []
    if GENERATING in getattr(error, "__notes__", ()):
        ways.append(
            f"a smaller {trainer}.generation_batch_size (now {arguments.generation_batch_size} completions, all drawn "
            f"at once), of which {trainer}.num_generations={arguments.num_generations} are the fewest; or a smaller "
            f"{trainer}.{limit}"
        )
    else:
        if batch > 1:
            smaller = f"{trainer}.per_device_train_batch_size={batch // 2}"
            ways.append(f"{smaller} {trainer}.gradient_accumulation_steps={2 * times}")
        if not arguments.gradient_checkpointing:
            ways.append(f"{trainer}.gradient_checkpointing=true")
    return FailedError(
        "out of memory",
        where=where,
        found=first_line(error)[:300],
        next_step=f"{', '.join(ways) or f'a smaller {trainer}.{limit}'}; plyfold train --dry-run estimates what a "
        "stage needs. With another batch or length the run starts afresh and keeps this one aside, else it continues "
        "from its last checkpoint",
    )
