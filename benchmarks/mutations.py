"""Ten thousand broken adapters, each merged with a sound one: a right sum or one clear refusal, and nothing else.

Every case runs in a child process with a limit on its memory and on its time: a case that hangs or eats memory is
ended, counted and named by its seed.

    python benchmarks/mutations.py --num 10000
    python benchmarks/mutations.py --only "config text" --seed 17 --num 1     one case again
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.guarded import campaign, chosen_cases
from tests.support.mutation_verdicts import clear, verdict
from tests.support.mutations import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, help="cases, spread evenly over the kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one adds 1")
    parser.add_argument("--only", choices=KINDS, metavar="KIND", help="one kind of mutation")
    parser.add_argument("--json", action="store_true", help="counts and faults as one object")
    options = parser.parse_args()
    cases = list(chosen_cases([options.only] if options.only else KINDS, options.num, options.seed))
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        tally = campaign(cases, Path(folder), verdict, clear)
    seconds = time.monotonic() - begin_s
    if options.json:
        print(json.dumps({"counts": tally.counts, "faults": tally.faults, "seconds": seconds}))
    else:
        versions = ", ".join(f"{name} {version(name)}" for name in ("plyfold", "torch", "safetensors"))
        print(tally.table(), end="\n\n")
        print(f"{options.num} cases in {seconds:.0f} s; slowest {tally.slowest[0]:.2f} s ({tally.slowest[1]});")
        print(f"memory: a worker gained {tally.peak_bytes / 1e6:.0f} MB at most over its start.")
        print(f"Faults: {len(tally.faults)}. {versions}, Python {sys.version.split()[0]}.")
        for fault in tally.faults:
            print(f"- {fault}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
