"""A base while it is folded into: which one it is, and any part of its weights read on demand.

Shapes: O rows, I columns of a weight.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ...adapters.base.checkpoint import Checkpoint
from ...adapters.base.resolve import accompanying, content_revision, folder_identity
from ...adapters.header import TensorEntry, file_stamp
from ...adapters.hub import is_local
from ...adapters.placement import Placement
from ...core.errors import IncompatibleError, IntegrityError

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the dtypes a weight may be summed in."""
SAMPLED_RUNS, RUN_ROWS = 8, 4
"""How a weight is sampled: runs of rows, each from its own stretch of the weight."""


def other_identity(checkpoint: Checkpoint, repo: str, revision: str | None) -> str:
    """What a folder says itself that it is, where that is another base: a twin, or a snapshot in a Hub cache.

    Args:
        checkpoint: The folder.
        repo: What the adapters call their base; a local folder or nothing says nothing.
        revision: Commit they name, if any.

    Returns:
        `org/model@revision`; empty where the folder is that base or does not tell.
    """
    found = folder_identity(checkpoint.path)
    if found is None or is_local(repo) or not repo:
        return ""
    own_repo, own_revision = found
    other_revision = revision is not None and own_revision != revision and revision != "main"
    if own_repo != repo or (other_revision and content_revision(checkpoint.path) != revision):
        return f"{own_repo}@{own_revision}"
    return ""


class BaseReader:
    """Reads bytes of a checkpoint's files at their places; any number of threads may.

    Args:
        checkpoint: As `open_checkpoint` gave it; its files must not change from then on.

    Raises:
        IntegrityError: A file has changed since its header was read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files = {file: os.open(checkpoint.path / file, os.O_RDONLY) for file in checkpoint.shards}
        try:
            self.check_unchanged()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BaseReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def check_unchanged(self) -> None:
        """Make sure that the files are those whose headers were read, under their names too.

        Raises:
            IntegrityError: One is not.
        """
        for file, descriptor in self._files.items():
            path, expected = self._checkpoint.path / file, self._checkpoint.shards[file].stamp
            if not file_stamp(os.fstat(descriptor)) == expected == file_stamp(os.stat(path)):
                raise IntegrityError("the base changed while it was read", where=path, next_step="start again")

    def read_into(self, file: str, start: int, data: memoryview) -> None:
        """Fill `data` with the bytes of a file from `start`; read, not mapped, as a file cut short would kill a map.

        Raises:
            IntegrityError: The file has become shorter since its header was read.
        """
        done = 0
        while done < len(data):
            count = os.preadv(self._files[file], [data[done:]], start + done)
            if not count:
                raise IntegrityError("the file ended inside a tensor", where=self._checkpoint.path / file)
            done += count

    def rows(self, file: str, entry: TensorEntry, start: int, count: int) -> Tensor:
        """Rows [start, start + count) of a weight (O, I): (count, I) in its dtype."""
        dtype = FLOATS[entry.dtype]
        row_bytes = entry.shape[1] * dtype.itemsize
        data = bytearray(count * row_bytes)
        self.read_into(file, entry.start + start * row_bytes, memoryview(data))
        return torch.frombuffer(data, dtype=dtype).reshape(count, entry.shape[1])


def sample_rows(name: str, num_rows: int) -> list[tuple[int, int]]:
    """Runs of rows, (first, count), that stand for all of a weight: `SAMPLED_RUNS` of `RUN_ROWS`, spread evenly.

    Seeded by the name. Every row where the weight has no more than that.
    """
    if num_rows <= SAMPLED_RUNS * RUN_ROWS:
        return [(0, num_rows)]
    draw = random.Random(name)
    bounds = [num_rows * run // SAMPLED_RUNS for run in range(SAMPLED_RUNS + 1)]
    return [(draw.randint(start, stop - RUN_ROWS), RUN_ROWS) for start, stop in pairwise(bounds)]


def weight_norms(checkpoint: Checkpoint, modules: Iterable[str]) -> dict[str, float]:
    """|W|, Frobenius, of each module's weight that the checkpoint holds as a plain float matrix.

    Estimated from `sample_rows` for weights with more rows than that: to 1 % or so where rows do not differ much in
    length, from a hundredth of the reading.
    """
    norms = {}
    placement = Placement(checkpoint)
    with BaseReader(checkpoint) as base:
        for name in modules:
            try:
                _, _, file, entry, _ = placement.of(name)
            except IncompatibleError:
                continue
            if entry.dtype not in FLOATS or len(entry.shape) != 2:
                continue
            runs = sample_rows(name, entry.shape[0])
            squares = [float(base.rows(file, entry, *run).double().square().sum()) for run in runs]
            norms[name] = math.sqrt(sum(squares) * entry.shape[0] / max(1, sum(count for _, count in runs)))
    return norms


def copy_other_files(source: Path, target: Path) -> None:
    """Copy what belongs to a checkpoint beside its weights and its config, as bytes."""
    belonging, _ = accompanying(source)
    for path in belonging:
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
