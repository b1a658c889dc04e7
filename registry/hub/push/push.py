"""Publish adapters on the Hub: one repository per stage or merge, one commit per adapter, parents first.

Here it is decided what travels, and refused what may not; `hub_commit` brings each repository to where it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

from ....core.errors import ConfigError, IncompatibleError, NotFoundError
from ...lineage.shared_scores import EVALUATIONS
from ...record import RECORD_FILE
from ...store.store import MERGES, Entry, Store
from ...trust.revocation import revocations
from ...trust.shared_statements import sign_own
from ...trust.signing import sign
from ...trust.statements import STATEMENTS
from ...trust.trust import Signer
from ..client import HubClient
from ..freshness import Freshness, remember, seen
from ..places import attest_location, check_shareable, location, repo_of
from ..pull.pull import Pulled, pull
from ..sidecars import SIGNATURE_FILE
from .card_facts import RelatedAdapter
from .commit import PushOutcome, PushRequest, publish, said_here

__all__ = ["Pulled", "Pushed", "Signer", "choose", "pull", "push", "repo_of"]

PLANNED = "would be pushed"


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of one adapter."""

    digest: str
    name: str
    """Curriculum and label, for a merge its slug too: `gsm8k 1 structure`, `gsm8k merge gsm8k-s1.s2`."""
    stage: int | None
    """Its number; None for a merge."""
    slug: str | None
    """A merge's name."""
    repo: str
    size_bytes: int
    """Of the record and the files it declares."""
    status: str
    """`pushed`, `companions updated`, `already there`, or `would be pushed` in a dry run."""
    companions: tuple[str, ...]
    """What is said about it here and so travels beside it: revocations.json, evaluations.json, model.sig."""
    asked_for: bool
    """False for ancestors."""
    commit: str | None = None
    """The commit that holds it; None in a dry run."""
    head: str | None = None
    """Where `main` is."""
    superseded: bool = False
    """A later adapter leads on `main`."""
    note: str = ""
    """What a person should know."""

    @property
    def location(self) -> str | None:
        """`hf://org/repo@commit`."""
        return location(self.repo, self.commit) if self.commit else None

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"digest": self.digest, "name": self.name, "repo": self.repo, "commit": self.commit}
        value |= {"location": self.location, "status": self.status, "head": self.head, "superseded": self.superseded}
        return value | {
            "asked_for": self.asked_for,
            "size_bytes": self.size_bytes,
            "companions": list(self.companions),
            "note": self.note,
        }


def choose(store: Store, curriculum: str, stages: Sequence[int] | None, merges: Sequence[str] | None) -> list[str]:
    """Digests of what is to be published: stages by number, then merges by slug.

    Args:
        store: The registry.
        curriculum: Name of the curriculum.
        stages: None is all of them, or none where merges are named.
        merges: Slugs; `all` is every one.

    Raises:
        NotFoundError: No such stage or merge; the known ones are listed.
        ConfigError: A merge is named twice.
    """
    known = store.merges(curriculum)
    if stages is None:
        stages = [] if merges else list(store.stages(curriculum))
    slugs = list(known) if merges and list(merges) == ["all"] else list(merges or ())
    if len(set(slugs)) != len(slugs):
        raise ConfigError("a merge is named twice", found=",".join(slugs), next_step="name every merge once")
    lacking = [slug for slug in slugs if slug not in known]
    if lacking or (merges and not slugs):
        raise NotFoundError(
            f"no merge {lacking[0]!r} of {curriculum} in the registry" if lacking else f"no merge of {curriculum} yet",
            where=store.root,
            expected=f"one of {', '.join(known)}" if known else "",
            next_step=f"plyfold merge --curriculum {curriculum} --stages ... makes one",
        )
    digests = [store.ref(curriculum, number) for number in stages] + [
        store.ref(curriculum, MERGES, slug) for slug in slugs
    ]
    return list(dict.fromkeys(digests))


def push(
    store: Store,
    digests: Sequence[str],
    namespace: str,
    *,
    private: bool = True,
    tag: str | None = None,
    allow_dirty: bool = False,
    signer: Signer | None = None,
    replace_statements: bool = False,
    dry_run: bool = False,
    client: HubClient | None = None,
    done: Callable[[Pushed], object] = lambda pushed: None,
) -> list[Pushed]:
    """Publish adapters, each after the adapters it came from, with what is said about them.

    Everything that can be refused is refused before the first request. What lies in a repository already stays in its
    history; revocations are added to what others said, never taken away.

    Args:
        store: The registry.
        digests: What to publish; ancestors are added.
        namespace: User or organisation.
        private: For repositories that are made now.
        tag: Name to give to each commit as well.
        allow_dirty: Publish also what code with uncommitted changes made.
        signer: Sign what is asked for, and what was said and measured here about it, and put these signatures in the
            place of others.
        replace_statements: Put what is said here in the place of a file of revocations or scores there that cannot be
            read, because it is damaged, too large, or of a newer plyfold, or that holds more than is kept.
        dry_run: Check all that can be checked here, send nothing, sign nothing.
        client: How to reach the Hub.
        done: Called after each adapter.

    Returns:
        One per adapter, in the order of publishing.

    Raises:
        NotFoundError: An adapter or ancestor is not in the registry, or no such key.
        IntegrityError: Its bytes are damaged here, or arrived changed; or a statement about it is not readable.
        UnsupportedAdapterError, IncompatibleError: It may not travel (`check_shareable`, dirty code).
        ConflictError: Another adapter came to the same repository meanwhile, or `tag` names another commit.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it; or the key does not open.
    """
    entries = _parents_first(store, digests)
    for entry in entries:
        check_shareable(entry.path, entry.record)
        if not allow_dirty:
            _refuse_dirty(entry)
    asked = {store.resolve(digest) for digest in digests}
    reaching = revocations(store, [entry.digest for entry in entries])
    if signer and not dry_run:
        for digest in sorted(asked):
            sign(store, digest, signer.key, signer.password)
            sign_own(store, digest, signer, STATEMENTS, EVALUATIONS)
    kin = {entry.digest: _kin(entry) for entry in entries}
    heads = {repo: each.head for repo, each in seen(store).items()}
    plans = [
        (
            PushRequest(
                store=store,
                entry=entry,
                repo=repo_of(namespace, entry.record),
                private=private,
                tag=tag,
                revocations=tuple(reaching.get(entry.digest, ())),
                replace_signature=signer is not None and entry.digest in asked,
                replace_statements=replace_statements,
                seen=heads.get(repo_of(namespace, entry.record)),
                kin=kin,  # which learns where each of them lies before its children are published
            ),
            entry.digest in asked,
        )
        for entry in entries
    ]
    planned = [_pushed(wanted, asked_for=own, signing=signer is not None and own) for wanted, own in plans]
    if dry_run:
        return planned
    client = client or HubClient()
    results = []
    for (wanted, _), plan in zip(plans, planned, strict=True):
        outcome = publish(client, wanted)
        result = _with(plan, outcome)
        assert result.location is not None
        kin[result.digest] = replace(kin[result.digest], location=result.location)
        attest_location(store, result.digest, result.location)
        if store.writable:
            remember(store, [Freshness(repo=result.repo, state="newer", head=result.head)], {})
        done(result)
        results.append(result)
    return results


def _pushed(wanted: PushRequest, *, asked_for: bool, signing: bool) -> Pushed:
    """What is known of an adapter before anything is sent."""
    entry = wanted.entry
    beside = [*said_here(wanted.store, entry.digest), *([SIGNATURE_FILE] if signing else [])]
    return Pushed(
        digest=entry.digest,
        name=wanted.name,
        stage=entry.record.stage.number if entry.record.stage else None,
        slug=wanted.slug,
        repo=wanted.repo,
        size_bytes=sum(item.size for item in entry.record.files) + (entry.path / RECORD_FILE).stat().st_size,
        status=PLANNED,
        companions=tuple(dict.fromkeys(beside)),
        asked_for=asked_for,
    )


def _with(plan: Pushed, outcome: PushOutcome) -> Pushed:
    return replace(
        plan,
        commit=outcome.commit,
        head=outcome.head,
        status=outcome.status,
        superseded=outcome.superseded,
        note=outcome.note,
    )


def _kin(entry: Entry) -> RelatedAdapter:
    record = entry.record
    return RelatedAdapter(
        name=f"{record.curriculum} {record.label}",
        stage=record.stage.number if record.stage else None,
        r=record.weights.r,
    )


def _refuse_dirty(entry: Entry) -> None:
    """Refuse an adapter whose code nobody can look up.

    Raises:
        IncompatibleError: It was made with changes that were not committed.
    """
    record = entry.record
    if record.code.dirty:
        raise IncompatibleError(
            "the adapter was made by code with uncommitted changes, which nobody else can look up",
            where=f"{record.curriculum} {record.label}  {entry.digest}",
            expected="code as a commit holds it",
            found=f"plyfold {record.code.version}, commit {record.code.git or 'unknown'} with changes",
            next_step="commit the changes and make it again, or add --allow-dirty: its page then says so",
        )


def _parents_first(store: Store, digests: Sequence[str]) -> list[Entry]:
    """The adapters and all their ancestors, verified, every one after those it names."""
    entries: dict[str, Entry] = {}
    waiting = [(store.resolve(digest), "") for digest in digests]
    while waiting:
        digest, child = waiting.pop()
        if digest in entries:
            continue
        try:
            entries[digest] = entry = store.load(digest)
        except NotFoundError as error:
            raise NotFoundError(
                f"an ancestor of {child} is not in the registry; nothing was pushed",
                where=store.root,
                expected=digest,
                next_step="pull it with --with-parents, or publish it here first",
            ) from error
        name = f"{entry.record.curriculum} {entry.record.label}"
        waiting += [(above, name) for above in _named(entry)]
    order = TopologicalSorter({digest: _named(entry) for digest, entry in sorted(entries.items())})
    return [entries[digest] for digest in order.static_order()]


def _named(entry: Entry) -> list[str]:
    return sorted({*(parent.digest for parent in entry.record.parents), *entry.record.requires})
