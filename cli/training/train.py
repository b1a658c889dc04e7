"""`plyfold train`: the stages that are missing or stale, each trained as its own adapter and registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import config_option, dry_run_option, json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ...stages.curriculum import TrainResult

DEFAULT_CONFIG = "sandbox"


@click.command("train")
@config_option
@click.option("--stages", help="Train only these, for example 1,2; earlier ones have to exist.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Where run folders go.")  # fmt: skip
@registry_option
@dry_run_option
@json_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def train_command(
    config: str | None,
    stages: str | None,
    runs: Path,
    registry: Path | None,
    dry_run: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the stages that are missing or stale, each as its own adapter.

    Without -c it trains the embedded sandbox. A run that was interrupted continues from its last checkpoint.
    KEY=VALUE overrides the config, for example seed=1 stages.brevity.trainer.max_steps=10.
    """
    from ...core.config import CurriculumConfig, load_config, require_read_rows
    from ...core.console import emit_json
    from ...registry.store import Store, find_store
    from ...stages.runtime.distributed import join

    def prepare() -> tuple[CurriculumConfig, list[int] | None, Store]:
        loaded = load_config(config or DEFAULT_CONFIG, overrides)
        require_read_rows(loaded, overrides)
        return (
            loaded,
            parse_stages(stages) if stages is not None else None,
            find_store(registry, create=True, dry_run=dry_run),
        )

    def show() -> None:
        from ...core.disk.files import refuse_no_folder
        from ...stages.plan.curriculum_plan import plan_curriculum
        from ...stages.training.run_folder import unfinished

        plan = plan_curriculum(loaded, store, numbers, only_show=True)
        refuse_no_folder(runs)
        begun = unfinished(plan, store, runs)
        if as_json:
            places = {"run_folder": str(runs / loaded.curriculum), "registry": str(store.root)}
            emit_json(plan.to_json() | places | {"continues_from": {str(key): step for key, step in begun.items()}})
        else:
            from .plan_tables import show_plan

            show_plan(plan, runs, store.root, begun)

    processes = join()
    loaded, numbers, store = processes.on_first(prepare)
    if dry_run:
        processes.on_first(show)
        return
    from ...stages.curriculum import train

    result = train(loaded, store, numbers, runs)
    if not processes.is_first:
        return
    if as_json:
        emit_json(result.to_json())
    else:
        _show_result(result, several=len(store.curricula()) > 1)


def _show_result(result: TrainResult, several: bool) -> None:
    from ...core.console import print_table
    from ...core.disk.digest import short
    from .mined_tables import show_mined

    for stage in result.stages:
        if stage.trained and (mined := stage.details.get("mined")):  # an older record may hold anything
            show_mined(f"{stage.number} {stage.name}", mined)
    rows, notes = [], list[str]()
    for stage in result.stages:
        details = stage.details
        final, alarms = details.get("final"), details.get("alarms")  # a pulled stage's record may hold anything
        final = final if isinstance(final, dict) else {}
        raised = [str(alarm.get("name")) for alarm in alarms if isinstance(alarm, dict)] if alarms else []
        said = [f"alarm {', '.join(dict.fromkeys(raised))}"] if raised else []
        notes += [f"stage {stage.number} {stage.name}: {text}" for text in [*said, *map(str, stage.gate)]]
        rows.append(
            [
                f"{stage.number} {stage.name}",
                "trained" if stage.trained else "kept" if stage.digest else "missing",
                details.get("steps", ""),
                details.get("rows", ""),
                _number(details.get("wall_s"), 0),
                _number(final.get("loss")),
                _number(final.get("reward")),
                _percent(final.get("accuracy")),
                _number(final.get("completions/mean_length"), 0),
                len(raised),
                "reached" if stage.gate else "",
                short(stage.digest) if stage.digest else "",
            ]
        )
    numbers = ["steps", "rows", "seconds", "loss", "reward", "accuracy", "tokens"]
    done = ",".join(str(stage.number) for stage in result.stages if stage.digest)
    notes.append(f"reward, accuracy and tokens are the last rollouts'; run folders: {result.stages[0].run_dir.parent}")
    notes += [f"curves: {result.curves}"] if result.curves else []
    named = f" --curriculum {result.curriculum}" if several else ""
    notes.append(f"next: plyfold tree{named}, plyfold merge --stages {done}{named}")
    print_table(
        ["stage", "", *numbers, "alarms", "gate", "adapter"],
        rows,
        title=result.curriculum,
        right=(*numbers, "alarms"),
        caption="\n".join(notes),
    )


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else ""


def _number(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else ""
