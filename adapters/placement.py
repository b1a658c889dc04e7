"""Where the modules of an adapter lie in a base: the same name, or the one that transformers' own tables give.

PEFT names modules as the model in memory does, and a checkpoint may spell them otherwise: Qwen2.5-VL's holds
`model.layers.…` for `model.language_model.layers.…`, Gemma 3's `language_model.model.layers.…`. An adapter may bring
either, or an older version's. transformers is imported only for a model of several modalities, and where a name is not
in the checkpoint as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import IncompatibleError, ShapeMismatchError, UnsupportedAdapterError
from .base.checkpoint import Checkpoint, open_checkpoint
from .base.model_config import ModelConfig, quiet_transformers
from .header import TensorEntry, shown
from .names import EMBEDDINGS, two_spellings, version_free
from .spec import DTYPES, AdapterSpec, refuse_whole_weights

HEADS = ("lm_head", "embed_out", "output_layer")
"""Last segments of the module that turns vectors into tokens, which may be tied to the embedding."""
TRANSPOSED_TYPES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Model types with modules that are `Conv1D`: their weights lie (I, O), and a square one would fit unnoticed."""
TRANSPOSED = ("c_attn", "q_attn", "c_proj", "c_fc")
"""Last segments of those modules."""
MAX_REPEATED = 1024
"""Most layers or experts of a config that a model is built from to learn its names; a hostile one could ask for any."""
PACKED = (".qweight", ".weight_packed")
"""What a quantised checkpoint holds in a weight's place."""


class ModulePlacement(NamedTuple):
    """The tensor that a module's delta is added to."""

    module: str
    """The module's name as the model in memory, and so PEFT, spells it."""
    tensor: str
    """Its weight's name in the checkpoint; an embedding's for a head that is tied to it."""
    file: str
    entry: TensorEntry
    tied: bool
    """Whether the tensor is the embedding, which stays as it is."""


class Placement:
    """Finds modules in one base.

    Args:
        base: Its headers.
    """

    def __init__(self, base: Checkpoint) -> None:
        self.base = base
        self.config = ModelConfig(base.config)
        self._names: dict[tuple[str, bool], str] = {}

    @classmethod
    def open(cls, folder: Path) -> Placement:
        """In the base of a folder.

        Raises:
            NotFoundError, IntegrityError: As `open_checkpoint`.
        """
        return cls(open_checkpoint(folder))

    def of(self, module: str, owner: object = "") -> ModulePlacement:
        """The place of a module, which has one name from then on however it is spelt.

        Args:
            module: Its name in an adapter.
            owner: The adapter, for errors.

        Raises:
            IncompatibleError: The base does not have it, or only inside a tensor of several modules.
            UnsupportedAdapterError: The base's code stores its weight transposed.
        """
        ways = [self._as_spelt, self._tied_head, self._as_transformers]
        if self.config.composite:  # its checkpoint's names may be an older version's, which PEFT would not find
            ways.reverse()
        found = next((place for way in ways if (place := way(module))), None)
        if found is None:
            raise self._absent(module, owner)
        if TRANSPOSED_TYPES & self.config.model_types and module.rpartition(".")[2] in TRANSPOSED:
            raise UnsupportedAdapterError(
                "the base stores its weights transposed (Conv1D)",
                where=f"{self.base.path} {found.tensor}",
                found=f"model_type {', '.join(sorted(self.config.model_types))}",
            )
        first = self._names.setdefault((found.tensor, found.tied), found.module)
        return found._replace(module=first)

    def tensor(self, name: str) -> tuple[str, TensorEntry] | None:
        """File and place of a tensor by its name in an adapter; None where the base has none."""
        if found := self.base.find(name):
            return found
        if tied := self._tied_head(name.removesuffix(".weight")):
            return tied.file, tied.entry
        stored = (spelling.locate(name)[0] for spelling in self._spellings)
        return next((self.base.find(each) for each in stored if each), None)

    def check(self, module: str, shape: tuple[int, int], owner: object = "") -> ModulePlacement:
        """The place of a module whose delta is of this (O, I).

        Args:
            module: Its name in an adapter.
            shape: (O, I) of its B @ A.
            owner: The adapter, for errors.

        Raises:
            IncompatibleError, UnsupportedAdapterError: As `of`.
            ShapeMismatchError: The weight has another size.
        """
        place = self.of(module, owner)
        if place.entry.dtype in DTYPES and place.entry.shape != shape:
            raise ShapeMismatchError(
                "a module has another size in the base",
                where=f"{owner} {module}".strip(),
                expected=f"(O, I) = {tuple(place.entry.shape)}, as {place.tensor} of {self.base.path} has it",
                found=f"({shape[0]}, {shape[1]})",
                next_step="use the base the adapters were trained on: --base DIR",
            )
        return place

    def _as_spelt(self, module: str) -> ModulePlacement | None:
        for suffix in (".weight", *PACKED):
            if found := self.base.find(module + suffix):
                return ModulePlacement(module, module + suffix, *found, tied=False)
        return None

    def _tied_head(self, module: str) -> ModulePlacement | None:
        """The embedding, for the head of a base that has none of its own."""
        if module not in HEADS or self.config.tied is False:
            return None
        names = [name for header in self.base.shards.values() for name in header.tensors]
        tables = [name for name in names if name.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS]
        found = self.base.find(tables[0]) if len(tables) == 1 else None
        return ModulePlacement(module, tables[0], *found, tied=True) if found else None

    def _as_transformers(self, module: str) -> ModulePlacement | None:
        for spelling in self._spellings:
            name, tied = spelling.locate(f"{module}.weight")
            found = self.base.find(name) if name else None
            if name and found and tied and module.rpartition(".")[2] not in HEADS:
                raise IncompatibleError(
                    "the base shares a module's weight with another module, which the delta would change too",
                    where=module,
                    found=f"{name} of {self.base.path}",
                )
            if name and found:
                return ModulePlacement(
                    spelling.in_memory(f"{module}.weight").removesuffix(".weight"), name, *found, tied=tied
                )
        return None

    @cached_property
    def _spellings(self) -> list[_Spelling]:
        names = [name for header in self.base.shards.values() for name in header.tensors]
        return _spellings(self.base.path, self.config, names)

    def _absent(self, module: str, owner: object) -> IncompatibleError:
        name, where = f"{module}.weight", f"{owner} {module}".strip()
        if any(spelling.is_part(name) for spelling in self._spellings):
            return IncompatibleError(
                "the base holds a module of the adapters only inside a tensor of several",
                where=where,
                expected=f"one tensor a module in {self.base.path}, as the adapters have it",
            )
        names = (key for header in self.base.shards.values() for key in header.tensors)
        like = next((key for key in names if version_free(key) == version_free(name)), None)
        return IncompatibleError(
            "the adapters change a module that the base does not have",
            where=where,
            expected=f"{name} in {self.base.path}",
            found=f"{like} there" if like else "no such tensor",
            next_step="use the base the adapters were trained on: --base DIR"
            + ("; where it is this one, spell the keys of the adapter's file as this base does" if like else ""),
        )


def place(spec: AdapterSpec, base: Placement) -> AdapterSpec:
    """The adapter with its modules by their names in the base, and with copies of base weights compared.

    Raises:
        IncompatibleError, UnsupportedAdapterError, ShapeMismatchError: As `Placement.check`, or a whole weight in the
            file that is not the base's.
        IntegrityError: Two modules that are one in the base, or a frozen copy that is not the base's.
    """
    modules = {}
    for module in spec.modules.values():
        name = base.check(module.name, (module.out_features, module.in_features), spec.path).module
        if name in modules:
            raise two_spellings(spec.header.path, name, module.name)
        modules[name] = replace(module, name=name)
    for key in spec.copies:
        _compare(spec, key, base)
    return replace(spec, modules=dict(sorted(modules.items())), placed=True)


def unplaced(spec: AdapterSpec) -> AdapterSpec:
    """The adapter as it stands, where no base is at hand.

    Raises:
        UnsupportedAdapterError: A whole weight that only the base could tell to be no trained one.
    """
    refuse_whole_weights(spec)
    return spec


def _compare(spec: AdapterSpec, key: str, base: Placement) -> None:
    """Refuse a copy of a base weight that is not the base's bit for bit, in the copy's dtype."""
    tensor, frozen = spec.copies[key]
    where = f"{spec.header.path} {shown(key)}"
    at = base.tensor(tensor)
    if at is None:
        raise IncompatibleError(
            "the file holds a whole weight that the base does not have, such as a classifier's head",
            where=where,
            expected=f"{tensor} in {base.base.path}",
            next_step="use the base the adapters were trained on: --base DIR",
        )
    file, entry = at
    if not _equal(spec, key, base.base, file, entry):
        raise IncompatibleError(
            "the adapter was trained on other weights than this base's"
            if frozen
            else "a whole trained weight is more than B @ A",
            where=where,
            expected=f"{tensor} of {base.base.path}, bit for bit",
            found="other numbers" if spec.header.tensors[key].shape == entry.shape else "another size",
            next_step="name the base it was trained on with --base DIR" if frozen else "",
        )


def _equal(spec: AdapterSpec, key: str, base: Checkpoint, file: str, entry: TensorEntry) -> bool:
    import torch

    copy = spec.header.tensors[key]
    if copy.shape != entry.shape or copy.dtype not in DTYPES or entry.dtype not in DTYPES:
        return False
    with spec.header.path.open("rb") as handle:
        mine = spec.header.read(handle, key)
    theirs = base.read(file, entry)
    if copy.dtype == entry.dtype:
        return mine == theirs
    # A base loaded in another dtype than it is saved in was rounded to it once.
    one = torch.frombuffer(mine, dtype=getattr(torch, DTYPES[copy.dtype]))
    other = torch.frombuffer(theirs, dtype=getattr(torch, DTYPES[entry.dtype]))
    return torch.equal(one, other.to(one.dtype))


class _Spelling:
    """How one class of model names in memory what a checkpoint holds."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(model)
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()
        self._tied: dict[str, str] = dict(model.all_tied_weights_keys)
        self._stored: dict[str, str] = {}
        self._parts: set[str] = set()
        for name in sorted(names):
            inside, converted = self._renamed(name)
            if converted:
                self._parts.add(inside)
            else:
                self._stored.setdefault(inside, name)

    def in_memory(self, name: str) -> str:
        """The name in memory of a tensor spelt in any way that this class loads."""
        return self._renamed(name)[0]

    def locate(self, name: str) -> tuple[str | None, bool]:
        """(name in the checkpoint, whether by being tied to it) of a tensor; None where it has none of its own."""
        inside, converted = self._renamed(name)
        if converted or inside not in self._state:
            return None, False
        if inside in self._stored:
            return self._stored[inside], False
        source = self._tied.get(inside)
        return (self._stored[source], True) if source in self._stored else (None, False)

    def is_part(self, name: str) -> bool:
        """Whether a tensor is loaded from or into one of several modules."""
        inside, converted = self._renamed(name)
        return converted or inside in self._parts

    def _renamed(self, name: str) -> tuple[str, bool]:
        from transformers.core_model_loading import rename_source_key

        inside, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        return inside, pattern is not None


def _spellings(folder: Path, config: ModelConfig, names: list[str]) -> list[_Spelling]:
    """For the class the config names, and for the causal language model that the same config gives."""
    try:
        import torch
        import transformers
    except ImportError:
        return []
    found: list[_Spelling] = []
    classes: list[type] = []
    if config.most_repeated > MAX_REPEATED:
        return []
    with quiet_transformers(), torch.device("meta"):
        for build in (_named_class, transformers.AutoModelForCausalLM.from_config):
            try:
                known = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                model = build(known)
            except Exception:  # a class that this transformers does not have, or values it does not take
                continue
            if type(model) not in classes:
                classes.append(type(model))
                found.append(_Spelling(model, names))
    return found


def _named_class(config: Any) -> Any:
    """A model without weights, of the class that a config names; the name is a stranger's."""
    import transformers

    named = getattr(transformers, str((config.architectures or [""])[0]), None)
    if not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)):
        raise TypeError("no model class")
    return named(config)


def check_sizes(model: Path, adapters: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """Refuse adapters whose matrices are not a model's: vLLM would copy smaller ones into a corner without a word.

    Args:
        model: Folder with safetensors weights; only their headers are read.
        adapters: Adapter name -> module name -> (O, I).

    Raises:
        IncompatibleError: A module that the model does not have.
        UnsupportedAdapterError: A model whose code stores its weights transposed.
        ShapeMismatchError: A module whose I or O is not the model's.
    """
    placement = Placement.open(model)
    for adapter, modules in adapters.items():
        for name, size in modules.items():
            placement.check(name, size, adapter)
