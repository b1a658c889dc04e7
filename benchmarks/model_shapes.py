"""The shapes of three Qwen2.5 models, from their configs on the Hub, for files of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plyfold.stages.plan.model_shape import KNOWN


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of one model."""

    repo: str
    revision: str | None
    num_layers: int
    hidden: int
    key_value: int
    """Outputs of k_proj and v_proj."""
    intermediate: int
    vocabulary: int
    heads: int
    key_value_heads: int
    tied: bool

    @classmethod
    def of(cls, repo: str, revision: str, config: Mapping[str, Any]) -> ModelShape:
        """From what its config.json says."""
        heads, key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
        return cls(
            repo=repo,
            revision=revision,
            num_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            key_value=key_value_heads * config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            heads=heads,
            key_value_heads=key_value_heads,
            tied=config["tie_word_embeddings"],
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear module of a layer -> (out_features, in_features)."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.key_value, self.hidden),
            "self_attn.v_proj": (self.key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def num_linear_weights(self) -> int:
        """Elements of all linear modules."""
        return self.num_layers * sum(num_out * num_in for num_out, num_in in self.linears.values())

    @property
    def num_sides(self) -> int:
        """Sum of O + I over all linear modules: elements of a rank-1 adapter."""
        return self.num_layers * sum(num_out + num_in for num_out, num_in in self.linears.values())


MODELS = {
    "0.5B": ModelShape(
        repo="Qwen/Qwen2.5-0.5B",
        revision=None,
        num_layers=24,
        hidden=896,
        key_value=128,
        intermediate=4864,
        vocabulary=151936,
        heads=14,
        key_value_heads=2,
        tied=True,
    ),
    "3B": next(ModelShape.of(*name, config) for name, config in KNOWN.items() if name[0] == "Qwen/Qwen2.5-3B"),
    "7B": ModelShape(
        repo="Qwen/Qwen2.5-7B",
        revision=None,
        num_layers=28,
        hidden=3584,
        key_value=512,
        intermediate=18944,
        vocabulary=152064,
        heads=28,
        key_value_heads=4,
        tied=False,
    ),
}
