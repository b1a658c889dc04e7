"""Ctrl-C and SIGTERM while a stage trains: the step is finished and kept in a checkpoint, then the run stops.

Without it, up to `save_steps` steps are lost, and of a stage of a large base one takes minutes. A second signal stops
at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ...core.console import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Of a user, and of a scheduler that wants its machine back."""


class StopAfterStep(TrainerCallback):
    """Saves and stops at the end of the step a signal came in."""

    def __init__(self, cycle: int) -> None:
        """Stop only where `cycle` steps are complete: in between, a checkpoint cannot be resumed exactly."""
        self._cycle = cycle
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while a trainer trains.

        Raises:
            KeyboardInterrupt: At the end, if a signal came.
        """
        if threading.current_thread() is not threading.main_thread():  # no other may have handlers
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask(*_: Any) -> None:
            self._asked = True
            restore()
            warn("stops after this step, which is kept in a checkpoint; once more stops at once")

        for number in SIGNALS:
            signal.signal(number, ask)
        try:
            yield
        finally:
            restore()
        if self._asked:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint and for the end of training."""
        if self._asked and state.global_step % self._cycle == 0:
            control.should_save = control.should_training_stop = True
