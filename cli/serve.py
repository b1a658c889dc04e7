"""`plyfold serve`: variants of a curriculum from one vLLM engine, over an OpenAI-compatible API."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.console import emit_json, print_table, say, show
from .options import (
    api_key_file_option,
    base_option,
    curriculum_option,
    dry_run_option,
    json_option,
    registry_option,
    store_beside_folders,
)

if TYPE_CHECKING:
    from ..merge.inputs import BaseWord
    from ..registry.store import Store
    from ..serving.launch import ServerPlan
    from ..variants import Variant

EXAMPLE_PROMPT = "Question: Ann has 3 apples and buys 4 more. How many apples does she have?\nSolution:\n"
EXAMPLE_TOKENS = 128


@click.command("serve")
@click.argument("variants", nargs=-1, metavar="[VARIANT]…")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--max-model-len", type=int, help="Longest prompt plus answer, in tokens; else the base's.")
@base_option
@api_key_file_option
@curriculum_option
@registry_option
@dry_run_option
@json_option
def serve_command(
    variants: tuple[str, ...],
    host: str,
    port: int,
    max_model_len: int | None,
    base: BaseWord | None,
    api_key_file: Path | None,
    curriculum: str | None,
    registry: Path | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Serve variants from one vLLM engine, each under its name: base, 1, 1+2.

    A VARIANT is also the name or the start of the digest of any adapter of the registry, or a PEFT folder: ./my-lora.
    A checkpoint, ./folded, is served alone. Without a VARIANT it serves the base and every step of the curriculum.
    Ctrl-C stops it.
    """
    from ..registry.maintenance.gc import lease
    from ..serving.launch import plan_server, prepare_server, run_server

    store, name = store_beside_folders(registry, curriculum, variants, dry_run=dry_run)
    chosen = _chosen(store, variants, name)
    plan = plan_server(
        store, chosen, host=host, port=port, max_model_len=max_model_len, key_file=api_key_file, base=base
    )
    if dry_run:
        _show_plan(plan, as_json)
        return 0
    used = {entry.digest for variant in plan.variants for entry in variant.entries}
    cached = [path for path in (plan.twin, plan.log, *plan.modules.values()) if path.is_relative_to(store.cache)]
    with lease(store, used, cached):
        prepare_server(plan, store)
        say(f"starting vLLM {plan.vllm} on {plan.url}; its log: {plan.log}")
        return run_server(plan, on_ready=lambda: _show_ready(plan, as_json))


def _chosen(store: Store, names: tuple[str, ...], curriculum: str) -> list[Variant]:
    """The named variants, or the base and every prefix of the curriculum."""
    from ..variants import Variant, find_variant

    if names:
        return [find_variant(store, name, curriculum) for name in names]
    numbers = tuple(store.stages(curriculum))
    return [Variant(curriculum=curriculum, stages=numbers[:length]) for length in range(len(numbers) + 1)]


def _show_plan(plan: ServerPlan, as_json: bool) -> None:
    if as_json:
        emit_json({"dry_run": True, **plan.to_json()})
        return
    _print_models(plan)
    quantisation, at = plan.ground.quantisation, f"@{plan.base.revision[:12]}" if plan.base.revision else ""
    made = f"as {quantisation.compute_dtype} twin" if quantisation else f"as it is, {plan.options.dtype}"
    show(f"base     {plan.base.repo}{at} {made}, {plan.twin}")
    show(f"vLLM     {plan.vllm}, rank {plan.options.max_lora_rank}, {plan.options.max_loras} LoRA slots")
    show(f"command  {plan.shell_command}")


def _show_ready(plan: ServerPlan, as_json: bool) -> None:
    if as_json:
        emit_json({"ready": True, **plan.to_json()})
    else:
        show(f"serving {plan.url}/v1")
        _print_models(plan)
        show(f"try      {_curl(plan)}")
        show("stop     Ctrl-C")
    sys.stdout.flush()


def _print_models(plan: ServerPlan) -> None:
    rows: list[tuple[object, ...]] = [(plan.names[0], plan.base.repo, "", "")]
    for variant in plan.variants:
        if variant.path is not None:
            stages = " + ".join(entry.record.label for entry in variant.entries) or "a folder"
            rows.append((variant.variant.name, stages, variant.r, variant.path.name))
    print_table(("model", "is", "rank", "adapter"), rows, right=("rank",))


def _curl(plan: ServerPlan) -> str:
    model = next(reversed(plan.modules), plan.names[0])
    body = {"model": model, "prompt": EXAMPLE_PROMPT, "max_tokens": EXAMPLE_TOKENS, "temperature": 0}
    from ..serving.access import bearer_header

    key = f"-H {bearer_header(plan.key_file)} " if plan.key is not None else ""
    asked = shlex.join([f"{plan.url}/v1/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)])
    return f"curl {key}{asked}"
