"""Ctrl-C before anything has begun: a line and exit code 130, where Python would show where an import stood."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def end_quietly() -> None:
    """From now on until `allow_interrupts`, Ctrl-C ends this process at once.

    Not where Ctrl-C is ignored (`nohup`), nor in a process that multiprocessing has spawned: it imports the command's
    script again, and its parent ends it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and "multiprocessing.spawn" not in sys.modules:
        signal.signal(signal.SIGINT, _end)


def allow_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: there is something to close."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
