"""Loading the base: in NF4 to train on, as the twin or a plain checkpoint for inference; and its tokenizer.

transformers and bitsandbytes are loaded inside the functions that need them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import FailedError, IncompatibleError
from ..header import shown
from .model_config import model_config
from .resolve import BaseRef, Quantisation, refuse_adapter_beside

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# On some CPUs bitsandbytes says at import, whoever imports it, that an optional inference kernel is not installed.
# Training never uses that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base or twin folder; one without a padding token pads with its end token, as TRL does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_nf4(ref: BaseRef, quantisation: Quantisation, device: str | None = None) -> PreTrainedModel:
    """Load a base with its linear weights in NF4, ready to train adapters on.

    Args:
        ref: The base.
        quantisation: How to quantise; all but the embeddings and the head.
        device: `cpu` or `cuda:N`; null takes CUDA where there is some.

    Raises:
        IncompatibleError: transformers has no causal language model for its config, or an adapter lies beside it.
        FailedError: Nothing was quantised, or not in the blocks that `quantisation` states.
    """
    import torch

    refuse_adapter_beside(ref.path)
    with quiet_loading():
        from transformers import BitsAndBytesConfig

        compute_dtype = getattr(torch, quantisation.compute_dtype)
        model = _language_model(ref.path, several=False).from_pretrained(
            ref.path,
            dtype=compute_dtype,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantisation.quant_type,
                bnb_4bit_use_double_quant=quantisation.double_quant,
                bnb_4bit_compute_dtype=compute_dtype,
            ),
            device_map={"": device or default_device()},
            local_files_only=True,
        )
        _plain_decoding(model)
    # Reports and checkpoints of other libraries name the model by this; where it lies is nobody else's.
    model.name_or_path = model.config.name_or_path = ref.repo
    layers = _linear4bit(model)
    blocksizes = {layer.weight.quant_state.blocksize for layer in layers}
    if blocksizes != {quantisation.blocksize}:
        raise FailedError(
            "the base was not quantised as asked", where=ref.repo, found=blocksizes, expected=quantisation.blocksize
        )
    for layer in layers:
        # An eval forward on an AVX512-BF16 CPU would repack the weights in place for inference only: training
        # afterwards crashes or loses the base's gradient, and the way back is inexact.
        layer.support_avx512bf16_for_cpu = False
    return model


def load_twin(path: Path, device: str | None = None) -> PreTrainedModel:
    """Load a twin, or any plain checkpoint, in the dtype it was saved in, for inference."""
    refuse_adapter_beside(path)
    with quiet_loading():
        model = _language_model(path, several=True).from_pretrained(
            path, dtype="auto", device_map={"": device or default_device()}, local_files_only=True
        )
        _plain_decoding(model)
    return model.eval()


def _plain_decoding(model: PreTrainedModel) -> None:
    """Keep of a base's generation config its special tokens alone.

    `generate` fills whatever it is not told from there: a repetition penalty, a cut, forbidden tokens. What samples
    would then be neither what trains nor what is scored and served.
    """
    from transformers import GenerationConfig

    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in tokens})


def _language_model(path: Path, *, several: bool) -> Any:
    """The auto class that loads a folder: a causal language model, or one of `several` modalities for its text.

    Raises:
        IncompatibleError: transformers has none for the folder's config.
    """
    import transformers

    kinds = {transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING}
    if several:
        kinds[transformers.AutoModelForImageTextToText] = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        found = next((kind for kind, models in kinds.items() if type(config) in models), None)
    except (ValueError, OSError, KeyError, TypeError):  # a type that it does not know, or code that lies beside it
        found = None
    if found is None:
        raise IncompatibleError(
            f"transformers {transformers.__version__} has no language model for this config",
            where=path / "config.json",
            expected="a causal language model" + (", or one of images and text" if several else ""),
            found=f"model_type {shown(model_config(path).get('model_type'))}",
        )
    return found


def default_device() -> str:
    """`cuda:N` of this process (LOCAL_RANK) where there is CUDA, else `cpu`."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' bars, drawn even where nobody watches, and its deprecations off the screen."""
    import transformers.utils.logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _linear4bit(model: PreTrainedModel) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]
