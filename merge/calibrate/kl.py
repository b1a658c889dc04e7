"""How far two models' next-token distributions are apart on the same tokens, without holding both models.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ...core.disk.files import disk_errors, require_space
from ...core.errors import FailedError, ShapeMismatchError

BLOCK_ELEMENTS = 1 << 22
"""Logits compared at once: 32 MB in float64."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A model against a reference, over all tokens of the prompts."""

    kl: float
    """Mean over tokens of KL(reference || model), nats; a few tokens at which a model was torn make most of it."""
    median_kl: float
    """Of the token in the middle."""
    max_kl: float
    """Of the token where it is largest."""
    max_dlogit: float
    """Largest absolute difference of two logits."""
    top1: float
    """Share of tokens at which the model's first choice is a first choice of the reference; 16-bit logits often tie."""

    def to_json(self) -> dict[str, float]:
        """Plain JSON values."""
        return asdict(self)


class Meter:
    """Adds up the agreement of two models, batch by batch.

    Args:
        who: Name of the model that is compared, for errors.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._kl_N: list[Tensor] = []
        self._max_dlogit = 0.0
        self._same = 0

    def add(self, reference_NV: Tensor, model_NV: Tensor) -> None:
        """Compare the logits of the same tokens.

        Raises:
            ShapeMismatchError: Another vocabulary.
            FailedError: A logit is not finite.

        Numerics: float64 from the logits on; a KL below 1e-15 is rounding.
        """
        if reference_NV.shape != model_NV.shape:
            raise ShapeMismatchError(
                "the models have different vocabularies",
                where=self._who,
                expected=reference_NV.shape[1],
                found=model_NV.shape[1],
            )
        step = max(1, BLOCK_ELEMENTS // reference_NV.shape[1])
        for p_NV, q_NV in zip(_blocks(reference_NV, step), _blocks(model_NV, step), strict=True):
            p_NV, q_NV = p_NV.double(), q_NV.to(p_NV.device).double()
            largest = float((p_NV - q_NV).abs().max())
            if not math.isfinite(largest):
                raise FailedError("logits are not finite", where=self._who)
            log_p_NV, log_q_NV = p_NV.log_softmax(-1), q_NV.log_softmax(-1)
            kl_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1).clamp_min(0)
            self._kl_N.append(kl_N.cpu())
            self._max_dlogit = max(self._max_dlogit, largest)
            chosen_N = p_NV.gather(-1, q_NV.argmax(-1, keepdim=True))[:, 0]
            self._same += int((chosen_N == p_NV.amax(-1)).sum())

    def result(self) -> Agreement:
        """The agreement so far."""
        kl_N = torch.cat(self._kl_N)
        return Agreement(
            kl=float(kl_N.mean()),
            median_kl=float(kl_N.median()),
            max_kl=float(kl_N.max()),
            max_dlogit=self._max_dlogit,
            top1=self._same / len(kl_N),
        )


def _blocks(logits_NV: Tensor, step: int) -> list[Tensor]:
    return [logits_NV[start : start + step] for start in range(0, len(logits_NV), step)]


class LogitFile:
    """One model's logits of every batch, on disk until the next model has been loaded; gone when closed, or killed.

    Args:
        num_tokens: Of all batches, to refuse a full disk before the first byte.
        folder: Where; null takes the system's folder for temporary files.
    """

    def __init__(self, num_tokens: int, folder: Path | None = None) -> None:
        self._folder = Path(folder or tempfile.gettempdir())
        self._num_tokens = num_tokens
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115, closed by __exit__
        self._batches: list[tuple[torch.Size, torch.dtype, int]] = []

    def __enter__(self) -> LogitFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, logits_NV: Tensor) -> None:
        """Keep the next batch, in its dtype.

        Raises:
            DiskFullError: No room for all batches.
        """
        need_bytes = self._num_tokens * logits_NV.shape[1] * logits_NV.dtype.itemsize
        if not self._batches:
            require_space(self._folder, need_bytes)
        self._batches.append((logits_NV.shape, logits_NV.dtype, self._file.tell()))
        with disk_errors(self._folder, need_bytes):
            self._file.write(logits_NV.cpu().contiguous().view(torch.uint8).numpy().data)

    def get(self, batch: int) -> Tensor:
        """The logits of a batch, by its place, on the CPU."""
        shape, dtype, start = self._batches[batch]
        data = bytearray(shape.numel() * dtype.itemsize)
        self._file.seek(start)
        assert self._file.readinto(data) == len(data), "what was written can be read"
        return torch.frombuffer(data, dtype=dtype).reshape(shape)


def rows(named: dict[str, Agreement | None]) -> list[tuple[Any, ...]]:
    """Cells of a table: name, then the fields of `Agreement`."""
    return [
        (
            name,
            f"{each.kl:.3g}",
            f"{each.median_kl:.3g}",
            f"{each.max_kl:.3g}",
            f"{each.max_dlogit:.3g}",
            f"{each.top1:.2%}",
        )
        for name, each in named.items()
        if each is not None
    ]
