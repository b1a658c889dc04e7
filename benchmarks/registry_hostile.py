"""Thousands of hostile records, registries and Hubs: accepted and right, or one clear refusal, and nothing else.

Each case breaks one thing: a record's bytes, a file of an object, a ref, a statement, the log, a lock file, a
stranger's repository, or the Hub's own answers. It then goes through every door: parsing, load, adopt, tree, chain,
stale, verify, gc, scores, revocations, locks, pull. What is accepted is compared with a second reading that shares no
code (`tests/support/hostile_truth.py`); `right` under a mutation means that it spells another sound thing, or touches
what is not read. A fault is any other exception, an error without a place or of over 2,000 characters, a file changed
that was not to be, more than 10 s, 2 GiB of address space or 512 MiB of memory. Faults are named by their seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.guarded import campaign, chosen_cases
from tests.support import hostile_hub, hostile_verdicts

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
