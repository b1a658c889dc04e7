"""`plyfold rollouts`: the vLLM server that `plyfold train` draws GRPO's completions from."""

from __future__ import annotations

from pathlib import Path

import click

from ..options import api_key_file_option, config_option, dry_run_option, json_option, registry_option
from .train import DEFAULT_CONFIG


@click.command("rollouts")
@config_option
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; whoever reaches it, with the key, can load adapters.")  # fmt: skip
@click.option("--port", default=8001, show_default=True, type=click.IntRange(1, 65535))
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1), help="That share the model.")
@click.option("--max-model-len", type=int, help="Longest prompt plus completion, in tokens; else the base's.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), multiple=True, default=(Path("runs"),),
              show_default=True, help="Folder of runs that adapters are read from; any number.")  # fmt: skip
@api_key_file_option
@registry_option
@dry_run_option
@json_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def rollouts_command(
    config: str | None,
    host: str,
    port: int,
    gpus: int,
    max_model_len: int | None,
    runs: tuple[Path, ...],
    api_key_file: Path | None,
    registry: Path | None,
    dry_run: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> int:
    """Serve a curriculum's base to `plyfold train rollout.engine=http`, which loads its adapters into it.

    One server draws the completions of any number of training processes, on GPUs of its own. Ctrl-C stops it.
    """
    import shlex
    import sys

    from ...core.config import load_config
    from ...core.console import emit_json, show
    from ...registry.maintenance.gc import lease
    from ...registry.store import find_store
    from ...serving.access import key_variable
    from ...stages.rollouts.server import make_twin, plan_rollout_server
    from ...stages.rollouts.vllm_server import run_rollout_server

    loaded = load_config(config or DEFAULT_CONFIG, overrides)
    store = find_store(registry, create=True, dry_run=dry_run)
    server = plan_rollout_server(
        loaded, store.cache, host=host, port=port, max_model_len=max_model_len, gpus=gpus, runs=runs,
        key_file=api_key_file, only_show=dry_run,
    )  # fmt: skip
    if as_json:
        emit_json({"dry_run": dry_run, **server.to_json()})
    else:
        show(f"base     {server.base.repo}@{server.base.revision[:12]} as twin, {server.twin}")
        show(f"rank     {server.rank}")
        show(f"command  {server.shell_command}")
        own = shlex.join([*(["-c", config] if config else []), *overrides])
        key = f"{key_variable(api_key_file)} " if api_key_file else ""
        show(f"then     {key}plyfold train {f'{own} ' if own else ''}{server.overrides}")
    sys.stdout.flush()
    if dry_run:
        return 0
    with lease(store, [], [server.twin]):
        make_twin(server, store.cache)
        return run_rollout_server(server.command, server.environment | server.secret)
