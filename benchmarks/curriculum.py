"""What the curriculum is worth: each row trained through `plyfold train`, scored through `plyfold eval`, in one table.

    python benchmarks/curriculum.py run --seeds 0,1,2 --out FOLDER [--jobs 2] [--rows sft,grpo,curriculum]
    python benchmarks/curriculum.py report FOLDER [--results benchmarks/results]

Rows: the base; supervised training on the teacher's rationales and GRPO alone, each of as much compute as the whole
curriculum and at the best of several learning rates; the curriculum's steps; the curriculum trained without each
stage; its other subsets, composed without training. Every row answers the same held-out problems, greedily and
sampled, and is compared problem by problem and seed by seed.

`run` does what is missing and nothing twice: killed, it goes on where it was; a changed configuration trains what it
changes. Stages that rows share are trained once. FOLDER holds a registry, run folders, logs and answers per seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from curriculum_bench import Bench
from curriculum_jobs import read_json, run_jobs
from curriculum_report import render
from curriculum_results import collect, write
from curriculum_rows import GRPO, REWARDS, SFT

from plyfold.core.config import load_config, save_config
from plyfold.core.console import print_error
from plyfold.core.disk.digest import digest_json, sha256_bytes
from plyfold.core.disk.files import write_json
from plyfold.core.errors import PlyfoldError

ROOMS = ("adapters", "core", "evaluation", "merge", "serving", "stages")
"""Folders whose code decides a score."""
ROWS = (SFT, GRPO, "curriculum", *REWARDS)
"""What --rows can name; the base is always there."""
SETTINGS = "settings.json"
CONFIG = "curriculum.yaml"
"""As it was when the rows were trained: a packaged config may have changed when they are reported."""


def code_digest() -> str:
    """Digest of the code that decides a score, wherever the installed package has it."""
    files = []
    for room in ROOMS:
        origin = importlib.util.find_spec(f"plyfold.{room}").origin  # type: ignore[union-attr]
        folder = Path(str(origin)).parent
        files += [[f"{room}/{path.relative_to(folder)}", sha256_bytes(path.read_bytes())] for path in
                  sorted(folder.rglob("*.py"))]  # fmt: skip
    return digest_json(files)


def open_bench(args: argparse.Namespace) -> Bench:
    """The benchmark in its folder, with what this call asks for noted there.

    Raises:
        SystemExit: The folder was made by other code.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    out: Path = args.out.resolve()
    known = read_json(out / SETTINGS)
    code = code_digest()
    codes = known.get("code", [])
    if codes and codes[-1] != code:
        if not args.any_code:
            raise SystemExit(
                f"{args.out} was made by other code (plyfold's rooms {', '.join(ROOMS)} changed since): take another "
                "folder, or --any-code to keep the adapters it has and score them anew"
            )
        codes = [*codes, code]
    settings = {
        "schema": 1,
        "config": args.config,
        "overrides": list(args.overrides),
        "seeds": args.seeds,
        "problems": args.problems,
        "sweep": {SFT: args.sft_rates, GRPO: args.grpo_rates},
        "more": args.more if GRPO in args.rows else [],
        "rows": args.rows,
        "added": dict(args.add),
        "jobs": args.jobs,
        "threads": max(1, (os.cpu_count() or 1) // args.jobs) if args.threads is None else args.threads or None,
        "code": codes or [code],
        "command": f"python benchmarks/curriculum.py {shlex.join(map(_public, args.argv))}",
    }
    bench = Bench(out, settings, load_config(args.config, args.overrides))
    write_json(out / SETTINGS, settings)
    save_config(bench.config, out / CONFIG)
    return bench


def tell(message: str) -> None:
    """A line of progress."""
    print(f"[{datetime.now(UTC):%H:%M:%S}] {message}", file=sys.stderr, flush=True)


def run_command(args: argparse.Namespace) -> int:
    bench = open_bench(args)
    tell("checking every row's configuration")
    bench.check()
    jobs = bench.jobs()
    tell(
        f"{len(jobs)} jobs, {args.jobs} at a time, threads each: {bench.threads or 'all'}; logs: {args.out}/seed-*/logs"
    )
    start_s = time.monotonic()
    failed = run_jobs(jobs, args.jobs, tell)
    tell(f"{len(jobs) - len(failed)} done, {len(failed)} failed, {(time.monotonic() - start_s) / 60:.1f} min")
    settings = {**bench.settings, "failed": failed}
    if (code := code_digest()) != settings["code"][-1]:
        tell("the code changed while this ran: the page says so; run again to score every row with one")
        settings["code"] = [*settings["code"], code]
    write_json(bench.out / SETTINGS, settings)
    bench.settings = settings
    print(render(collect(bench), []))
    return 1 if failed else 0


def report_command(args: argparse.Namespace) -> int:
    settings = read_json(args.out / SETTINGS)
    if not settings:
        raise SystemExit(f"{args.out} holds no benchmark: `run` makes one")
    bench = Bench(args.out.resolve(), settings, load_config(args.out.resolve() / CONFIG))
    results = collect(bench)
    print(render(results, args.note))
    if args.results:
        for path in write(results, args.results, args.note, args.hardware):
            tell(f"written: {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score what is missing")
    run.add_argument("--out", type=Path, required=True, help="folder of the benchmark")
    run.add_argument("--config", default="sandbox", help="curriculum under test: a packaged config or a YAML file")
    run.add_argument("--seeds", type=_integers, default=[0, 1, 2])
    run.add_argument("--problems", type=int, default=1000, help="held-out problems, the first ones of eval.data")
    run.add_argument("--rows", type=_rows, default=list(ROWS[:-len(REWARDS)]),
                     help=f"of {','.join(ROWS)}; the last {len(REWARDS)} are other rewards")  # fmt: skip
    for kind, rates, stage in ((SFT, [1.0, 2.0, 4.0, 8.0], "supervised"), (GRPO, [0.25, 0.5, 1.0, 1.5], "GRPO")):
        run.add_argument(f"--{kind}-rates", type=_numbers, default=rates,
                         help=f"learning rates of that baseline, as factors of the first {stage} stage's")  # fmt: skip
    run.add_argument("--more", type=_numbers, default=[], help="GRPO alone with so many times the compute, too")
    run.add_argument("--add", type=_addition, action="append", default=[], metavar="NAME=KEY=VALUE[ KEY=VALUE]",
                     help="another row: the whole curriculum under overrides")  # fmt: skip
    run.add_argument("--jobs", type=int, default=1, help="rows at a time, the cores shared among them")
    run.add_argument("--threads", type=int, help="threads a job; 0 leaves it to torch; cores / jobs by default")
    run.add_argument("--any-code", action="store_true", help="go on in a folder that other code made")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the curriculum under test")
    run.set_defaults(act=run_command)
    report = commands.add_parser("report", help="the table of what there is")
    report.add_argument("out", type=Path, metavar="FOLDER")
    report.add_argument("--results", type=Path, help="write <date>-curriculum-<hardware>.json and .md here")
    report.add_argument("--hardware", help="name in the file; found out by default")
    report.add_argument("--note", action="append", default=[], help="a sentence beside the table")
    report.set_defaults(act=report_command)
    args = parser.parse_args(argv)
    args.argv = argv
    try:
        return int(args.act(args))
    except PlyfoldError as error:
        print_error(error)
        return 2


def _public(argument: str) -> str:
    """An argument as results name it: without the folders of this machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _rows(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(ROWS):
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    return names


def _addition(text: str) -> tuple[str, list[str]]:
    name, _, overrides = text.partition("=")
    if "=" not in overrides:
        raise argparse.ArgumentTypeError("written as NAME=KEY=VALUE")
    return name, overrides.split()


if __name__ == "__main__":
    sys.exit(main())
