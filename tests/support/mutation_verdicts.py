"""Merging a broken adapter with a sound one must give the right sum or one clear refusal; here it is told which.

What a folder means is read here a second time, by other code: safetensors' own loader, `json`, PEFT's scaling rules.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from plyfold.core import errors
from plyfold.merge.compose.prepare import prepare
from plyfold.merge.compose.write import write
from plyfold.merge.inputs import Part
from plyfold.merge.plan import plan_compose

from .mutation_values import FORMS
from .mutations import Case, mutate
from .peft_folders import write_adapter_folder

NOBODY = 65534
REFUSALS = (
    errors.NotFoundError, errors.IntegrityError, errors.IncompatibleError, errors.FailedError,
)  # fmt: skip
"""A file that is missing, damaged, of another kind, or unreadable."""
MAX_MESSAGE = 2000
"""Characters of an error's text; a file may not fill the screen."""
OUT = "out"
SMALLEST = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}
"""Half of the smallest number above zero: what rounding below the normal range can change."""
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Stacked = dict[str, tuple[Tensor, Tensor]]
"""Module -> (B_OR, A_RI) float64, weights and scales in B."""


def verdict(folder: Path, kind: str, seed: int) -> str:
    """Make one broken adapter in an empty folder, merge it, and say what came of it.

    Returns:
        `right`, the name of the error class that refused it, or a sentence that starts with `FAULT`.
    """
    chance = random.Random(seed)
    case = Case(folder / "bad")
    write_adapter_folder(case.folder, seed=seed, **chance.choice(FORMS))
    good = write_adapter_folder(folder / "good", seed=seed + 1, r=2).path
    for path in folder.glob("*/*.safetensors"):
        path.chmod(0o644)
    mutate(case, kind, seed)
    parts = [Part(case.folder, case.weight), Part(good, 0.7)][:: chance.choice([1, -1])]
    dtype = chance.choice(["fp32", "fp32", "fp32", "bf16", "fp16"])
    meanings = [_meaning_or_reason(parts)]
    before = _listing(folder)
    try:
        with _user(case, folder):
            plan = plan_compose(parts, dtype=dtype)
            if case.late:
                case.late()
                before = _listing(folder)
                meanings.append(_meaning_or_reason(parts))
            write(prepare(plan), folder / OUT)
    except errors.PlyfoldError as error:
        return _refusal(error, case, before, folder)
    except Exception as error:
        return f"FAULT {type(error).__name__}: {str(error)[:200]!r}"
    if _listing(folder) != sorted([*before, OUT]):
        return "FAULT something beside the result is left on disk"
    # A change within one tick of the file system's clock cannot be seen: then the new numbers are the right ones.
    findings = [_compare(folder / OUT, meaning, DTYPES[dtype]) for meaning in meanings]
    return "right" if "right" in findings else findings[0]


def _refusal(error: errors.PlyfoldError, case: Case, before: list[str], folder: Path) -> str:
    named = not math.isfinite(case.weight) or "longer than the file system takes" in str(error)
    allowed = (*REFUSALS, errors.ConfigError) if named else REFUSALS
    if not isinstance(error, allowed):
        return f"FAULT refused as {type(error).__name__}: {str(error)[:200]!r}"
    if len(str(error)) > MAX_MESSAGE:
        return f"FAULT an error of {len(str(error)):,} characters"
    if _listing(folder) != before:
        return "FAULT a refusal leaves something on disk"
    return type(error).__name__


def _compare(out: Path, truth: Stacked | str, dtype: torch.dtype) -> str:
    if isinstance(truth, str):
        return f"FAULT accepted, though {truth}"
    try:
        tensors = load((out / "adapter_model.safetensors").read_bytes())
    except SafetensorError as error:
        return f"FAULT the result cannot be loaded: {error}"
    found = _factors(tensors, json.loads((out / "adapter_config.json").read_bytes()))
    if set(found) != set(truth):
        return "FAULT the result has other modules"
    u, eta = UNIT[dtype], SMALLEST[dtype]
    for name, (B_OR, A_RI) in truth.items():
        A_KI, B_OK, scale = found[name]
        if A_KI.dtype != dtype or B_OK.dtype != dtype or scale != 1:
            return "FAULT the result has another dtype or scale"
        # Both factors rounded once, |dB| <= u |B| + eta, and the float64 products of this very comparison.
        dB_OR, dA_RI = u * B_OR.abs() + eta, u * A_RI.abs() + eta
        bound_OI = dB_OR @ A_RI.abs() + B_OR.abs() @ dA_RI + dB_OR @ dA_RI + 1e-14 * (B_OR.abs() @ A_RI.abs())
        if not ((B_OK.double() @ A_KI.double() - B_OR @ A_RI).abs() <= bound_OI).all():
            return f"FAULT wrong numbers in {name}"
    return "right"


# ---- what folders mean


def _meaning_or_reason(parts: list[Part]) -> Stacked | str:
    try:
        factors = [_folder(part.path) for part in parts]
    except Exception as error:  # whatever this reading makes of it, ours must not accept it
        return f"{type(error).__name__} {str(error)[:200]!r} says otherwise"
    stacked: Stacked = {}
    for name in {name for part in factors for name in part}:
        rows = [(part.weight, one[name]) for part, one in zip(parts, factors, strict=True) if name in one]
        if len({(A_RI.shape[1], B_OR.shape[0]) for _, (A_RI, B_OR, _) in rows}) > 1:
            return f"the sizes of {name!r} differ"
        B_OR = torch.cat([B.double() * (weight * scale) for weight, (_, B, scale) in rows], 1)
        stacked[name] = B_OR, torch.cat([A.double() for _, (A, _, _) in rows], 0)
        if not all(tensor.isfinite().all() for tensor in stacked[name]):
            return "it holds NaN or infinity"
    return stacked


def _folder(path: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file() or (path / name).stat().st_size > 1 << 28:
            raise ValueError("no file of a sane size")
    return _factors(
        load((path / "adapter_model.safetensors").read_bytes()), json.loads((path / "adapter_config.json").read_bytes())
    )


def _factors(tensors: dict[str, Tensor], config: dict[str, object]) -> dict[str, tuple[Tensor, Tensor, float]]:
    prefix, result = "base_model.model.", {}
    for key, A_RI in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(prefix).removesuffix(".lora_A.weight")
            B_OR = tensors[f"{prefix}{name}.lora_B.weight"]
            r, alpha = (
                _pattern(config, "rank_pattern", "r", name),
                _pattern(config, "alpha_pattern", "lora_alpha", name),
            )
            if (A_RI.dim(), B_OR.dim()) != (2, 2) or not A_RI.shape[0] == B_OR.shape[1] == r:
                raise ValueError("ranks differ")
            result[name] = (A_RI, B_OR, alpha / (math.sqrt(r) if config.get("use_rslora") else r))
    if 2 * len(result) != len(tensors):
        raise ValueError("a tensor is no LoRA factor")
    return result


def _pattern(config: dict[str, object], field: str, default: str, name: str) -> float:
    patterns = config.get(field) or {}
    assert isinstance(patterns, dict)
    if len(patterns) > 10_000:
        raise ValueError("too many patterns")
    for pattern, value in patterns.items():
        # What is passed over matches nothing here, but only after ages.
        if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+?{|]", pattern)) > 14:
            continue
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    value = config.get(default, 8)
    assert isinstance(value, int | float)
    return value


# ---- the place


@contextmanager
def _user(case: Case, folder: Path) -> Iterator[None]:
    if not case.as_nobody or os.geteuid() != 0:
        yield
        return
    folder.chmod(0o777)
    os.seteuid(NOBODY)  # root reads everything
    try:
        yield
    finally:
        os.seteuid(0)


def _listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def clear(folder: Path) -> None:
    """Remove a case's folder, whatever it holds."""
    shutil.rmtree(folder, ignore_errors=True)
