"""What the registry withstands, and how fast it is: the measurements behind benchmarks/results/registry.md.

    python benchmarks/registry.py all --write benchmarks/results/registry.md
    python benchmarks/registry.py hostile --num 5004
    python benchmarks/registry.py hostile --only "record: keys twice" --seed 17 --num 1     one case again

Parts: writers (kill -9 of racing writers), hostile (broken records, registries and Hubs), speed (tree, log, verify,
pull), pushes (processes that push to one repository), kills (kill -9 of pushes and pulls) and faults (every fault at
every request of push and pull). All of them are real processes and real HTTP; the Hub is the server of the tests, not
huggingface.co.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import (
    registry_faults,
    registry_hostile,
    registry_kills,
    registry_pushes,
    registry_speed,
    registry_writers,
)

PARTS = {
    "writers": registry_writers,
    "hostile": registry_hostile,
    "speed": registry_speed,
    "pushes": registry_pushes,
    "kills": registry_kills,
    "faults": registry_faults,
}
PACKAGES = ("plyfold", "huggingface-hub", "httpx2", "pydantic")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one adds 1")
    parser.add_argument("--json", action="store_true", help="figures as one object")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into their sections of a page")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="of --json: these instead of measuring again")
    for module in PARTS.values():
        module.options(parser)
    options = parser.parse_args()
    wanted = PARTS if options.part == "all" else [options.part]
    if options.figures:
        found = json.loads(options.figures.read_text())
    else:
        found = {name: {**PARTS[name].measure(options), "by": _by()} for name in wanted}
    if options.json:
        print(json.dumps(found))
    for name in wanted:
        text = PARTS[name].report(found[name])
        if options.write:
            write_section(options.write, name, section(name, text, found[name]["by"]))
        elif not options.json:
            print(text, end="\n\n")
    return 1 if any(found[name]["faults"] for name in wanted) else 0


def section(name: str, text: str, by: dict[str, str]) -> str:
    """A part of the page: what it is, the command, the tables, and what it was measured with."""
    said = (PARTS[name].__doc__ or "").strip()
    measured = f"Measured {by['date']} on {by['machine']}; {by['versions']}."
    return f"{said}\n\n    {by['command']}\n\n{text.strip()}\n\n{measured}\n"


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the section `## name` of a page, or add it; all else stays."""
    head, *parts = page.read_text().split("\n## ") if page.exists() else ["# The registry\n"]
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in parts}
    sections[name] = text.strip("\n")
    order = [*PARTS, *sections]
    titles = sorted(sections, key=order.index)
    body = "".join(f"\n## {title}\n\n{sections[title]}\n" for title in titles)
    page.write_text(f"{head.rstrip()}\n{body}")


def _by() -> dict[str, Any]:
    """When, how and on what figures were measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "command": f"python benchmarks/registry.py {' '.join(_quoted(word) for word in _plain(sys.argv[1:]))}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {memory / 2**30:.0f} GiB of memory, Linux",
        "versions": f"{versions}, Python {platform.python_version()}",
    }


def _plain(words: list[str]) -> list[str]:
    """A command line without what only says where the figures go."""
    kept = [word for word in words if word != "--json"]
    return kept[: kept.index("--write")] + kept[kept.index("--write") + 2 :] if "--write" in kept else kept


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


if __name__ == "__main__":
    raise SystemExit(main())
