"""What an adapter folder holds, from its config and its header alone: modules, ranks, scales, base. No torch.

An adapter is plain PEFT LoRA files: `adapter_config.json` and `adapter_model.safetensors` with, per module, A (R, I)
and B (O, R), so that dW = scale * B @ A. Whatever gives an adapter another meaning is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import IntegrityError, NotFoundError, UnsupportedAdapterError
from ..core.reading.strict_json import read_object
from .header import Header, read_header, reading, shown
from .names import A_SUFFIX, KEY_PREFIX, Copy, read_names
from .scaling import Scaling, bad_config
from .targets import Targets

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
COMPOSITION_FILE = "composition.json"
"""Beside a composed adapter: its inputs, method and certificate."""
UNREAD_WEIGHTS = {
    "adapters.safetensors": "as MLX saves an adapter",
    "pytorch_lora_weights.safetensors": "as diffusers saves one",
    "adapter_0.pt": "as torchtune saves one",
    "model.safetensors": "a whole model",
}
"""Files that a folder may have instead, and what they are."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' name of each dtype a factor may have -> torch's name."""
MAX_CONFIG_BYTES = 8_000_000
"""Longest config accepted: some 30,000 modules, each with its name in full in three fields."""
NEUTRAL_INITS = {"gaussian", "eva", "orthogonal", "mica"}
"""Initialisations that leave the base weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them."""

UNSUPPORTED = {
    "use_dora": "DoRA rescales the whole weight, which no sum of deltas expresses",
    "lora_bias": "a bias inside LoRA is more than B @ A",
    "modules_to_save": "whole trained modules are more than B @ A",
    "trainable_token_indices": "trained tokens are more than B @ A",
    "target_parameters": "LoRA on bare parameters has no module of its own",
    "layer_replication": "replicated layers change the base",
    "alora_invocation_tokens": "activated LoRA switches on inside a prompt",
    "use_qalora": "QA-LoRA pools the input of A",
    "use_bdlora": "block-diagonal LoRA stores its factors in blocks",
    "arrow_config": "Arrow routes between adapters for every token",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "MonteCLoRA samples its factors",
    "megatron_config": "Megatron layers shard their factors",
    "fan_in_fan_out": "the base stores its weights transposed",
}
"""Config fields that, when set, change what an adapter computes; with the reason shown."""

NEUTRAL = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora", "velora_config",
}  # fmt: skip
"""Config fields that are read here, or bear only on training."""


@dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """The LoRA of one linear module."""

    name: str
    """As in the base: `model.layers.0.self_attn.q_proj`."""
    r: int
    """Rank R."""
    scale: float
    """Factor of B @ A: alpha / r, or alpha / sqrt(r) for rsLoRA; patterns resolved."""
    in_features: int
    """I, columns of A."""
    out_features: int
    """O, rows of B."""
    keys: tuple[str, str]
    """The keys of A and B in the file, however they are spelt there."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """An adapter folder without its numbers."""

    path: Path
    config: dict[str, Any]
    """`adapter_config.json` as it stands."""
    base_repo: str
    """`base_model_name_or_path`; empty where the config has none."""
    base_revision: str | None
    dtype: str
    """`float32`, `bfloat16`, …, or `mixed`."""
    modules: dict[str, ModuleSpec]
    """By canonical name, sorted."""
    header: Header
    """The weights file's checked header."""
    copies: dict[str, Copy]
    """Weights of the base that stand whole in the file, by key."""
    placed: bool = False
    """Whether modules have the base's names, and copies were found equal to the base's."""
    marks: tuple[str, ...]
    """What was taken out of the file's keys; empty where they are as PEFT writes them."""

    @property
    def respelt(self) -> bool:
        """Whether a module has another name than its keys in the file give it."""
        return any(module.keys[0] != f"{KEY_PREFIX}{name}{A_SUFFIX}" for name, module in self.modules.items())

    @property
    def about_names(self) -> list[str]:
        """What to know of the file's names: what was taken out of them, and what was passed over."""
        found = []
        if self.marks:
            found.append(f"its keys are not as PEFT writes them; read without {', '.join(self.marks)}")
        elif other := next((name for name, each in self.modules.items() if _as_spelt(each.keys[0]) != name), ""):
            found.append(f"its names are not the base's: {_as_spelt(self.modules[other].keys[0])} is read as {other}")
        if self.config.get("target_modules") is None:
            found.append("its config names no target_modules: PEFT takes its own for the base's type, not the file's")
        if self.copies:
            names = ", ".join(sorted(copy.tensor for copy in self.copies.values())[:3])
            names += f" and {len(self.copies) - 3} more" if len(self.copies) > 3 else ""
            compared = "equal to the base's" if self.placed else "not compared, since no base is at hand"
            found.append(f"it holds copies of base weights, which are passed over: {names}; {compared}")
        return found


def read_spec(folder: Path, *, base_follows: bool = False) -> AdapterSpec:
    """Read what an adapter folder says it is, from its config and header only.

    Args:
        folder: PEFT LoRA folder.
        base_follows: Whether the caller compares the copies of base weights in it with the base (`placement`);
            without that, those that may have been trained are refused.

    Returns:
        The adapter with r and scale of every module as PEFT would set them.

    Raises:
        NotFoundError: No folder, config or weights.
        IntegrityError: Weights truncated, pickled, of a wrong dtype, unpaired, or not of the rank the config says.
        UnsupportedAdapterError: A feature with no exact additive meaning, by name.
        FailedError: The system does not let a file be read.

    Source: PEFT 0.21 `LoraModel._create_and_replace`, `get_pattern_key`; tests compare with its live layers.
    """
    with reading(folder):
        spec = _read_spec(folder)
    if not base_follows:
        refuse_whole_weights(spec)
    return spec


def refuse_whole_weights(spec: AdapterSpec) -> None:
    """Refuse weights of the base that stand whole in the file and may have been trained there.

    Raises:
        UnsupportedAdapterError: There is one.
    """
    for key, copy in spec.copies.items():
        if not copy.frozen:
            raise UnsupportedAdapterError(
                "a whole weight beside the LoRA may have been trained, which is more than B @ A",
                where=f"{spec.header.path} {shown(key)}",
                found=f"a whole {copy.tensor}",
                next_step="merge it with --base DIR, which passes it over where it equals the base's",
            )


def refuse_other_keys(spec: AdapterSpec) -> None:
    """Refuse a file that PEFT and vLLM would load in part or not at all, without a word.

    Raises:
        UnsupportedAdapterError: Its keys are not as PEFT writes them.
    """
    if spec.marks:
        raise UnsupportedAdapterError(
            "the adapter's keys are not as PEFT writes them; PEFT and vLLM would ignore those",
            where=spec.header.path,
            found=", ".join(spec.marks),
            next_step=f"plyfold merge {spec.path} -o OUT writes the same adapter with PEFT's keys",
        )


def _read_spec(folder: Path) -> AdapterSpec:
    config = _read_config(folder)
    _refuse_features(config, folder / CONFIG_NAME)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise _no_weights(folder)
    header = read_header(weights)
    scaling = Scaling(config, folder / CONFIG_NAME)
    names = read_names(weights, header.tensors)
    modules = {name: _module(name, keys, header, scaling) for name, keys in names.modules.items()}
    _check_targeted(config, names.modules, folder / CONFIG_NAME)
    dtypes = {header.tensors[key].dtype for module in modules.values() for key in module.keys}
    return AdapterSpec(
        path=folder,
        config=config,
        base_repo=_line(config, "base_model_name_or_path", folder / CONFIG_NAME),
        base_revision=_line(config, "revision", folder / CONFIG_NAME) or None,
        dtype=DTYPES[dtypes.pop()] if len(dtypes) == 1 else "mixed",
        modules=modules,
        header=header,
        copies=names.copies,
        marks=names.marks,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter folder alone, for what can be refused before there are weights.

    Raises:
        NotFoundError, IntegrityError, UnsupportedAdapterError, FailedError: As `read_spec`.
    """
    with reading(folder):
        config = _read_config(folder)
        _refuse_features(config, folder / CONFIG_NAME)
    return config


def suffix_targets(specs: Iterable[AdapterSpec]) -> list[str] | None:
    """The module suffixes (`q_proj`) that together say what all `specs` target, or None where only full names do.

    A suffix stands for every module of that name in the base, so it is right only where each adapter that touches it
    was made with that plain suffix and without a choice of layers.
    """
    suffixes: set[str] = set()
    for spec in specs:
        targets = spec.config.get("target_modules")
        chosen = any(spec.config.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
        if chosen or not isinstance(targets, list) or any("." in target for target in targets):
            return None
        suffixes |= {name.rpartition(".")[2] for name in spec.modules}
        if not suffixes.issuperset(targets):
            return None
    return sorted(suffixes)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if folder.is_file():
        raise NotFoundError("an adapter is a folder, not a file of it", where=folder, next_step=f"name {folder.parent}")
    if not folder.is_dir():
        raise NotFoundError("no such adapter folder", where=folder)
    if not path.is_file():
        raise _no_adapter(folder)
    return read_object(path, "the adapter config", max_bytes=MAX_CONFIG_BYTES)


def _no_adapter(folder: Path) -> NotFoundError:
    """The error for a folder without an adapter, which says where adapters lie inside it, newest last."""
    files = [*folder.glob(f"*/{CONFIG_NAME}"), *folder.glob(f"*/*/{CONFIG_NAME}")]
    inside = [str(file.parent) for file in sorted(files, key=lambda file: file.lstat().st_mtime_ns)]
    return NotFoundError(
        f"no {CONFIG_NAME} in the folder",
        where=folder,
        expected="a PEFT LoRA adapter folder",
        found=f"adapters in {', '.join(inside[-5:])}" if inside else "",
        next_step=f"name one of them, as {inside[-1]}" if inside else "",
    )


def _refuse_features(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("peft_type")
    if kind is None and ("lora_parameters" in config or "fine_tune_type" in config):
        raise UnsupportedAdapterError(
            "an adapter in MLX's form, not PEFT's",
            where=where,
            expected=f"peft_type LORA, and {WEIGHTS_NAME} beside it",
            next_step="convert it first: A and B are transposed there, and the scale is not alpha / r",
        )
    if kind != "LORA":
        raise UnsupportedAdapterError(
            "not a LoRA adapter", where=where, found=f"peft_type {shown(kind)}", expected="LORA"
        )
    for field, why in UNSUPPORTED.items():
        if config.get(field):
            raise UnsupportedAdapterError(f"{field} is not supported: {why}", where=where, found=shown(config[field]))
    if config.get("bias", "none") != "none":
        raise UnsupportedAdapterError(
            "trained biases are more than B @ A", where=where, found=f"bias {shown(config['bias'])}"
        )
    init = config.get("init_lora_weights")
    if init is not None and not isinstance(init, str | bool):
        raise bad_config(where, "init_lora_weights", init, "true, false or a name")
    if isinstance(init, str) and init.lower() not in NEUTRAL_INITS:
        raise UnsupportedAdapterError(
            f"init_lora_weights {shown(init)} is not known to leave the base weights as they are, to which factors fit",
            where=where,
            expected=f"true, false or one of {', '.join(sorted(NEUTRAL_INITS))}",
            next_step="where PEFT has it changed the base (PiSSA, OLoRA, CorDA), convert it there: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    unknown = sorted(key for key, value in config.items() if value and key not in NEUTRAL and key not in UNSUPPORTED)
    if unknown:
        raise UnsupportedAdapterError(
            "the adapter config sets a field that this version does not know",
            where=where,
            found=shown(", ".join(unknown)),
            next_step="if the field bears only on training, remove it from the config",
        )


def _module(name: str, keys: tuple[str, str], header: Header, scaling: Scaling) -> ModuleSpec:
    entries = [header.tensors[key] for key in keys]
    for key, entry in zip(keys, entries, strict=True):
        if entry.dtype not in DTYPES:
            raise IntegrityError(
                "wrong dtype", where=f"{header.path} {key}", found=entry.dtype, expected=", ".join(DTYPES)
            )
    a, b = (entry.shape for entry in entries)
    if len(a) > 2 or len(b) > 2:
        raise UnsupportedAdapterError(
            "LoRA on a convolution is not supported", where=header.path, found=f"{name} {shown(a)}"
        )
    if len(a) < 2 or len(b) < 2:
        raise IntegrityError(
            "a factor is no matrix: shards of a distributed run were saved without being gathered",
            where=f"{header.path} {name}",
            found=f"A {a}, B {b}",
        )
    r, _, scale = scaling.of(name)
    spelt = _as_spelt(keys[0])
    if spelt != name and scaling.of(spelt) != scaling.of(name):
        raise UnsupportedAdapterError(
            "rank_pattern or alpha_pattern gives a module another rank or alpha under the name in the file",
            where=f"{header.path} {shown(keys[0])}",
            found=f"r, alpha, scale = {scaling.of(spelt)}",
            expected=f"{scaling.of(name)}, as for {name}",
            next_step="name the modules in the patterns as the unwrapped model does",
        )
    if (a[0], b[1]) != (r, r) or not (a[1] and b[0]):
        raise IntegrityError(
            "factors do not have the rank their config says",
            where=f"{header.path} {name}",
            found=f"A {a}, B {b}",
            expected=f"A ({r}, I), B (O, {r})",
        )
    return ModuleSpec(name=name, r=r, scale=scale, in_features=a[1], out_features=b[0], keys=keys)


def _check_targeted(config: Mapping[str, Any], modules: Mapping[str, tuple[str, str]], where: Path) -> None:
    spelt = {name: _as_spelt(key) for name, (key, _) in modules.items()}
    targets = Targets(config, where, sorted({*spelt, *spelt.values()}))
    for name in spelt:
        if targets.leave_out(name) and targets.leave_out(spelt[name]):
            raise IntegrityError(
                "the config does not target a module of the file, which PEFT would drop and vLLM apply",
                where=where,
                found=name,
                next_step="save the adapter again with the config that it was trained with",
            )


def _as_spelt(key: str) -> str:
    """A module's name as its key has it, wrappers included: what a config's patterns were matched with."""
    return key.removeprefix(KEY_PREFIX).rpartition(".lora_A.")[0]


def _line(config: Mapping[str, Any], field: str, where: Path) -> str:
    """A field that names something, on one line; empty where it is not set."""
    value = config.get(field) or ""
    if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
        raise bad_config(where, field, value, "a name")
    return value


def _no_weights(folder: Path) -> IntegrityError | NotFoundError:
    if (folder / PICKLE_NAME).exists():
        return IntegrityError(
            "the adapter is pickled; loading a pickle can run any code",
            where=folder / PICKLE_NAME,
            expected=WEIGHTS_NAME,
            next_step="have its author save it again with safe_serialization=True",
        )
    shards = sorted(file.name for file in folder.glob("adapter_model*.safetensors"))
    other = next((f"{name}, {tool}" for name, tool in UNREAD_WEIGHTS.items() if (folder / name).exists()), "")
    return NotFoundError(
        f"no {WEIGHTS_NAME} in the folder",
        where=folder,
        expected="a PEFT LoRA folder",
        found=f"{shards[0]} ({len(shards)} such)" if shards else other,
        next_step=f"put the tensors of {', '.join(shards[:3])} into one {WEIGHTS_NAME}: PEFT and vLLM load no other"
        if shards
        else "",
    )
