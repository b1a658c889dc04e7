"""`plyfold verify`: whether the registry holds what its records say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.console import emit_json, print_table, progress, stdout
from ..core.digest import short
from ..core.errors import IntegrityError
from .options import json_option, registry_option

if TYPE_CHECKING:
    from ..registry.verify import Check


@click.command("verify")
@click.option("--deep", is_flag=True, help="Also compare tensor headers and adapter configs with the records.")
@registry_option
@json_option
def verify_command(deep: bool, registry: Path | None, as_json: bool) -> None:
    """Check every file of the registry against its record.

    Ends with exit code 4 when a file is missing, extra or changed, or a name leads nowhere.
    """
    from ..registry.store import find_store
    from ..registry.verify import verify

    store = find_store(registry)
    checks = []
    with progress("verify", len(store.digests())) as task:
        for check in verify(store, deep=deep):
            checks.append(check)
            task.advance(note=check.name)
    faulty = [check for check in checks if check.problems]
    if as_json:
        value = {"registry": str(store.root), "deep": deep, "ok": not faulty}
        emit_json({**value, "checks": [check.to_json() for check in checks]})
    else:
        rows = [
            [short(check.digest), check.name, check.num_files, f"{check.size_bytes / 1e6:,.1f}", _verdict(check)]
            for check in checks
        ]
        print_table(["digest", "what", "files", "MB", "result"], rows, right=["files", "MB"])
        for check in faulty:
            for problem in check.problems:
                stdout().print(f"{short(check.digest)}  {problem}", markup=False)
    if faulty:
        first = faulty[0]
        raise IntegrityError(
            f"{len(faulty)} of {len(checks)} checks failed",
            where=f"{first.name} {short(first.digest)}: {first.problems[0].path}",
            expected=first.problems[0].expected,
            found=first.problems[0].found or first.problems[0].fault,
            next_step="remove the damaged objects from objects/sha256, then train or fetch them again",
        )


def _verdict(check: Check) -> str:
    if check.problems:
        return f"{len(check.problems)} fault{'s' if len(check.problems) > 1 else ''}"
    return "; ".join(["ok", *check.notes])
