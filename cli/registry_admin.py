"""`plyfold revoke` and `gc`: commands that keep a registry in order."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.console import emit_json, print_table, say
from ..core.digest import short
from ..core.errors import ConfigError
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


@click.command("gc")
@click.option("--delete", "really", is_flag=True, help="Delete; without it, only the table is shown.")
@click.option(
    "--lock-file",
    "lock_files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what this lock file names, too; curriculum.lock.json here or beside the registry is always kept.",
)
@click.option("--grace-days", type=float, default=14.0, show_default=True, help="Keep what was in use so recently.")
@registry_option
@json_option
def gc_command(
    really: bool, lock_files: tuple[Path, ...], grace_days: float, registry: Path | None, as_json: bool
) -> None:
    """Remove what nothing leads to any more.

    Kept is what a name, a lock file, a pin or a running server needs, with everything it came from. Without --delete
    nothing is changed.
    """
    from ..registry.gc import delete, plan_sweep
    from ..registry.lock import LOCK_FILE
    from ..registry.store import find_store

    if not grace_days >= 0:
        raise ConfigError("not a time of grace", where="--grace-days", found=grace_days, expected="0 or more")
    store = find_store(registry)
    nearby = {path.resolve() for folder in (Path.cwd(), store.root.parent) if (path := folder / LOCK_FILE).is_file()}
    kept_by = sorted(nearby | {path.resolve() for path in lock_files})
    sweep = (delete if really else plan_sweep)(store, lock_files=kept_by, grace_s=grace_days * 86400)
    if as_json:
        value = {"registry": str(store.root), "deleted": really, "lock_files": [str(path) for path in kept_by]}
        counts = {"size_bytes": sweep.size_bytes, "num_kept": sweep.num_kept, "num_young": sweep.num_young}
        emit_json({**value, **counts, "garbage": [item.to_json() for item in sweep.garbage]})
        return
    rows = [
        [
            short(item.name) if item.kind == "object" else item.name,
            item.label,
            f"{item.age_s / 86400:.1f}",
            f"{item.size_bytes:,}",
        ]
        for item in sweep.garbage
    ]
    if rows:
        print_table(["digest", "what", "days", "bytes"], rows, right=["days", "bytes"])
    done = "deleted" if really else "would go"
    print(f"{len(rows)} {done}, {sweep.size_bytes:,} bytes; {sweep.num_kept} in use, {sweep.num_young} in their grace")
    if rows and not really:
        say("nothing was changed; plyfold gc --delete removes them")
