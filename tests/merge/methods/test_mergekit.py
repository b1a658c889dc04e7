"""mergekit as an oracle of what trimming by magnitude is, where it is installed.

It is no dependency: its pins contradict the tested matrix. `pip install --no-deps mergekit==0.1.5` is enough here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from plyfold.merge.methods.ties_election import trim


@pytest.fixture(scope="module")
def sparsify() -> Any:
    """`mergekit/sparsify.py` alone, which needs only torch; importing the package would need its pins."""
    spec = importlib.util.find_spec("mergekit")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs mergekit: pip install --no-deps mergekit==0.1.5")
    path = Path(next(iter(spec.submodule_search_locations))) / "sparsify.py"
    found = importlib.util.spec_from_file_location("mergekit_sparsify", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
def test_trimming_keeps_the_entries_mergekit_keeps(sparsify: Any, density: float) -> None:
    generator = torch.Generator().manual_seed(3)
    delta_OI = torch.randn(96, 8, generator=generator) @ torch.randn(8, 160, generator=generator)
    expected = sparsify.sparsify(delta_OI, density, sparsify.SparsificationMethod.magnitude)
    assert torch.equal(trim(delta_OI, density), expected)
    assert not torch.equal(trim(delta_OI, density / 2), expected)
