"""The processes of one run. `accelerate launch` starts several: all of them train, the first does everything else.

Only the first plans, locks, writes, scores, publishes and speaks; the others wait for what it has to say. An error in
one of them ends all, by the launcher; that of the first is told once.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from ...core.console import warn
from ...core.errors import PlyfoldError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long the others wait: mining and scoring may take hours, and a dead first process is noticed at once."""
GRACE_S = 10.0
"""Seconds before another process than the first tells its error, most often the same one, or ends for the first's: the
launcher ends all as soon as one has ended, and the first has to be heard."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    control: Any = None
    """A process group apart from training's, on the CPU and patient."""

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes."""
        return self.rank == 0

    def on_first(self, act: Callable[[], T]) -> T:
        """Do something in the first process alone, and give its result to all; the others wait.

        Args:
            act: Its result is pickled where there are several processes.

        Raises:
            In the first process what `act` raises; in the others SystemExit with its exit code, without a word.
        """
        if self.count == 1:
            return act()
        if not self.is_first:
            done, value = self._exchange(None)
            if not done:
                time.sleep(GRACE_S)
                raise SystemExit(value)
            return value  # type: ignore[no-any-return]
        try:
            result = act()
        except BaseException as error:
            with suppress(RuntimeError):  # the others are gone already
                self._exchange((False, getattr(error, "exit_code", PlyfoldError.exit_code)))
            raise
        self._exchange((True, result))
        return result

    def gather(self, value: T) -> list[T]:
        """What every process has, in the order of their ranks; all of them have to ask."""
        if self.count == 1:
            return [value]
        from torch.distributed import all_gather_object

        values: list[Any] = [None] * self.count
        all_gather_object(values, value, group=self.control)
        return values

    @contextmanager
    def told_once(self) -> Iterator[None]:
        """Hold back an error of the others until the first has had time to tell its own."""
        try:
            yield
        except Exception:
            if not self.is_first:
                time.sleep(GRACE_S)
            raise

    def _exchange(self, value: Any) -> Any:
        from torch.distributed import broadcast_object_list

        said = [value]
        broadcast_object_list(said, src=0, group=self.control)
        return said[0]


@cache
def join() -> Processes:
    """This process among those that were launched; alone where none were.

    Several processes are joined through torch.distributed at the first call, so all have to make it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        if "MASTER_PORT" in os.environ and "ACCELERATE_USE_CPU" in os.environ and "RANK" not in os.environ:
            warn("accelerate started one process only: on CPUs, several need --multi_gpu in the place of --cpu")
        return Processes()
    import torch
    from accelerate import PartialState
    from torch import distributed

    PartialState(cpu=not torch.cuda.is_available())
    control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    atexit.register(_leave)
    return Processes(rank=distributed.get_rank(), count=distributed.get_world_size(), control=control)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        with suppress(RuntimeError):
            distributed.destroy_process_group()
