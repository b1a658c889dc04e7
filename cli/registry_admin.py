"""`plyfold revoke`: commands that keep a registry in order."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.console import emit_json, print_table, say
from ..core.digest import short
from .options import curriculum_option, json_option, registry_option


@click.command("revoke")
@click.argument("ref")
@click.option("--reason", required=True, help="Why it should not be used any more; whoever meets it will read it.")
@curriculum_option
@registry_option
@json_option
def revoke_command(ref: str, reason: str, curriculum: str | None, registry: Path | None, as_json: bool) -> None:
    """State that an adapter should not be used any more.

    Nothing is deleted. The adapter and everything made from it are marked in tree, log and show, merge refuses them
    without --allow-revoked, and serve and eval warn.
    """
    from ..registry.graph import find
    from ..registry.revocation import descendants, revoke
    from ..registry.store import find_store

    store = find_store(registry)
    done = revoke(store, find(store, ref, curriculum).digest, reason)
    reached = [store.peek(digest) for digest in descendants(store, done.digest)]
    if as_json:
        emit_json({**done.to_json(), "reaches": [entry.digest for entry in reached]})
        return
    rows = [
        [short(entry.digest), f"{entry.record.curriculum} {entry.record.label}", "made from it"] for entry in reached
    ]
    print_table(["digest", "adapter", "state"], [[short(done.digest), done.label, f"revoked: {done.reason}"], *rows])
    say("merge refuses these from now on; train the stage again to replace it")
