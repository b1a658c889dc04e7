"""The local registry: immutable objects, and the names that point at them.

    objects/sha256/<hex>/        adapter folders with their record, never changed
    refs/<curriculum>/<stage number>/<alias>     one line: the digest a stage is at
    refs/<curriculum>/merges/<slug>              the same for compositions
    attest/<hex>/<id>.json       what was learnt about an object here later
    attest/<hex>/statements.json  all that is said about it and travels, by whomever, bounded
    log.jsonl  locations.json     every publish and move of a ref; where bases and rows lie here, never in a record
    seen.json                    what repositories on the Hub were at when they were last looked at
    cache/ tmp/ locks/           rebuildable, scratch, and locks

Plain files: no server, no network. Names move under one lock and by atomic replacement.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.disk.digest import PREFIX, short
from ...core.disk.files import NOT_ALLOWED, disk_errors, expanded, not_allowed, refuse_no_folder
from ...core.disk.links import is_folder, open_own, refuse_link, refuse_links_in
from ...core.disk.locks import locked, take_lock
from ...core.errors import ConfigError, IntegrityError, NotFoundError
from ..record import Record
from . import attestations, objects
from .attestations import Attestation
from .layout import Layout
from .objects import Entry as Entry
from .ownership import refuse_foreign
from .refs import ANY as ANY
from .refs import MERGES as MERGES
from .refs import Refs

FOLDER = ".plyfold"
LOCK_TIMEOUT_S = 30.0

_PREFIX = re.compile(r"^(?:sha256:)?([0-9a-f]{4,64})$")


def find_store(path: Path | None = None, *, create: bool = False, dry_run: bool = False) -> Store:
    """The store at `path`, else at PLYFOLD_REGISTRY, else `.plyfold/` in this folder or one above it.

    Args:
        path: Explicit folder of the store.
        create: Make it where it is missing (in this folder, where nothing names one).
        dry_run: With `create`, take a missing one for the empty one it would be, and make nothing.

    Raises:
        NotFoundError: There is none and `create` is false.
        NotAllowedError: It may not be read, or not made here.
        ConfigError: What is named is no folder.
        IntegrityError: A link stands in it, or nobody named it and it is not surely this user's.
    """
    named = path or (Path(value) if (value := os.environ.get("PLYFOLD_REGISTRY")) else None)
    if named:
        refuse_no_folder(expanded(named))
    candidates = [named] if named else [folder / FOLDER for folder in (Path.cwd(), *Path.cwd().parents)]
    for candidate in candidates:
        try:
            found = (candidate / "objects").is_dir()
        except PermissionError as error:
            raise not_allowed(candidate, "the registry cannot be read") from error
        if found or (create and candidate is candidates[-1]):
            place = candidate if found else candidates[0]
            if not named:
                refuse_foreign(place, Path.cwd())
            return Store(place, make=found or not dry_run)
    raise NotFoundError(
        "no registry here",
        where=named or Path.cwd(),
        expected=f"a {FOLDER} folder here or above, --registry DIR, or PLYFOLD_REGISTRY",
        next_step="`plyfold quickstart` or `plyfold train` makes one",
    )


class Store(Refs):
    """A registry folder, made where it is missing; one that may not be written is read all the same."""

    def __init__(self, root: Path, *, make: bool = True) -> None:
        """The registry at `root`; with `make` false a missing one is only looked at, as if it were empty.

        Raises:
            IntegrityError: A link, or what is no folder, stands in the place of a special folder or file of it.
            ConfigError: `root` is no folder.
            NotAllowedError: It can neither be made nor read.
        """
        self.root = Path(os.path.realpath(expanded(root)))
        self.layout = Layout(self.root)
        self.objects, self.cache = self.layout.objects, self.layout.cache
        self._refuse_links()
        if not make:
            return
        try:
            with disk_errors(self.root):
                self.root.parent.mkdir(parents=True, exist_ok=True)
                for folder in (self.root, self.objects.parent, *self.layout.folders):
                    folder.mkdir(mode=0o775, exist_ok=True)  # never for everybody, whatever the umask
        except OSError as error:
            if error.errno not in NOT_ALLOWED:
                raise
            if not self.objects.is_dir():
                raise not_allowed(self.root, "no registry can be made here") from error

    def _refuse_links(self) -> None:
        """Refuse links where a stranger's folder could lead what is read, written or swept here to somewhere else.

        In `tmp` and among the objects no more is looked at: what lies there is verified or removed without following.
        """
        refuse_no_folder(self.root)
        for folder in (self.objects.parent, *self.layout.folders):
            if not is_folder(folder) and os.path.lexists(folder):
                refuse_link(folder)
                raise IntegrityError(
                    "no folder, where the registry keeps one of its own", where=folder, next_step="remove it"
                )
        for file in (self.layout.log, self.layout.locations, self.root / attestations.SEEN_FILE):
            refuse_link(file)
        for folder in (self.layout.refs, self.layout.attest, self.layout.locks):
            refuse_links_in(folder)
        refuse_links_in(self.cache, depth=3)

    @property
    def writable(self) -> bool:
        """May this user add to it?"""
        effective = os.access in os.supports_effective_ids
        return all(
            os.access(folder if folder.exists() else self.root, os.W_OK | os.X_OK, effective_ids=effective)
            for folder in self.layout.folders
            if folder != self.cache
        )

    def require_writable(self) -> None:
        """Refuse before work is spent on what could not be kept.

        Raises:
            NotAllowedError: This user may not add to the registry.
            FailedError: Its file system knows no locks.
        """
        if not self.writable:
            raise not_allowed(self.root, "the registry cannot be written by this user")
        if self.layout.lock.parent.is_dir():
            descriptor = open_own(self.layout.lock, os.O_RDWR | os.O_CREAT)
            try:
                take_lock(descriptor, self.layout.lock)  # by somebody, or by nobody: that it can be is what counts
            finally:
                os.close(descriptor)

    # ---- objects

    def publish(self, folder: Path, record: Record) -> str:
        """Store the files of `folder` under `record` and return the record's digest, the adapter's identity.

        The object appears complete or not at all. Publishing the same record and bytes again verifies what is there.

        Raises:
            NotFoundError: `folder` is missing or empty.
            ConfigError: A link, device or unfit file name in it.
            IntegrityError: The object exists and is damaged.
            DiskFullError: No room; nothing of it is left.
            NotAllowedError: This user may not write here.
        """
        with self._writing():
            objects.sweep(self.layout.tmp)
            objects.sweep_partial_files(self.layout.refs, self.layout.attest)
            digest = objects.write_object(folder, record, self.layout.tmp, self.objects)
        with self.locked():
            attestations.append_log(
                self.layout.log, "publish", digest=digest, kind=record.kind, curriculum=record.curriculum
            )
        return digest

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's file system, gone afterwards with what is left in it."""
        with self._writing(), objects.scratch_folder(self.layout.tmp) as folder:
            yield folder

    def adopt(self, folder: Path, digest: str) -> None:
        """Move a finished object from `scratch` into the store, byte for byte: a record and the files it declares.

        Raises:
            IntegrityError: The record is not `digest`, a file is another, or the object exists and is damaged.
        """
        with self._writing():
            record = objects.adopt_object(folder, digest, self.objects)
        with self.locked():
            attestations.append_log(
                self.layout.log, "adopt", digest=digest, kind=record.kind, curriculum=record.curriculum
            )

    def load(self, digest: str) -> Entry:
        """The object of a digest or an unambiguous prefix, every byte of it verified.

        Raises:
            NotFoundError: No such object.
            ConfigError: Not a digest, or an ambiguous prefix.
            IntegrityError: A file is missing, extra or changed.
        """
        entry = self.read_record(digest)
        objects.raise_problems(entry.path, entry.record, objects.find_problems(entry.path, entry.record))
        return entry

    def read_record(self, digest: str) -> Entry:
        """As `load`, but only the record is verified: for listings, never before using the weights."""
        full = self.resolve(digest)
        path = self.objects / full.removeprefix(PREFIX)
        return Entry(digest=full, path=path, record=objects.read_record(path))

    def resolve(self, digest: str) -> str:
        """The full digest of an object from a digest or a prefix of at least four hex digits.

        Raises:
            NotFoundError: No such object.
            ConfigError: Not a digest, or an ambiguous prefix.
        """
        match = _PREFIX.match(digest)
        if not match:
            raise ConfigError("not a digest", found=digest, expected="sha256: and 64 hex digits, or the first of them")
        if len(match[1]) == 64 and (self.objects / match[1]).is_dir():
            return PREFIX + match[1]
        found = [known for known in self.digests() if known.startswith(PREFIX + match[1])]
        if not found:
            raise NotFoundError(
                "no such object in the registry", where=self.root, found=digest, next_step="`plyfold tree` lists them"
            )
        if len(found) > 1:
            listed = ", ".join(short(known, 16) for known in found)
            raise ConfigError("an ambiguous digest", found=digest, expected=f"more digits of one of {listed}")
        return found[0]

    def digests(self) -> list[str]:
        """Digests of all objects, sorted; nothing is opened."""
        names = (path.name for path in self.objects.iterdir() if path.is_dir())
        return sorted(PREFIX + name for name in names if re.fullmatch(r"[0-9a-f]{64}", name))

    def entries(self) -> Iterator[Entry]:
        """All objects with their records verified, payload not read.

        Raises:
            IntegrityError: A record is damaged.
        """
        for digest in self.digests():
            yield self.read_record(digest)

    # ---- what is learnt later, and what only this machine knows

    def attest(self, digest: str, kind: str, payload: Mapping[str, Any]) -> Path:
        """Add a statement about an object beside it; measured metrics go through `graph.attest_scores`.

        Args:
            digest: An object of this store.
            kind: One word, such as `eval`.
            payload: Plain JSON values without local paths, NaN or infinity.

        Raises:
            NotFoundError: No such object.
            ConfigError: An unfit kind or payload.
        """
        with self._writing():
            return attestations.write_attestation(self.layout.attest, self.resolve(digest), kind, payload)

    def attestations(self, digest: str, kind: str | None = None) -> list[Attestation]:
        """What was attested about an object, oldest first; `kind` filters.

        Raises:
            NotFoundError: No such object.
            IntegrityError: An attestation is not readable.
        """
        return [statement for statement in self.attestations_of(self.resolve(digest)) if kind in (None, statement.kind)]

    def attestations_of(self, digest: str) -> list[Attestation]:
        """All that was attested about a whole digest, held or not, oldest first.

        Raises:
            IntegrityError: An attestation is not readable.
        """
        return attestations.read_attestations(self.layout.attest, digest)

    def log(self) -> list[dict[str, Any]]:
        """Every publish and every move of a ref, oldest first.

        Raises:
            IntegrityError: The log is no plain file, or too large.
        """
        return list(attestations.read_log(self.layout.log))

    def remember_base(self, repo: str, revision: str, path: Path, spelling: str | None = None) -> None:
        """Note where a base lies on this machine; local knowledge, never in a record.

        Args:
            repo: Of the base.
            revision: Of the base.
            path: Its folder.
            spelling: As a config names that folder by the environment; it is noted instead of the path.
        """
        with self.locked():
            attestations.write_location(self.layout.locations, repo, revision, path, spelling)

    def base_path(self, repo: str, revision: str) -> Path | None:
        """Where a base was last seen on this machine, if it is still there; the embedded base always is."""
        from ...adapters.base.resolve import embedded_base

        return attestations.read_location(self.layout.locations, repo, revision) or embedded_base(repo, revision)

    def remember_rows(self, sha256: str, path: Path) -> None:
        """Note in which file or folder rows lie on this machine; local knowledge, never in a record."""
        with self.locked():
            attestations.write_rows_place(self.layout.locations, sha256, path)

    def rows_path(self, sha256: str) -> Path | None:
        """Where rows of this digest were last read from on this machine, be they there or not."""
        return attestations.read_rows_place(self.layout.locations, sha256)

    # ---- inside

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The one lock of the store; the system drops it when its holder dies."""
        with self._writing(), locked(self.layout.lock, LOCK_TIMEOUT_S, "another plyfold process holds the registry"):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One clear error where the disk is full, or this user may not write to a path of the store."""
        self.require_writable()
        try:
            with disk_errors(self.root):
                yield
        except OSError as error:
            if error.errno in NOT_ALLOWED and Path(str(error.filename)).is_relative_to(self.root):
                raise not_allowed(Path(str(error.filename)), "the registry cannot be written by this user") from error
            raise
