"""Thousands of hostile records, registries and Hubs: accepted and right, or one clear refusal, and nothing else.

Every case runs in a child process with a limit on its memory and its time; a case that hangs or eats memory is ended,
counted and named by its seed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.guarded import campaign, chosen_cases
from tests import hostile_hub, hostile_verdicts

SCALE = 5000
KINDS = [*hostile_verdicts.KINDS, *hostile_hub.REPOSITORY_KINDS, *hostile_hub.HUB_KINDS]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num", type=int, default=SCALE, help="hostile cases, spread evenly over the kinds")
    parser.add_argument("--only", choices=KINDS, metavar="KIND", help="one kind of hostile case")
    parser.add_argument("--no-hub", action="store_true", help="no hostile Hub, only records and registries")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run the cases; counts per kind and outcome, and every fault with its seed."""
    kinds = [chosen.only] if chosen.only else hostile_verdicts.KINDS if chosen.no_hub else KINDS
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        tally = campaign(list(chosen_cases(kinds, chosen.num, chosen.seed)), Path(folder), hostile_verdicts.verdict)
    return {
        "cases": chosen.num,
        "counts": tally.counts,
        "faults": tally.faults,
        "slowest": tally.slowest,
        "peak_bytes": tally.peak_bytes,
        "seconds": time.monotonic() - begin_s,
        "table": tally.table(),
    }


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    seconds, case = found["slowest"]
    lines = [
        found["table"],
        "",
        f"{found['cases']:,} cases in {found['seconds']:.0f} s; the slowest took {seconds:.1f} s ({case}); a worker "
        f"gained {found['peak_bytes'] / 1e6:.0f} MB of memory at most over its start. Faults: {len(found['faults'])}.",
    ]
    return "\n".join([*lines, *(f"- {fault}" for fault in found["faults"])])
