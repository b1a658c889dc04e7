"""`plyfold push`: adapters to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core.console import emit_json, print_table, progress, show, warn
from ...core.disk.digest import short
from ...core.errors import ConfigError
from ..options import dry_run_option, json_option, parse_stages, registry_option, sign_option
from .sign import signer_option

if TYPE_CHECKING:
    from ...registry.hub.push.collection import Collected
    from ...registry.hub.push.push import Pushed


@click.command("push")
@click.argument("target", metavar="NS/CURRICULUM")
@click.option("--stages", help="Stages to publish, as 1,2,3; all of them where neither these nor merges are named.")
@click.option(
    "--merges",
    is_flag=False,
    flag_value="all",
    help="Merges to publish by their names, as gsm8k-s1.s2,..., or all of them; then stages only if named too.",
)
@click.option("--public", is_flag=True, help="Make new repositories public; private otherwise.")
@click.option("--tag", help="Also give this name to the commits, as v1.")
@sign_option("what is published, as model.sig, and what was said and measured of it here,")
@click.option(
    "--replace-statements",
    is_flag=True,
    help="Where revocations.json or evaluations.json there cannot be read, or holds more than is kept of an adapter: "
    "put what is known here in its place.",
)
@click.option("--allow-dirty", is_flag=True, help="Publish what code with uncommitted changes made; its page says so.")
@click.option("--no-collection", is_flag=True, help="Leave the curriculum's collection alone.")
@registry_option
@dry_run_option
@json_option
def push_command(
    target: str,
    stages: str | None,
    merges: str | None,
    public: bool,
    tag: str | None,
    signing_key: str | None,
    replace_statements: bool,
    allow_dirty: bool,
    no_collection: bool,
    registry: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish stages and merges of a curriculum on the Hub, a repository each.

    NS is a user or organisation; stage 1 "structure" of gsm8k goes to NS/gsm8k-s01-structure. Whatever an adapter came
    from is published before it, and a collection lists them all. What is there already is left as it is, so the same
    command may be run again: it adds revocations and signatures that are new. HF_ENDPOINT and HF_TOKEN are honoured.
    """
    from ...registry.hub.client import HubClient
    from ...registry.hub.push.collection import Collected, update_collection
    from ...registry.hub.push.push import choose, push
    from ...registry.store import find_store

    namespace, _, name = target.partition("/")
    if not namespace or not name:
        raise ConfigError("where to?", found=target, expected="NS/CURRICULUM, as acme/gsm8k")
    store = find_store(registry)
    curriculum = store.default_curriculum(name)
    slugs = [slug.strip() for slug in merges.split(",")] if merges is not None else None
    digests = choose(store, curriculum, parse_stages(stages) if stages else None, slugs)
    signer = signer_option(signing_key)
    client = None if dry_run else HubClient()
    with progress("push") as task:
        results = push(
            store,
            digests,
            namespace,
            private=not public,
            tag=tag,
            allow_dirty=allow_dirty,
            signer=signer,
            replace_statements=replace_statements,
            dry_run=dry_run,
            client=client,
            done=lambda result: task.advance(note=result.name),
        )
        collected = None if no_collection else Collected(title=curriculum)
        if collected and client:
            published = [(each.repo, store.read_record(each.digest).record) for each in results]
            collected = update_collection(client, namespace, curriculum, published, private=not public)
    if as_json:
        emit_json(
            {
                "registry": str(store.root),
                "dry_run": dry_run,
                "private": not public,
                "tag": tag,
                "pushed": [each.to_json() for each in results],
                "collection": collected.to_json() if collected else None,
            }
        )
    else:
        numbers = ",".join(str(each.stage) for each in results if each.asked_for and each.stage)
        fetch = [f"plyfold pull {target} --stages {numbers}"] if numbers else []
        named = ",".join(each.slug for each in results if each.asked_for and each.slug)
        fetch += [f"plyfold pull {target} --merges {named}"] if named else []
        others = (each for each in results if each.asked_for and not each.stage and not each.slug)
        fetch += [f"plyfold pull hf://{each.repo}" for each in others]
        _print(results, collected, fetch=fetch, visibility="public" if public else "private", planned=dry_run)
    for each in results:
        if each.asked_for and each.superseded:
            warn(_superseded(each))
        if each.note:
            warn(each.note)
    if collected and collected.fault:
        warn(f"all adapters are there, but their collection is not complete: {collected.fault}")


def _print(
    results: list[Pushed], collected: Collected | None, *, fetch: list[str], visibility: str, planned: bool
) -> None:
    if planned:
        rows = [
            [
                short(each.digest),
                each.name,
                f"{each.size_bytes / 1e6:,.1f}",
                ", ".join(each.companions),
                each.status,
                each.repo,
            ]
            for each in results
        ]
        print_table(["digest", "adapter", "MB", "beside it", "result", "where"], rows, right=["MB"])
        listed = f"; listed in the collection {collected.title!r}" if collected else ""
        show(f"new repositories would be {visibility}{listed}; nothing was sent")
        return
    print_table(
        ["digest", "adapter", "result", "where"],
        [[short(each.digest), each.name, each.status, each.location or each.repo] for each in results],
    )
    if collected and collected.url:
        show(f"collection: {collected.url}")
    for line in fetch:
        show(f"fetch anywhere: {line}")


def _superseded(pushed: Pushed) -> str:
    return (
        f"{pushed.name} is in the history of {pushed.repo}, where a later commit ({short(pushed.head or '', 8)}) "
        f"leads now: fetch this one as {pushed.location}"
    )
