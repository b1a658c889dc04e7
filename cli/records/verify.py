"""`plyfold verify`: whether the registry holds what its records say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ...core.console import emit_json, print_table, progress, show, show_field
from ...core.disk.digest import PREFIX, short
from ...core.errors import ConfigError, IntegrityError
from ..options import curriculum_option, json_option, public_key_option, registry_option

if TYPE_CHECKING:
    from ...registry.maintenance.verify import Check
    from ...registry.store import Store
    from ...registry.trust.signing import SignatureCheck
    from ...variants.replay import Replay


@click.command("verify")
@click.argument("refs", nargs=-1, metavar="[REF]…")
@click.option("--deep", is_flag=True, help="Also compare weights, configs and ancestors with the records.")
@click.option("--replay", is_flag=True, help="Also compose merges again from their records, and compare the tensors.")
@click.option("--base", "bases", is_flag=True, help="Also hold the bases that lie here against the records.")
@click.option("--signature", is_flag=True, help="Also require a signature by a --public-key of every adapter.")
@public_key_option
@curriculum_option
@registry_option
@json_option
def verify_command(
    refs: tuple[str, ...],
    deep: bool,
    replay: bool,
    bases: bool,
    signature: bool,
    public_keys: tuple[Path, ...],
    curriculum: str | None,
    registry: Path | None,
    as_json: bool,
) -> None:
    """Check every file of the registry against its record.

    REF is a stage's number or name, a merge's name, CURRICULUM:STAGE, or the start of a digest: only these are checked,
    with --deep also what they came from.

    Ends with exit code 4 when a file is missing, extra or changed, a name leads nowhere, with --replay a merge comes
    out otherwise, with --base a base that lies here has other weights, or, with --signature, an adapter is not signed
    by any of the keys.
    """
    from ...registry.lineage.graph import locate
    from ...registry.maintenance.verify import verify
    from ...registry.store import Snapshot, find_store
    from ...variants.base import check_bases

    given = click.get_current_context().get_parameter_source("public_keys")
    signature = signature or given is ParameterSource.COMMANDLINE  # a key that is named is never passed over
    store = Snapshot.of(find_store(registry))
    chosen = [locate(store, ref, curriculum) for ref in refs] if refs else None
    signatures = _check_signatures(store, chosen or store.digests(), public_keys) if signature else {}
    checks = []
    with progress("verify", None if chosen and deep else len(chosen or store.digests())) as task:
        for check in verify(store, chosen, deep=deep):
            checks.append(check)
            if deep and not check.problems:
                check.notes.extend(_recipe_notes(store, check.digest))
            task.advance(note=check.name)
    faulty = [check for check in checks if check.problems]
    replays = _replay(store, chosen) if replay else []
    base_checks = check_bases(store, chosen or store.digests()) if bases else []
    if as_json:
        value = {
            "registry": str(store.root),
            "deep": deep,
            "ok": not faulty
            and not any(each.fault for each in base_checks)
            and all(each.good for each in signatures.values())
            and all(each.verdict != "differs" for each in replays),
        }
        extra: dict[str, object] = {}
        extra |= {"signatures": [each.to_json() for each in signatures.values()]} if signature else {}
        extra |= {"replays": [each.to_json() for each in replays]} if replay else {}
        extra |= {"bases": [each.to_json() for each in base_checks]} if bases else {}
        emit_json({**value, "checks": [check.to_json() for check in checks], **extra})
    else:
        rows = [
            [short(check.digest), check.name, check.num_files, f"{check.size_bytes / 1e6:,.1f}", _verdict(check)]
            + ([signatures[check.digest].verdict if check.digest in signatures else ""] if signature else [])
            for check in checks
        ]
        columns = ["digest", "what", "files", "MB", "result"] + (["signature"] if signature else [])
        print_table(columns, rows, right=["files", "MB"])
        for check in checks:
            for line in [*map(str, check.problems), *(f"note: {note}" for note in check.notes)]:
                show_field(short(check.digest), line, width=13)
        if bases:
            results = [[base.repo, base.revision[:12], base.fault or base.note or "ok"] for base in base_checks]
            print_table(["base", "revision", "result"], results)
        if replay:
            _print_replays(replays)
    if faulty:
        first = faulty[0]
        raise IntegrityError(
            f"{len(faulty)} of {len(checks)} checks failed",
            where=f"{first.name} {short(first.digest)}: {first.problems[0].path}",
            expected=first.problems[0].expected,
            found=first.problems[0].found or first.problems[0].fault,
            next_step=_mend(first),
        )
    for base in base_checks:
        if base.fault:
            raise IntegrityError(
                "a base that lies here is not the one on record",
                where=f"{base.repo}@{base.revision[:12]} in {base.path}",
                found=base.fault,
                next_step="fetch it again",
            )
    for each in signatures.values():
        each.require()
    for merge in replays:
        merge.require()


def _replay(store: Store, chosen: Sequence[str] | None) -> list[Replay]:
    from ...variants.replay import merges_of, replay

    digests = merges_of(store, chosen)
    found = []
    with progress("replay", len(digests)) as task:
        for digest in digests:
            found.append(replay(store, digest))
            task.advance(note=found[-1].name)
    return found


def _recipe_notes(store: Store, digest: str) -> Iterator[str]:
    """Is a stage's digest of its configuration that of the configuration on record?"""
    from ...stages.plan.staleness import digest_on_record

    record = store.read_record(digest).record
    if not record.recipe.config_digest or not record.recipe.config:
        return
    try:
        found = digest_on_record(record)
    except ConfigError as error:
        yield f"its configuration cannot be read by this version: {error.what}"
        return
    if found != record.recipe.config_digest:
        yield "its config_digest is not that of its configuration, or of another version of plyfold"


def _check_signatures(store: Store, digests: Sequence[str], public_keys: tuple[Path, ...]) -> dict[str, SignatureCheck]:
    from ...registry.trust.signing import verify_signature

    with progress("signatures", len(digests)) as task:
        found = {}
        for digest in digests:
            found[digest] = verify_signature(store, digest, *public_keys)
            task.advance()
    return found


def _mend(check: Check) -> str:
    if check.name.startswith("refs/"):
        return f"train or fetch what {check.name} names, or remove that file"
    if check.name.startswith("attest/"):
        return (
            f"remove the file from attest/{check.digest.removeprefix(PREFIX)}; the adapter itself is not touched by it"
        )
    return "remove the damaged objects from objects/sha256, then train or fetch them again"


def _verdict(check: Check) -> str:
    if check.problems:
        return f"{len(check.problems)} fault{'s' if len(check.problems) > 1 else ''}"
    return "ok" + (f", {len(check.notes)} note{'s' if len(check.notes) > 1 else ''}" if check.notes else "")


def _print_replays(replays: list[Replay]) -> None:
    """A row per merge on stdout."""
    if not replays:
        show("no merge to compose again")
        return
    rows = [
        [
            short(each.digest),
            each.name,
            each.method,
            each.verdict,
            "" if each.relative is None else f"{each.relative:.2g}",
        ]
        for each in replays
    ]
    print_table(["digest", "merge", "method", "replayed", "rel. difference"], rows, right=["rel. difference"])
    for each in replays:
        if each.reason:
            show(f"{short(each.digest)}  {each.verdict}: {each.reason}")
