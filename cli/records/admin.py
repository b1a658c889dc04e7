"""`plyfold revoke`, `pin`, `gc`, `lock` and `import`: commands that keep a registry in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.console import emit_json, print_table, progress, say, show
from ...core.disk.digest import short
from ...core.errors import ConfigError, ConflictError
from ..options import curriculum_option, json_option, registry_option, sign_option
from .sign import signer_option

if TYPE_CHECKING:
    from ...registry.store import Store


@click.command("revoke")
@click.argument("ref")
@click.option("--reason", required=True, help="Why; whoever meets the adapter will read it.")
@click.option("--withdraw", "take_back", is_flag=True, help="Take the revocations of this adapter back.")
@sign_option("the statement")
@curriculum_option
@registry_option
@json_option
def revoke_command(
    ref: str,
    reason: str,
    take_back: bool,
    signing_key: str | None,
    curriculum: str | None,
    registry: Path | None,
    as_json: bool,
) -> None:
    """State that an adapter should not be used any more.

    Nothing is deleted. The adapter and everything made from it are marked in tree, log and show, merge refuses them
    without --allow-revoked, and serve and eval warn. The next push carries it to the Hub, pull brings it to others.

    Anybody may revoke. What was revoked with --sign only that key takes back; where PLYFOLD_PUBLIC_KEY names keys, or
    they were named when the adapter was pulled, only what one of them signed counts as a withdrawal.
    """
    from ...registry.lineage.graph import find
    from ...registry.store import find_store
    from ...registry.trust.revocation import descendants, revoke, withdraw

    signer = signer_option(signing_key)
    store = find_store(registry)
    digest = find(store, ref, curriculum).digest
    done = withdraw(store, digest, reason, signer) if take_back else [revoke(store, digest, reason, signer)]
    reached = [store.read_record(each) for each in descendants(store, digest)]
    if as_json:
        value = {"digest": digest, "withdrawn": take_back, "revocations": [each.to_json() for each in done]}
        emit_json({**value, "reaches": [entry.digest for entry in reached]})
        return
    verb = "no longer revoked" if take_back else "revoked"
    rows = [[short(digest), done[0].label, f"{verb}: {reason if take_back else done[0].reason}"]]
    rows += [[short(item.digest), f"{item.record.curriculum} {item.record.label}", "made from it"] for item in reached]
    print_table(["digest", "adapter", "state"], rows)
    if not take_back:
        say("merge refuses these from now on; train the stage again to replace it")


@click.command("pin")
@click.argument("ref")
@click.option("--reason", default="", help="Why it has to stay; gc shows it.")
@click.option("--remove", is_flag=True, help="Let gc decide about it again, after its time of grace.")
@curriculum_option
@registry_option
@json_option
def pin_command(
    ref: str, reason: str, remove: bool, curriculum: str | None, registry: Path | None, as_json: bool
) -> None:
    """Keep an adapter and all it came from, whatever becomes of its names.

    Pins are of this registry and do not travel. gc and show list them.
    """
    from ...registry.lineage.graph import find
    from ...registry.maintenance.pins import pin, unpin
    from ...registry.store import find_store

    if remove and reason:
        raise ConfigError("--reason goes with a new pin", found="--remove", next_step="leave one of them out")
    store = find_store(registry)
    entry = find(store, ref, curriculum)
    changed = unpin(store, entry.digest) if remove else [pin(store, entry.digest, reason)]
    name = f"{entry.record.curriculum} {entry.record.label}"
    if as_json:
        value = {"digest": entry.digest, "label": name, "pinned": not remove}
        emit_json({**value, "removed" if remove else "pins": [each.to_json() for each in changed]})
        return
    show(f"{short(entry.digest)}  {name}  {'no longer pinned' if remove else 'pinned'}{_because(reason)}")


def _because(reason: str) -> str:
    return f": {' '.join(reason.split())}" if reason else ""


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

    Kept is what a name, a lock file, a pin or a running server needs, with everything it came from. Of the cache goes
    what nobody has used for the time of grace: it is made again when it is needed. Statements about an adapter that an
    older version left in a file each become one file, of as many as are kept. Without --delete nothing is changed.
    """
    from ...registry.lineage.lockfile import LOCK_FILE
    from ...registry.maintenance.gc import delete, plan_sweep
    from ...registry.store import find_store

    if not grace_days >= 0:
        raise ConfigError("not a time of grace", where="--grace-days", found=grace_days, expected="0 or more")
    store = find_store(registry)
    nearby = {path.resolve() for folder in (Path.cwd(), store.root.parent) if (path := folder / LOCK_FILE).is_file()}
    kept_by = sorted(nearby | {path.resolve() for path in lock_files})
    sweep = (delete if really else plan_sweep)(store, lock_files=kept_by, grace_s=grace_days * 86400)
    if as_json:
        value = {"registry": str(store.root), "deleted": really, "lock_files": [str(path) for path in kept_by]}
        counts = {"size_bytes": sweep.size_bytes, "num_kept": sweep.num_kept, "num_young": sweep.num_young}
        pinned = [each.to_json() for each in sweep.pins]
        emit_json({**value, **counts, "pins": pinned, "garbage": [item.to_json() for item in sweep.garbage]})
        return
    rows = [
        [
            short(item.name) if item.kind in ("object", "statements") else item.name,
            item.label,
            f"{item.age_s / 86400:.1f}",
            f"{item.size_bytes:,}",
        ]
        for item in sweep.garbage
    ]
    if rows:
        print_table(["digest", "what", "days", "bytes"], rows, right=["days", "bytes"])
    for each in sweep.pins:
        show(f"{short(each.digest)}  stays: pinned {each.created}{_because(each.reason)}")
    done = "deleted" if really else "would go"
    show(f"{len(rows)} {done}, {sweep.size_bytes:,} bytes; {sweep.num_kept} in use, {sweep.num_young} in their grace")
    if rows and not really:
        say("nothing was changed; plyfold gc --delete removes them")


@click.command("lock")
@click.option(
    "-o", "--out", "path", type=click.Path(path_type=Path, dir_okay=False), help="File; curriculum.lock.json."
)
@click.option("--check", is_flag=True, help="Write nothing; exit 5 where the registry is not at what the file says.")
@curriculum_option
@registry_option
@json_option
def lock_command(path: Path | None, check: bool, curriculum: str | None, registry: Path | None, as_json: bool) -> None:
    """Write which adapter each stage is, and where it lies on the Hub.

    The file belongs into your project's version control; gc keeps what it names.
    """
    from ...registry.lineage.lockfile import LOCK_FILE, make_lock, write_lock
    from ...registry.store import find_store

    store = find_store(registry)
    target = path or Path(LOCK_FILE)
    if check:
        _check_lock(store, target, as_json)
        return
    lock = make_lock(store, store.default_curriculum(curriculum))
    write_lock(target, lock)
    if as_json:
        emit_json({"path": str(target), "lock": lock.to_json()})
        return
    rows = [
        [number, stage.name or "", short(stage.digest), stage.location or ""] for number, stage in lock.stages.items()
    ]
    print_table(["stage", "name", "digest", "on the Hub"], rows, right=["stage"])
    show(f"wrote {target}")


def _check_lock(store: Store, path: Path, as_json: bool) -> None:
    from ...registry.lineage.lockfile import lock_differences, read_lock

    lock = read_lock(path)
    found = lock_differences(lock, store)
    if as_json:
        value = {"path": str(path), "curriculum": lock.curriculum, "ok": not found}
        emit_json({**value, "differences": [each.to_json() for each in found]})
    elif found:
        rows = [
            [each.stage, short(each.locked or "(not locked)"), short(each.now or "(none)"), each.what] for each in found
        ]
        print_table(["stage", "locked", "registry", "what"], rows, right=["stage"])
    else:
        show(f"all {len(lock.stages)} stages of {lock.curriculum} are at what {path} says")
    if found:
        first = found[0]
        raise ConflictError(
            f"{len(found)} of the stages of {lock.curriculum} differ from the lock file",
            where=f"{path}, stage {first.stage}",
            expected=first.locked or "no such stage",
            found=f"{first.now or 'no such stage'} ({first.what})",
            next_step="`plyfold pull` fetches what is missing; `plyfold lock` accepts what there is now",
        )


@click.command("import")
@click.argument("source", metavar="PATH | hf://ORG/REPO[@REV][/FOLDER]")
@click.option("--name", help="Its name in the registry; else the folder's, or the repository's.")
@click.option("--stage", type=click.IntRange(1, 999), help="Stage number to take; else it is named beside the stages.")
@click.option("--base", metavar="REPO@COMMIT", help="Its base, where adapter_config.json does not say it.")
@click.option(
    "--quantisation",
    type=click.Choice(["nf4"]),
    help="nf4: it was trained on the base in NF4 (blocks of 64, double quantisation, bfloat16), as QLoRA does. "
    "Otherwise unknown: it goes with stages that say theirs, with a warning.",
)
@click.option("--licence", help="Its licence, where you know it; else what its card on the Hub says, or unknown.")
@curriculum_option
@registry_option
@json_option
def import_command(source: str, curriculum: str | None, registry: Path | None, as_json: bool, **said: Any) -> None:
    """Take a PEFT LoRA adapter made elsewhere into the registry, its origin on record as unknown.

    From a folder, which stays as it is, or from the Hub, where only adapter_config.json, adapter_model.safetensors
    and the card, for the licence, are fetched, and held to the digests the Hub lists for the commit. The weights are
    checked and kept in canonical form. --curriculum may be a new one.
    """
    from ...registry.import_peft import import_adapter
    from ...registry.store import find_store

    store = find_store(registry, create=True)
    said["curriculum"] = curriculum or (store.default_curriculum() if store.curricula() else "imported")
    place = {}
    if "://" in source:
        from ...registry.hub.import_hub import import_from_hub

        with progress("import", 2) as task:
            done = import_from_hub(store, source, **said, done=lambda name: task.advance(note=name))
        entry, place = done.entry, {"location": done.location, "fetched": done.fetched}
    else:
        entry = import_adapter(store, Path(source), **said)
    record, weights = entry.record, entry.record.weights
    if as_json:
        emit_json({"digest": entry.digest, "path": str(entry.path), **place, "record": record.to_json()})
        return
    name = f"{record.curriculum} {record.label}"
    print_table(
        ["digest", "adapter", "base", "r", "dtype", "licence", "provenance"],
        [[short(entry.digest), name, record.base.repo, weights.r, weights.dtype, record.licence, "unknown"]],
        right=["r"],
    )
    if place:
        say(f"from {place['location']}" + ("" if place["fetched"] else ", which was here already"))
    say(f"it lies in {entry.path}; plyfold tree {record.curriculum} shows it")
