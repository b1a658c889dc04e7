"""The sizes of a base, read from its config.json alone: no weights, no network.

Where the config is not at hand, a small table of known bases stands in for it, and the caller is told so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.base.model_config import ModelConfig, model_config
from ...adapters.base.resolve import embedded_base, sandbox_folder
from ...core.config import BaseConfig
from ...core.disk.files import expanded
from ...core.environment import meaning
from ...core.errors import IntegrityError
from ...sandbox import SANDBOX

DENSE = ("qwen2", "qwen3", "llama", "mistral")
"""Model types whose modules are the seven linear ones listed here, with RMS norms and nothing else."""

KNOWN: dict[tuple[str, str], dict[str, Any]] = {
    ("Qwen/Qwen2.5-3B", "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b"): {
        "model_type": "qwen2",
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    }
}
"""(Hub id, commit) -> what its config.json says."""


def is_targeted(path: str, targets: Sequence[str]) -> bool:
    """Whether a module is one that `targets` name, by the end of its path or all of it."""
    return any(path == target or path.endswith(f".{target}") for target in targets)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a dense decoder; each in numbers of elements."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    """Longest sequence, in tokens."""
    tied: bool
    """Whether the head is the embedding."""
    attention_bias: bool
    """Of the config; `qwen2` has one on q, k and v whatever it says."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """From a config.json; None for a model whose parts are not the ones counted here."""
        if config.get("model_type") not in DENSE or config.get("mlp_bias"):
            return None
        known = ModelConfig(config)
        try:
            heads = int(known.get("num_attention_heads"))
            return cls(
                model_type=known.model_type,
                hidden=int(known.get("hidden_size")),
                layers=int(known.get("num_hidden_layers")),
                heads=heads,
                kv_heads=int(known.get("num_key_value_heads") or heads),
                head_dim=int(known.get("head_dim") or known.get("hidden_size") // heads),
                intermediate=int(known.get("intermediate_size")),
                vocabulary=int(known.get("vocab_size")),
                context=int(known.get("max_position_embeddings")),
                tied=bool(known.tied),
                attention_bias=bool(known.get("attention_bias")),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, and of its values, in one layer."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear modules of one layer, the ones in NF4: name -> (out, in)."""
        width = self.heads * self.head_dim
        return {
            "self_attn.q_proj": (width, self.hidden),
            "self_attn.k_proj": (self.kv_width, self.hidden),
            "self_attn.v_proj": (self.kv_width, self.hidden),
            "self_attn.o_proj": (self.hidden, width),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def targeted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """(out, in) of every module that `targets` name, over all layers."""
        return [
            size
            for layer in range(self.layers)
            for name, size in self.linears().items()
            if is_targeted(f"model.layers.{layer}.{name}", targets)
        ]

    @property
    def unquantised(self) -> int:
        """Parameters in the compute dtype: embeddings, head, norms and biases."""
        width = self.heads * self.head_dim
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.hidden
        if self.model_type == "qwen3":
            norms += 2 * self.layers * self.head_dim  # of queries and keys
        biases = 0
        if self.model_type == "qwen2" or self.attention_bias:
            biases = width + 2 * self.kv_width
            biases += 0 if self.model_type == "qwen2" else self.hidden
        return embeddings + norms + self.layers * biases

    @property
    def parameters(self) -> int:
        """All parameters of the base."""
        return self.layers * sum(out * into for out, into in self.linears().values()) + self.unquantised


def find_shape(config: BaseConfig) -> tuple[ModelShape | None, str]:
    """The shape of a base without a network, and where it was found (or why it was not).

    Looks at `base.path`, then in the local Hub cache, then in the table of known bases.
    """
    values: Any = None
    file = local_file(config, "config.json")
    if file is not None:
        try:
            values = model_config(file.parent)
        except (OSError, IntegrityError):
            return None, "the base's config.json cannot be read"
        source = "its config.json"
    else:
        values = KNOWN.get((config.repo, config.revision)) if config.path is None else None
        source = f"the known sizes of {config.repo}@{config.revision[:12]} (its config.json is not here)"
    if values is None:
        return None, "the base's config.json is not here"
    shape = ModelShape.of(values)
    if shape is None:
        return None, f"no estimate for a base of type {str(values.get('model_type'))[:80]}"
    return shape, source


def local_file(config: BaseConfig, name: str) -> Path | None:
    """A file of the base where it is on this disk, in `base.path`, with plyfold or in the local Hub cache."""
    if config.path is None:
        folder = embedded_base(config.repo, config.revision)
    else:
        folder = sandbox_folder() if config.path == SANDBOX else expanded(meaning(config.path))
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(config.repo, name, revision=config.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
