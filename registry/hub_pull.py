"""Bring adapters from the Hub into the registry: all references and records first, then the bytes they declare.

Nothing is believed because it arrived: every file is hashed against the record, the record against the digest that was
asked for where there is one. What is said about the adapters beside them is taken in before they get a name, and names
change only after all of it is sound. No cache of the Hub takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import IntegrityError
from ..core.files import require_space
from . import hub_names
from .ancestry import keep_record
from .hub_client import HubClient, switched_off
from .hub_fetch import obtain
from .hub_find import Looked, find_places
from .hub_lineage import Ancestor, Wanted, named, walk
from .hub_places import Place, attest_location, held, locations
from .hub_plan import distinct, missing_ancestors, want
from .hub_remote import Remote
from .hub_statements import Heard, fetch_signature, hear, reaching
from .lock import Lock
from .revocation import Revocation
from .signing import keep_signature
from .statements import adopt
from .store import Store

HERE = "already here"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What became of one adapter."""

    digest: str
    curriculum: str
    label: str
    """`1 structure`, or `merge`."""
    stage: int | None
    """Number of the stage it is."""
    location: str
    """`hf://org/repo@commit[/folder]`."""
    status: str
    """`pulled`, `already here`, or `would be pulled` in a dry run."""
    asked_for: bool
    """False for ancestors."""
    size_bytes: int
    """Bytes fetched, or to be fetched, without the record."""
    missing: tuple[str, ...]
    """Digests of adapters it came from that are not in the registry."""
    previous: str | None
    """What its stage's `latest` was before, if something else."""
    alias: str | None
    """The name of a merge here; None in a dry run and for stages."""
    revoked: tuple[Revocation, ...]
    """What reaches it, the nearest first."""
    on_trust: bool
    """Nothing said beforehand which digest it has to have."""

    @property
    def name(self) -> str:
        """Curriculum and label: `gsm8k 1 structure`."""
        return f"{self.curriculum} {self.label}"

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"digest": self.digest, "name": self.name, "location": self.location}
        value |= {"status": self.status, "asked_for": self.asked_for, "size_bytes": self.size_bytes}
        value |= {"missing": list(self.missing), "previous": self.previous, "alias": self.alias}
        return {**value, "revoked": [each.to_json() for each in self.revoked], "on_trust": self.on_trust}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a pull goes about it."""

    with_parents: bool = False
    """Also fetch every ancestor that is missing, from repositories of the same namespace."""
    dry_run: bool = False
    """Fetch records only; the registry stays as it is."""
    locks: tuple[Lock, ...] = ()
    """Locks of the user's projects: what they say is compared with what arrives."""
    done: Callable[[str], object] = lambda name: None
    """Called with the name of each adapter whose files are here."""
    notice: Callable[[str], object] = lambda line: None
    """Called with each line people should read."""


def pull(
    store: Store,
    refs: str | Sequence[str],
    *,
    stages: Sequence[int] | None = None,
    merges: Sequence[str] | None = None,
    expected: Mapping[int, str] | None = None,
    with_parents: bool = False,
    dry_run: bool = False,
    locks: Sequence[Lock] = (),
    client: HubClient | None = None,
    done: Callable[[str], object] = lambda name: None,
    notice: Callable[[str], object] = lambda line: None,
) -> list[Pulled]:
    """Fetch adapters, verify them, and point their stages' `latest` at them.

    A location with a commit that was pulled before is answered from the registry without a request. With the Hub
    switched off, a name is answered by what was pulled from it last, or refused.

    Args:
        store: The registry.
        refs: `hf://org/repo[@revision][/folder]` or `NAMESPACE/CURRICULUM`, one or several.
        stages: Which stages of the curriculum; None is all there are, or none where merges are named.
        merges: Slugs of its merges; `all` is every one.
        expected: Stage number -> digest it has to be; by default a first pull is taken on trust.
        with_parents: Also fetch every ancestor that is missing, from repositories of the same namespace.
        dry_run: Fetch records only; the registry stays as it is.
        locks: Locks of the user's projects, compared with what arrives.
        client: How to reach the Hub.
        done: Called with the name of each adapter whose files are here.
        notice: Called with each line people should read.

    Returns:
        Ancestors, then what was asked for.

    Raises:
        ConfigError: Not such a reference, or two adapters for one stage.
        NotFoundError: No such repository, revision, stage or ancestor, or one without a record.
        IntegrityError: Not the bytes its record names, or not the adapter that was asked for; nothing of it is left. Or
            what is said of it beside it is not readable.
        UnsupportedAdapterError, IncompatibleError: It holds a pickle, or names two bases.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    looked = look_from(store, client)
    places: dict[str, Place] = {}
    for ref in [refs] if isinstance(refs, str) else refs:
        for place in find_places(looked, ref, stages, merges):
            digest = (expected or {}).get(place.stage[1]) if place.stage else None
            places[place.location] = replace(place, digest=digest) if digest else place
    options = Options(with_parents=with_parents, dry_run=dry_run, locks=tuple(locks), done=done, notice=notice)
    return bring(looked, list(places.values()), options)


def look_from(store: Store, client: HubClient | None = None) -> Looked:
    """A registry and the Hub, at which nothing was looked yet."""
    return Looked(store=store, remote=Remote(client or HubClient()), held=held(store))


def bring(looked: Looked, places: Sequence[Place], options: Options) -> list[Pulled]:
    """Have the adapters of some places in the registry; see `pull`."""
    here = set(looked.store.digests())
    asked = distinct([want(looked, place, here) for place in places])
    walked = walk(looked, asked, here, insist=options.with_parents)
    records = {
        **{digest: each.record for digest, each in walked.items()},
        **{each.digest: each.record for each in asked},
    }
    wanted = [*(missing_ancestors(walked) if options.with_parents else []), *asked]
    heard = _heard(looked, asked, walked, here)
    signatures = {
        each.digest: signature
        for each in wanted
        if (each.asks or each.data)
        and not switched_off()
        and (signature := fetch_signature(looked, each.place, each.digest))
    }
    before = {each.digest: hub_names.before(looked.store, each) for each in wanted}
    aliases: dict[str, str] = {}
    if not options.dry_run:
        require_space(looked.store.root, sum(_size(each) for each in wanted))
        for each in wanted:
            obtain(looked, each)
            options.done(each.name)
        _take_in(looked.store, wanted, walked, heard, signatures, options.notice)
        aliases = {each.digest: alias for each in wanted if (alias := hub_names.name(looked.store, each))}
    for doubt in heard.doubts:
        options.notice(doubt)
    now = {*here, *(each.digest for each in wanted)}
    results = [
        Pulled(
            digest=each.digest,
            curriculum=each.record.curriculum,
            label=each.record.label,
            stage=each.record.stage.number if each.record.stage else None,
            location=each.place.location,
            status=HERE if each.data is None else "would be pulled" if options.dry_run else "pulled",
            asked_for=each.asked_for,
            size_bytes=_size(each),
            missing=tuple(digest for digest in named(each.record) if digest not in now),
            previous=before[each.digest],
            alias=aliases.get(each.digest),
            revoked=tuple(reaching(looked, each.digest, records, heard)),
            on_trust=each.asked_for and each.data is not None and each.place.digest is None,
        )
        for each in wanted
    ]
    return [_against(options, each) for each in results]


def _heard(looked: Looked, asked: Sequence[Wanted], walked: Mapping[str, Ancestor], here: set[str]) -> Heard:
    lying: dict[str, list[str]] = {}
    for each in asked:
        lying.setdefault(each.digest, []).extend([each.place.repo] if each.asks else [])
    for digest, ancestor in walked.items():
        lying.setdefault(digest, []).extend([ancestor.place.repo] if ancestor.place else [])
    repos = [repo for found_in in lying.values() for repo in found_in]
    return hear(looked, [] if switched_off() else repos, lying, here)


# ---- what is learnt, and names: a location comes after what was said there, since it ends the asking


def _take_in(
    store: Store,
    wanted: Sequence[Wanted],
    walked: Mapping[str, Ancestor],
    heard: Heard,
    signatures: Mapping[str, bytes],
    notice: Callable[[str], object],
) -> None:
    adopt(store, heard.believed)
    fetched = {each.digest for each in wanted}
    for digest, ancestor in walked.items():
        if ancestor.found and digest not in fetched:
            keep_record(store, digest, ancestor.found.data)
        if ancestor.place and digest not in fetched and ancestor.place.location not in locations(store, digest):
            attest_location(store, digest, ancestor.place.location)
    for each in wanted:
        if each.digest in signatures:
            try:
                keep_signature(store, each.digest, signatures[each.digest], each.place.location)
            except IntegrityError as error:
                notice(f"the signature beside {each.name} was left out: {error.what}, {error.found}")
        attest_location(store, each.digest, each.place.location)


def _against(options: Options, pulled: Pulled) -> Pulled:
    """Compare with the locks: say where they differ; what they name was not taken on trust."""
    for lock in options.locks:
        stage = lock.stages.get(pulled.stage or 0)
        if stage is None or lock.curriculum != pulled.curriculum or not pulled.asked_for:
            continue
        if stage.digest == pulled.digest:
            pulled = replace(pulled, on_trust=False)
        else:
            options.notice(
                f"{pulled.name} is {pulled.digest} here, and {stage.digest} in the lock file: plyfold lock accepts it, "
                "plyfold pull --lock goes back"
            )
    return pulled


def _size(wanted: Wanted) -> int:
    return sum(entry.size for entry in wanted.record.files) if wanted.data is not None else 0
