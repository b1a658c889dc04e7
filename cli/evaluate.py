"""`plyfold eval`: variants of a curriculum scored side by side on held-out problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.config import CurriculumConfig, DataConfig, EvalConfig, build_config, is_config, load_config
from ..core.console import emit_json, say
from ..core.disk.digest import short
from ..core.errors import ConfigError, IntegrityError, NotFoundError
from .options import base_option, config_option, curriculum_option, json_option, registry_option

if TYPE_CHECKING:
    from ..merge.inputs import BaseWord
    from ..registry.record import Record
    from ..registry.store import Store


@click.command("eval")
@click.argument("arguments", nargs=-1, metavar="[VARIANT]… [KEY=VALUE]…")
@click.option("--engine", type=click.Choice(["hf", "vllm"]), help="What generates; hf is the reference.")
@click.option("--protocol", help="How to ask; zero-shot.")
@click.option("--limit", type=click.IntRange(min=1), help="Score the first N problems only.")
@click.option("--data", type=click.Path(path_type=Path), help="Problems: a .jsonl, .json, .csv, .tsv or .parquet file.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@base_option
@config_option
@curriculum_option
@registry_option
@json_option
def eval_command(
    arguments: tuple[str, ...],
    engine: str | None,
    protocol: str | None,
    limit: int | None,
    data: Path | None,
    runs: Path,
    base: BaseWord | None,
    config: str | None,
    curriculum: str | None,
    registry: Path | None,
    as_json: bool,
) -> None:
    """Score variants side by side: base, 1, 1+2, 1+2+3.

    A VARIANT is also the name or the start of the digest of any adapter of the registry, a PEFT folder (./my-lora), or
    a checkpoint (./folded), which is loaded after the rest. The first variant is what the others are compared with;
    without any, the base and every step of the curriculum are scored. Data, protocol and limits are those the last
    stage was trained with, or those of -c; KEY=VALUE changes them, for example eval.max_new_tokens=256. The base of a
    config can be scored before anything is trained: plyfold eval base -c FILE.
    """
    from ..variants import Variant, find_variant, names_folder

    overrides = [argument for argument in arguments if "=" in argument and not names_folder(argument.partition("=")[0])]
    asked = [argument for argument in arguments if argument not in overrides]
    if misplaced := next(filter(is_config, asked), ""):
        raise ConfigError("a config is no variant", found=misplaced, next_step=f"name it with -c {misplaced}")
    options = {"engine": engine, "protocol": protocol, "limit": limit}
    overrides += [f"eval.{key}={value}" for key, value in options.items() if value is not None]
    overrides = [*_data_overrides(data), *overrides]
    loaded = load_config(config, overrides) if config is not None else None
    store, name, untrained = _where(registry, curriculum, asked, loaded, config)
    variants = [find_variant(store, argument, name) for argument in asked]
    if untrained:
        variants = variants or [Variant(curriculum=name)]
    else:
        numbers = tuple(store.stages(name))
        variants = variants or [Variant(curriculum=name, stages=numbers[:last]) for last in range(len(numbers) + 1)]
    settings = loaded.eval if loaded else _on_record(store, name, overrides)

    from ..data.dataset import held_out_share, load_scored
    from ..evaluation.report import print_evaluation
    from ..evaluation.scores import score_variants
    from ..registry.record import DataRef

    try:
        problems, rows = load_scored(settings.data, settings.limit)
    except NotFoundError as error:
        if config is None and data is None:  # a record holds a file's name, not where it lies
            error.next_step = error.next_step or "say where it lies with --data FILE, or name a config with -c FILE"
        raise
    if said := held_out_share(settings.data):
        say(f"{said}; scored are {len(problems)} rows of {rows.source}")
    with_base = loaded and untrained and any(variant.is_stages for variant in variants)
    evaluation, folder = score_variants(
        store,
        variants,
        problems,
        settings,
        data=DataRef.of(rows),
        runs=runs,
        untrained=loaded.base if loaded and with_base else None,
        base=base,
    )
    if as_json:
        emit_json({"curriculum": name, "folder": str(folder), **evaluation.to_json()})
        return
    print_evaluation(evaluation, name)
    say(f"every answer: {folder}")


def _where(
    registry: Path | None,
    curriculum: str | None,
    asked: Sequence[str],
    loaded: CurriculumConfig | None,
    config: str | None,
) -> tuple[Store, str, bool]:
    """The registry, the curriculum, and whether only a config's base, of which no stage is registered, or folders are.

    Raises:
        NotFoundError: No registry, or no such curriculum in it, and more than a config's base is asked for.
    """
    from ..registry.store import find_store
    from ..variants.name import names_folder

    folders = {name for name in asked if names_folder(name)}
    alone = loaded is not None and curriculum is None and set(asked) <= {"base"} | folders
    try:
        store = find_store(registry)
        known = store.curricula()
        if loaded is not None:
            if alone and loaded.curriculum not in known and (asked or not known):
                return store, loaded.curriculum, True
            if curriculum is None and loaded.curriculum in known:
                curriculum = loaded.curriculum
        return store, store.default_curriculum(curriculum), False
    except NotFoundError as error:
        if loaded is not None and alone:
            return find_store(registry, create=True), loaded.curriculum, True
        if set(asked) <= {"base"} and loaded is None:
            error.next_step = "`plyfold eval base -c FILE` scores a config's base; `plyfold train -c FILE` trains on it"
        elif loaded is not None:
            error.next_step = f"`plyfold train -c {config}` trains it; the base alone: `plyfold eval base -c {config}`"
        raise


def _on_record(store: Store, curriculum: str, overrides: list[str]) -> EvalConfig:
    """What the last stage was to be scored on, and how; a file of it where it was last read from."""
    stages = store.stages(curriculum)
    entry = store.read_record(stages[max(stages)]) if stages else None
    if entry is None or not entry.record.recipe.config:
        raise ConfigError(
            "no stage of this curriculum says what to score on",
            where=curriculum,
            next_step="name a config: -c sandbox, -c gsm8k or -c FILE",
        )
    origin = f"the record of {entry.record.label}"
    settings = build_config(entry.record.recipe.config, overrides, where=origin).eval
    recorded = build_config(entry.record.recipe.config, where=origin).eval.data
    if settings.data.path != recorded.path:
        return settings
    place = _rows_here(store, entry.record, recorded)
    return settings if place is None else replace(settings, data=replace(settings.data, path=str(place)))


def _rows_here(store: Store, record: Record, recorded: DataConfig) -> Path | None:
    """The file that holds the rows on record: where it was read from, or by its name; None where no file is named.

    Raises:
        NotFoundError: It lies at neither place.
        IntegrityError: What lies there holds other rows.
    """
    from ..data.dataset import load_scored
    from ..data.readers import is_local_path
    from ..registry.record import SCORED
    from ..sandbox import SANDBOX

    known = record.recipe.details.get(SCORED)
    digest = known.get("sha256") if isinstance(known, dict) else None
    if not isinstance(digest, str) or recorded.path == SANDBOX or not is_local_path(recorded.path):
        return None
    remembered, others = store.rows_path(digest), list[tuple[Path, str]]()
    for place in dict.fromkeys([*([remembered] if remembered else []), Path(recorded.path).absolute()]):
        if place.exists():
            found = load_scored(replace(recorded, path=str(place)))[1].sha256
            if found == digest:
                return place
            others.append((place, found))
    next_step = "--data FILE says where it lies now, or what else to score on"
    if others:
        raise IntegrityError(
            "the file to score on holds other rows than those on record",
            where=others[0][0],
            expected=f"{digest}, last read from {remembered}" if remembered else digest,
            found=others[0][1],
            next_step=next_step,
        )
    raise NotFoundError(
        "the file to score on is not where it was",
        where=remembered or Path(recorded.path).absolute(),
        expected=f"{recorded.path} with rows {short(digest)}, there or in this folder",
        next_step=next_step,
    )


def _data_overrides(data: Path | None) -> list[str]:
    """Overrides that put a local file in the place of the configured problems; what named those is forgotten."""
    if data is None:
        return []
    return [
        f"eval.data.path={json.dumps(str(data))}",
        *(f"eval.data.{key}=null" for key in ("name", "revision", "rows", "part")),
    ]
