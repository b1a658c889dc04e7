"""What the registry withstands, and how fast it is: the measurements behind benchmarks/results/registry.md.

    python benchmarks/registry.py all --write benchmarks/results/registry.md
    python benchmarks/registry.py hostile --num 5000
    python benchmarks/registry.py hostile --only "record: keys twice" --seed 17 --num 1     one case again

Parts: writers (kill -9 of racing writers), hostile (broken records, registries and Hubs), speed (tree, log, verify,
pull), pushes (processes that push to one repository) and faults (every fault at every request of push and pull). All of
them are real processes and real HTTP; the Hub is the server of the tests, not huggingface.co.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import registry_faults, registry_hostile, registry_pushes, registry_speed, registry_writers

PARTS = {
    "writers": registry_writers,
    "hostile": registry_hostile,
    "speed": registry_speed,
    "pushes": registry_pushes,
    "faults": registry_faults,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one adds 1")
    parser.add_argument("--json", action="store_true", help="figures as one object")
    for module in PARTS.values():
        module.options(parser)
    options = parser.parse_args()
    found = {name: PARTS[name].measure(options) for name in (PARTS if options.part == "all" else [options.part])}
    if options.json:
        print(json.dumps(found))
    else:
        for name, figures in found.items():
            print(PARTS[name].report(figures), end="\n\n")
    return 1 if any(figures["faults"] for figures in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
