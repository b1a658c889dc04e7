"""`plyfold train`: the stages that are missing or stale, each trained as its own adapter and registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, dry_run_option, json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ..stages.curriculum import TrainResult

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
    from ..core.config import CurriculumConfig, load_config
    from ..core.console import emit_json
    from ..registry.store import Store, find_store
    from ..stages.processes import join

    def prepare() -> tuple[CurriculumConfig, list[int] | None, Store]:
        loaded = load_config(config or DEFAULT_CONFIG, overrides)
        return loaded, parse_stages(stages) if stages else None, find_store(registry, create=True)

    def show() -> None:
        from ..stages.plan import plan_curriculum

        plan = plan_curriculum(loaded, store, numbers, only_show=True)
        if as_json:
            emit_json(plan.to_json() | {"run_folder": str(runs / loaded.curriculum), "registry": str(store.root)})
        else:
            from .plan_tables import show_plan

            show_plan(plan, runs, store.root)

    processes = join()
    loaded, numbers, store = processes.on_first(prepare)
    if dry_run:
        processes.on_first(show)
        return
    from ..stages.curriculum import train

    result = train(loaded, store, numbers, runs)
    if not processes.is_first:
        return
    if as_json:
        emit_json(result.to_json())
    else:
        _show_result(result)


def _show_result(result: TrainResult) -> None:
    from ..core.console import print_table
    from ..core.digest import short
    from .mined_tables import show_mined

    for stage in result.stages:
        if mined := stage.details.get("mined"):
            show_mined(f"{stage.number} {stage.name}", mined)
    rows = []
    for stage in result.stages:
        final = stage.details.get("final", {})
        rows.append(
            [
                f"{stage.number} {stage.name}",
                short(stage.digest) if stage.digest else "missing",
                "trained" if stage.trained else "kept",
                stage.details.get("steps", ""),
                f"{stage.details['wall_s']:.0f} s" if "wall_s" in stage.details else "",
                _number(final.get("loss")),
                _number(final.get("reward")),
                _number(final.get("completions/mean_length"), 0),
                stage.run_dir,
            ]
        )
    print_table(
        ["stage", "adapter", "", "steps", "time", "loss", "reward", "tokens", "run folder"],
        rows,
        title=result.curriculum,
        right=("steps", "time", "loss", "reward", "tokens"),
        caption="next: plyfold tree, plyfold merge --stages "
        + ",".join(str(stage.number) for stage in result.stages if stage.digest),
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
