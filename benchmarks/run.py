"""Run the benchmarks in an empty folder and print each as a section of markdown, with commands, versions and date.

    python benchmarks/run.py [quickstart agreement]

`quickstart` runs the whole job as a child process and measures its time and memory; `agreement` compares stacked,
composed and served answers on what it left. Merging has a benchmark of its own, merge.py. Results that are kept are
dated files in results/.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PARTS: dict[str, list[list[str]]] = {
    "quickstart": [[str(BIN / "plyfold"), "quickstart"]],
    "agreement": [[sys.executable, str(HERE / "agreement.py"), "--limit", "500"]],
}
"""Part -> commands; `agreement` needs what `quickstart` leaves."""


def measure(command: list[str], folder: Path) -> None:
    """Run one command, its output passed through, and print its wall time, CPU time and peak memory."""
    shown = " ".join(Path(part).name if Path(part).is_absolute() else part for part in command)
    print(f"\n```\n{shown}\n```\n\n```", flush=True)
    start_s = time.monotonic()
    child = subprocess.Popen(command, cwd=folder)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.monotonic() - start_s
    print("```\n", flush=True)
    print(
        f"exit {os.waitstatus_to_exitcode(status)}; {wall_s:.0f} s wall, {usage.ru_utime + usage.ru_stime:.0f} s CPU, "
        f"peak {usage.ru_maxrss / 1e6:.2f} GB resident; load before {os.getloadavg()[1]:.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    packages = ("plyfold", "torch", "transformers", "peft", "trl", "bitsandbytes")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores, {platform.machine()}; {versions}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            print(f"\n## {part}", flush=True)
            for command in PARTS[part]:
                measure(command, Path(folder))


if __name__ == "__main__":
    main()
