"""`plyfold pull`: adapters from the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core.console import emit_json, print_table, progress, say, show, warn
from ...core.disk.digest import short
from ...core.errors import ConfigError, NotFoundError
from ..options import dry_run_option, json_option, parse_stages, public_key_option, registry_option

if TYPE_CHECKING:
    from ...registry.hub.pull.pull import Pulled
    from ...registry.store import Store


@click.command("pull")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option("--stages", help="Stages of NS/CURRICULUM or of the lock file, as 1,2,3; all there are by default.")
@click.option(
    "--merges",
    is_flag=False,
    flag_value="all",
    help="Merges of NS/CURRICULUM by their names, as gsm8k-s1.s2,..., or all of them, instead of its stages.",
)
@click.option("--with-parents", is_flag=True, help="Also fetch every adapter they came from.")
@click.option(
    "--lock",
    type=click.Path(path_type=Path, dir_okay=False),
    is_flag=False,
    flag_value=Path("curriculum.lock.json"),
    help="Instead of REFs: exactly what this file names; curriculum.lock.json if none is named.",
)
@public_key_option
@registry_option
@dry_run_option
@json_option
def pull_command(
    refs: tuple[str, ...],
    stages: str | None,
    merges: str | None,
    with_parents: bool,
    lock: Path | None,
    public_keys: tuple[Path, ...],
    registry: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch adapters from the Hub into the registry, every byte checked.

    REF is NS/CURRICULUM, or hf://ORG/REPO[@REVISION][/FOLDER] for one repository. The stages fetched become the
    `latest` of their curriculum here. Adapters they came from are named if they are missing, and fetched with
    --with-parents: a stage works without them, but was measured on top of them. Revocations of any of them come
    along. With --public-key, or PLYFOLD_PUBLIC_KEY, whatever REF names has to be signed, and only what one of the keys
    signed takes a revocation back or counts as a score. What goes back behind something that was seen before is said.
    Afterwards all of it works offline; a location with a commit that was pulled before is not asked for again. Without
    a registry here or above, one is made in this folder.
    """
    from ...registry.hub.pull.lock import locks_in, pull_locked
    from ...registry.hub.pull.pull import Options, pull
    from ...registry.trust.trust import Trust

    if bool(refs) == bool(lock):
        raise ConfigError(
            "either references or a lock file" if lock else "what is to be pulled?",
            found=" ".join(["--lock", str(lock), *refs]) if lock else f"--merges {merges}" if merges else "",
            expected="NS/CURRICULUM or hf://ORG/REPO[@REVISION][/FOLDER] before other options, or --lock [FILE]",
        )
    if lock and merges is not None:
        raise ConfigError("a lock file names no merges", found=f"--merges {merges}", next_step="leave it out")
    _ = Trust(public_keys).named  # a key that cannot be used is told before anything is asked or made
    numbers = parse_stages(stages) if stages else None
    slugs = [slug.strip() for slug in merges.split(",")] if merges is not None else None
    notices: list[str] = []
    with _store(registry, dry_run=dry_run) as (store, folder), progress("pull") as task:
        options = Options(
            with_parents=with_parents,
            dry_run=dry_run,
            locks=() if lock else tuple(locks_in([Path.cwd(), *([folder.parent] if folder else [])])),
            public_keys=public_keys,
            planned=task.total,
            done=lambda name: task.advance(note=name),
            notice=notices.append,
        )
        if lock:
            results = pull_locked(store, lock, stages=numbers, options=options)
        else:
            results = pull(store, refs, stages=numbers, merges=slugs, options=options)
    if as_json:
        value = {"registry": str(folder) if folder else None, "dry_run": dry_run}
        emit_json({**value, "pulled": [each.to_json() for each in results], "notices": notices})
    elif dry_run:
        _print_plan(results)
    else:
        print_table(
            ["digest", "adapter", "result", "where"],
            [[short(each.digest), each.name, each.status, each.location or "(only here)"] for each in results],
        )
    for notice in notices:
        warn(notice)
    _say_what_else(results, dry_run)


@contextmanager
def _store(registry: Path | None, *, dry_run: bool) -> Iterator[tuple[Store, Path | None]]:
    """The registry and its folder; for a dry run where there is none, an empty one that is gone afterwards."""
    from ...registry.store import find_store

    try:
        store = find_store(registry, create=not dry_run)
    except NotFoundError:
        with tempfile.TemporaryDirectory(prefix="plyfold-") as folder:
            yield find_store(Path(folder), create=True), None
        return
    yield store, store.root


def _print_plan(results: list[Pulled]) -> None:
    print_table(
        ["digest", "adapter", "bytes", "result", "notes", "where"],
        [
            [short(each.digest), each.name, f"{each.size_bytes:,}", each.status, _notes(each), _brief(each.location)]
            for each in results
        ],
        right=["bytes"],
    )
    fetched = [each for each in results if each.size_bytes]
    show(f"{len(fetched)} to fetch, {sum(each.size_bytes for each in fetched):,} bytes; nothing was changed")


def _notes(pulled: Pulled) -> str:
    marks = ["revoked" if item.digest == pulled.digest else "revoked ancestor" for item in pulled.revoked[:1]]
    return ", ".join([*marks, *([f"lacks {len(pulled.missing)}"] if pulled.missing else [])])


def _brief(location: str) -> str:
    """A location with a short commit, to fit a line."""
    repo, at, rest = location.partition("@")
    return f"{repo}{at}{rest[:8]}{rest[40:]}" or "(only here)"


def _say_what_else(results: list[Pulled], dry_run: bool) -> None:
    for each in results:
        if each.revoked:
            more = f" (and {len(each.revoked) - 1} more)" if each.revoked[1:] else ""
            warn(f"{each.name}: {each.revoked[0].mark(each.digest)}{more}; merge refuses it without --allow-revoked")
        if each.previous and not dry_run:
            say(f"{each.name} was {short(each.previous)} here and is {short(each.digest)} now; both are kept")
        if each.alias:
            say(f"{each.name} {short(each.digest)} is named {each.alias} here")
        if each.missing:
            which = ", ".join(map(short, each.missing))
            warn(f"{each.name} came from {which}, not here: add --with-parents")
    for line in _freshness(results):
        say(line)
    trusted = [each.name for each in results if each.on_trust]
    if trusted and not dry_run:
        say(f"taken on trust: {', '.join(trusted)}; plyfold lock pins what they are")


def _freshness(results: list[Pulled]) -> Iterator[str]:
    """A line for each way in which what was shown may be known to be new; what went backwards is warned of."""
    words = {
        "first seen": "never looked at before, so an older state of it would not be noticed",
        "unchanged": "as it was when it was last looked at",
        "newer": "newer than when it was last looked at",
        "not asked": "not asked again; whether something newer, or a revocation, is there is not known",
    }
    groups: dict[str, dict[str, str]] = {}
    for each in results:
        now = each.freshness
        groups.setdefault(now.state, {})[now.repo or each.name] = f" ({now.seen_at})" if now.seen_at else ""
    for state, repos in groups.items():
        if state in words:
            named = ", ".join(f"{repo}{at}" for repo, at in [*repos.items()][:5])
            yield f"{named}{f' and {len(repos) - 5} more' if len(repos) > 5 else ''}: {words[state]}"
