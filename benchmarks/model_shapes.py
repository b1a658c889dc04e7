"""The shapes of three Qwen2.5 models, from their configs on the Hub, for files of random weights."""

from __future__ import annotations

from dataclasses import dataclass


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
    "3B": ModelShape(
        repo="Qwen/Qwen2.5-3B",
        revision="3aab1f1954e9cc14eb9509a215f9e5ca08227a9b",
        num_layers=36,
        hidden=2048,
        key_value=256,
        intermediate=11008,
        vocabulary=151936,
        heads=16,
        key_value_heads=2,
        tied=True,
    ),
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
