"""The twin: the NF4 base dequantised once and saved in the compute dtype, bit for bit what adapters were trained on."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ...core.disk.digest import digest_json, short
from ...core.disk.files import require_space, staged_folder, sweep_staged, write_json
from ...core.disk.locks import lock_of, locked
from ...core.errors import IntegrityError, NotFoundError
from ...core.reading.strict_json import read_object
from ..header import read_header
from .load import load_nf4, quiet_loading
from .resolve import TWIN_NAME, TWIN_SOURCE, BaseRef, Quantisation, accompanying, check_weights


def ensure_twin(ref: BaseRef, quantisation: Quantisation, cache: Path) -> Path:
    """The base as adapters saw it in training: NF4 weights dequantised, as a plain checkpoint.

    Made once for a base and quantisation, under a lock, complete or absent. A damaged twin is made anew, and so is one
    that is not known to be of these weights.

    Returns:
        `cache/twins/<repo>-<12 hex>`, whose config has no quantization_config, whose tokenizer and generation
        config are the base's bytes.

    Raises:
        DiskFullError: No room for a copy in the compute dtype.

    Numerics: weights are bit-equal to what the NF4 layers dequantise to on the device used, which is the one that
        training takes; tests/adapters/test_twin.py.
    """
    folder = twin_path(ref, quantisation, cache)
    with locked(lock_of(folder)):
        sweep_staged(folder)
        if not _sound_twin(folder, ref):
            require_space(folder.parent, _twin_bytes(ref, quantisation))
            with staged_folder(folder, replace=True) as staged:
                _make_twin(ref, quantisation, staged)
                write_json(staged / TWIN_NAME, twin_note(ref, quantisation))
                if ref.weights is not None:
                    write_json(staged / TWIN_SOURCE, {"weights": ref.weights})
        else:
            os.utime(folder)  # in use: what has long been unused may be swept
    return folder


def twin_note(ref: BaseRef, quantisation: Quantisation) -> dict[str, Any]:
    """What a twin's `twin.json` holds."""
    return {"schema": 1, **_twin_identity(ref, quantisation)}


def twin_path(ref: BaseRef, quantisation: Quantisation, cache: Path) -> Path:
    """Where `ensure_twin` puts a twin, made or not."""
    identity = digest_json(_twin_identity(ref, quantisation))
    return cache / "twins" / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', ref.repo)}-{short(identity)}"


def _make_twin(ref: BaseRef, quantisation: Quantisation, folder: Path) -> None:
    import torch

    model = load_nf4(ref, quantisation)
    with quiet_loading():
        for name, module in list(model.named_modules()):
            if hasattr(module, "support_avx512bf16_for_cpu"):
                model.set_submodule(name, _dequantised(module))
        assert {p.dtype for p in model.parameters()} == {getattr(torch, quantisation.compute_dtype)}
        model.hf_quantizer = None
        model.is_quantized = False
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # an engine that starts next finds the memory free
    # Bytes, not what transformers makes of them: it validates, rewrites and adds.
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in accompanying(ref.path)[0]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _dequantised(layer: Any) -> Any:
    """A Linear4bit as the plain Linear it computes: W_OI of the compute dtype, the same bias."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    with torch.device("meta"):
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = torch.nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state), False)
    linear.bias = layer.bias
    return linear


def _twin_identity(ref: BaseRef, quantisation: Quantisation) -> dict[str, Any]:
    return {"repo": ref.repo, "revision": ref.revision, "quantisation": quantisation.to_json()}


def _sound_twin(folder: Path, ref: BaseRef) -> bool:
    try:
        check_weights(folder)
        source = read_object(folder / TWIN_SOURCE, "the twin's source") if ref.weights is not None else {}
    except (NotFoundError, IntegrityError, OSError):
        return False
    return (folder / TWIN_NAME).is_file() and source.get("weights") == ref.weights


def _twin_bytes(ref: BaseRef, quantisation: Quantisation) -> int:
    headers = [read_header(file) for file in check_weights(ref.path)]
    entries = [entry for header in headers for entry in header.tensors.values()]
    width = 4 if quantisation.compute_dtype == "float32" else 2
    numbers = 0
    for entry in entries:
        count = 1
        for side in entry.shape:
            count *= side
        numbers += count
    return numbers * width
