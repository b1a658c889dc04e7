"""Bring adapters from the Hub into the registry: a commit first, then its record, then the bytes the record declares.

Nothing is believed because it arrived: every file is hashed against the record, the record against the digest that was
asked for where there is one, and names change only after all of it is sound. No cache of the Hub takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.digest import sha256_bytes, short
from ..core.errors import IntegrityError, NotFoundError
from ..core.files import require_space
from .hub_client import HubClient
from .hub_places import DIGEST_LINE, Looked, Place, attest_location, check_shareable, find_places, held
from .record import MAX_RECORD_BYTES, RECORD_FILE, FileEntry, Record, parse_record, read_record_bytes
from .store import MERGES, Entry, Store


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What became of one adapter."""

    digest: str
    name: str
    """Curriculum and label: `gsm8k 1 structure`."""
    location: str
    """`hf://org/repo@commit[/folder]`."""
    status: str
    """`pulled`, or `already here`."""
    asked_for: bool
    """False for ancestors."""
    missing: tuple[str, ...]
    """Digests of adapters it came from that are not in the registry."""
    previous: str | None
    """What its stage's `latest` was before, if something else."""

    def to_json(self) -> dict[str, Any]:
        value = {"digest": self.digest, "name": self.name, "location": self.location, "status": self.status}
        return {**value, "asked_for": self.asked_for, "missing": list(self.missing), "previous": self.previous}


@dataclass(frozen=True, kw_only=True)
class _Run(Looked):
    """What one pull knows and has done."""

    done: dict[str, tuple[Entry, str, str]] = field(default_factory=dict)
    """Digest -> (entry, location, status)."""
    brought: dict[str, dict[str, Place]] = field(default_factory=dict)
    """Search -> digest -> the newest commit that brought it."""


def pull(
    store: Store,
    ref: str,
    *,
    stages: Sequence[int] | None = None,
    with_parents: bool = False,
    expected: Mapping[int, str] | None = None,
    client: HubClient | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> list[Pulled]:
    """Fetch adapters, verify them, and point their stages' `latest` at them.

    A location with a commit that was pulled before is answered from the registry without a request. With the Hub
    switched off, a name is answered by what was pulled from it last, or refused.

    Args:
        store: The registry.
        ref: `hf://org/repo[@revision][/folder]`, or `NAMESPACE/CURRICULUM`.
        stages: Which stages of the curriculum; all there are by default.
        with_parents: Also fetch every ancestor that is missing, from repositories of the same namespace.
        expected: Stage number -> digest it has to be; by default a first pull is taken on trust.
        client: How to reach the Hub.
        done: Called with the name of each adapter that is in the registry.

    Raises:
        ConfigError: Not such a reference.
        NotFoundError: No such repository, revision, stage or ancestor, or one without a record.
        IntegrityError: Not the bytes its record names, or not the adapter that was asked for; nothing of it is left.
        UnsupportedAdapterError, IncompatibleError: It holds a pickle, or names two bases.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    run = _Run(store=store, client=client or HubClient(), held=held(store))
    places = find_places(run, ref, stages)
    asked = []
    for place in places:
        wanted = (expected or {}).get(place.stage[1]) if place.stage else None
        asked.append(_obtain(run, place if wanted is None else replace(place, digest=wanted)))
        done(_name(asked[-1].record))
    ancestors = _obtain_ancestors(run, asked, places[0].repo.partition("/")[0], done) if with_parents else []
    previous = {entry.digest: _name_latest(store, entry, move=entry in asked) for entry in [*ancestors, *asked]}
    return [
        Pulled(
            digest=entry.digest,
            name=_name(entry.record),
            location=run.done[entry.digest][1],
            status=run.done[entry.digest][2],
            asked_for=entry in asked,
            missing=tuple(_missing(store, entry.record)),
            previous=previous[entry.digest],
        )
        for entry in [*ancestors, *asked]
    ]


# ---- one adapter


def _obtain(run: _Run, place: Place) -> Entry:
    """The adapter of a place, in the registry and verified."""
    digest = run.held.get(place.location)
    status = "already here"
    if digest is None or digest not in run.store.digests():
        with run.store.scratch() as folder:
            digest, record = _fetch_record(run, place, folder)
            _check_promises(place, digest, record)
            if digest not in run.store.digests():
                _fetch_files(run, place, record, folder)
                check_shareable(folder, record)
                run.store.adopt(folder, digest)
                status = "pulled"
    entry = run.store.load(digest)
    _check_promises(place, digest, entry.record)
    attest_location(run.store, digest, place.location)
    run.held[place.location] = digest
    run.done.setdefault(digest, (entry, place.location, status))
    return run.done[digest][0]


def _fetch_record(run: _Run, place: Place, folder: Path) -> tuple[str, Record]:
    path = folder / RECORD_FILE
    try:
        run.client.fetch(place.repo, place.sha, _slashed(place.folder, RECORD_FILE), path, max_bytes=MAX_RECORD_BYTES)
    except NotFoundError as error:
        raise NotFoundError(
            f"no adapter with a record ({RECORD_FILE}) here, or not for this token",
            where=place.location,
            found=error.found,
            next_step=f"an adapter of another tool: plyfold import {place.location}",
        ) from error
    data = read_record_bytes(path)
    return sha256_bytes(data), parse_record(data, f"{place.location}/{RECORD_FILE}")


def _fetch_files(run: _Run, place: Place, record: Record, folder: Path) -> None:
    _check_tree(record, place)
    require_space(folder, sum(entry.size for entry in record.files))
    for entry in record.files:
        (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
        found = _fetch_file(run, place, entry, folder / entry.path, fresh=False)
        if found != entry.sha256:  # perhaps on the way, perhaps in a cache on the way
            found = _fetch_file(run, place, entry, folder / entry.path, fresh=True)
        if found != entry.sha256:
            raise IntegrityError(
                f"the {record.label} adapter on the Hub does not match its record; nothing of it was kept",
                where=f"{place.location}/{entry.path}",
                expected=entry.sha256,
                found=f"{found}, twice",
                next_step="the copy on the Hub or the way to it is damaged: try another network, or ask its owner "
                "to push it again",
            )


def _fetch_file(run: _Run, place: Place, entry: FileEntry, target: Path, *, fresh: bool) -> str:
    return run.client.fetch(
        place.repo, place.sha, _slashed(place.folder, entry.path), target, max_bytes=entry.size, fresh=fresh
    )


def _check_tree(record: Record, place: Place) -> None:
    """Refuse a file list that no folder can hold, or none at all.

    Raises:
        IntegrityError: A file stands where another needs a folder, or nothing is declared.
    """
    paths = {entry.path for entry in record.files}
    folders = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}
    clash = sorted(paths & folders)
    if clash or not paths:
        raise IntegrityError(
            "the record's file list cannot be of an adapter",
            where=f"{place.location}/{RECORD_FILE}",
            found=f"{clash[0]} as a file and as a folder" if clash else "no file",
        )


def _check_promises(place: Place, digest: str, record: Record) -> None:
    """Refuse an adapter that is not the one asked for.

    Raises:
        IntegrityError: Another digest, curriculum or stage.
    """
    own = (record.curriculum, record.stage.number if record.stage else 0)
    if place.digest is not None and digest != place.digest:
        pair = place.digest, digest
    elif place.stage is not None and own != place.stage:
        pair = f"{place.stage[0]} stage {place.stage[1]}", _name(record)
    else:
        return
    raise IntegrityError(
        "another adapter than the one asked for", where=place.location, expected=pair[0], found=pair[1]
    )


# ---- what it came from


def _obtain_ancestors(run: _Run, asked: Sequence[Entry], namespace: str, done: Callable[[str], object]) -> list[Entry]:
    """Fetch every ancestor that is missing; those that are here are walked, not verified again."""
    found: list[Entry] = []
    waiting, seen = [(digest, entry.record) for entry in asked for digest in _named(entry.record)], set()
    while waiting:
        digest, child = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        if digest in run.store.digests():
            entry = run.store.peek(digest)
        else:
            entry = _obtain(run, _place_of(run, digest, child, namespace))
            found.insert(0, entry)
            done(_name(entry.record))
        waiting += [(above, entry.record) for above in _named(entry.record)]
    return [entry for entry in found if entry not in asked]


def _place_of(run: _Run, digest: str, child: Record, namespace: str) -> Place:
    """Where a namespace holds an ancestor, by what the commits of its repositories say they brought."""
    if child.curriculum not in run.brought:
        places: dict[str, Place] = {}
        for repo in run.client.repos(namespace, child.curriculum):
            head = run.client.refs(repo).branches.get("main")
            for commit in run.client.commits(repo, head) if head else []:
                for line in commit.description.splitlines():
                    if line.startswith(DIGEST_LINE):
                        brought = line.removeprefix(DIGEST_LINE).strip()
                        places.setdefault(brought, Place(repo=repo, sha=commit.sha, digest=brought))
        run.brought[child.curriculum] = places
    if digest not in run.brought[child.curriculum]:
        raise NotFoundError(
            f"an ancestor of {_name(child)} is in no repository of {namespace} named after {child.curriculum}; "
            "no stage was pointed at what was pulled",
            where=run.client.endpoint,
            expected=digest,
            next_step="pull it by its hf:// location first, or pull without --with-parents",
        )
    return run.brought[child.curriculum][digest]


def _named(record: Record) -> list[str]:
    return sorted({*(parent.digest for parent in record.parents), *record.requires})


def _missing(store: Store, record: Record) -> Iterable[str]:
    here = set(store.digests())
    return (digest for digest in _named(record) if digest not in here)


# ---- names


def _name_latest(store: Store, entry: Entry, *, move: bool) -> str | None:
    """Point the stage's `latest` at an adapter and return what it was, if another; ancestors only fill gaps."""
    record = entry.record
    if record.stage is None:
        store.set_ref(record.curriculum, MERGES, entry.digest, f"pulled-{short(entry.digest)}")
        return None
    before = store.stages(record.curriculum).get(record.stage.number)
    if before is None or move:
        store.set_ref(record.curriculum, record.stage.number, entry.digest)
    return before if move and before != entry.digest else None


def _name(record: Record) -> str:
    return f"{record.curriculum} {record.label}"


def _slashed(*parts: str) -> str:
    return "/".join(part for part in parts if part)
