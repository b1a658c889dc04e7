"""`plyfold push` and `plyfold pull`: adapters to and from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.console import emit_json, print_table, progress, say, stdout, warn
from ..core.digest import short
from ..core.errors import ConfigError
from .options import dry_run_option, json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ..registry.hub import Pulled, Pushed


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


@click.command("pull")
@click.argument("ref", metavar="NS/CURRICULUM | hf://ORG/REPO[@REV][/FOLDER]")
@click.option("--stages", help="Stages of NS/CURRICULUM, as 1,2,3; all there are by default.")
@click.option("--with-parents", is_flag=True, help="Also fetch every adapter they came from.")
@registry_option
@json_option
def pull_command(ref: str, stages: str | None, with_parents: bool, registry: Path | None, as_json: bool) -> None:
    """Fetch adapters from the Hub into the registry, every byte checked.

    The stages fetched become the `latest` of their curriculum here. Adapters they came from are named if they are
    missing, and fetched with --with-parents: a stage works without them, but was measured on top of them. Afterwards
    all of it works offline; a location with a commit that was pulled before is not asked for again. Without a
    registry here or above, one is made in this folder.
    """
    from ..registry.hub import pull
    from ..registry.store import find_store

    numbers = parse_stages(stages) if stages else None
    store = find_store(registry, create=True)
    with progress("pull", len(numbers) if numbers and not with_parents else None) as task:
        results = pull(store, ref, stages=numbers, with_parents=with_parents, done=lambda name: task.advance(note=name))
    if as_json:
        emit_json({"registry": str(store.root), "pulled": [each.to_json() for each in results]})
    else:
        print_table(
            ["digest", "adapter", "result", "where"],
            [[short(each.digest), each.name, each.status, each.location] for each in results],
        )
    _say_what_else(results)


def _superseded(pushed: Pushed) -> str:
    return (
        f"{pushed.name} is in the history of {pushed.repo}, where a later commit ({short(pushed.head or '', 8)}) "
        f"leads now: fetch this one as {pushed.location}"
    )


def _say_what_else(results: list[Pulled]) -> None:
    for each in results:
        if each.previous:
            say(f"{each.name} was {short(each.previous)} here and is {short(each.digest)} now; both are kept")
        for digest in each.missing:
            warn(f"{each.name} came from {short(digest)}, which is not here: add --with-parents")
