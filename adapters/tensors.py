"""An adapter with its numbers: read, write, digest.

Shapes: R rank, I in_features, O out_features. A_RI, B_OR; dW_OI = scale * B_OR @ A_RI.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.disk.digest import PREFIX, canonical_json
from ..core.disk.files import disk_errors, write_json
from ..core.errors import IncompatibleError, IntegrityError
from .header import read_header, reading
from .names import A_SUFFIX, B_SUFFIX, KEY_PREFIX, canonical, ends
from .placement import Placement, place
from .scaling import Scaling
from .spec import CONFIG_NAME, DTYPES, WEIGHTS_NAME, AdapterSpec, read_spec

SET_LIKE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Config lists whose order has no meaning."""
UNSTABLE = ("auto_mapping", "peft_version")
"""Config fields that tell how a file was made, not what it is."""


@dataclass(frozen=True)
class Factors:
    """The LoRA of one module: dW_OI = scale * B_OR @ A_RI."""

    A_RI: Tensor
    B_OR: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """An adapter folder in memory."""

    spec: AdapterSpec
    factors: dict[str, Factors]
    """By module name, sorted; on the CPU in the file's dtype."""

    @property
    def adds_nothing(self) -> bool:
        """Whether every delta is zero: by its scale, or because A or B is."""
        return not any(each.scale and each.A_RI.any() and each.B_OR.any() for each in self.factors.values())


def read_adapter(folder: Path, base: Placement | None = None) -> Adapter:
    """Read an adapter, after its header has been checked.

    Args:
        folder: PEFT LoRA folder.
        base: Its base, where that is at hand: modules have their names there, and copies of base weights are compared.

    Raises:
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `read_spec`.
        IntegrityError: A NaN or an infinity, with the tensor's name.
    """
    spec = read_spec(folder, base_follows=base is not None)
    spec = place(spec, base) if base else spec
    tensors: dict[str, Tensor] = {}
    wanted = {key for module in spec.modules.values() for key in module.keys}
    with reading(spec.header.path), spec.header.path.open("rb") as file:
        for key, entry in spec.header.tensors.items():
            if key not in wanted:
                continue  # a copy of a base weight, which is no part of the adapter
            dtype = getattr(torch, DTYPES[entry.dtype])
            # Copied rather than mapped: a file replaced under a map is a crash.
            tensor = torch.frombuffer(spec.header.read(file, key), dtype=dtype).reshape(entry.shape)
            if not torch.isfinite(tensor).all():
                raise IntegrityError("a tensor holds NaN or infinity", where=f"{spec.header.path} {key}")
            tensors[key] = tensor
    factors = {
        name: Factors(tensors[module.keys[0]], tensors[module.keys[1]], module.scale)
        for name, module in spec.modules.items()
    }
    return Adapter(spec, factors)


def write_adapter(
    folder: Path,
    factors: Mapping[str, Factors],
    *,
    base_repo: str,
    base_revision: str | None,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
) -> None:
    """Write a canonical PEFT folder: equal factors give equal bytes, in any process.

    Args:
        folder: Exists and is the caller's to fill (`core.files.staged_folder`).
        factors: By module name; one rank and one scale for all, any float dtype.
        base_repo: Hub id of the base, never a local path.
        base_revision: Commit of the base.
        alpha: `lora_alpha`; null takes scale * r.
        targets: `target_modules`, as suffixes; null lists every module by its full name, which is always right.

    Raises:
        IncompatibleError: Ranks or scales differ between modules, alpha / r is not the scale, or a target is missing.
        DiskFullError: The file system filled up.
    """
    from safetensors.torch import save_file

    r, alpha = _uniform(factors, alpha)
    shapes = {name: (module.B_OR.shape[0], module.A_RI.shape[1]) for name, module in factors.items()}
    chosen = check_targets(shapes, targets)
    tensors = {}
    for name in sorted(factors):
        tensors[f"{KEY_PREFIX}{name}{A_SUFFIX}"] = factors[name].A_RI.detach().cpu().contiguous()
        tensors[f"{KEY_PREFIX}{name}{B_SUFFIX}"] = factors[name].B_OR.detach().cpu().contiguous()
    with disk_errors(folder, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    write_config(folder, adapter_config(r, alpha, chosen, base_repo, base_revision))


def check_targets(modules: Iterable[str], targets: Sequence[str] | None) -> list[str]:
    """`target_modules` of an adapter, sorted; every module by its full name where none are given.

    Raises:
        IncompatibleError: A module that no target matches.
    """
    chosen = sorted(targets or modules)
    known = set(chosen)
    missed = [name for name in modules if known.isdisjoint(ends(name))]
    if missed:
        raise IncompatibleError("a module is not among the targets", where=missed[0], expected=", ".join(chosen))
    return chosen


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `adapter_config.json`."""
    write_json(folder / CONFIG_NAME, config)


def tensor_digest(folder: Path) -> str:
    """Digest of the weights alone: sha256 over (name, dtype, shape, bytes) of every tensor, by name.

    Independent of the order of tensors in the file and of its metadata; scale and config do not enter.

    Raises:
        NotFoundError: No weights.
        IntegrityError: The header is unsound.
    """
    header = read_header(folder / WEIGHTS_NAME)
    digest = hashlib.sha256()
    with reading(header.path), header.path.open("rb") as file:
        for name in sorted(header.tensors):
            entry = header.tensors[name]
            digest.update(canonical_json([name, entry.dtype, list(entry.shape)]) + b"\n")
            digest.update(header.read(file, name))
    return PREFIX + digest.hexdigest()


def canonicalise(folder: Path, base_repo: str, base_revision: str | None, base: Placement | None = None) -> AdapterSpec:
    """Rewrite a folder that PEFT saved: same adapter, canonical bytes and names, the base by its Hub id, no README.md.

    Copies of base weights beside the factors are left out. Ranks and scales stay as they are. Patterns stay too, unless
    sorting them, as every JSON writer here and PEFT's own does, would let another one match first: then they are
    written out by full module names.

    Args:
        folder: The caller's to change.
        base_repo: Hub id of the base.
        base_revision: Commit of the base.
        base: As for `read_adapter`.

    Returns:
        The adapter as it was.

    Raises:
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `read_adapter`.
    """
    from safetensors.torch import save_file

    adapter = read_adapter(folder, base)
    config = {key: value for key, value in adapter.spec.config.items() if key not in UNSTABLE}
    for key in SET_LIKE:
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    config |= _orderless_patterns(adapter.spec)
    config |= _plain_targets(adapter.spec)
    config |= {"base_model_name_or_path": base_repo, "revision": base_revision, "inference_mode": True}
    tensors = {}
    for name, module in adapter.factors.items():
        tensors[f"{KEY_PREFIX}{name}{A_SUFFIX}"] = module.A_RI
        tensors[f"{KEY_PREFIX}{name}{B_SUFFIX}"] = module.B_OR
    with disk_errors(folder, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    write_json(folder / CONFIG_NAME, config)
    (folder / "README.md").unlink(missing_ok=True)
    return adapter.spec


def _plain_targets(spec: AdapterSpec) -> dict[str, Any]:
    """Targets that name what the file's canonical names do; a pattern may have been one of the names as spelt."""
    targets = spec.config.get("target_modules")
    if isinstance(targets, list):
        plain = {canonical(target) for target in targets}
        if not any(plain.isdisjoint(ends(name)) for name in spec.modules):
            return {"target_modules": sorted(plain)}
    return {"target_modules": sorted(spec.modules)} if spec.respelt or isinstance(targets, list) else {}


def _orderless_patterns(spec: AdapterSpec) -> dict[str, Any]:
    config = {**spec.config, **{key: spec.config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}}
    sorted_config = {**config, **{key: dict(sorted(config[key].items())) for key in ("rank_pattern", "alpha_pattern")}}
    as_is, as_sorted = Scaling(config, spec.path), Scaling(sorted_config, spec.path)
    if all(as_is.of(name) == as_sorted.of(name) for name in spec.modules):
        return {}
    named = {re.escape(name): as_is.of(name) for name in spec.modules}
    return {
        "rank_pattern": {name: r for name, (r, _, _) in named.items() if r != as_is.r},
        "alpha_pattern": {name: alpha for name, (_, alpha, _) in named.items() if alpha != as_is.alpha},
    }


def _uniform(factors: Mapping[str, Factors], alpha: float | None) -> tuple[int, float]:
    shapes = {(module.A_RI.shape[0], module.B_OR.shape[1]) for module in factors.values()}
    ranks = {r for shape in shapes for r in shape}
    if len(ranks) != 1:
        raise IncompatibleError("an adapter is written with one rank for all modules", found=sorted(ranks))
    r = ranks.pop()
    scales = {module.scale for module in factors.values()}
    scale = min(scales)
    alpha = scale * r if alpha is None else alpha
    if len(scales) != 1 or alpha / r != scale:
        raise IncompatibleError(
            "one alpha does not give every module its scale",
            found=f"scales {sorted(scales)[:5]}",
            expected=f"alpha / r = {alpha} / {r}",
            next_step="fold the scales into B and write scale 1",
        )
    return r, alpha


def adapter_config(
    r: int, alpha: float, targets: Sequence[str], base_repo: str, base_revision: str | None
) -> dict[str, Any]:
    """Every field of a config that has a bearing, so that a reader's own defaults have none."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base_repo,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": {},
        "revision": base_revision,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
