"""Module by module on every core: worker threads of one torch thread each, results in order, few in flight.

Torch, reads and digests let other threads run, and one thread a module wastes less than many threads on a small one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
MAX_WORKERS = 8
AHEAD = 2
"""Results a worker may be ahead of their use."""


def num_workers() -> int:
    """Cores this process may run on, up to `MAX_WORKERS`."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def ordered(work: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
    """`work` of each name, in the order of the names; an error in one ends all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(num_workers(), initializer=torch.set_num_threads, initargs=(1,))
    pending: deque[Future[T]] = deque()
    try:
        for name in names:
            pending.append(pool.submit(work, name))
            if len(pending) > AHEAD * num_workers():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
