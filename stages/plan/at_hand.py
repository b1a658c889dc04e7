"""A curriculum's base and rows, as far as they are on this machine, for a plan that is shown and not carried out."""

from __future__ import annotations

from pathlib import Path

from ...adapters.base.resolve import BaseRef, check_weights, resolve_base
from ...adapters.header import read_header
from ...core.config import AdapterConfig, BaseConfig, DataConfig
from ...core.errors import OfflineError
from ...data.dataset import LoadReport, load_rationales, load_scored, source_name
from ...data.rationale.parse import Rationale
from ...registry.record import DataRef


def find_base(config: BaseConfig, only_show: bool) -> tuple[BaseRef, str]:
    """The base; where it is only to be shown and is not here, its name alone, and a note that says so."""
    try:
        return resolve_base(config, local_only=only_show), ""
    except OfflineError:
        if not only_show:
            raise
    missing = BaseRef(repo=config.repo, revision=config.revision, path=Path())
    return missing, "its weights are not in the local cache; training fetches them"


def held_out_questions(config: DataConfig, only_show: bool) -> tuple[list[str], DataRef | None, str]:
    """The questions that variants are scored on and which rows these are, or why they are not known."""
    try:
        problems, report = load_scored(config)
        return [problem.question for problem in problems], DataRef.of(report), ""
    except OfflineError as error:
        if not only_show:
            raise
        return [], None, f"{source_name(config)}: {error.what}"


def find_rationales(
    config: DataConfig, section: str, only_show: bool, *, bare: bool
) -> tuple[list[Rationale], LoadReport, str]:
    """A stage's rows and what became of them, or an empty report and why they are not known."""
    try:
        return *load_rationales(config, bare=bare, section=section), ""
    except OfflineError as error:
        if not only_show:
            raise
        source = source_name(config)
        report = LoadReport(
            source=source, revision=config.revision, split=config.split, rows=0, parsed=0, sha256=""
        )  # fmt: skip
        return [], report, f"{source}: {error.what}"


def count_parameters(base: BaseRef, adapter: AdapterConfig) -> int:
    """Parameters of an adapter, sum of r * (I + O) over its modules, from the base's file headers."""
    count = 0
    for file in check_weights(base.path):
        for name, entry in read_header(file).tensors.items():
            module = name.removesuffix(".weight")
            targeted = any(module == target or module.endswith(f".{target}") for target in adapter.targets)
            if name.endswith(".weight") and targeted and len(entry.shape) == 2:
                count += adapter.r * sum(entry.shape)
    return count
