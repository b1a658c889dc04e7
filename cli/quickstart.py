"""`plyfold quickstart`: the whole job on the sandbox, from the frozen base to the table, the lineage and the server."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import click

from ..core.console import emit_json, say, show_field
from .options import json_option, registry_option


@click.command("quickstart")
@click.option("--engine", type=click.Choice(["hf", "vllm"]), help="What generates the answers that are scored; hf.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Where run folders go.",
)
@registry_option
@json_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def quickstart_command(
    engine: str | None,
    runs: Path,
    registry: Path | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the embedded sandbox's three stages, compose them, score every step, draw the lineage.

    About ten minutes on two cores, without a network. The sandbox is a tiny base with generated word problems: it shows
    that every part works, and says nothing about GSM8K. Run it again and it continues, or finds all done.
    """
    from ..core.config import load_config
    from ..registry.record import DataRef
    from ..registry.store import find_store

    started_s = time.monotonic()
    asked = [*overrides, *([f"eval.engine={engine}"] if engine else [])]
    config = load_config("sandbox", asked)
    store = find_store(registry, create=True)

    from ..data.dataset import load_scored
    from ..evaluation.report import print_evaluation
    from ..evaluation.scores import score_variants
    from ..registry.lineage.graph import tree
    from ..stages.curriculum import train
    from ..variants import MergeOptions, Variant, stage_inputs
    from .merging.command import run_merge
    from .records.lineage import print_tree

    trained = train(config, store, None, runs)
    numbers = tuple(stage.number for stage in trained.stages)
    variants = [Variant(curriculum=config.curriculum, stages=numbers[:last]) for last in range(len(numbers) + 1)]
    problems, rows = load_scored(config.eval.data, config.eval.limit)
    scores, folder = score_variants(store, variants, problems, config.eval, data=DataRef.of(rows), runs=runs)
    if not as_json:
        run_merge(stage_inputs(store, numbers, curriculum=config.curriculum), MergeOptions())
    lineage = tree(store, config.curriculum)
    wall_s = time.monotonic() - started_s
    if as_json:
        emit_json(
            {
                "registry": str(store.root),
                "results": str(folder),
                "train": trained.to_json(),
                "evaluation": scores.to_json(),
                "lineage": lineage.to_json(),
                "wall_s": round(wall_s, 1),
                "peak_memory_bytes": _peak_memory_bytes(),
            }
        )
        return
    print_evaluation(scores, config.curriculum)
    print_tree(lineage)
    places = [
        ("registry", store.root, "every adapter with its lineage"),
        ("runs", runs / config.curriculum, "configs, metrics, completions, checkpoints"),
        *([("curves", trained.curves, "rewards, accuracy and lengths while training")] if trained.curves else []),
        ("answers", folder, "every answer of every variant"),
    ]
    for label, path, what in places:
        show_field(label, f"{path}  ({what})")
    names = " ".join(variant.name for variant in variants)
    show_field("serve", f"plyfold serve {names}")
    say(f"done in {wall_s:.0f} s, at most {_peak_memory_bytes() / 1e9:.1f} GB of memory")


def _peak_memory_bytes() -> int:
    """Largest resident set so far; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
