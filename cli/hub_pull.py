"""`plyfold pull`: adapters from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.console import emit_json, print_table, progress, say, warn
from ..core.digest import short
from .options import json_option, parse_stages, registry_option

if TYPE_CHECKING:
    from ..registry.hub_pull import Pulled


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
    from ..registry.hub_pull import pull
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


def _say_what_else(results: list[Pulled]) -> None:
    for each in results:
        if each.previous:
            say(f"{each.name} was {short(each.previous)} here and is {short(each.digest)} now; both are kept")
        for digest in each.missing:
            warn(f"{each.name} came from {short(digest)}, which is not here: add --with-parents")
