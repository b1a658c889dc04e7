"""What a merge would be, decided from configs and headers alone: every refusal that can happen, happens here.

Nothing is read but headers and nothing is written, so a plan costs milliseconds whatever the size of the adapters.
No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import ConfigError, IncompatibleError
from .inputs import BaseWord, FindBase, Part, PartSet, check_parts


@dataclass(frozen=True)
class Method:
    """What a merge method does, and which options it has."""

    summary: str
    """One line, as shown by `--help` and in warnings."""
    source: str = ""
    """Paper or theorem."""
    options: frozenset[str] = frozenset()
    """Of `rank`, `density`, `seed`, `prompts`, `peft`."""
    approximates: bool = True
    """Whether it stands for the sum of the deltas; False where it means another model on purpose."""


def _options(*names: str) -> frozenset[str]:
    return frozenset(names)


METHODS = {
    "exact": Method("rank concatenation: the sum of the deltas, nothing lost", "arXiv:2106.09685"),
    "svd": Method("the best approximation of the sum at a rank", "Eckart-Young", _options("rank")),
    "activation": Method(
        "the approximation at a rank whose outputs on given prompts are closest", "", _options("rank", "prompts")
    ),
    "linear": Method("task arithmetic: the same sum, cut to a rank", "arXiv:2212.04089", _options("rank", "peft")),
    "ties": Method(
        "trim each delta, elect a sign per entry, average what agrees",
        "arXiv:2306.01708",
        _options("rank", "density", "peft"),
        approximates=False,
    ),
    "dare_linear": Method(
        "drop entries of each delta at random, rescale, sum",
        "arXiv:2311.03099",
        _options("rank", "density", "seed", "peft"),
        approximates=False,
    ),
    "dare_ties": Method(
        "drop entries of each delta at random, rescale, elect signs",
        "arXiv:2311.03099",
        _options("rank", "density", "seed", "peft"),
        approximates=False,
    ),
    "knots": Method(
        "TIES in the parts' joint singular basis (KnOTS)",
        "arXiv:2410.19735",
        _options("rank", "density"),
        approximates=False,
    ),
    "core": Method(
        "TIES on the parts' core matrices (Core Space)",
        "arXiv:2509.17786",
        _options("rank", "density"),
        approximates=False,
    ),
}
"""Methods that are not exact are for adapters trained apart; stages of a curriculum belong together whole."""
NUMERICS = {
    "sum": "act on the deltas",
    "peft": "act on A and B apart, as PEFT 0.21's add_weighted_adapter does: cross terms B_i A_j enter the result",
}
DEFAULT_DENSITY = 0.5
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Name on the command line -> torch's name."""
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
HEADER_ALLOWANCE_BYTES = 1 << 20
"""Room asked for beside the tensors: header, config, composition.json."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values vLLM 0.32 takes for `max_lora_rank`."""


@dataclass(frozen=True, kw_only=True)
class ComposePlan(PartSet):
    """A composition that can be carried out."""

    method: str
    """One of `METHODS`."""
    rank: int
    """Uniform rank of the result, shorter modules padded with zeros; with `max_error`, the most it can be."""
    dtype: str
    """`fp32`, `bf16` or `fp16`, of the result's tensors."""
    max_error: float | None = None
    """Relative error to meet with the smallest rank that vLLM can be started with."""
    density: float = 1.0
    """Share of entries kept by methods that trim or drop."""
    seed: int = 0
    """Of methods that drop at random."""
    numerics: str = "sum"
    """One of `NUMERICS`."""

    @property
    def bucket(self) -> int | None:
        """Smallest `max_lora_rank` of vLLM that takes the result; None if none does."""
        return vllm_bucket(self.rank)

    @property
    def keeps_all(self) -> bool:
        """Whether the result is the sum itself, nothing cut."""
        whole = self.rank >= self.exact_rank and self.max_error is None and self.numerics == "sum"
        return self.method == "exact" or (self.method == "linear" and whole)

    @property
    def approximates(self) -> bool:
        """Whether the result stands for the sum, rather than for another model on purpose."""
        return METHODS[self.method].approximates and self.numerics == "sum"

    @property
    def bytes_out(self) -> int:
        """Size of the result's tensors."""
        sides = sum(shape.out_features + shape.in_features for shape in self.modules.values())
        return self.rank * sides * ELEMENT_BYTES[self.dtype]

    @property
    def settings(self) -> dict[str, float | str]:
        """What was chosen beside the method, for the record of the result."""
        options = METHODS[self.method].options
        return {
            **({"density": self.density} if "density" in options else {}),
            **({"seed": self.seed} if "seed" in options else {}),
            **({"numerics": self.numerics} if "peft" in options else {}),
            **({"max_error": self.max_error} if self.max_error is not None else {}),
        }


def vllm_bucket(rank: int) -> int | None:
    """Smallest rank vLLM can be started with that holds `rank`; None above its largest."""
    return next((bucket for bucket in VLLM_RANKS if bucket >= rank), None)


def plan_compose(
    parts: Sequence[Part],
    *,
    method: str | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    dtype: str = "fp32",
    density: float | None = None,
    seed: int | None = None,
    numerics: str = "sum",
    base: BaseWord | None = None,
    find_base: FindBase = lambda repo, revision: None,
) -> ComposePlan:
    """Check parts and options, and say what composing them would make.

    Args:
        parts: At least one; order decides only the order of rank components.
        method: One of `METHODS`; null is `exact`, or `svd` where a rank or an error is given.
        rank: Rank of the result, for methods that have one.
        max_error: Relative error |D - result| / |D| to meet with the smallest vLLM rank, instead of a rank.
        dtype: Of the result: `fp32` keeps every bit of narrower factors; others round once, and the loss is stated.
        density: Share of entries kept, in (0, 1], for methods that trim or drop; null is 0.5.
        seed: For methods that drop at random; null is 0.
        numerics: `sum`, or `peft` for results equal to PEFT's.
        base: The user's word on the base, over what the parts call theirs.
        find_base: Where the base lies, as for `check_parts`.

    Raises:
        ConfigError: Unknown method or dtype; an option missing, out of range or not meant for the method.
        NotFoundError, IntegrityError, UnsupportedAdapterError, IncompatibleError: As `check_parts`.
    """
    if method is None:
        method = "exact" if rank is None and max_error is None else "svd"
    if method not in METHODS:
        raise ConfigError("no such merge method", found=method, expected=", ".join(METHODS))
    check_dtype(dtype)
    _check_options(method, rank, max_error, density, seed, numerics)
    chosen = check_parts(parts, base=base, find_base=find_base)
    warnings = list(chosen.warnings)
    kept = chosen.exact_rank if rank is None else min(rank, chosen.exact_rank)
    if rank is not None and rank > chosen.exact_rank:
        warnings.append(f"rank {rank} was asked for, the sum has {chosen.exact_rank}; so has the result")
    if numerics == "peft":
        kept = _common_rank(chosen)
        warnings.append(f"numerics peft {NUMERICS['peft']}")
    if vllm_bucket(kept) is None and max_error is None:
        warnings.append(f"rank {kept} is above vLLM's largest; --method svd --rank {VLLM_RANKS[-1]} can be served")
    if not METHODS[method].approximates and len(parts) > 1:
        warnings.append(f"{method} is for adapters trained apart; stages of a curriculum were trained as their sum")
    return ComposePlan(
        parts=chosen.parts,
        specs=chosen.specs,
        method=method,
        rank=kept,
        dtype=dtype,
        modules=chosen.modules,
        base_repo=chosen.base_repo,
        base_revision=chosen.base_revision,
        base_word=base,
        warnings=tuple(warnings),
        max_error=max_error,
        density=1.0 if "density" not in METHODS[method].options else DEFAULT_DENSITY if density is None else density,
        seed=seed or 0,
        numerics=numerics,
    )


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that is not one of `DTYPE_NAMES`.

    Raises:
        ConfigError: It is not.
    """
    if dtype not in DTYPE_NAMES:
        raise ConfigError("no such dtype", found=dtype, expected=", ".join(DTYPE_NAMES))


def _check_options(
    method: str,
    rank: int | None,
    max_error: float | None,
    density: float | None,
    seed: int | None,
    numerics: str,
) -> None:
    options = METHODS[method].options
    if numerics not in NUMERICS:
        raise ConfigError("no such numerics", found=numerics, expected=", ".join(NUMERICS))
    given = {"density": density is not None, "seed": seed is not None, "peft": numerics == "peft"}
    for option in (name for name, is_given in given.items() if is_given and name not in options):
        having = ", ".join(name for name, each in METHODS.items() if option in each.options)
        shown = "--numerics peft" if option == "peft" else f"--{option}"
        raise ConfigError(f"{method} has no {shown}", expected=f"with {shown}: {having}")
    if "rank" not in options and (rank is not None or max_error is not None):
        asked = f"--rank {rank}" if rank is not None else f"--max-error {max_error:g}"
        raise ConfigError("exact keeps every rank; a rank is for svd", next_step=f"use --method svd {asked}")
    if rank is not None and max_error is not None:
        raise ConfigError("give a rank or an error to meet, not both", found=f"rank {rank}, error {max_error:g}")
    if method in ("svd", "activation") and rank is None and max_error is None:
        raise ConfigError(f"{method} needs the rank to keep", next_step="add --rank 16, or --max-error 1e-3")
    if numerics == "peft" and (rank is not None or max_error is not None):
        raise ConfigError("PEFT keeps the rank of the parts", next_step="leave out --rank and --max-error")
    if rank is not None and rank < 1:
        raise ConfigError("not a rank", found=rank, expected="1 or more")
    if max_error is not None and not 0 < max_error < 1:
        raise ConfigError("not a relative error", found=max_error, expected="between 0 and 1, as 1e-3")
    if density is not None and not 0 < density <= 1:
        raise ConfigError("not a density", found=density, expected="above 0, up to 1: the share of entries kept")
    if seed is not None and not 0 <= seed < 1 << 63:
        raise ConfigError("not a seed", found=seed, expected="a whole number from 0")


def _common_rank(parts: PartSet) -> int:
    """The one rank of every module of every part, without which PEFT cannot combine them."""
    ranks = {module.r for spec in parts.specs for module in spec.modules.values()}
    if len(ranks) > 1 or any(spec.modules.keys() != parts.modules.keys() for spec in parts.specs):
        raise IncompatibleError(
            "PEFT combines only adapters of one rank on the same modules",
            found=f"ranks {sorted(ranks)}" if len(ranks) > 1 else "different modules",
            next_step="leave out --numerics peft",
        )
    return ranks.pop()
