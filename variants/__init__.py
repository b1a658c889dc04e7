"""From a name to one adapter on disk: stages with weights, merges, imports, on the base they were trained on.

Joins the registry, which knows what an adapter is, and merge, which adds adapters up. `name` has the names, `resolve`
and `cache` lead from one to an adapter on disk, `base` and `ground` to the model below it; `merging` and `publish` make
merges.
"""

from typing import TYPE_CHECKING

from ..core.faces import lazy_exports

if TYPE_CHECKING:
    from .base import base_of, digest_of, shared_base, twin_of
    from .cache import Materialised, materialise
    from .ground import Ground, ground_of
    from .merging import MergeInputs, MergeOptions, MergePlan, folder_inputs, plan_merge, prepare_merge, stage_inputs
    from .name import BASE, Variant, folder_name, names_folder, parse_variant
    from .publish import PublishedMerge, fold_merge, publish_merge
    from .resolve import VariantPlan, check_fits, find_variant, plan_variant

_HOMES = {
    "BASE": "name",
    "Ground": "ground",
    "Materialised": "cache",
    "MergeInputs": "merging",
    "MergeOptions": "merging",
    "MergePlan": "merging",
    "PublishedMerge": "publish",
    "Variant": "name",
    "VariantPlan": "resolve",
    "base_of": "base",
    "check_fits": "resolve",
    "digest_of": "base",
    "find_variant": "resolve",
    "fold_merge": "publish",
    "folder_inputs": "merging",
    "folder_name": "name",
    "ground_of": "ground",
    "materialise": "cache",
    "names_folder": "name",
    "parse_variant": "name",
    "plan_merge": "merging",
    "plan_variant": "resolve",
    "prepare_merge": "merging",
    "publish_merge": "publish",
    "shared_base": "base",
    "stage_inputs": "merging",
    "twin_of": "base",
}

__all__ = [
    "BASE",
    "Ground",
    "Materialised",
    "MergeInputs",
    "MergeOptions",
    "MergePlan",
    "PublishedMerge",
    "Variant",
    "VariantPlan",
    "base_of",
    "check_fits",
    "digest_of",
    "find_variant",
    "fold_merge",
    "folder_inputs",
    "folder_name",
    "ground_of",
    "materialise",
    "names_folder",
    "parse_variant",
    "plan_merge",
    "plan_variant",
    "prepare_merge",
    "publish_merge",
    "shared_base",
    "stage_inputs",
    "twin_of",
]

__getattr__ = lazy_exports(__name__, _HOMES)
