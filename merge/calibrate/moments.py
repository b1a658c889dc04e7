"""What the parts of a merge see on given prompts: second moments in the space of their ranks, small enough to keep.

Shapes: N tokens, I in_features, R ranks of a module's parts added up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...adapters.header import read_header
from ...adapters.tensors import tensor_digest
from ...core.disk.digest import PREFIX, canonical_json, digest_json
from ...core.disk.files import write_bytes
from ...core.errors import FailedError, IncompatibleError, IntegrityError
from ...core.reading.strict_json import parse_json
from ..inputs import PartSet
from .hooked_model import active, batched, forward
from .prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATISTICS_SCHEMA = "plyfold/statistics/1"
METADATA_KEY = "plyfold"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """G_RR = E[z z^T] of z = A_c x, A_c a module's A below each other in the order of the parts, x each token's input.

    E|D x|^2 of any D = B A_c is trace(B G B^T), so nothing of size I is needed to know what a change does to outputs.
    """

    moments: dict[str, Tensor]
    """By module, float64 on the CPU."""
    num_tokens: int
    num_prompts: int
    prompts_digest: str
    parts_digest: str
    """Of the parts that were active, with their order, scales and weights, and of the base they name."""

    @property
    def digest(self) -> str:
        """Of all numbers: what decides a result made with them."""
        digest = hashlib.sha256(canonical_json(self.to_json()))
        for name in sorted(self.moments):
            digest.update(f"{name}\n".encode())
            digest.update(self.moments[name].contiguous().numpy().tobytes())
        return PREFIX + digest.hexdigest()

    def of(self, name: str) -> Tensor:
        """G_RR of one module.

        Raises:
            IncompatibleError: There is none.
        """
        if name not in self.moments:
            raise IncompatibleError(
                "no activation statistics of this module",
                where=name,
                found=f"statistics of {len(self.moments)} other modules",
                next_step="collect them again with the adapters that are merged",
            )
        return self.moments[name]

    def check(self, parts: PartSet) -> None:
        """Refuse statistics of another merge.

        Raises:
            IncompatibleError: Collected with other adapters, in another order, or with other weights.
        """
        if self.parts_digest != identity(parts):
            raise IncompatibleError(
                "these activation statistics were collected with other adapters, order or weights",
                expected=identity(parts),
                found=self.parts_digest,
                next_step="collect them again from the prompts",
            )

    def to_json(self) -> dict[str, Any]:
        """What identifies them, as plain JSON values."""
        return {
            "prompts_digest": self.prompts_digest,
            "num_prompts": self.num_prompts,
            "num_tokens": self.num_tokens,
            "parts_digest": self.parts_digest,
        }

    def save(self, path: Path) -> None:
        """Write one safetensors file; equal statistics give equal bytes.

        Raises:
            DiskFullError: The file system filled up.
        """
        from safetensors.torch import save

        about = json.dumps({"schema": STATISTICS_SCHEMA, **self.to_json()}, sort_keys=True)
        tensors = {name: self.moments[name].contiguous() for name in sorted(self.moments)}
        write_bytes(path, save(tensors, metadata={METADATA_KEY: about}))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            NotFoundError: No such file.
            IntegrityError: Damaged, or not such a file.
        """
        header = read_header(path)
        try:
            about = parse_json(header.metadata[METADATA_KEY].encode())
            sound = about.pop("schema") == STATISTICS_SCHEMA
            fields = {key: kind(about.pop(key)) for key, kind in _FIELDS.items()}
        except (KeyError, ValueError, TypeError, AttributeError):
            sound, fields = False, {}
        entries = header.tensors
        square = all(e.dtype == "F64" and len(e.shape) == 2 and e.shape[0] == e.shape[1] > 0 for e in entries.values())
        if not sound or not square:
            raise IntegrityError("not a file of activation statistics", where=path, expected=STATISTICS_SCHEMA)
        moments = {}
        with path.open("rb") as file:
            for name, entry in sorted(entries.items()):
                G_RR = torch.frombuffer(header.read(file, name), dtype=torch.float64).reshape(entry.shape)
                if not torch.isfinite(G_RR).all():
                    raise IntegrityError("a tensor holds NaN or infinity", where=f"{path} {name}")
                moments[name] = G_RR
        return cls(moments=moments, **fields)


_FIELDS: dict[str, type] = {"prompts_digest": str, "num_prompts": int, "num_tokens": int, "parts_digest": str}


def identity(parts: PartSet) -> str:
    """Digest of what decides a merge's statistics beside the prompts."""
    return digest_json(
        {
            "parts": [
                [tensor_digest(part.path), part.weight, [module.scale for module in spec.modules.values()]]
                for part, spec in zip(parts.parts, parts.specs, strict=True)
            ],
            "base": [parts.base_repo, parts.base_revision],
        }
    )


def collect_moments(
    model: PreTrainedModel,
    parts: PartSet,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    advance: Callable[[int], None] = lambda num_prompts: None,
) -> Statistics:
    """Run prompts once through the base with all parts active, and add up what each module's A make of its inputs.

    Args:
        model: The base, in evaluation mode: the twin or the NF4 base for the model that was trained.
        parts: Checked parts; their weights count.
        prompts: Best not those the result is judged on.
        tokenizer: The base's.
        advance: Called with the prompts done since the last call.

    Raises:
        ConfigError: A prompt without tokens or beyond the model's context.
        IncompatibleError, ShapeMismatchError: The base lacks a module, or a module's inputs are not laid out by token.
        FailedError: An input that is not finite.

    Numerics: z as the forward pass has it, float32 or wider; products and sums in float64. The same bits in any order
        of the prompts; tests/merge/calibrate/test_activation.py.
    """
    batches = batched(prompts, tokenizer, model)
    moments = {
        name: torch.zeros(shape.rank, shape.rank, dtype=torch.float64, device=model.device)
        for name, shape in parts.modules.items()
    }
    mask_BT = batches[0].mask

    def observe(name: str, z_BTR: Tensor) -> None:
        if z_BTR.shape[:-1] != mask_BT.shape:
            raise IncompatibleError(
                "a module's inputs are not laid out by prompt and token; padding cannot be told apart",
                where=name,
                found=tuple(z_BTR.shape),
                expected=f"({mask_BT.shape[0]}, {mask_BT.shape[1]}, R)",
            )
        z_NR = z_BTR[mask_BT].double()
        moments[name] += z_NR.T @ z_NR

    prefix = f"{model.base_model_prefix}."
    # Without the head, whose V outputs per token nobody reads, unless a part changes it.
    trunk = model.base_model if all(name.startswith(prefix) for name in parts.modules) else model
    with active(model, parts, observe):
        for batch in batches:
            mask_BT = batch.mask
            forward(trunk, batch)
            advance(len(batch.ids))
    num_tokens = sum(int(batch.mask.sum()) for batch in batches)
    for name, moment in moments.items():
        if not torch.isfinite(moment).all():
            raise FailedError("a module got inputs that are not finite", where=name)
    return Statistics(
        moments={name: ((G_RR + G_RR.T) / (2 * num_tokens)).cpu() for name, G_RR in moments.items()},
        num_tokens=num_tokens,
        num_prompts=len(prompts.texts),
        prompts_digest=prompts.digest,
        parts_digest=identity(parts),
    )
