"""Deltas as row blocks: what acts on every entry of an O x I matrix, without ever holding one.

Blocks are float32 and small enough for the processor's cache, where products and element-wise passes run several times
faster than through memory. Buffers are reused: a block is valid until the next one is asked for.

Shapes: O out_features, I in_features, R rank of one part, T rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .result import Delta
from .ties_election import average_agreeing

BLOCK_ELEMENTS = 1 << 17
"""Entries of one block: 512 KB, of which n parts need n + 3."""
HIGH_BITS, LOW_BITS = 16, 15
"""Of the 31 bits of a float32 magnitude, which are in the order of the magnitudes."""

Thin = Callable[[slice, Tensor], Tensor]
"""Zeroes entries of one part's block in place; the rows say which."""


class DeltaRows:
    """One unweighted delta, D_OI = B_OR @ A_RI.

    Args:
        delta: The part.
        factor: Multiplies it.
    """

    def __init__(self, delta: Delta, factor: float = 1.0) -> None:
        self.B_OR = (delta.B_OR * factor).float()
        self.A_RI = delta.A_RI.float()
        self.shape = (self.B_OR.shape[0], self.A_RI.shape[1])

    def empty_block(self) -> Tensor:
        """Room for the largest block."""
        num_out, num_in = self.shape
        return torch.empty(min(num_out, max(1, BLOCK_ELEMENTS // num_in)), num_in)

    def fill(self, rows: slice, block_TI: Tensor) -> Tensor:
        """The block of these rows, in the buffer given."""
        return torch.mm(self.B_OR[rows], self.A_RI, out=block_TI)

    def blocks(self) -> Iterator[Tensor]:
        """All of D, block by block in one buffer."""
        room_TI = self.empty_block()
        for rows in row_slices(self.shape[0], room_TI.shape[0]):
            yield self.fill(rows, room_TI[: rows.stop - rows.start])


class MergedRows:
    """A merge of deltas, entry by entry: T = sum_k w_k thin_k(D_k), or the average of those whose signs agree.

    Args:
        deltas: At least one.
        weights: One per delta.
        thin: One per delta; None leaves it whole.
        elect: Elect signs and average, as `election.average_agreeing`, rather than sum.
    """

    def __init__(
        self, deltas: Sequence[DeltaRows], weights: Sequence[float], thin: Sequence[Thin | None], *, elect: bool
    ) -> None:
        self.deltas, self.weights, self.thin, self.elect = deltas, weights, thin, elect
        self.shape = deltas[0].shape

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        rooms = [delta.empty_block() for delta in self.deltas]
        spare = [torch.empty_like(rooms[0]) for _ in range(3 if self.elect else 1)]
        for rows in row_slices(self.shape[0], rooms[0].shape[0]):
            height = rows.stop - rows.start
            blocks = [delta.fill(rows, room[:height]) for delta, room in zip(self.deltas, rooms, strict=True)]
            for block_TI, thin in zip(blocks, self.thin, strict=True):
                if thin:
                    thin(rows, block_TI)
            total_TI, *rest = (room[:height] for room in spare)
            if self.elect:
                yield rows, average_agreeing(blocks, self.weights, (total_TI, rest[0], rest[1]))
            else:
                torch.mul(blocks[0], self.weights[0], out=total_TI)
                for block_TI, weight in zip(blocks[1:], self.weights[1:], strict=True):
                    total_TI.add_(block_TI, alpha=weight)
                yield rows, total_TI


def row_slices(num_rows: int, height: int) -> Iterator[slice]:
    """Consecutive slices of at most `height` rows."""
    for start in range(0, num_rows, height):
        yield slice(start, min(start + height, num_rows))


def kth_magnitude(delta: DeltaRows, k: int) -> float:
    """The k-th largest |entry| of a delta, exactly, in two passes and constant memory.

    The bits of a float32 magnitude, read as an integer, are in the order of the magnitudes: a histogram over their
    upper 16 finds the bin that holds the k-th, and one over the lower 15 of the entries in that bin finds it.

    Args:
        delta: Of at least k entries.
        k: From 1.
    """
    high = torch.zeros(1 << HIGH_BITS, dtype=torch.int64)
    for block_TI in delta.blocks():
        high += torch.bincount((_magnitude_bits(block_TI) >> LOW_BITS).flatten(), minlength=len(high))
    upper, above = _bin_of(high, k)
    low = torch.zeros(1 << LOW_BITS, dtype=torch.int64)
    for block_TI in delta.blocks():
        bits = _magnitude_bits(block_TI)
        low += torch.bincount(bits[(bits >> LOW_BITS) == upper] & (len(low) - 1), minlength=len(low))
    lower, _ = _bin_of(low, k - above)
    return float(torch.tensor((upper << LOW_BITS) | lower, dtype=torch.int32).view(torch.float32))


def _magnitude_bits(block_TI: Tensor) -> Tensor:
    return block_TI.abs_().view(torch.int32)


def _bin_of(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that the k-th largest falls into, and how many entries are in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    return len(counts) - 1 - position, int(from_top[position - 1]) if position else 0
