"""Adapter files written front to back, one module at a time: memory holds a module, never the adapter.

Shapes: O out_features, I in_features, R rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.disk.digest import PREFIX, canonical_json
from ..core.disk.files import disk_errors
from .names import A_SUFFIX, B_SUFFIX, KEY_PREFIX
from .spec import DTYPES, WEIGHTS_NAME
from .tensors import Factors, adapter_config, check_targets, write_config

STORED = {getattr(torch, name): stored for stored, name in DTYPES.items()}
"""torch dtype -> safetensors' name."""


def stream_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    produced: Iterable[tuple[str, Factors]],
    *,
    r: int,
    dtype: torch.dtype,
    base_repo: str,
    base_revision: str | None,
    targets: list[str] | None = None,
) -> str:
    """Write a canonical PEFT folder of scale 1, byte for byte what `write_adapter` writes of the same factors.

    Args:
        folder: Exists and is the caller's to fill.
        shapes: (O, I) by module name.
        produced: Every module of `shapes` with its factors, in the order of `stream_order`.
        r: Rank of every module.
        dtype: Of every factor.
        base_repo: Hub id of the base.
        base_revision: Commit of the base.
        targets: `target_modules`; null lists every module.

    Returns:
        The digest of the tensors, as `tensor_digest` of the folder gives it.

    Raises:
        DiskFullError: The file system filled up.
    """
    chosen = check_targets(shapes, targets)
    entries = {
        key: [r, num_in] if key.endswith(A_SUFFIX) else [num_out, r]
        for name in stream_order(shapes)
        for num_out, num_in in [shapes[name]]
        for key in _keys(name)
    }
    path = folder / WEIGHTS_NAME
    digest = hashlib.sha256()
    with disk_errors(folder, sum(a * b for a, b in entries.values()) * dtype.itemsize), path.open("wb") as file:
        _write_header(file, entries, dtype)
        expected = iter(sorted(entries))
        for name, factors in produced:
            for key, tensor in zip(_keys(name), (factors.A_RI, factors.B_OR), strict=True):
                assert key == next(expected), "modules come in the order of stream_order"
                assert tensor.dtype == dtype, "the header promises this dtype"
                assert list(tensor.shape) == entries[key], "the header promises this shape"
                data = _bytes(tensor)
                digest.update(canonical_json([key, STORED[dtype], entries[key]]) + b"\n")
                digest.update(data)
                file.write(data)
        assert next(expected, None) is None, "every module is produced"
    path.chmod(0o644)
    write_config(folder, adapter_config(r, r, chosen, base_repo, base_revision))
    return PREFIX + digest.hexdigest()


def stream_order(names: Iterable[str]) -> list[str]:
    """Module names in the order of their tensors' keys, which is the order of the file."""
    return sorted(names, key=lambda name: _keys(name)[0])


def _keys(name: str) -> tuple[str, str]:
    return f"{KEY_PREFIX}{name}{A_SUFFIX}", f"{KEY_PREFIX}{name}{B_SUFFIX}"


def _write_header(file: BufferedWriter, entries: Mapping[str, list[int]], dtype: torch.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key, shape in entries.items():
        stop = position + shape[0] * shape[1] * dtype.itemsize
        header[key] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(torch.uint8).numpy().data
