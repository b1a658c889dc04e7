"""Bring one adapter's repository to where it should be: look, commit, look again.

A commit's description names the adapter it brought. That line, not the answer to a request, tells whether a push
landed: it is looked for before every try, so a lost answer, a repeated push and a race all end in one commit. What
lies beside the adapter (`companions`) is compared with what is said here before every try in the same way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ....core.disk.digest import sha256_bytes, short
from ....core.errors import ConflictError, IntegrityError
from ...lineage.shared_scores import EVALUATIONS, parse_evaluations
from ...record import RECORD_FILE
from ...store import Entry, Store
from ...trust.revocation import Revocation
from ...trust.shared_statements import to_bytes
from ...trust.signing import signature_of, signs
from ...trust.statements import STATEMENTS, parse_statements, standing_here, statements
from ..client import PATIENCE_S, TRIES, HubClient, RemoteFile
from ..errors import HeadMovedError, HubBusyError
from ..places import DIGEST_LINE, location
from ..sidecars import EVALUATIONS_FILE, REVOCATIONS_FILE, SIGNATURE_FILE, companions, said_together
from . import card
from .card_facts import RelatedAdapter, facts_of
from .look import COMPANION_LINE, Repository, first_difference, line_of

CARD_FILE = "README.md"
SCORES_FILE = ".eval_results/plyfold.yaml"
WORDS = {REVOCATIONS_FILE: "revocations", EVALUATIONS_FILE: "scores", SIGNATURE_FILE: "signature"}
PUSHED, UPDATED, THERE = "pushed", "companions updated", "already there"


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """One adapter and how it is to be published."""

    store: Store
    entry: Entry
    repo: str
    private: bool
    """For a repository that is made now."""
    tag: str | None = None
    revocations: tuple[Revocation, ...] = ()
    """Those that reach it, as far as is known here."""
    replace_signature: bool = False
    """Put our signature in the place of another."""
    replace_statements: bool = False
    """Put what is said here in the place of a file of statements that cannot be read."""
    seen: str | None = None
    """Commit that `main` was at when it was last looked at from here."""
    kin: Mapping[str, RelatedAdapter] = field(default_factory=dict)
    """Digest -> adapter its record names."""

    @property
    def name(self) -> str:
        """Curriculum and label, for a merge its slug too: `gsm8k 1 structure`, `gsm8k merge gsm8k-s1.s2`."""
        record = self.entry.record
        return " ".join([record.curriculum, record.label, *([self.slug] if self.slug else [])])

    @property
    def slug(self) -> str | None:
        """Name of a merge in the registry it was made in."""
        slug = self.entry.record.recipe.details.get("slug")
        fit = self.entry.record.kind == "merge" and isinstance(slug, str) and re.fullmatch(r"[\w.+*-]{1,128}", slug)
        return str(slug) if fit else None


@dataclass(frozen=True, kw_only=True)
class PushOutcome:
    """Where a repository is now."""

    commit: str
    """The commit that brought the adapter."""
    head: str
    status: str
    """`pushed`, `companions updated` or `already there`."""
    superseded: bool
    """Another adapter has followed it on `main`."""
    note: str = ""
    """What a person should know."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """A commit to make."""

    title: str
    description: str
    files: dict[str, Path | bytes]
    status: str
    deleted: tuple[str, ...] = ()
    note: str = ""


def publish(client: HubClient, wanted: PushRequest) -> PushOutcome:
    """Make sure that the repository has the adapter, and at its head what is said about it.

    Raises:
        IntegrityError: The Hub holds other bytes than were sent, or a companion there is not readable.
        ConflictError: Another adapter came meanwhile, or the tag names another commit.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    repo, entry = wanted.repo, wanted.entry
    client.create_repo(repo, private=wanted.private)
    trees: dict[str, dict[str, RemoteFile]] = {}
    tried: list[str] = []
    busy: HubBusyError | HeadMovedError | None = None
    seen: str | None = None
    note = lost = ""
    start_s = time.monotonic()
    for attempt in count():
        now = Repository(client, repo, trees)
        if attempt == 0 and wanted.seen and wanted.seen not in {commit.sha for commit in now.commits}:
            lost = (
                f"main of {repo} was at {short(wanted.seen, 8)} when it was last looked at, which is not part of its "
                "history any more: it was put back or rewritten"
            )
        sha, head = now.landed(entry), now.head
        _check_tag(repo, wanted.tag, now.tags, sha)
        if sha is None and isinstance(busy, HeadMovedError):
            _refuse_other(wanted, now, seen)
        change = _beside(now, wanted) if sha else _whole(now, wanted)
        if change is None:
            break
        # Who is overtaken may try for longer: each time somebody else got through.
        tries = 4 * TRIES if isinstance(busy, HeadMovedError) else TRIES
        if busy and (attempt >= tries or time.monotonic() - start_s > PATIENCE_S):
            raise busy
        tried.append(change.status)
        try:
            head = client.commit(
                repo,
                change.files,
                deleted=change.deleted,
                parent=now.head,
                title=change.title,
                description=change.description,
            )
        except (HubBusyError, HeadMovedError) as error:
            busy, seen = error, now.head
            client.pause(min(attempt, 1) if isinstance(error, HeadMovedError) else attempt)
            continue
        _check_arrived(wanted, head, change, client.files(repo, head))
        sha, note = sha or head, change.note
        break
    assert sha is not None
    assert head is not None
    if wanted.tag and now.tags.get(wanted.tag) != sha:
        client.tag(repo, wanted.tag, sha)
        _check_tag(repo, wanted.tag, client.refs(repo).tags, sha)
    status = PUSHED if PUSHED in tried else UPDATED if tried else THERE
    return PushOutcome(
        commit=sha,
        head=head,
        status=status,
        superseded=head != sha and now.last_brought() not in (entry.digest, None),
        note="; ".join(filter(None, [lost, note])),
    )


# ---- what to commit


def _whole(now: Repository, wanted: PushRequest) -> _Change:
    """The commit that brings the adapter: the object as it is, and around it what can be made again or is said."""
    entry, store = wanted.entry, wanted.store
    # A repository of one commit was just made; asking what it holds would be one more request for every push.
    tree = now.tree(now.head) if len(now.commits) > 1 or statements(store, entry.digest) else {}
    there = _there(now, store, tree, (REVOCATIONS_FILE, EVALUATIONS_FILE))
    notes: list[str] = []
    said_about = companions(
        store,
        entry.digest,
        there,
        location(now.repo, now.head or ""),
        replace_statements=wanted.replace_statements,
        notice=notes.append,
    )
    files = _pages(now, wanted, said_about)
    files |= said_about
    deleted = tuple(name for name in (SIGNATURE_FILE, SCORES_FILE) if name in tree and name not in files)
    files |= {name: entry.path / name for name in (RECORD_FILE, *(item.path for item in entry.record.files))}
    return _Change(
        title=wanted.name,
        description=DIGEST_LINE + entry.digest,
        files=files,
        deleted=deleted,
        status=PUSHED,
        note="; ".join(notes),
    )


def _beside(now: Repository, wanted: PushRequest) -> _Change | None:
    """The commit that adds what is said about an adapter that is there; None where nothing is new."""
    entry, store = wanted.entry, wanted.store
    ours = said_here(store, entry.digest)
    if not ours and not wanted.replace_statements:
        return None
    tree = now.tree(now.head)
    leads = first_difference(entry, tree) is None
    if not leads:
        ours.pop(SIGNATURE_FILE, None)  # it would be taken for the signature of the adapter that leads
    names = {*ours, *((REVOCATIONS_FILE, EVALUATIONS_FILE) if wanted.replace_statements else ())}
    there = _there(now, store, tree, names, known=ours)
    if SIGNATURE_FILE in there and not _signs(store, entry, there[SIGNATURE_FILE]):
        del there[SIGNATURE_FILE]
    notes: list[str] = []
    joined = companions(
        store,
        entry.digest,
        there,
        location(now.repo, now.head or ""),
        replace_signature=wanted.replace_signature,
        replace_statements=wanted.replace_statements,
        notice=notes.append,
    )
    files: dict[str, Path | bytes] = {
        name: joined[name] for name in names if name in joined and joined[name] != there.get(name)
    }
    if not files:
        return None
    changed = [name for name in WORDS if name in files]
    if leads and changed != [SIGNATURE_FILE]:
        if _own_card(now, tree):
            others = _there(now, store, tree, {REVOCATIONS_FILE, EVALUATIONS_FILE} - set(joined))  # shown, not changed
            files |= _pages(now, wanted, joined | others)
        else:
            what = " and ".join(WORDS[name] for name in changed if name != SIGNATURE_FILE)
            notes.append(
                f"{CARD_FILE} of {now.repo} was edited on the Hub and is left as it is: tell of the {what} there"
            )
    return _Change(
        title=f"{' and '.join(WORDS[name] for name in changed)} of {wanted.name}",
        description=COMPANION_LINE + entry.digest,
        files=files,
        status=UPDATED,
        note="; ".join(notes),
    )


def said_here(store: Store, digest: str) -> dict[str, bytes]:
    """What a registry has to say beside an adapter: name -> bytes.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    signature = signature_of(store, digest)
    said, measured = said_together(store, digest, (), STATEMENTS), said_together(store, digest, (), EVALUATIONS)
    ours = {REVOCATIONS_FILE: to_bytes(said)} if said else {}
    ours |= {EVALUATIONS_FILE: to_bytes(measured)} if measured else {}
    return ours | ({SIGNATURE_FILE: signature} if signature else {})


def _there(
    now: Repository,
    store: Store,
    tree: Mapping[str, RemoteFile],
    names: Iterable[str],
    known: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Companions at the head; those that are as in `known` are not fetched."""
    return {
        name: known[name] if known and _holds(tree[name], known[name]) else now.read(store, name, tree[name])
        for name in names
        if name in tree
    }


def _holds(file: RemoteFile, data: bytes) -> bool:
    return file.digest_of(data) == file.stated


def _pages(now: Repository, wanted: PushRequest, said: Mapping[str, bytes]) -> dict[str, Path | bytes]:
    """What shows an adapter and its scores to people and to the Hub, made again from all that is said about it."""
    measured = parse_evaluations(said[EVALUATIONS_FILE]) if EVALUATIONS_FILE in said else []
    facts = facts_of(wanted.store, wanted.entry, wanted.kin, _reaching(wanted, said), measured)
    record = wanted.entry.record
    scores = card.eval_results(record, facts)
    pages: dict[str, Path | bytes] = {CARD_FILE: card.render_card(record, repo=now.repo, facts=facts).encode()}
    if scores:
        pages[SCORES_FILE] = scores.encode()
    return pages


def _signs(store: Store, entry: Entry, data: bytes) -> bool:
    """Is a signature that is there of this adapter, and not left from another or no signature at all?"""
    try:
        return signs(store, entry.digest, data)
    except IntegrityError:
        return False


def _own_card(now: Repository, tree: Mapping[str, RemoteFile]) -> bool:
    """Is the page at the head as a push left it?"""
    last = next(commit for commit in now.commits if line_of(commit, DIGEST_LINE) or line_of(commit, COMPANION_LINE))
    return last.sha == now.head or now.tree(last.sha).get(CARD_FILE) == tree.get(CARD_FILE)


def _reaching(wanted: PushRequest, files: Mapping[str, bytes]) -> tuple[Revocation, ...]:
    """The revocations that reach an adapter: its own as they will stand beside it, its ancestors' as known here."""
    digest = wanted.entry.digest
    said = parse_statements(files[REVOCATIONS_FILE]) if REVOCATIONS_FILE in files else []
    own = [
        Revocation(digest=digest, label=wanted.entry.record.label, reason=item.payload.reason, created=item.created)
        for item in standing_here(wanted.store, digest, (item for item in said if item.digest == digest))
    ]
    return (*own, *(item for item in wanted.revocations if item.digest != digest))


# ---- refusals


def _check_arrived(wanted: PushRequest, sha: str, change: _Change, remote: Mapping[str, RemoteFile]) -> None:
    """Refuse a commit that holds other bytes than were sent.

    Raises:
        IntegrityError: It does; the first such file is named.
    """
    wrong = first_difference(wanted.entry, remote) if change.status == PUSHED else None
    for name, data in change.files.items():
        file = remote.get(name)
        if wrong is None and isinstance(data, bytes) and not (file and _holds(file, data)):
            wrong = name, sha256_bytes(data), file.stated if file else "no such file"
    if wrong:
        raise IntegrityError(
            "the Hub holds other bytes than were sent",
            where=f"{location(wanted.repo, sha)}/{wrong[0]}",
            expected=wrong[1],
            found=wrong[2],
            next_step="run the same command again; it makes a new commit",
        )


def _refuse_other(wanted: PushRequest, now: Repository, seen: str | None) -> None:
    """Refuse to follow an adapter that came while this one was on its way.

    Raises:
        ConflictError: A commit since `seen` brought another adapter.
    """
    digest = wanted.entry.digest
    for commit in now.commits:
        if commit.sha == seen:
            return
        other = line_of(commit, DIGEST_LINE)
        if other and other != digest:
            raise ConflictError(
                f"another adapter came to {now.repo} while {short(digest)} was being pushed",
                where=location(now.repo, commit.sha),
                expected=f"main at {short(seen, 8) if seen else 'no commit'}, to be followed by {digest}",
                found=f"main at {short(now.head or '', 8)}, which brought {other}",
                next_step="your adapter is safe in the registry; look at the other one, then push again to follow it",
            )


def _check_tag(repo: str, tag: str | None, tags: Mapping[str, str], sha: str | None) -> None:
    """Refuse a tag that names another commit.

    Raises:
        ConflictError: It does.
    """
    there = tags.get(tag) if tag else None
    if there and there != sha:
        raise ConflictError(
            f"the tag {tag} is taken",
            where=repo,
            expected=sha or "no such tag yet",
            found=there,
            next_step="choose another --tag",
        )
