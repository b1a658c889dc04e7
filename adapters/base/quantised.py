"""Bases whose weights are quantised already, and the names of what they were made from. No torch.

Adapters are trained on 16-bit weights that plyfold quantises itself, so that the base as it was trained on is known
bit for bit; a delta added to packed weights would be rounded away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import IncompatibleError
from ...core.reading.strict_json import read_object
from ..header import Header
from .model_config import QUANTISATION_KEYS, TEXT_CONFIG

FLOAT_DTYPES = ("F64", "F32", "BF16", "F16")
"""safetensors' names of the dtypes that unquantised weights have."""
PACKED_NAMES = (".weight", ".qweight", ".qzeros", ".weight_packed", ".weight_qdata", "_blocks")
"""How the names of weights end that quantised checkpoints hold as whole numbers or in 8 bits."""
PACKED_COMPANIONS = (".absmax", ".quant_map", "_scale_inv", "_scale")
"""What stands beside a packed weight under its name."""
_QUANTISED_NAME = re.compile(
    r"(?:[-_.]quantized)?[-_.](?:unsloth-)?(?:bnb-)?(?:[48]bit|nf4|fp4|fp8|awq|gptq|w[48]a(?:8|16)|int[48]|mxfp4)"
    r"(?:-(?:int[48]|[48]bit|dynamic|block))*$",
    re.IGNORECASE,
)
"""How repositories of quantised copies end: `-bnb-4bit`, `-unsloth-bnb-4bit`, `-AWQ`, `-GPTQ-Int4`, `-FP8`."""


def refuse_quantised_config(folder: Path, repo: str = "") -> None:
    """Refuse a base by its `config.json` alone, before its weights are fetched; arguments as `refuse_packed`.

    Raises:
        IncompatibleError: The config asks for quantised weights.
        IntegrityError: It is no JSON object that is read here.
    """
    path = folder / "config.json"
    for name, asked in asked_quantisation(read_object(path, "the base's config.json", infinity=True)).items():
        raise _quantised(path, f"{name} {quant_method(asked)}".strip(), repo)


def refuse_packed(headers: Iterable[Header], repo: str = "", *, setting: str = "base.repo", method: str = "") -> None:
    """Refuse weights that their files' headers show to be packed, whatever the config says.

    Args:
        headers: Of a model folder's weights files.
        repo: Hub id of the base, from which the 16-bit one's name is told; empty where it has none.
        setting: What names the base where the user did, for the error.
        method: What the config says of how it is quantised, for the error.

    Raises:
        IncompatibleError: A weight is not in a float dtype of 16 bits or more, or has a packed weight's companions.
    """
    for header in headers:
        for name, entry in header.tensors.items():
            scaled = any(f"{name}{suffix}" in header.tensors for suffix in PACKED_COMPANIONS)
            if entry.dtype not in FLOAT_DTYPES and (name.endswith(PACKED_NAMES) or scaled):
                said = f" ({method})" if method else ""
                raise _quantised(header.path, f"{name} in {entry.dtype}{said}", repo, setting)


def unquantised_name(repo: str) -> str:
    """The Hub id that a quantised copy's name is made from: `unsloth/qwen2.5-3b` of `…-unsloth-bnb-4bit`.

    The id itself where it has no such ending.
    """
    return _QUANTISED_NAME.sub("", repo)


def _quantised(where: Path, found: str, repo: str, setting: str = "base.repo") -> IncompatibleError:
    plain = unquantised_name(repo)
    named = f"{setting}={plain}".replace("--base=", "--base ") if plain != repo else f"{setting}, a Hub id"
    return IncompatibleError(
        "the base's weights are quantised already",
        where=where,
        found=found,
        expected="a checkpoint in 16 or 32 bit, which is quantised here where it has to be",
        next_step=f"take the 16-bit base that it was made from: {named}, or its folder",
    )


def asked_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of quantised weights, by where: vLLM reads it in all of these places."""
    text = config.get(TEXT_CONFIG)
    scopes = {"": config, f"{TEXT_CONFIG}.": text if isinstance(text, Mapping) else {}}
    asked = {f"{where}{key}": scope.get(key) for where, scope in scopes.items() for key in QUANTISATION_KEYS}
    return {name: value for name, value in asked.items() if value}


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json for unquantised weights."""
    plain = {key: value for key, value in config.items() if key not in QUANTISATION_KEYS}
    text = plain.get(TEXT_CONFIG)
    return {**plain, TEXT_CONFIG: without_quantisation(text)} if isinstance(text, Mapping) else plain


def quant_method(asked: Any) -> str:
    """What a `quantization_config` says of how, in a word; empty where there is none."""
    method = asked.get("quant_method") if isinstance(asked, dict) else asked
    return str(method)[:50] if method else ""
