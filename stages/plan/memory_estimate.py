"""Bytes a stage needs on its device, from the base's shape and the stage's config: no weights, no network.

Weights, optimiser and gradients are exact. They are tested against a real NF4 model with PEFT and AdamW.

* NF4: a linear weight of n elements is ceil(n / 2) bytes, plus a scale per 64 elements (4 bytes, or 1 byte where
  scales are quantised too, plus 4 bytes per 256 scales), plus tables kept per module: 64 bytes, and with quantised
  scales another 1028 (256 float32 codes and an offset). That is 0.5 + 1/64 + 4/(64 * 256) = 0.51587 bytes a weight.
* Compute dtype: embeddings, head, norms, biases.
* float32: the prior (4 bytes a parameter), the trained adapter (4), its gradients (4), AdamW's two moments (8) and a
  step counter a tensor.

The rest is an estimate. While training, per token and layer, with an adapter on every linear module, autograd keeps
about 12 compute-dtype numbers per hidden element, 2 per key-value element and 4 per element of the MLP; with gradient
checkpointing one layer's worth, and each layer's input. TRL's fused head makes logits in tiles of at most 4,096
tokens x 32,768 of the vocabulary, never the whole of tokens x vocabulary, which is stated beside it since a loss
without that head would hold it.

Numerics: against the allocator's peak of one step on a CPU (nine runs: hidden 256-512, 4-8 layers, 1,024-2,048
    tokens, with and without checkpointing) activations and logits came out 4-12 % too low in bfloat16, where a CPU
    makes temporaries of logits that a GPU's kernel does not, and 4-11 % too high in float32. The key-value cache is
    arithmetic, not measured, and so is vLLM's part. Nothing here was measured on a GPU: not the
    allocator's fragmentation, not CUDA's context (about half a GB), not the kernels' workspaces.
    tests/stages/plan/test_memory_estimate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...adapters.base.resolve import Quantisation
from ...core.config import AdapterConfig, RolloutConfig, StageConfig
from ...merge.plan import vllm_bucket
from ..prompts.tasks import SUPERVISED
from ..rollouts.sampling import BATCH as MINING_BATCH
from ..rollouts.vllm_server import SLOTS
from .model_shape import ModelShape, is_targeted

if TYPE_CHECKING:
    from transformers import TrainingArguments

PROMPT_TOKENS = 512
"""Longest prompt assumed where the rows or the tokenizer are not at hand."""
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""A tile of logits in TRL's fused head."""

_HIDDEN, _WIDTH, _INTERMEDIATE = 12, 2, 4
"""Compute-dtype numbers kept a token and layer for each hidden, key-value and MLP element; fitted to CPU runs."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one stage needs, in bytes."""

    nf4: int
    """Quantised linear weights with their scales."""
    unquantised: int
    """Embeddings, head, norms and biases."""
    prior: int
    """Earlier stages as one frozen adapter."""
    adapter: int
    """The adapter that trains."""
    gradients: int
    optimiser: int
    """AdamW's state."""
    activations: int
    """Kept for the backward pass; with gradient checkpointing as `checkpointing` says."""
    logits: int
    """A tile of the head; not tokens x vocabulary."""
    rollout: int
    """Key-value cache and last logits while completions are generated (GRPO); not held while a step is made."""
    logprobs: int
    """Another forward pass over the completions for old or reference log probabilities; not held in the step."""
    mining: int
    """Key-value cache while failures are mined; not held in the step."""
    vllm: int
    """What vLLM beside the trainer needs before its first token, and not counted in the trainer's peak: the twin and
    slots for the adapters. What it profiles, CUDA's graphs and its key-value cache come on top."""
    checkpointing: bool
    other_activations: int
    """`activations` the other way: without gradient checkpointing, or with it."""
    full_logits: int
    """What a loss without the fused head would hold: tokens x vocabulary in float32."""
    tokens: int
    """Tokens in one forward and backward pass."""
    assumption: str

    @property
    def held(self) -> int:
        """Held all the time; exact."""
        return self.nf4 + self.unquantised + self.prior + self.adapter + self.gradients + self.optimiser

    @property
    def total(self) -> int:
        """At the peak: what is held, and the largest of what comes and goes."""
        return self.held + max(self.activations + self.logits, self.rollout, self.logprobs, self.mining)

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain values."""
        return {**vars(self), "held": self.held, "total": self.total, "measured_on_gpu": False}


def estimate_memory(
    shape: ModelShape,
    quantisation: Quantisation,
    stage: StageConfig,
    adapter: AdapterConfig,
    earlier: Sequence[AdapterConfig],
    arguments: TrainingArguments,
    rollouts: RolloutConfig | None = None,
    prompt_tokens: int | None = None,
) -> MemoryEstimate:
    """Estimate one stage on one device.

    Args:
        shape: Of the base.
        quantisation: Of the base.
        stage: Task, mining and trainer fields.
        adapter: The adapter that trains.
        earlier: Adapters of the stages before it.
        arguments: TRL's, for the batch, lengths and generation cycle. Gradient checkpointing is taken as on, as it is
            on a GPU, unless the stage says otherwise.
        rollouts: Where completions come from; null is plain generate. What vLLM beside takes is not the trainer's.
        prompt_tokens: Of the longest prompt; null assumes PROMPT_TOKENS.
    """
    compute = 4 if quantisation.compute_dtype == "float32" else 2
    supervised = stage.task in SUPERVISED
    prompt = PROMPT_TOKENS if prompt_tokens is None else prompt_tokens
    batch = int(arguments.per_device_train_batch_size)
    trainable, processes = count_adapter(shape, adapter), int(arguments.world_size)
    if supervised:
        length = min(int(getattr(arguments, "max_length", None) or shape.context), shape.context)
        assumed = f"every row {length} tokens long"
    else:
        completion = int(getattr(arguments, "max_completion_length", None) or 0)
        length = min(prompt + completion, shape.context)
        longest = "" if prompt_tokens is None else ", as the longest of its rows"
        assumed = f"prompts of {length - completion} tokens{longest}, completions of {completion}"
    tokens = batch * length
    # Where there are Triton kernels the head scores a tile in place; elsewhere several float32 copies of it are made.
    tile = min(tokens, TILE_TOKENS) * TILE_VOCABULARY * compute + 2 * tokens * shape.hidden * 4
    checkpointing = bool(stage.trainer.get("gradient_checkpointing", True))
    kept, rebuilt = (_activations(shape, tokens, compute, adapter, on) for on in (False, True))
    one_layer = kept // shape.layers
    largest = max(out * into for out, into in shape.linears().values()) * compute  # dequantised for one product
    engine = None if supervised else rollouts.engine if rollouts else "hf"
    rollout, mining = _generating(shape, stage, arguments, length, prompt, compute) if engine == "hf" else (0, 0)
    # An engine's log probabilities are compared with the trainer's.
    more = not supervised and (engine != "hf" or _more_passes(arguments))
    logprobs = one_layer + tile + largest if more else 0
    used, unused = (rebuilt, kept) if checkpointing else (kept, rebuilt)
    return MemoryEstimate(
        nf4=shape.layers * sum(nf4_bytes(out * into, quantisation) for out, into in shape.linears().values()),
        unquantised=shape.unquantised * compute,
        prior=4 * count_prior(shape, earlier),
        adapter=4 * trainable,
        gradients=4 * trainable * min(processes, 2),  # several processes exchange a copy
        optimiser=8 * trainable + 4 * 2 * len(shape.targeted(adapter.targets)),
        activations=used + largest,
        logits=tile,
        rollout=rollout,
        logprobs=logprobs,
        mining=mining,
        vllm=_vllm(shape, compute, [*earlier, adapter]) if engine == "vllm" else 0,
        checkpointing=checkpointing,
        other_activations=unused + largest,
        full_logits=tokens * shape.vocabulary * 4,
        tokens=tokens,
        assumption=f"one GPU{f' of {processes}' if processes > 1 else ''}, batch {batch}, {assumed}, AdamW in float32, "
        + (
            f"{rollouts.gpu_memory:.0%} of the GPU's memory beside it for vLLM, "
            if rollouts and engine == "vllm"
            else ""
        )
        + f"gradient checkpointing {'on' if checkpointing else 'off'}; activations and what follows are estimates not "
        "measured on a GPU",
    )


def nf4_bytes(count: int, quantisation: Quantisation) -> int:
    """Bytes of a linear weight of `count` elements as bitsandbytes keeps it; the arithmetic is the module's."""
    blocks = -(-count // quantisation.blocksize)
    scales = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 if quantisation.double_quant else 4 * blocks
    return -(-count // 2) + scales + 4 * 16


def count_adapter(shape: ModelShape, adapter: AdapterConfig) -> int:
    """Parameters of an adapter: the sum of r * (I + O) over its modules."""
    return adapter.r * sum(out + into for out, into in shape.targeted(adapter.targets))


def count_prior(shape: ModelShape, earlier: Sequence[AdapterConfig]) -> int:
    """Parameters of earlier stages as one adapter, all of whose modules are padded to the largest rank."""
    ranks = {
        (layer, name): sum(item.r for item in earlier if is_targeted(f"model.layers.{layer}.{name}", item.targets))
        for layer in range(shape.layers)
        for name in shape.linears()
    }
    rank = max(ranks.values(), default=0)
    return rank * sum(sum(shape.linears()[name]) for (_, name), own in ranks.items() if own)


def _activations(shape: ModelShape, tokens: int, compute: int, adapter: AdapterConfig, checkpointing: bool) -> int:
    per_layer = compute * (
        _HIDDEN * shape.hidden
        + _WIDTH * shape.kv_width
        + _INTERMEDIATE * shape.intermediate
        + adapter.r * len(adapter.targets)
    )
    if checkpointing:
        return int(tokens * (per_layer + shape.layers * compute * shape.hidden))
    return int(tokens * per_layer * shape.layers)


def _generating(
    shape: ModelShape, stage: StageConfig, arguments: TrainingArguments, length: int, prompt: int, compute: int
) -> tuple[int, int]:
    """Bytes of plain `generate` for rollouts and for mining: key-value cache and last logits."""

    def bytes_of(samples: int, tokens: int) -> int:
        return _cache(shape, samples * tokens, compute) + samples * shape.vocabulary * (8 + compute)

    at_once = int(arguments.per_device_train_batch_size) * int(getattr(arguments, "steps_per_generation", 1))
    sampled = min(prompt + stage.mining.max_new_tokens, shape.context)
    return bytes_of(at_once, length), bytes_of(MINING_BATCH, sampled) if stage.task == "rewrite" else 0


def _vllm(shape: ModelShape, compute: int, adapters: Sequence[AdapterConfig]) -> int:
    """The twin, and LoRA slots of vLLM's rank on every linear module, whatever an adapter targets."""
    rank = sum(item.r for item in adapters)
    width = shape.layers * sum(out + into for out, into in shape.linears().values())
    return compute * (shape.parameters + SLOTS * (vllm_bucket(rank) or rank) * width)


def _cache(shape: ModelShape, tokens: int, compute: int) -> int:
    return tokens * shape.layers * 2 * shape.kv_width * compute


def _more_passes(arguments: TrainingArguments) -> bool:
    """Whether TRL or the reference policy makes another forward pass: old log probabilities, or beta."""
    every = int(getattr(arguments, "steps_per_generation", 1)) * int(getattr(arguments, "num_iterations", 1))
    return bool(getattr(arguments, "beta", 0.0)) or arguments.gradient_accumulation_steps % every != 0
