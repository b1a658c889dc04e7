"""The locked sets are what pyproject.toml asks for: they are installed without a resolver that would see it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _asked(*extras: str) -> list[Requirement]:
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    wanted = [Requirement(text) for text in texts]
    return [
        requirement
        for one in wanted
        for requirement in ([one] if one.name != PROJECT["name"] else _asked(*sorted(one.extras)))
    ]


@pytest.mark.parametrize(("lock", "serve"), [("cpu", "serve-cpu"), ("gpu", "serve")])
def test_a_lock_holds_what_is_asked_for_within_its_bounds(lock: str, serve: str) -> None:
    lines = (ROOT / "requirements" / f"{lock}.lock.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    for requirement in _asked(serve, "sign", "dev"):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked to {version}"
