"""The adapters on a base while a stage trains: one frozen `prior`, one trainable `default`.

PEFT forgets a freeze whenever activation changes (leaving `disable_adapter()`, `set_adapter`, deleting an adapter), so
activation is touched here only, and `check_frozen` is cheap enough to run at every step. `default` is the name PEFT
and TRL read as "the" adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.config import AdapterConfig
from ..core.disk.digest import PREFIX
from ..core.errors import ConfigError, FailedError, IncompatibleError, ShapeMismatchError
from .tensors import Adapter, Factors, read_adapter, write_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PRIOR = "prior"
DEFAULT = "default"


def attach(model: PreTrainedModel, config: AdapterConfig, prior: Path | None, seed: int) -> PeftModel:
    """Put a fresh trainable adapter on a base, over the frozen sum of earlier stages.

    Args:
        model: The base, in NF4 or any float dtype; becomes part of the result.
        config: Rank, alpha and targets of the new adapter; no dropout.
        prior: Folder of the earlier stages composed into one adapter, or null for the first stage.
        seed: Decides A's initial values (B starts at zero); the global random state is left as it was. Stages want one
            each: A moves little, so that under equal seeds all of them read the same few directions (LOG.md).

    Returns:
        A PeftModel with float32 factors, `default` trainable, all else frozen.

    Raises:
        ConfigError: A target that names no linear module of the base, or its head.
        IncompatibleError: `prior` has modules that the base lacks.
        ShapeMismatchError: `prior` was made for other sizes.
    """
    from peft import LoraConfig, get_peft_model

    training = model.training
    earlier = read_adapter(prior) if prior is not None else None
    _check_targets(model, config)
    if earlier is not None:
        _check_fits(model, earlier)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    # Of this model's GPU alone: by default the state of every GPU is saved, which makes a context on each.
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, lora, adapter_name=DEFAULT)
    if earlier is not None:
        peft_model.load_adapter(str(prior), adapter_name=PRIOR, is_trainable=False)
        _check_loaded(peft_model, earlier)
        for _, layer in _lora_layers(peft_model):
            # A dropout named in the prior's config would act on the frozen path whenever the model trains.
            if PRIOR in layer.lora_dropout:
                layer.lora_dropout[PRIOR] = torch.nn.Identity()
    peft_model.train(training)  # a new PeftModel trains, load_adapter leaves it in eval mode
    activate(peft_model)
    return peft_model


def has_prior(model: PeftModel) -> bool:
    """Whether earlier stages are under the trainable adapter."""
    return PRIOR in model.peft_config


def activate(model: PeftModel) -> None:
    """Make prior and default compute, and default alone train. The only function that touches activation."""
    frozen = [PRIOR] if has_prior(model) else []
    model.base_model.set_adapter([*frozen, DEFAULT])  # the list form exists on the tuner only; makes all trainable
    for name in frozen:
        model.set_requires_grad(name, False)
    # A string of its own on the outer model, which TRL, transformers and disable_adapter read.
    model.active_adapter = DEFAULT
    check_frozen(model)


def check_frozen(model: PeftModel) -> None:
    """Verify that default trains and nothing else does, and that the right adapters compute.

    Raises:
        FailedError: With the parameters or adapters that are not as `activate` left them.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name for name, _ in model.named_parameters() if _is_default(name)}
    if trainable != own:
        thawed, stuck = sorted(trainable - own), sorted(own - trainable)
        raise FailedError(
            "the wrong parameters train",
            where=(thawed or stuck)[0],
            expected=f"{len(own)} parameters of adapter {DEFAULT}",
            found=f"{len(thawed)} others trainable, {len(stuck)} of {DEFAULT} frozen",
            next_step="call adapters.stack.activate after anything that switches adapters",
        )
    expected = [PRIOR, DEFAULT] if has_prior(model) else [DEFAULT]
    for name, layer in _lora_layers(model):
        active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        wanted = [adapter for adapter in expected if adapter in layer.lora_A]
        if active != wanted or layer.disable_adapters or layer.merged:
            state = "disabled" if layer.disable_adapters else "merged" if layer.merged else active
            raise FailedError("the wrong adapters compute", where=name, expected=wanted, found=state)
    if model.active_adapter != DEFAULT:
        raise FailedError("the model names another adapter active", expected=DEFAULT, found=model.active_adapter)


def has_moved(model: PeftModel) -> bool:
    """Whether `default` adds anything: B starts at zero, and A gets no gradient before B has left it."""
    return any(bool(factors.B_OR.any()) for factors in _live_factors(model, DEFAULT).values())


@contextmanager
def reference_policy(model: PeftModel) -> Iterator[PeftModel]:
    """Compute as the policy this stage began with, base plus prior, inside the block.

    Which adapters compute and what trains is restored afterwards, also after an error.
    """
    frozen = [PRIOR] if has_prior(model) else []
    layers = [layer for _, layer in _lora_layers(model)]
    active = [list(layer.active_adapters) for layer in layers]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for layer in layers:
            # The attribute, not set_adapter: that refuses an empty list and switches gradients.
            layer._active_adapter = list(frozen)
        yield model
    finally:
        for layer, names in zip(layers, active, strict=True):
            layer._active_adapter = names
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def recast_fp32(model: PeftModel) -> None:
    """Bring trainable parameters back to float32, in place.

    TRL casts them to bfloat16 on a quantised base, where most small updates round away. Call after the trainer's
    __init__ and before it makes the optimiser.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def frozen_digest(model: PeftModel) -> str:
    """Digest of all numbers but default's, by name: equal before and after training, bit for bit.

    Parameters, buffers, and what a 4-bit weight is read with: its scales, their scales and offset, and the code.
    """
    digest = hashlib.sha256()
    numbers: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, parameter in model.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            numbers |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    for name, value in sorted(numbers.items()):
        if not _is_default(name):
            data = value.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
            digest.update(data.view(-1).view(torch.uint8).numpy().tobytes())
    return PREFIX + digest.hexdigest()


def save_default(model: PeftModel, folder: Path, base_repo: str, base_revision: str) -> None:
    """Write the trainable adapter as a canonical PEFT folder; the folder is made if missing."""
    config = model.peft_config[DEFAULT]
    folder.mkdir(parents=True, exist_ok=True)
    factors = _live_factors(model, DEFAULT)
    write_adapter(
        folder,
        factors,
        base_repo=base_repo,
        base_revision=base_revision,
        alpha=config.lora_alpha,
        targets=sorted(config.target_modules),
    )


def composed(model: PeftModel, dtype: torch.dtype) -> dict[str, Factors]:
    """Prior and default as the one adapter of scale 1 that they are together, for an engine that holds the base.

    dW_OI = s_p B_p A_p + s_d B_d A_d, as A = [A_p; A_d] and B = [s_p B_p | s_d B_d], exact but for one rounding.

    Args:
        model: As `attach` made it; unchanged.
        dtype: Of the result.

    Returns:
        Copies on the CPU by the base's module names; A (R, I) and B (O, R) of the widest module's rank R in all of
        them, rows and columns of zeros where a module has less.

    Numerics: the same bytes as `merge.compose` makes of the two folders; tests/stages/rollouts/test_engine.py.
    """
    parts = [_live_factors(model, adapter) for adapter in ([PRIOR] if has_prior(model) else []) + [DEFAULT]]
    present = {
        name: [part[name] for part in parts if name in part] for name in sorted({key for p in parts for key in p})
    }
    rank = max(sum(each.A_RI.shape[0] for each in stack) for stack in present.values())
    result = {}
    with torch.no_grad():
        for name, stack in present.items():
            # Scaled in float32: a power-of-two scale rounds nothing, another one once.
            A_RI = torch.cat([each.A_RI for each in stack]).to(dtype).cpu()
            B_OR = torch.cat([each.B_OR * each.scale for each in stack], dim=1).to(dtype).cpu()
            missing = rank - A_RI.shape[0]
            result[name] = Factors(
                torch.nn.functional.pad(A_RI, (0, 0, 0, missing)), torch.nn.functional.pad(B_OR, (0, missing))
            )
    return result


def load_default(model: PeftModel, folder: Path) -> None:
    """Put a saved adapter's numbers into the trainable one and activate, to resume.

    Raises:
        NotFoundError, IntegrityError, UnsupportedAdapterError: As `read_adapter`.
        IncompatibleError: Other modules or another scale than the trainable adapter's.
        ShapeMismatchError: Other sizes or another rank.
    """
    saved = read_adapter(folder)
    live = _live_factors(model, DEFAULT)
    if set(saved.factors) != set(live):
        raise IncompatibleError(
            "the saved adapter has other modules than the one being trained",
            where=folder,
            found=f"{len(saved.factors)} modules",
            expected=f"{len(live)} modules",
        )
    for name, factors in saved.factors.items():
        target = live[name]
        if (factors.A_RI.shape, factors.B_OR.shape) != (target.A_RI.shape, target.B_OR.shape):
            raise ShapeMismatchError(
                "a module's shape differs", where=f"{folder} {name}", found=_shape(factors), expected=_shape(target)
            )
        if factors.scale != target.scale:
            raise IncompatibleError(
                "a module's scale differs", where=f"{folder} {name}", found=factors.scale, expected=target.scale
            )
    with torch.no_grad():
        for name, factors in saved.factors.items():
            live[name].A_RI.copy_(factors.A_RI)
            live[name].B_OR.copy_(factors.B_OR)
    activate(model)


def _is_default(name: str) -> bool:
    return ".lora_" in name and f".{DEFAULT}." in name


def _lora_layers(model: PeftModel) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _live_factors(model: PeftModel, adapter: str) -> dict[str, Factors]:
    """The live A and B of one adapter by the base's module names; no copies."""
    return {
        name: Factors(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter]))
        for name, layer in _lora_layers(model.get_base_model())
        if adapter in layer.lora_A
    }


def _linear_sizes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(O, I) of every linear module, quantised or not."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def _check_targets(model: PreTrainedModel, config: AdapterConfig) -> None:
    sizes = _linear_sizes(model)
    suffixes = sorted({name.rpartition(".")[2] for name in sizes})
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in sizes):
            raise ConfigError(
                "a target names no linear module of the base",
                where="adapter.targets",
                found=target,
                expected=", ".join(suffixes),
            )
        head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
        if any(name == target or name.endswith(f".{target}") for name in head):
            raise ConfigError(
                "the head cannot carry an adapter: TRL reads its weight past one, which would never be trained",
                where="adapter.targets",
                found=target,
                expected=", ".join(suffix for suffix in suffixes if suffix not in head),
            )
    if config.r < 1 or not config.targets:
        raise ConfigError("an adapter needs a rank of at least 1 and a target", where="adapter", found=config)


def _check_fits(model: PreTrainedModel, adapter: Adapter) -> None:
    sizes = _linear_sizes(model)
    for name, module in adapter.spec.modules.items():
        if name not in sizes:
            raise IncompatibleError("the base lacks a module of the prior", where=f"{adapter.spec.path} {name}")
        if sizes[name] != (module.out_features, module.in_features):
            raise ShapeMismatchError(
                "a module of the prior has another size than the base's",
                where=f"{adapter.spec.path} {name}",
                found=f"O, I = {module.out_features}, {module.in_features}",
                expected=f"{sizes[name][0]}, {sizes[name][1]}",
            )


def _check_loaded(model: PeftModel, adapter: Adapter) -> None:
    """Every number of the file is in the live layers, and no layer has a prior of its own making."""
    live = _live_factors(model, PRIOR)
    for name, factors in adapter.factors.items():
        found = live.pop(name, None)
        same = (
            found is not None
            and found.scale == factors.scale
            and all(
                torch.equal(mine.cpu(), theirs.float())
                for mine, theirs in ((found.A_RI, factors.A_RI), (found.B_OR, factors.B_OR))
            )
        )
        if not same:
            raise FailedError("the prior was not loaded as its file says", where=f"{adapter.spec.path} {name}")
    fresh = [name for name, factors in live.items() if bool(factors.B_OR.any())]
    if fresh:
        raise FailedError("a layer got a prior that the file does not hold", where=fresh[0])


def _shape(factors: Factors) -> str:
    return f"A {tuple(factors.A_RI.shape)}, B {tuple(factors.B_OR.shape)}"
