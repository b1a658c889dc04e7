"""One canonical form for the names in an adapter's file, however a tool spelt them. No torch.

PEFT writes `base_model.model.<module>.lora_A.weight`. Others leave their marks in it: the wrappers that a training run
put around the model (torch.compile, FSDP, activation checkpointing, DDP), the adapter's own name, the prefix twice or
not at all. Such marks are taken out, here and nowhere else, so that one module never has two names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..core.errors import IntegrityError, UnsupportedAdapterError
from .header import shown

KEY_PREFIX = "base_model.model."
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_-]+){0,32}")
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "fairscale's FSDP",
    "_forward_module": "Lightning",
}
"""Segments that a wrapper adds wherever it sits, and what adds them; no model calls a module of its own so."""
OUTER_WRAPPER = "module"
"""What DDP and DeepSpeed call the model inside them; only at the front, for a model may have a module of that name."""
LEADING = ("model", "language_model", "text_model", "llm")
"""Segments that stand before the decoder's own names, more or fewer from one version of a model's code to the next."""
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
"""Last segments of the tables that turn tokens into vectors."""

_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_BASE_LAYER = "base_layer"
_FOREIGN = (
    ("lora_magnitude_vector", "DoRA is not supported"),
    ("lora_embedding_", "LoRA on an embedding is not supported"),
    (".lora_B.bias", "a bias inside LoRA is not supported"),
    ("modules_to_save", "whole trained modules are not supported"),
    ("original_module", "whole trained modules are not supported"),
    ("token_adapter", "trained tokens are not supported"),
    (".lora_E", "AdaLoRA's singular values are not supported"),
    (".lora_down.", "kohya's and diffusers' form (lora_down, lora_up) is not PEFT's"),
    (".lora_up.", "kohya's and diffusers' form (lora_down, lora_up) is not PEFT's"),
    (".lora.down.", "diffusers' old form (lora.down, lora.up) is not PEFT's"),
    (".lora.up.", "diffusers' old form (lora.down, lora.up) is not PEFT's"),
    (".lora_a", "MLX's and torchtune's form (lora_a, lora_b) is not PEFT's"),
    (".lora_b", "MLX's and torchtune's form (lora_a, lora_b) is not PEFT's"),
    (".hada_", "LoHa is not supported"),
    (".lokr_", "LoKr is not supported"),
    (".vera_", "VeRA is not supported"),
    (".ia3_", "IA3 is not supported"),
    (".oft_", "OFT is not supported"),
    (f".{_BASE_LAYER}.weight.", "a copy of quantised base weights is not supported"),
)
"""Part of a key -> what it is."""


class Copy(NamedTuple):
    """A weight of the base that stands whole in an adapter's file."""

    tensor: str
    """Its name in the base: `lm_head.weight`."""
    frozen: bool
    """Whether it lay under a LoRA layer, which leaves it as it was; else it may have been trained."""


class Names(NamedTuple):
    """What the keys of a file stand for."""

    modules: dict[str, tuple[str, str]]
    """Canonical module name -> the keys of its A and B; sorted."""
    copies: dict[str, Copy]
    """By key."""
    marks: tuple[str, ...]
    """What was taken out of the keys, sorted; empty where they are as PEFT writes them."""


def read_names(path: Path, keys: Iterable[str]) -> Names:
    """Say what each key of an adapter's file is.

    Args:
        path: The file, for errors.
        keys: Of all its tensors.

    Raises:
        IntegrityError: A key that is no LoRA factor, a module with one half only, spelt in two ways, or two adapters
            in one file.
        UnsupportedAdapterError: A key of something that is more than B @ A, or another tool's form, by name.
    """
    halves: dict[str, dict[str, str]] = {}
    copies: dict[str, Copy] = {}
    marks: set[str] = set()
    adapters: dict[str, str] = {}
    for key in keys:
        bare = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        match = _FACTOR.fullmatch(bare)
        if match is None:
            copies[key] = _copy(path, key, bare)
            continue
        name = _module_name(path, key, match["path"])
        other = halves.setdefault(name, {}).setdefault(match["half"], key)
        if other != key:
            raise two_spellings(path, shown(other), shown(key))
        adapters[match["adapter"] or ""] = key
        marks |= _marks(key, match["path"], match["adapter"])
    if len(adapters) > 1:
        raise IntegrityError(
            "the file holds the tensors of more than one adapter",
            where=path,
            found=", ".join(shown(key) for key in list(adapters.values())[:2]),
            next_step="save each adapter to a folder of its own: save_pretrained(..., selected_adapters=[NAME])",
        )
    unpaired = sorted(name for name, found in halves.items() if len(found) != 2)
    if unpaired:
        raise IntegrityError(
            "a module has only one of lora_A and lora_B", where=path, found=f"{unpaired[0]} ({len(unpaired)} in all)"
        )
    if not halves:
        raise IntegrityError("the adapter holds no LoRA factor", where=path, found=f"{len(copies)} other tensors")
    for found in halves.values():
        if found["A"].replace(".lora_A.", ".lora_B.") != found["B"]:
            raise IntegrityError(
                "the two factors of a module are spelt in two ways",
                where=path,
                found=f"{shown(found['A'])} and {shown(found['B'])}",
            )
    _refuse_two_spellings(path, halves)
    return Names(
        {name: (halves[name]["A"], halves[name]["B"]) for name in sorted(halves)}, copies, tuple(sorted(marks))
    )


def canonical(name: str) -> str:
    """A module's name without wrappers and without PEFT's prefix, however often it stands there."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while True:
        if parts[:2] == ["base_model", "model"]:
            parts = parts[2:]
        elif len(parts) > 1 and parts[0] == OUTER_WRAPPER:
            parts = parts[1:]
        else:
            return ".".join(parts)


def ends(name: str) -> list[str]:
    """A module's name and what of it follows each dot: what `target_modules` may call it by."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def version_free(name: str) -> str:
    """What of a module's name does not change with the version of its model's code: `layers.0.mlp.up_proj`."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in LEADING:
        parts = parts[1:]
    return ".".join(parts)


def _module_name(path: Path, key: str, text: str) -> str:
    name = canonical(text)
    parts = name.split(".")
    if not MODULE_NAME.fullmatch(name) or len(name) > 512:
        raise IntegrityError("not a module name", where=path, found=shown(name))
    if _BASE_LAYER in parts or "experts" in parts[-1:]:
        raise UnsupportedAdapterError(
            "LoRA on bare parameters, such as fused experts, has no module of its own", where=path, found=shown(key)
        )
    if "lora_A" in parts or "lora_B" in parts:
        raise UnsupportedAdapterError(
            "LoRA on the factors of another LoRA is not supported", where=path, found=shown(key)
        )
    if parts[-1] in EMBEDDINGS:
        raise UnsupportedAdapterError("LoRA on an embedding is not supported", where=path, found=shown(key))
    if OUTER_WRAPPER in parts:
        raise UnsupportedAdapterError(
            "a segment `module` inside a name may be a wrapper's or the model's own",
            where=path,
            found=shown(key),
            next_step="unwrap the model before it is saved: accelerator.unwrap_model(model).save_pretrained(...)",
        )
    return name


def _copy(path: Path, key: str, bare: str) -> Copy:
    """A key that is no factor, as the base's weight that it may be."""
    text, _, kind = bare.rpartition(".")
    for part, what in _FOREIGN:
        if part in bare:
            raise UnsupportedAdapterError(what, where=path, found=shown(key))
    name = canonical(text)
    if name == text or kind not in ("weight", "bias") or not MODULE_NAME.fullmatch(name):
        expected = f"{KEY_PREFIX}<module>{A_SUFFIX} or {B_SUFFIX}"
        raise IntegrityError("a tensor is no LoRA factor", where=path, found=shown(key), expected=expected)
    frozen = name.endswith(f".{_BASE_LAYER}")
    return Copy(f"{name.removesuffix(f'.{_BASE_LAYER}')}.{kind}", frozen)


def _marks(key: str, text: str, adapter: str | None) -> set[str]:
    found = {part for part in key.split(".") if part in WRAPPERS}
    if adapter is not None:
        found.add(adapter)
    name = canonical(text)
    if text != f"{KEY_PREFIX}{name}":
        prefix = text.removesuffix(name).rstrip(".")
        found.add(f"prefix {prefix!r}" if prefix else "no prefix")
    return found


def _refuse_two_spellings(path: Path, names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(version_free(name), name)
        if other != name:
            raise two_spellings(path, other, name)


def two_spellings(path: Path, one: str, other: str) -> IntegrityError:
    """The error for a file that holds a module under two names."""
    return IntegrityError(
        "the file spells one module in two ways",
        where=path,
        found=f"{one} and {other}",
        next_step="keep the one that was trained, and save the adapter again",
    )
