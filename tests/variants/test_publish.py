"""Merging from Python: stages into the registry, and folders to a folder, without the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plyfold.variants
from plyfold.adapters.tensors import read_adapter
from plyfold.core.errors import ConfigError, ConflictError
from plyfold.registry.store import Store
from plyfold.variants import (
    MergeOptions,
    find_variant,
    folder_inputs,
    plan_merge,
    prepare_merge,
    publish_merge,
    stage_inputs,
)


@pytest.fixture
def store(make_store: Any, tiny_base: Any, tmp_path: Path) -> Store:
    made: Store = make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"))
    return made


def test_stages_are_merged_into_the_registry_and_found_by_their_name(store: Store, tmp_path: Path) -> None:
    plan = plan_merge(stage_inputs(store, [2, 1], [0.5, 1.0]), MergeOptions(rank=3, out=tmp_path / "out"))
    assert store.merges("tiny") == {}
    done = publish_merge(plan, prepare_merge(plan))
    assert done.slug == "tiny-s1.s2x0.5-svd3"
    assert store.merges("tiny") == {done.slug: done.digest}
    assert find_variant(store, done.slug, "tiny").merge == done.slug
    assert read_adapter(tmp_path / "out").spec.modules == read_adapter(done.path).spec.modules
    with pytest.raises(ConflictError, match="exists already"):
        plan_merge(plan.inputs, plan.options)
    again = plan_merge(plan.inputs, MergeOptions(rank=3))
    assert publish_merge(again, prepare_merge(again)).digest == done.digest


def test_folders_are_merged_to_a_folder(make_adapter: Any, tmp_path: Path) -> None:
    paths = [make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    plan = plan_merge(folder_inputs(paths, [1.0, -0.5]), MergeOptions(out=tmp_path / "out"))
    done = publish_merge(plan, prepare_merge(plan))
    assert (done.path, done.digest, done.slug) == (tmp_path / "out", None, None)
    assert [entry.weight for entry in done.composition.prepared.inputs] == [1.0, -0.5]
    with pytest.raises(ConfigError, match="one weight per adapter"):
        folder_inputs(paths, [1.0])


def test_the_face_loads_what_it_names_and_nothing_before() -> None:
    for name in plyfold.variants.__all__:
        assert getattr(plyfold.variants, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = plyfold.variants.nothing
    code = (
        "import sys, plyfold.variants; print([m for m in sys.modules if m.startswith(('plyfold.variants.', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_quickstart_merges_without_the_command_line() -> None:
    tree = ast.parse((Path(plyfold.variants.__file__).parents[1] / "cli" / "quickstart.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "invoke"]
