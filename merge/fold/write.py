"""The tensors of a fold, computed and written by a few threads in buffers that fit the processor's caches.

A thread takes whole tensors, largest first, since a digest is taken of a tensor from its first byte to its last. Two
threads a core: while one waits for the disk, another computes. Memory is a few buffers and one module's factors a
thread, whatever the size of the model.

Shapes: N rows of a block, O out_features, I in_features, R stacked rank.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor

from ...core.errors import FailedError
from ..compose.prepare import Prepared
from ..module_pool import num_workers
from .checkpoint import FLOATS, BaseReader
from .direct import ALIGNMENT, OutputFile
from .journal import Staging
from .loss import LossMeter, ModuleFold
from .plan import FoldPlan, OutTensor, ShardLayout

CHECKSUM_PREFIX = "xxh3:"
"""XXH3, 128 bit: tells torn and stale bytes from right ones, not a forger's; sha256 would take a fifth of the time."""
BLOCK_ELEMENTS = 1 << 19
"""Elements a thread works on at once: 1 MB in 16 bit, 2 MB of float32 sums."""
THREADS_PER_CORE = 2


class WrittenTensor(NamedTuple):
    """One finished tensor."""

    tensor: OutTensor
    digest: str
    """XXH3 of its bytes."""
    fold: ModuleFold | None
    """For a tensor that a delta was added to."""
    resumed: bool
    """Whether an earlier run had written it."""


def write_tensors(
    plan: FoldPlan,
    prepared: Prepared,
    base: BaseReader,
    staging: Staging,
    *,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> list[WrittenTensor]:
    """Write every tensor of a fold into the staging folder and note each in its journal.

    Tensors that the journal knows are digested, and written again only where the bytes are not what it says.

    Args:
        plan: From `plan_fold`.
        prepared: The composition to add, in float32.
        base: Of `plan.base`.
        staging: Folder and journal.
        advance: Called in this thread with the bytes finished since the last call.

    Raises:
        FailedError: A sum leaves the range of the output dtype.
        IntegrityError: The base or an adapter has changed.
        OSError: No room.
    """
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        files: dict[str, tuple[OutputFile, ShardLayout]] = {}
        for name, layout in plan.layouts().items():
            file = stack.enter_context(OutputFile(staging.folder / name, layout.num_bytes))
            files[name] = file, layout
        for file, layout in files.values():  # after every file has its space
            file.write(0, layout.header)
        writer = _Writer(plan, prepared, base, files, staging.journal.finished)
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(THREADS_PER_CORE * num_workers(), initializer=torch.set_num_threads, initargs=(1,))
        tasks = [(file, tensor) for file, tensors in plan.shards.items() for tensor in tensors]
        tasks.sort(key=lambda task: -task[1].num_bytes)
        written = []
        try:
            for done in as_completed([pool.submit(writer.write, *task) for task in tasks]):
                one = done.result()
                if not one.resumed:
                    staging.journal.record(_entry(one))
                written.append(one)
                advance(one.tensor.num_bytes)
        finally:
            writer.stop.set()
            pool.shutdown(cancel_futures=True)
        for file, _ in files.values():
            file.flush()
    return written


def _entry(one: WrittenTensor) -> dict[str, Any]:
    return {"name": one.tensor.name, "xxh3": one.digest, "fold": asdict(one.fold) if one.fold else None}


class _Buffers(threading.local):
    """Memory that a thread uses for all its tensors: fresh memory costs more than the arithmetic done in it."""

    def __init__(self, elements: int) -> None:
        self.source = _aligned(4 * elements)
        self.sum = _aligned(4 * elements).view(torch.float32)
        self.out = _aligned(4 * elements + ALIGNMENT)


def _aligned(num_bytes: int) -> Tensor:
    memory = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8)
    shift = -memory.data_ptr() % ALIGNMENT
    return memory[shift : shift + num_bytes]


class _Writer:
    """Writes one tensor at a time; any number of threads may."""

    def __init__(
        self,
        plan: FoldPlan,
        prepared: Prepared,
        base: BaseReader,
        files: dict[str, tuple[OutputFile, ShardLayout]],
        finished: dict[str, dict[str, Any]],
    ) -> None:
        self._plan, self._prepared, self._base, self._files, self._finished = plan, prepared, base, files, finished
        widest = max((shape.in_features for shape in plan.compose.modules.values()), default=1)
        self._buffers = _Buffers(max(BLOCK_ELEMENTS, widest))
        self.stop = threading.Event()

    def write(self, file: str, tensor: OutTensor) -> WrittenTensor:
        """Compute, digest and write a tensor."""
        out, layout = self._files[file]
        position = layout.positions[tensor.name]
        entry = self._finished.get(tensor.name)
        if entry and self._digest(out, position, tensor.num_bytes) == entry["xxh3"]:
            return WrittenTensor(tensor, entry["xxh3"], ModuleFold(**entry["fold"]) if entry["fold"] else None, True)
        meter = LossMeter(tensor.module) if tensor.module is not None else None
        digest = xxhash.xxh3_128()
        for block in self._summed(tensor, position, meter) if meter else self._passed_on(tensor, position):
            data = block.view(torch.uint8).reshape(-1)
            view = data.numpy().data
            digest.update(view)
            out.write(position, view, data.data_ptr())
            position += len(view)
            if self.stop.is_set():
                raise FailedError("the fold was interrupted", where=tensor.name)
        fold = None
        if meter and tensor.module is not None:
            norm = self._prepared.certificate.modules[tensor.module].norm
            fold = meter.result(delta_norm=norm, num_rows=tensor.source.shape[0])
        return WrittenTensor(tensor, CHECKSUM_PREFIX + digest.hexdigest(), fold, False)

    def _summed(self, tensor: OutTensor, position: int, meter: LossMeter) -> Iterator[Tensor]:
        """Blocks of round(W + B A), (N, I)."""
        assert tensor.module is not None
        factors = self._prepared.factors(tensor.module)
        B_OR, A_RI = factors.B_OR.float(), factors.A_RI.float()
        num_rows, num_columns = tensor.source.shape
        dtype = FLOATS[tensor.dtype]
        row_bytes = num_columns * FLOATS[tensor.source.dtype].itemsize
        for start, count in _blocks(num_rows, num_columns, num_columns * dtype.itemsize):
            W_NI = self._source(tensor, start * row_bytes, count * row_bytes).view(count, num_columns)
            sum_NI = self._buffers.sum[: W_NI.numel()].view(count, num_columns)
            sum_NI.copy_(W_NI).addmm_(B_OR[start : start + count], A_RI)
            rounded_NI = self._out(position + start * num_columns * dtype.itemsize, W_NI.numel(), dtype)
            rounded_NI = rounded_NI.view(count, num_columns).copy_(sum_NI)
            _check_finite(rounded_NI, tensor)
            meter.add(sum_NI, rounded_NI, W_NI)
            yield rounded_NI

    def _passed_on(self, tensor: OutTensor, position: int) -> Iterator[Tensor]:
        """Blocks of the base's bytes, or of its numbers in another dtype."""
        source = tensor.source
        if tensor.dtype == source.dtype:
            num_bytes = source.stop - source.start
            for start, count in _blocks(num_bytes, 1, 1, 2 * BLOCK_ELEMENTS):
                block = self._out(position + start, count, torch.uint8)
                self._base.read_into(tensor.source_file, source.start + start, block.numpy().data)
                yield block
            return
        wide, dtype = FLOATS[source.dtype].itemsize, FLOATS[tensor.dtype]
        for start, count in _blocks(math.prod(source.shape), 1, dtype.itemsize):
            block = self._source(tensor, start * wide, count * wide)
            rounded = self._out(position + start * dtype.itemsize, count, dtype).copy_(block)
            _check_finite(rounded, tensor)
            yield rounded

    def _source(self, tensor: OutTensor, start: int, num_bytes: int) -> Tensor:
        """Bytes of the base's tensor, as its dtype, flat."""
        data = self._buffers.source[:num_bytes]
        self._base.read_into(tensor.source_file, tensor.source.start + start, data.numpy().data)
        return data.view(FLOATS[tensor.source.dtype])

    def _out(self, position: int, count: int, dtype: torch.dtype) -> Tensor:
        """Memory for what goes to `position`, as far from a page's start as that is, so that it can go directly."""
        shift = position % ALIGNMENT
        if shift % dtype.itemsize:
            shift = 0
        return self._buffers.out[shift : shift + count * dtype.itemsize].view(dtype)

    def _digest(self, out: OutputFile, position: int, num_bytes: int) -> str:
        digest = xxhash.xxh3_128()
        for start, count in _blocks(num_bytes, 1, 1, 2 * BLOCK_ELEMENTS):
            view = self._buffers.out[:count].numpy().data
            out.read_into(position + start, view)
            digest.update(view)
        return CHECKSUM_PREFIX + digest.hexdigest()


def _blocks(num_rows: int, row_elements: int, row_bytes: int, elements: int | None = None) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each block; whole pages of output where rows allow it."""
    step = max(1, (elements or BLOCK_ELEMENTS) // row_elements)
    pages = ALIGNMENT // math.gcd(ALIGNMENT, row_bytes)
    step -= step % pages if step > pages else 0
    for start in range(0, num_rows, step):
        yield start, min(step, num_rows - start)


def _check_finite(block: Tensor, tensor: OutTensor) -> None:
    if not block.numel():
        return
    low, high = torch.aminmax(block)  # NaN carries through; many times faster than isfinite of all
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise FailedError(
            "a weight of the result is not finite",
            where=tensor.name,
            found=f"beyond {torch.finfo(block.dtype).max:g}, or NaN in the base",
            next_step="fold with --dtype bf16 or fp32, whose range is wider" if tensor.dtype == "F16" else "",
        )
