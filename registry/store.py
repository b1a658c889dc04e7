"""The local registry: immutable objects, and the names that point at them.

    objects/sha256/<hex>/        adapter folders with their record, never changed
    refs/<curriculum>/<stage number>/<alias>     one line: the digest a stage is at
    refs/<curriculum>/merges/<slug>              the same for compositions
    attest/<hex>/<id>.json       what was learnt about an object later
    log.jsonl  locations.json     every publish and move of a ref; where bases lie here, never part of a record
    cache/ tmp/ locks/           rebuildable, scratch, and locks

Plain files: no server, no network. Names move under one lock and by atomic replacement.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..core.digest import PREFIX, short
from ..core.errors import ConfigError, ConflictError, IncompatibleError, IntegrityError, NotFoundError
from ..core.files import disk_errors, write_bytes
from . import ledger, objects
from .ledger import Attestation
from .record import CURRICULUM_NAME, Record

FOLDER = ".plyfold"
MERGES = "merges"
LOCK_TIMEOUT_S = 30.0
ANY: Final = "any"
"""`expected` of `set_ref` that does not look at the old value."""

_ALIAS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.+*-]{0,126}\Z")
_PREFIX = re.compile(r"^(?:sha256:)?([0-9a-f]{4,64})$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An object and what it says about itself."""

    digest: str
    path: Path
    """Plain PEFT folder; read-only."""
    record: Record


def find_store(path: Path | None = None, *, create: bool = False) -> Store:
    """The store at `path`, else at PLYFOLD_REGISTRY, else `.plyfold/` in this folder or one above it.

    Args:
        path: Explicit folder of the store.
        create: Make it where it is missing (in this folder, where nothing names one).

    Raises:
        NotFoundError: There is none and `create` is false.
    """
    named = path or (Path(value) if (value := os.environ.get("PLYFOLD_REGISTRY")) else None)
    candidates = [named] if named else [folder / FOLDER for folder in (Path.cwd(), *Path.cwd().parents)]
    for candidate in candidates:
        if (candidate / "objects").is_dir():
            return Store(candidate)
    if create:
        return Store(candidates[0])
    raise NotFoundError(
        "no registry here",
        where=named or Path.cwd(),
        expected=f"a {FOLDER} folder here or above, --registry DIR, or PLYFOLD_REGISTRY",
        next_step="`plyfold quickstart` or `plyfold train` makes one",
    )


class Store:
    """A registry folder, made where it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self.objects = self.root / "objects" / "sha256"
        self.cache = self.root / "cache"
        self._refs = self.root / "refs"
        self._attest = self.root / "attest"
        self._tmp = self.root / "tmp"
        self._log = self.root / "log.jsonl"
        self._locations = self.root / "locations.json"
        with disk_errors(self.root):
            for folder in (self.objects, self.cache, self._refs, self._attest, self._tmp, self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)

    # ---- objects

    def publish(self, folder: Path, record: Record) -> str:
        """Store the files of `folder` under `record` and return the record's digest, the adapter's identity.

        The object appears complete or not at all. Publishing the same record and bytes again verifies what is there.

        Raises:
            NotFoundError: `folder` is missing or empty.
            ConfigError: A link, device or unfit file name in it.
            IntegrityError: The object exists and is damaged.
            DiskFullError: No room; nothing of it is left.
        """
        objects.sweep(self._tmp)
        objects.sweep_partial_files(self._refs, self._attest)
        digest = objects.write_object(folder, record, self._tmp, self.objects)
        with self._locked():
            ledger.append_log(self._log, "publish", digest=digest, kind=record.kind, curriculum=record.curriculum)
        return digest

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty folder on the store's file system, gone afterwards with what is left in it."""
        return objects.scratch_folder(self._tmp)

    def adopt(self, folder: Path, digest: str) -> None:
        """Move a finished object from `scratch` into the store, byte for byte: a record and the files it declares.

        Raises:
            IntegrityError: The record is not `digest`, a file is another, or the object exists and is damaged.
        """
        record = objects.adopt_object(folder, digest, self.objects)
        with self._locked():
            ledger.append_log(self._log, "adopt", digest=digest, kind=record.kind, curriculum=record.curriculum)

    def load(self, digest: str) -> Entry:
        """The object of a digest or an unambiguous prefix, every byte of it verified.

        Raises:
            NotFoundError: No such object.
            ConfigError: Not a digest, or an ambiguous prefix.
            IntegrityError: A file is missing, extra or changed.
        """
        entry = self.peek(digest)
        objects.raise_problems(entry.path, entry.record, objects.find_problems(entry.path, entry.record))
        return entry

    def peek(self, digest: str) -> Entry:
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
            yield self.peek(digest)

    # ---- refs

    def set_ref(
        self, curriculum: str, stage: int | str, digest: str, alias: str = "latest", *, expected: str | None = ANY
    ) -> None:
        """Point a stage's alias at an object (for a composition: stage `merges`, alias the variant's slug).

        Args:
            curriculum: Name of the curriculum.
            stage: Stage number, its name, or `merges`.
            digest: A published object; a stage's own record has to say the same curriculum and stage.
            alias: `latest`, `v1`, `best`, ...
            expected: Digest the alias must be at now; None: it must not exist; `ANY`: whatever it is.

        Raises:
            ConflictError: The alias is not at `expected`, or another process holds the lock.
            IncompatibleError: The object is of another curriculum or stage.
            NotFoundError: No such object.
        """
        with self._locked():  # from before the look at the object, so that no sweep comes between
            entry = self.peek(digest)
            slot = self._slot(entry.record, curriculum, stage)
            path = self._ref_path(curriculum, slot, alias)
            now = ledger.read_ref(path)
            if expected != ANY and now != expected:
                raise ConflictError(
                    f"{curriculum} stage {slot} ({alias}) has moved meanwhile",
                    where=path,
                    expected=expected or "no such ref yet",
                    found=now or "no such ref",
                    next_step="both adapters are safe in the registry; `plyfold show DIGEST` shows either",
                )
            if now == entry.digest:
                return
            write_bytes(path, f"{entry.digest}\n".encode())
            ledger.append_log(
                self._log, "ref", curriculum=curriculum, stage=slot, alias=alias, digest=entry.digest, previous=now
            )

    def ref(self, curriculum: str, stage: int | str, alias: str = "latest") -> str:
        """The digest a stage's alias is at.

        Raises:
            NotFoundError: No such curriculum, stage or alias; the known ones are listed.
            IntegrityError: The ref file is not a digest.
        """
        slot = self._number(curriculum, stage)
        digest = ledger.read_ref(self._ref_path(curriculum, slot, alias))
        if digest is None:
            known = ", ".join(sorted(path.name for path in (self._refs / curriculum / slot).glob("[!.]*")))
            raise NotFoundError(
                f"stage {stage} of {curriculum} has no alias {alias!r}",
                where=self.root,
                expected=f"one of {known}" if known else f"one of the stages {self._known(curriculum)}",
                next_step="`plyfold tree` shows what there is; `plyfold train` trains what is missing",
            )
        return digest

    def curricula(self) -> list[str]:
        """Names of the curricula that have a stage or a merge."""
        return sorted(path.name for path in self._refs.iterdir() if path.is_dir() and any(path.glob("*/[!.]*")))

    def default_curriculum(self, name: str | None = None) -> str:
        """The named curriculum, or the only one.

        Raises:
            NotFoundError: No such curriculum, or none at all.
            ConfigError: Several, and none is named.
        """
        known = self.curricula()
        if name is None and len(known) == 1:
            return known[0]
        if name in known:
            return name
        if name is None and known:
            raise ConfigError(
                "several curricula are registered",
                where=self.root,
                expected=f"one of {', '.join(known)}",
                next_step=f"name it, for example --curriculum {known[0]}",
            )
        raise NotFoundError(
            f"no curriculum {name!r} in the registry" if name else "the registry is empty",
            where=self.root,
            expected=f"one of {', '.join(known)}" if known else "",
            next_step="`plyfold train` or `plyfold quickstart` trains one",
        )

    def stages(self, curriculum: str) -> dict[int, str]:
        """Stage number -> digest of its `latest`, in order of the numbers; the objects are not opened."""
        found = {}
        for path in (self._refs / curriculum).glob("*/latest"):
            if path.parent.name.isdecimal() and (digest := ledger.read_ref(path)):
                found[int(path.parent.name)] = digest
        return dict(sorted(found.items()))

    def merges(self, curriculum: str) -> dict[str, str]:
        """Slug -> digest of every registered composition; the objects are not opened."""
        paths = sorted((self._refs / curriculum / MERGES).glob("[!.]*"))
        return {path.name: digest for path in paths if (digest := ledger.read_ref(path))}

    def stage(self, curriculum: str, stage: int | str) -> Entry:
        """The verified object a stage is at, by number or name.

        Raises:
            NotFoundError: No such stage; the known ones are listed.
            IntegrityError: Its bytes are damaged.
        """
        return self.load(self.ref(curriculum, stage))

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
        with disk_errors(self._attest):
            return ledger.write_attestation(self._attest, self.resolve(digest), kind, payload)

    def attestations(self, digest: str, kind: str | None = None) -> list[Attestation]:
        """What was attested about an object, oldest first; `kind` filters.

        Raises:
            NotFoundError: No such object.
            IntegrityError: An attestation is not readable.
        """
        statements = ledger.read_attestations(self._attest, self.resolve(digest))
        return [statement for statement in statements if kind in (None, statement.kind)]

    def log(self) -> list[dict[str, Any]]:
        """Every publish and every move of a ref, oldest first."""
        return ledger.read_log(self._log)

    def remember_base(self, repo: str, revision: str, path: Path) -> None:
        """Note where a base lies on this machine; local knowledge, never in a record."""
        with self._locked():
            ledger.write_location(self._locations, repo, revision, path)

    def base_path(self, repo: str, revision: str) -> Path | None:
        """Where a base was last seen on this machine, if it is still there."""
        return ledger.read_location(self._locations, repo, revision)

    # ---- inside

    def _known(self, curriculum: str) -> str:
        named = []
        for number, digest in self.stages(curriculum).items():
            name = self._stage_name(digest)
            named.append(f"{number} ({name})" if name else str(number))
        return ", ".join(named) or "(none)"

    def _stage_name(self, digest: str) -> str | None:
        try:
            stage = self.peek(digest).record.stage
        except (NotFoundError, IntegrityError):
            return None  # the number still names it
        return stage.name if stage else None

    def _number(self, curriculum: str, stage: int | str) -> str:
        """The ref folder of a stage: its number, or `merges`."""
        self.default_curriculum(curriculum)
        text = str(stage)
        if text == MERGES:
            return text
        stages = self.stages(curriculum)
        if text.isdecimal():
            if (self._refs / curriculum / str(int(text))).is_dir():
                return str(int(text))
        else:
            for number, digest in stages.items():
                if self._stage_name(digest) == text:
                    return str(number)
        raise NotFoundError(
            f"no stage {text} in {curriculum}",
            where=self.root,
            expected=f"one of {self._known(curriculum)}",
            next_step="`plyfold train` trains what is missing",
        )

    def _slot(self, record: Record, curriculum: str, stage: int | str) -> str:
        own = record.stage
        fits = str(stage) in (str(own.number), own.name) if own else str(stage) == MERGES
        if not fits or record.curriculum != curriculum:
            raise IncompatibleError(
                "a ref cannot name an object of another stage",
                expected=f"{curriculum} {stage}",
                found=f"{record.curriculum} {record.label}",
            )
        return str(own.number) if own else MERGES

    def _ref_path(self, curriculum: str, slot: str, alias: str) -> Path:
        if not re.fullmatch(CURRICULUM_NAME, curriculum):
            raise ConfigError("not a curriculum name", found=curriculum, expected="a-z, 0-9 and dashes")
        if not _ALIAS.match(alias):
            raise ConfigError("not an alias", found=alias, expected="letters, digits and . _ + * -")
        return self._refs / curriculum / slot / alias

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The one lock of the store; the system drops it when its holder dies."""
        from filelock import FileLock, Timeout

        path = self.root / "locks/refs.lock"
        try:
            with disk_errors(self.root), FileLock(path, timeout=LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            raise ConflictError(
                "another plyfold process holds the registry",
                where=path,
                expected=f"the lock within {LOCK_TIMEOUT_S:.0f} s",
                next_step="let it finish, then run the same command again",
            ) from error
