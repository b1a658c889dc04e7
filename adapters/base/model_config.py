"""A model's config.json as its model class reads it: what the file leaves out has the class's default, not ours.

Gemma's config.json does not say that its embeddings are tied, since that is Gemma's default; Qwen3's may leave out a
head size that is no quotient. transformers is imported only where a key is asked for that the file does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.errors import IntegrityError, NotFoundError
from ...core.reading.strict_json import read_object
from ..header import shown

MAX_REPEATED = 100_000
QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Where a config.json asks for quantised weights, itself or in its text_config."""
TEXT_CONFIG = "text_config"
"""Where a model of several modalities keeps the sizes of its language model."""


class ModelConfig:
    """Values of a config.json, those of the language model for a model of several modalities.

    Args:
        raw: The file as it stands.
        folder: Where it lies, for errors.
    """

    def __init__(self, raw: Mapping[str, Any], folder: Path = Path()) -> None:
        self.raw, self.folder = raw, folder

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """From a model folder.

        Raises:
            NotFoundError: No config.json.
            IntegrityError: It is no JSON object.
        """
        return cls(model_config(folder), folder)

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the file, of its `text_config`, or the model class's own; `default` where none of them has it.

        A null counts as absent: the class derives a value then.
        """
        text = self.raw.get(TEXT_CONFIG)
        for scope in (self.raw, text if isinstance(text, Mapping) else {}):
            if scope.get(name) is not None:
                return scope[name]
        known = self._known
        for source in (known, getattr(known, "get_text_config", lambda: None)()):
            if (value := getattr(source, name, None)) is not None:
                return value
        return default

    def count(self, name: str, default: int) -> int:
        """A whole number, as `get` finds it.

        Raises:
            IntegrityError: Something else stands there.
        """
        return config_count({name: self.get(name)}, name, default, self.folder)

    @property
    def model_type(self) -> str:
        """`qwen2`, `gemma3`, …; empty where the file does not say."""
        kind = self.raw.get("model_type")
        return kind if isinstance(kind, str) else ""

    @property
    def model_types(self) -> set[str]:
        """Its own and those of the models inside it, such as a decoder's."""
        inside = (value.get("model_type") for value in self.raw.values() if isinstance(value, Mapping))
        return {kind for kind in (self.model_type, *inside) if isinstance(kind, str) and kind}

    @property
    def composite(self) -> bool:
        """Whether it is of a model made of models, such as a language model with a vision tower."""
        return any(
            key.endswith("_config") and key not in QUANTISATION_KEYS
            for key, value in self.raw.items()
            if isinstance(value, Mapping)
        )

    @property
    def tied(self) -> bool | None:
        """Whether the head is the embedding; None where neither the file nor a known class says."""
        tied = self.get("tie_word_embeddings")
        return tied if isinstance(tied, bool) else None

    @property
    def dtype(self) -> str | None:
        """Torch's name of the dtype the weights were saved in; None where the file does not say."""
        text = self.raw.get(TEXT_CONFIG)
        for scope in (self.raw, text if isinstance(text, Mapping) else {}):
            for name in ("dtype", "torch_dtype"):
                if isinstance(found := scope.get(name), str):
                    return found.removeprefix("torch.")
        return None

    @property
    def most_repeated(self) -> int:
        """The largest number of layers, blocks or experts that the file asks for anywhere."""
        return _most_repeated(self.raw)

    @cached_property
    def _known(self) -> Any:
        """The config as an object of its class; None for a class that this transformers does not have."""
        try:
            from transformers import CONFIG_MAPPING
        except ImportError:
            return None
        if self.model_type not in CONFIG_MAPPING:
            return None
        if self.most_repeated > MAX_REPEATED:  # a class makes a list of its layers, however many
            raise IntegrityError(
                "the config asks for more layers or experts than any model has",
                where=self.folder / "config.json",
                found=shown(self.most_repeated),
                expected=f"at most {MAX_REPEATED:,}, in num_hidden_layers and its like",
            )
        try:
            with quiet_transformers():
                return CONFIG_MAPPING[self.model_type].from_dict(dict(self.raw))
        except Exception:  # whatever a class of another library has against a stranger's values: it then knows none
            return None


def model_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The config of a base or twin folder, or its `generation_config.json`.

    Raises:
        NotFoundError: No such file.
        IntegrityError: No JSON object that is read here.
    """
    path = folder / name
    if not path.is_file():
        raise _no_model(folder, name)
    return read_object(path, f"the base's {name}", infinity=True)


def config_count(config: Mapping[str, Any], field: str, default: int, where: Path) -> int:
    """A whole number of a base's config; `default` where it is absent or null.

    Raises:
        IntegrityError: Something else stands there.
    """
    value = config.get(field)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise IntegrityError(
            f"{field} is malformed", where=where / "config.json", found=shown(value), expected="a whole number"
        )
    return value


def _no_model(path: Path, name: str) -> NotFoundError:
    """The error for a folder without a model, which says what lies in it instead."""
    if (path / "adapter_config.json").is_file():
        found, next_step = "an adapter", "name the base it was trained on, not the adapter"
    else:
        inside = sorted(path.glob("*/config.json")) or sorted(path.glob("snapshots/*/config.json"))
        found = f"models in {', '.join(str(file.parent) for file in inside[-5:])}" if inside else ""
        next_step = f"name one of them, as {inside[-1].parent}" if inside else ""
    return NotFoundError(f"no {name} in the base folder", where=path, found=found, next_step=next_step)


def _most_repeated(values: Mapping[str, Any]) -> int:
    most = 0
    for key, value in values.items():
        if isinstance(value, Mapping):
            most = max(most, _most_repeated(value))
        elif isinstance(value, int) and any(word in key for word in ("layer", "depth", "block", "expert")):
            most = max(most, value)
    return most


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep what transformers says of a config's values off the screen."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
