"""PEFT's own numbers, for results that must equal those of its `add_weighted_adapter`.

Shapes: O out_features, I in_features, R the one rank of all parts.
"""

from __future__ import annotations

import math
import threading
import warnings

import torch

from ...core.errors import NotFoundError
from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .dare import stable_key
from .result import Merged, truncated

_GLOBAL_RANDOMNESS = threading.Lock()
"""PEFT draws from torch's one default generator."""


def peft_numerics(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Merge A and B apart, as PEFT 0.21.2's `LoraModel.add_weighted_adapter(combination_type=plan.method)`.

    With c_k = weight_k * scale_k: A' = f(A_1, ..; sign(c_k) sqrt|c_k|) and B' = f(B_1, ..; sqrt|c_k|), f the method's
    function in `peft.utils.merge_utils`. The product B' A' has cross terms B_i A_j of different parts and is not the
    sum of deltas; PEFT's own documentation calls it a very rough approximation. A part with B = 0 or of weight 0
    changes the result, since its A is merged too and has a vote.

    DARE: PEFT draws its masks from torch's default generator, through all modules in turn, so a whole adapter of its
    cannot be had module by module. Here every module is drawn as PEFT would right after
    `torch.manual_seed(peft_seed(seed, module))`, A before B; the caller's generator state is put back.

    Raises:
        NotFoundError: PEFT is not installed.

    Source: peft 0.21.2, `tuners/lora/model.py`, `_generalized_task_arithmetic_weighted_adapter`.
    Numerics: bit for bit PEFT's, which makes bf16 and fp16 adapters float32 when it loads them
        (`autocast_adapter_dtype`) and computes in that; tests/merge/methods/test_peft.py.
    """
    try:
        from peft.utils import merge_utils
    except ModuleNotFoundError as error:
        raise NotFoundError(
            "PEFT is not installed", expected="peft 0.21 for --numerics peft", next_step="pip install 'plyfold[train]'"
        ) from error
    scales = [stack.weights[index] * part.scale for index, part in stack.parts.items()]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [root if scale >= 0 else -root for root, scale in zip(roots, scales, strict=True)]
    density = () if plan.method == "linear" else (plan.density,)
    merge = merge_utils.task_arithmetic if plan.method == "linear" else getattr(merge_utils, plan.method)
    A_RI = [_as_loaded(part.A_RI) for part in stack.parts.values()]
    B_OR = [_as_loaded(part.B_OR) for part in stack.parts.values()]
    with _GLOBAL_RANDOMNESS, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # density 1 prunes nothing, and says so
        torch.manual_seed(peft_seed(plan.seed, stack.name))
        merged_A_RI = merge(A_RI, torch.tensor(signed), *density).to(A_RI[0].dtype).double()
        merged_B_OR = merge(B_OR, torch.tensor(roots), *density).to(A_RI[0].dtype).double()
    spectrum_N = truncated(merged_B_OR, merged_A_RI, merged_A_RI.shape[0]).spectrum_N
    return Merged(merged_B_OR, merged_A_RI, spectrum_N, float(torch.linalg.vector_norm(spectrum_N)), 0.0)


def peft_seed(seed: int, module: str) -> int:
    """What `torch.manual_seed` gets before the masks of one module are drawn."""
    return stable_key(seed, module, -1) % 2**63


def _as_loaded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
