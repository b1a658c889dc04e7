"""`plyfold push`: adapters to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.console import emit_json, print_table, progress, stdout, warn
from ..core.digest import short
from ..core.errors import ConfigError
from .options import dry_run_option, json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ..registry.hub import Pushed


@click.command("push")
@click.argument("target", metavar="NS/CURRICULUM")
@click.option("--stages", help="Stages to publish, as 1,2,3; all of them by default.")
@click.option("--public", is_flag=True, help="Make new repositories public; private otherwise.")
@click.option("--tag", help="Also give this name to the commits, as v1.")
@registry_option
@dry_run_option
@json_option
def push_command(
    target: str, stages: str | None, public: bool, tag: str | None, registry: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Publish stages of a curriculum on the Hub, a repository each.

    NS is a user or organisation; stage 1 "structure" of gsm8k goes to NS/gsm8k-s01-structure. Whatever a stage was
    trained on is published before it. What is there already is left as it is, so the same command may be run again.
    HF_ENDPOINT and HF_TOKEN are honoured.
    """
    from ..registry.hub import push
    from ..registry.store import find_store

    namespace, _, name = target.partition("/")
    if not namespace or not name:
        raise ConfigError("where to?", found=target, expected="NS/CURRICULUM, as acme/gsm8k")
    store = find_store(registry)
    curriculum = store.default_curriculum(name)
    numbers = parse_stages(stages) if stages else list(store.stages(curriculum))
    digests = [store.ref(curriculum, number) for number in numbers]
    with progress("push") as task:
        results = push(
            store,
            digests,
            namespace,
            private=not public,
            tag=tag,
            dry_run=dry_run,
            done=lambda result: task.advance(note=result.name),
        )
    if as_json:
        emit_json({"registry": str(store.root), "dry_run": dry_run, "pushed": [each.to_json() for each in results]})
        return
    print_table(
        ["digest", "adapter", "result", "where"],
        [[short(each.digest), each.name, each.status, each.location or each.repo] for each in results],
    )
    asked = set(digests)
    for each in results:
        if each.digest in asked and each.head != each.commit:
            warn(_superseded(each))
    if not dry_run:
        stdout().print(
            f"fetch them anywhere: plyfold pull {target} --stages {','.join(map(str, numbers))}", markup=False
        )


def _superseded(pushed: Pushed) -> str:
    return (
        f"{pushed.name} is in the history of {pushed.repo}, where a later commit ({short(pushed.head or '', 8)}) "
        f"leads now: fetch this one as {pushed.location}"
    )
