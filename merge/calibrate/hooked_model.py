"""The model that a merge stands for: the parts of a merge at work on a loaded base, unmerged or folded in memory.

The parts compute in forward hooks, with the arithmetic of PEFT's LoRA layers, so that any weight can be given exactly
and a quantised base serves as well as a plain one. transformers is never imported here.

Shapes: B prompts of a batch, T tokens, N tokens that are no padding, V vocabulary, I in_features, O out_features,
R rank of one part or of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...core.errors import ConfigError, IncompatibleError, ShapeMismatchError
from ..factor_reader import PartReader
from ..inputs import PartSet
from .prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 512
"""Tokens, padding included, that go through the model at once; one longer prompt goes alone."""


class Batch(NamedTuple):
    """Prompts of like length, padded on the right, where a causal model's real tokens cannot see it."""

    ids: Tensor
    """(B, T)"""
    mask: Tensor
    """(B, T), True where a token is no padding."""


def batched(prompts: Prompts, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Batch]:
    """Tokenise prompts and put like lengths together, in an order that does not depend on theirs.

    Raises:
        ConfigError: A prompt without tokens, longer than the model's context, or with tokens it does not have.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rows = []
    for text in prompts.texts:
        ids = tokenizer(text)["input_ids"]
        if not ids or (limit and len(ids) > limit):
            raise ConfigError(
                "a prompt does not fit the model", where=repr(text[:60]), found=f"{len(ids)} tokens", expected=limit
            )
        if max(ids) >= model.get_input_embeddings().num_embeddings:
            raise ConfigError(
                "the tokenizer has tokens that the model does not: it belongs to another base",
                where=repr(text[:60]),
                found=f"token {max(ids)}",
                expected=f"below {model.get_input_embeddings().num_embeddings}",
            )
        rows.append(ids)
    rows.sort(key=lambda ids: (len(ids), ids))
    groups: list[list[list[int]]] = []
    for ids in rows:  # the longest of a group is its last
        if not groups or (len(groups[-1]) + 1) * len(ids) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(ids)
    return [_padded(group, model.device) for group in groups]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Batch:
    ids_BT = torch.zeros(len(rows), len(rows[-1]), dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = True
    return Batch(ids_BT.to(device), mask_BT.to(device))


@torch.no_grad()
def forward(module: nn.Module, batch: Batch) -> Any:
    """Run a model, or its trunk without the head, on a batch."""
    padded = not bool(batch.mask.all())
    return module(input_ids=batch.ids, attention_mask=batch.mask.long() if padded else None, use_cache=False)


def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """logits_NV of the batch's real tokens, in the model's dtype, on its device."""
    scores_NV: Tensor = forward(model, batch).logits[batch.mask]
    return scores_NV


def linears(model: nn.Module, parts: PartSet) -> dict[str, nn.Linear]:
    """The modules of a loaded base that the parts change, by name; `Linear4bit` is a `Linear`.

    Raises:
        IncompatibleError: The base has no such linear module.
        ShapeMismatchError: It has another size.
    """
    present = dict(model.named_modules())
    found = {}
    for name, shape in parts.modules.items():
        module = present.get(name)
        if not isinstance(module, nn.Linear):
            raise IncompatibleError(
                "the adapters change a linear module that the base does not have",
                where=name,
                found=type(module).__name__ if module is not None else "no such module",
                next_step="use the base the adapters were trained on",
            )
        if (module.out_features, module.in_features) != shape[:2]:
            raise ShapeMismatchError(
                "a module has another size in the base",
                where=name,
                expected=f"(O, I) = {tuple(shape[:2])}, as the adapters have it",
                found=(module.out_features, module.in_features),
            )
        found[name] = module
    return found


@contextmanager
def active(
    model: PreTrainedModel, parts: PartSet, observe: Callable[[str, Tensor], None] | None = None
) -> Iterator[None]:
    """Let all parts compute inside the block: y = W x + sum_k (B_k A_k x) * w_k s_k, unmerged.

    Args:
        model: The base; quantised, or plain in any dtype. Its weights are not touched.
        parts: Checked parts.
        observe: Called in every forward pass with a module's name and z = A_c x of all its parts below each other,
            (B, T, R), float32 or wider: what the pass computes anyway.

    Raises:
        IncompatibleError, ShapeMismatchError: As `linears`.
        IntegrityError: As `PartReader.read`.

    Numerics: bit-equal to PEFT 0.21 with the same adapters active, at weight 1; tests/merge/calibrate/test_logits.py.
    """
    handles = []
    try:
        reader = PartReader(parts)
        for name, module in linears(model, parts).items():
            handles.append(module.register_forward_hook(_adding(reader, name, module, observe)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(
    reader: PartReader, name: str, module: nn.Linear, observe: Callable[[str, Tensor], None] | None
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    weight = module.weight
    quantised = not weight.is_floating_point()
    dtype = torch.float32 if quantised else torch.promote_types(weight.dtype, torch.float32)
    stack = reader.read(name)
    factors = [
        (part.A_RI.to(weight.device, dtype), part.B_OR.to(weight.device, dtype), part.scale, stack.weights[index])
        for index, part in stack.parts.items()
    ]

    def hook(called: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x_BTI = inputs[0].to(dtype)
        z = [linear(x_BTI, A_RI) for A_RI, _, _, _ in factors]
        if observe is not None:
            observe(name, torch.cat(z, -1))
        total_BTO = output
        for z_BTR, (_, B_OR, scale, weight_of_part) in zip(z, factors, strict=True):
            total_BTO = total_BTO + linear(z_BTR, B_OR) * (scale * weight_of_part)
        return total_BTO.to(output.dtype)

    return hook


@torch.no_grad()
def fold_in_place(model: PreTrainedModel, parts: PartSet) -> None:
    """Add the parts to a plain model's weights as `merge.fold` does: one float32 sum, one rounding to its dtype.

    A weight that is shared, as a tied head's, becomes the module's own.

    Raises:
        IncompatibleError: A quantised base, or a module that it does not have.
        ShapeMismatchError: A module of another size.
    """
    reader = PartReader(parts)
    for name, module in linears(model, parts).items():
        weight = module.weight
        if not weight.is_floating_point():
            raise IncompatibleError("a delta cannot be added to quantised weights", where=name, found=weight.dtype)
        stack = reader.read(name)
        B_OR, A_RI = stack.B_OR.to(weight.device, torch.float32), stack.A_RI.to(weight.device, torch.float32)
        sum_OI = torch.addmm(weight.float(), B_OR, A_RI)
        module.weight = nn.Parameter(sum_OI.to(weight.dtype), requires_grad=False)


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring the parameters to a dtype, in place; buffers, as the frequencies of rotary positions, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
