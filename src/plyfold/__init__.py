"""plyfold: train a curriculum as separate QLoRA adapters, compose any stages, serve and score every variant.

The names below are the Python interface. Each is loaded when it is first used, so importing plyfold is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from .adapters.tensors import Adapter, read_adapter
    from .core.config import CurriculumConfig, load_config
    from .core.errors import PlyfoldError
    from .evaluation.scores import score_variants
    from .merge.compare.interference import interference
    from .merge.compose.prepare import prepare
    from .merge.compose.write import compose
    from .merge.fold.fold import fold
    from .merge.inputs import Part
    from .merge.plan import plan_compose
    from .registry.store import Store, find_store
    from .stages.curriculum import train
    from .variants import Variant, materialise

_HOMES = {
    "Adapter": "adapters.tensors",
    "CurriculumConfig": "core.config",
    "Part": "merge.inputs",
    "PlyfoldError": "core.errors",
    "Store": "registry.store.store",
    "Variant": "variants.name",
    "compose": "merge.compose.write",
    "find_store": "registry.store.store",
    "fold": "merge.fold.fold",
    "interference": "merge.compare.interference",
    "load_config": "core.config",
    "materialise": "variants.cache",
    "plan_compose": "merge.plan",
    "prepare": "merge.compose.prepare",
    "read_adapter": "adapters.tensors",
    "score_variants": "evaluation.scores",
    "train": "stages.curriculum",
}

__all__ = [
    "Adapter",
    "CurriculumConfig",
    "Part",
    "PlyfoldError",
    "Store",
    "Variant",
    "__version__",
    "compose",
    "find_store",
    "fold",
    "interference",
    "load_config",
    "materialise",
    "plan_compose",
    "prepare",
    "read_adapter",
    "score_variants",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("plyfold")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
