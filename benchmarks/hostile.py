"""All hostile input in one command: records, registries, Hubs, adapters, and texts; 0 wrong verdicts is what it takes.

    python benchmarks/hostile.py --num 20000 --jobs 2
    python benchmarks/hostile.py --only "text: config" --seed 17 --num 1     one case again

Cases are spread evenly over the kinds of `tests/support/hostile_verdicts.py`, `hostile_hub.py`, `mutations.py` and
`hostile_texts.py`, each in a child process with limits on memory and time (`guarded.py`). A fault is named by its seed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.guarded import Tally, campaign, chosen_cases
from tests.support import hostile_hub, hostile_texts, hostile_verdicts, mutation_verdicts
from tests.support.mutations import KINDS as MUTATIONS

REGISTRY = [*hostile_verdicts.KINDS, *hostile_hub.REPOSITORY_KINDS, *hostile_hub.HUB_KINDS]
KINDS = [*REGISTRY, *MUTATIONS, *hostile_texts.KINDS]


def verdict(folder: Path, kind: str, seed: int) -> str:
    """One case, by who knows its kind."""
    if kind in hostile_texts.KINDS:
        return hostile_texts.verdict(folder, kind, seed)
    if kind in MUTATIONS:
        return mutation_verdicts.verdict(folder, kind, seed)
    return hostile_verdicts.verdict(folder, kind, seed)


def share(cases: list[tuple[str, int]]) -> Tally:
    """The cases of one process."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        Path(folder).chmod(0o711)
        return campaign(cases, Path(folder), verdict, mutation_verdicts.clear)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=20_000, help="cases, spread evenly over the kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one adds 1")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", choices=KINDS, metavar="KIND", help="one kind")
    parser.add_argument("--texts", action="store_true", help="only configs, rows and answers")
    parser.add_argument("--json", action="store_true", help="counts and faults as one object")
    options = parser.parse_args()
    kinds = [options.only] if options.only else list(hostile_texts.KINDS) if options.texts else KINDS
    cases = list(chosen_cases(kinds, options.num, options.seed))
    begin_s, jobs = time.monotonic(), max(1, min(options.jobs, len(cases)))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(share, [cases[first::jobs] for first in range(jobs)]))
    total = Tally(slowest=max(each.slowest for each in found), peak_bytes=max(each.peak_bytes for each in found))
    for each in found:
        total.faults += each.faults
        for kind, counts in each.counts.items():
            total.counts[kind] = total.counts.get(kind, Counter()) + counts
    seconds = time.monotonic() - begin_s
    if options.json:
        print(json.dumps({"counts": total.counts, "faults": total.faults, "seconds": seconds}))
    else:
        versions = ", ".join(f"{name} {version(name)}" for name in ("plyfold", "torch", "huggingface-hub"))
        print(total.table(), end="\n\n")
        print(
            f"{options.num:,} cases in {seconds:.0f} s; slowest {total.slowest[0]:.1f} s ({total.slowest[1]}); a worker"
        )
        print(f"gained {total.peak_bytes / 1e6:.0f} MB of memory at most over its start. Faults: {len(total.faults)}.")
        print(f"{versions}, Python {sys.version.split()[0]}.")
        for fault in total.faults:
            print(f"- {fault}")
    return 1 if total.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
