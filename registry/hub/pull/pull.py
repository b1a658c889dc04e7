"""Bring adapters from the Hub into the registry: all references and records first, then the bytes they declare.

Nothing is believed because it arrived: every file is hashed against the record, the record against the digest that was
asked for where there is one. What is said about the adapters beside them is taken in before they get a name, and names
change only after all of it is sound. No cache of the Hub takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ....core.disk.digest import short
from ....core.disk.files import require_space
from ....core.errors import IntegrityError, NotFoundError
from ...lineage.lockfile import Lock
from ...lineage.shared_scores import adopt_evaluations
from ...store import Store
from ...store.ancestor_records import keep_record
from ...trust.revocation import Revocation
from ...trust.shared_statements import remember_keys
from ...trust.signing import keep_signature, signature_of
from ...trust.statements import Statement, adopt, standing_here
from ...trust.trust import Trust
from ..client import HubClient, switched_off
from ..freshness import Freshness, Seen, behind, freshness, remember, seen, vanished
from ..places import HubLocation, attest_location, known_locations, locations
from ..references import PullContext, find_places
from ..remote import Remote
from ..remote_lineage import PullItem, RemoteAncestor, named, resolve_ancestors
from . import names as hub_names
from .fetch import download_adapter
from .plan import distinct, missing_ancestors, resolve_item
from .scores import fetch_scores
from .signatures import check_keys, fetch_signature, is_signed, require_signature
from .statements import RemoteRevocations, fetch_revocations, reaching

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
    signature: str
    """`verified` against the keys that were named, `not verified`, or `none`."""
    freshness: Freshness
    """What its repository showed, against what was seen of it before."""

    @property
    def name(self) -> str:
        """Curriculum and label: `gsm8k 1 structure`."""
        return f"{self.curriculum} {self.label}"

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"digest": self.digest, "name": self.name, "location": self.location}
        value |= {"status": self.status, "asked_for": self.asked_for, "size_bytes": self.size_bytes}
        value |= {"missing": list(self.missing), "previous": self.previous, "alias": self.alias}
        return {**value, "revoked": [each.to_json() for each in self.revoked], "on_trust": self.on_trust} | {
            "signature": self.signature,
            "freshness": self.freshness.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a pull goes about it."""

    with_parents: bool = False
    """Also fetch every ancestor that is missing, from repositories of the same namespace."""
    dry_run: bool = False
    """Fetch records only; the registry stays as it is."""
    locks: tuple[Lock, ...] = ()
    """Locks of the user's projects: what they say is compared with what arrives."""
    public_keys: tuple[Path, ...] = ()
    """Each adapter asked for has to be signed by one of these."""
    planned: Callable[[int], object] = lambda num_adapters: None
    """Called with how many adapters there are, once that is known."""
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
    client: HubClient | None = None,
    options: Options | None = None,
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
        client: How to reach the Hub.
        options: How else to go about it.

    Returns:
        Ancestors, then what was asked for.

    Raises:
        ConfigError: Not such a reference, two adapters for one stage, or an unfit key.
        NotFoundError: No such repository, revision, stage or ancestor, or one without a record.
        IntegrityError: Not the bytes its record names, or not the adapter that was asked for; nothing of it is left. Or
            what is said of it beside it is not readable, or keys are named and it is not signed by one.
        UnsupportedAdapterError, IncompatibleError: It holds a pickle, or names two bases.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    looked = look_from(store, client)
    places: dict[str, HubLocation] = {}
    for ref in [refs] if isinstance(refs, str) else refs:
        for place in find_places(looked, ref, stages, merges):
            digest = (expected or {}).get(place.stage[1]) if place.stage else None
            places[place.location] = replace(place, digest=digest) if digest else place
    chosen = options or Options()
    return pull_items(looked, list(places.values()), replace(chosen, with_parents=with_parents or chosen.with_parents))


def look_from(store: Store, client: HubClient | None = None) -> PullContext:
    """A registry and the Hub, at which nothing was looked yet."""
    return PullContext(store=store, remote=Remote(client or HubClient()), held=known_locations(store))


def pull_items(looked: PullContext, places: Sequence[HubLocation], options: Options) -> list[Pulled]:
    """Have the adapters of some places in the registry; see `pull`."""
    here = set(looked.store.digests())
    asked = distinct([resolve_item(looked, place, here) for place in places])
    check_keys(asked, options.public_keys)
    walked = resolve_ancestors(looked, asked, here, insist=options.with_parents)
    wanted = [*(missing_ancestors(walked) if options.with_parents else []), *asked]
    trust = Trust(options.public_keys)
    heard = _heard(looked, wanted, walked, here, trust)
    known = seen(looked.store)
    now_seen = {repo: freshness(looked.remote, repo, known.get(repo)) for repo in heard.said}
    signatures = _signatures(looked, wanted, options.public_keys)
    before = {each.digest: hub_names.previous_digest(looked.store, each) for each in wanted}
    aliases: dict[str, str] = {}
    if not options.dry_run:
        require_space(looked.store.root, sum(each.size_bytes for each in wanted))
        options.planned(len(wanted))
        for each in wanted:
            keys = options.public_keys if each.asked_for else ()
            download_adapter(looked, each, partial(require_signature, each, signatures.get(each.digest), keys))
            options.done(each.name)
        writable = looked.store.writable
        for digest in [*(each.digest for each in wanted), *walked] if options.public_keys and writable else ():
            remember_keys(looked.store, digest, trust.named)
        adopt_evaluations(looked.store, [] if switched_off() else fetch_scores(looked, wanted, options.notice, trust))
        _take_in(looked, wanted, walked, heard, signatures, options)
        if now_seen and writable:
            remember(looked.store, now_seen.values(), heard.said)
        for digest, ancestor in walked.items() if options.with_parents else ():
            if ancestor.record and digest in here:  # perhaps fetched by a pull that was stopped before it named it
                hub_names.fill_gap(looked.store, digest, ancestor.record)
        aliases = {each.digest: alias for each in wanted if (alias := hub_names.name(looked.store, each))}
    for line in [*heard.doubts, *_backwards(looked, wanted, [*walked], heard, known, now_seen, before, trust)]:
        options.notice(line)
    now = {*here, *(each.digest for each in wanted)}
    records = {digest: each.record for digest, each in walked.items()} | {each.digest: each.record for each in asked}
    results = [
        Pulled(
            digest=each.digest,
            curriculum=each.record.curriculum,
            label=each.record.label,
            stage=each.record.stage.number if each.record.stage else None,
            location=each.place.location,
            status=HERE if each.data is None else "would be pulled" if options.dry_run else "pulled",
            asked_for=each.asked_for,
            size_bytes=each.size_bytes,
            missing=tuple(digest for digest in named(each.record) if digest not in now),
            previous=before[each.digest],
            alias=aliases.get(each.digest),
            revoked=tuple(reaching(looked, each.digest, records, heard, trust)),
            on_trust=each.asked_for and each.data is not None and not (each.place.digest or options.public_keys),
            signature=_signature(looked.store, each, signatures, options),
            freshness=now_seen.get(each.place.repo if each.asks else "") or _not_asked(each, known),
        )
        for each in wanted
    ]
    return [_against(options, each) for each in results]


def _signatures(looked: PullContext, wanted: Sequence[PullItem], public_keys: Sequence[Path]) -> dict[str, bytes]:
    """What lies beside adapters on the Hub; with keys, refuse what lacks a good one as far as can be seen by now.

    Raises:
        IntegrityError: Keys are named, and an adapter that was asked for is not signed, or, if held, not by them.
    """
    found = {}
    for each in wanted:
        signed = bool(public_keys) and each.asked_for and is_signed(looked, each, public_keys)
        asks = each.asks or (public_keys and not signed and each.place.repo)
        if asks and not switched_off() and (data := fetch_signature(looked, each.place, each.digest)):
            found[each.digest] = data
        if public_keys and each.asked_for and not signed:
            folder = looked.store.read_record(each.digest).path if each.data is None else None
            require_signature(each, found.get(each.digest), public_keys, folder)
    return found


def _backwards(
    looked: PullContext,
    wanted: Sequence[PullItem],
    ancestors: Sequence[str],
    heard: RemoteRevocations,
    known: Mapping[str, Seen],
    now_seen: Mapping[str, Freshness],
    before: Mapping[str, str | None],
    trust: Trust,
) -> Iterator[str]:
    """A line for people about each thing that is older than what was seen, or was here, before."""
    yield from filter(None, (each.warning for each in now_seen.values()))
    for each in wanted:
        # Of what a lock file names, head and commit are in the JSON; people asked for exactly this.
        asked = each.asked_for and each.asks and not each.place.digest and each.place.repo in now_seen
        if asked and (line := behind(looked.remote, each.place)):
            yield line
        if previous := before[each.digest]:
            yield from _older(looked, each, previous)
    names = dict.fromkeys([*(each.digest for each in wanted), *ancestors, *(item.digest for item in heard.believed)])
    news: dict[str, list[Statement]] = {}
    for item in heard.believed:
        news.setdefault(item.digest, []).append(item)
    stands = (item for name in names for item in standing_here(looked.store, name, news.get(name, ()), trust))
    yield from vanished(known, heard.said, stands)


def _older(looked: PullContext, wanted: PullItem, previous: str) -> Iterator[str]:
    """A line where an adapter is older than the one whose place it takes, and why.

    When it was made is told by its record, which a signature covers; what came first in its repository by the commits
    of `main`, and, where those do not tell, what came first here by this registry's log.
    """
    taken = f"{wanted.name} {short(wanted.digest)} takes the place of {short(previous)}"
    older = f"{taken}, and is older:"
    with suppress(NotFoundError, IntegrityError):  # then nothing is known of what was there
        was = looked.store.read_record(previous).record
        if was.created != wanted.record.created:
            if was.created > wanted.record.created:
                yield f"{older} made {wanted.record.created}, and {short(previous)} was made {was.created}"
            return
    there = looked.remote.first_brought(wanted.place.repo) if wanted.asks and wanted.place.repo else []
    if {wanted.digest, previous} <= set(there):  # a history that was rewritten is said by itself
        if _comes_first(there, wanted.digest, previous):
            yield f"{older} {wanted.place.repo} had it before {short(previous)}"
        return
    stage = wanted.record.stage
    try:
        here = looked.came.get((wanted.record.curriculum, str(stage.number if stage else "")), ())
    except IntegrityError as error:
        yield f"{taken}; which of them came first is not known: {error.what}"
        return
    if _comes_first(here, wanted.digest, previous):
        yield f"{older} this stage was at it before it was at {short(previous)}"


def _comes_first(order: Sequence[str], one: str, other: str) -> bool:
    return one in order and other in order and order.index(one) < order.index(other)


def _not_asked(wanted: PullItem, known: Mapping[str, Seen]) -> Freshness:
    """Of an adapter that the registry answered for."""
    last = known.get(wanted.place.repo)
    return Freshness(
        repo=wanted.place.repo,
        state="not asked",
        seen=last.head if last else None,
        seen_at=last.at if last else None,
    )


def _heard(
    looked: PullContext, wanted: Sequence[PullItem], walked: Mapping[str, RemoteAncestor], here: set[str], trust: Trust
) -> RemoteRevocations:
    """What the repositories of adapters and of all their ancestors say; only those of the latter may be closed."""
    lying: dict[str, list[str]] = {}
    for each in wanted:
        lying.setdefault(each.digest, []).extend([each.place.repo] if each.asks else [])
    own = {repo for found_in in lying.values() for repo in found_in}
    for digest, ancestor in walked.items():
        lying.setdefault(digest, []).extend([ancestor.place.repo] if ancestor.place else [])
    repos = {repo for found_in in lying.values() for repo in found_in}
    return fetch_revocations(looked, [] if switched_off() else sorted(repos), lying, here, repos - own, trust)


def _signature(store: Store, wanted: PullItem, signatures: Mapping[str, bytes], options: Options) -> str:
    fetched = wanted.data is None or not options.dry_run
    if options.public_keys and wanted.asked_for and fetched:
        return "verified"
    there = signature_of(store, wanted.digest) if fetched else signatures.get(wanted.digest)
    return "not verified" if there else "none"


# ---- what is learnt, and names: a location comes after what was said there, since it ends the asking


def _take_in(
    looked: PullContext,
    wanted: Sequence[PullItem],
    walked: Mapping[str, RemoteAncestor],
    heard: RemoteRevocations,
    signatures: Mapping[str, bytes],
    options: Options,
) -> None:
    store = looked.store
    adopt(store, heard.believed)
    fetched = {each.digest for each in wanted}
    for digest, ancestor in walked.items():
        if ancestor.found and digest not in fetched:
            keep_record(store, digest, ancestor.found.data)
        seen = ancestor.place if ancestor.record and digest not in fetched else None
        if seen and seen.location not in locations(store, digest):
            attest_location(store, digest, seen.location)
    for each in wanted:
        if each.digest in signatures:
            verified = bool(options.public_keys) and each.asked_for
            try:
                keep_signature(store, each.digest, signatures[each.digest], each.place.location, verified=verified)
            except IntegrityError as error:
                options.notice(f"the signature beside {each.name} was left out: {error.what}, {error.found}")
        if each.asks or each.place.location in looked.held:
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
