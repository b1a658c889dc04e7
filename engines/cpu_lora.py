"""LoRA on vLLM's CPU backend: once per adapter instead of once per token, and base rows left alone.

vLLM 0.32's CPU kernels index the adapter stack with -1 for rows without an adapter, which picks the last slot: a base
request batched with adapter requests then answers as that adapter. They also gather whole matrices per token. The
replacement groups rows by adapter. It is installed only where a self-test of a few milliseconds shows the defect, so
it retires itself once vLLM is mended.

Shapes: T tokens, R slot rank, I in, O out, N slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

SELF_TEST_SLOTS = 2


def add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: Sequence[torch.Tensor],
    lora_b_stacked: Sequence[torch.Tensor],
    scale: float,
    output_slices: Sequence[int],
    **_: Any,
) -> None:
    """Add each row's adapter to `y` in place: y_TO += scale * x_TI @ A_RI^T @ B_OR^T, nothing for rows of index -1.

    Args:
        self: vLLM's CPU LoRA wrapper, whose `token_lora_indices` gives every row its slot, -1 for none.
        y: Output of the base layer, (T, O); changed in place.
        x: Input, (T, I).
        lora_a_stacked: Per fused part, the A of all slots, (N, 1, R, I).
        lora_b_stacked: Per fused part, the B of all slots, (N, 1, O_part, R).
        scale: Dimensionless; vLLM folds adapter scales into B and passes 1.
        output_slices: O_part of each fused part, summing to O.

    Numerics: matmuls in x's dtype, so in bfloat16 the rank-sized intermediate is rounded once more than upstream's
    float32 buffer; in float32 the result is upstream's up to summation order. tests/engines/test_cpu_lora.py.
    """
    y_TO, x_TI = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    slot_T = self.token_lora_indices[: x_TI.shape[0]]
    for slot in torch.unique(slot_T).tolist():
        if slot < 0:
            continue
        rows = (slot_T == slot).nonzero(as_tuple=True)[0]
        alone = rows.numel() == x_TI.shape[0]
        group_TI = x_TI if alone else x_TI[rows]
        start = 0
        for a_stack, b_stack, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            A_RI, B_OR = a_stack[slot, 0].to(x.dtype), b_stack[slot, 0].to(x.dtype)
            delta_TO = (group_TI @ A_RI.T @ B_OR.T).mul_(scale).to(y.dtype)
            part_TO = y_TO[:, start : start + width]
            if alone:
                part_TO += delta_TO
            else:
                part_TO.index_add_(0, rows, delta_TO)
            start += width


def base_rows_changed(kernel: Callable[..., Any]) -> bool:
    """Whether `kernel`, an `add_lora_linear`, changes rows without an adapter, in prefill or in decoding.

    Every slot holds a non-zero adapter and row 0 has none; a right kernel leaves row 0 exactly as it was.
    """
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    slots = list(range(1, SELF_TEST_SLOTS + 1))
    rows = (0, *slots)
    A = torch.ones(SELF_TEST_SLOTS, 1, 1, 2)
    B = torch.ones(SELF_TEST_SLOTS, 1, 2, 1)
    for prefill in (True, False):
        wrapper = PunicaWrapperCPU(len(rows), len(rows), "cpu")
        wrapper.update_metadata(LoRAMapping(rows, rows, is_prefill=prefill), slots, SELF_TEST_SLOTS, 8)
        y = torch.zeros(len(rows), 2)
        kernel(wrapper, y, torch.ones(len(rows), 2), (A,), (B,), 1.0, (2,))
        if y[0].any():
            return True
    return False


def install() -> str:
    """Replace vLLM's CPU LoRA kernel where it is wrong; say what was done.

    Safe to call in every process and more than once.
    """
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    current = PunicaWrapperCPU.add_lora_linear
    if current is add_lora_linear:
        return "grouped CPU LoRA is installed"
    if not base_rows_changed(current):
        return "vLLM's own CPU LoRA leaves base rows alone; it is kept"
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    return "vLLM's CPU LoRA gives base rows the last slot's adapter; grouped CPU LoRA is installed"
