"""The names of a registry: which adapter a stage, or a composition, is at.

    refs/<curriculum>/<stage number>/<alias>     one line: the digest a stage is at
    refs/<curriculum>/merges/<slug>              the same for compositions

A name moves under the store's lock and by atomic replacement.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from ...core.config import CURRICULUM_NAME
from ...core.disk.files import write_bytes
from ...core.errors import ConfigError, ConflictError, IncompatibleError, IntegrityError, NotFoundError
from ..record import Record
from . import attestations
from .layout import Layout
from .objects import Entry

MERGES = "merges"
ANY: Final = "any"
"""`expected` of `set_ref` that does not look at the old value."""

NUMBER = r"[1-9][0-9]{0,2}"
"""A stage's number, as its folder is named; digits of other scripts would be another folder of the same stage."""

_ALIAS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.+*-]{0,126}\Z")


class Refs:
    """Names in a folder; the store that they are of says what an object is."""

    root: Path
    layout: Layout

    def read_record(self, digest: str) -> Entry:
        """The object of a digest, its record verified."""
        raise NotImplementedError

    def load(self, digest: str) -> Entry:
        """The object of a digest, every byte of it verified."""
        raise NotImplementedError

    def locked(self) -> AbstractContextManager[None]:
        raise NotImplementedError

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
        with self.locked():  # from before the look at the object, so that no sweep comes between
            entry = self.read_record(digest)
            slot = self._slot(entry.record, curriculum, stage)
            path = self._ref_path(curriculum, slot, alias)
            now = attestations.read_ref(path)
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
            attestations.append_log(
                self.layout.log,
                "ref",
                curriculum=curriculum,
                stage=slot,
                alias=alias,
                digest=entry.digest,
                previous=now,
            )

    def ref(self, curriculum: str, stage: int | str, alias: str = "latest") -> str:
        """The digest a stage's alias is at.

        Raises:
            NotFoundError: No such curriculum, stage or alias; the known ones are listed.
            IntegrityError: The ref file is not a digest.
        """
        slot = self._number(curriculum, stage)
        digest = attestations.read_ref(self._ref_path(curriculum, slot, alias))
        if digest is None:
            known = ", ".join(sorted(path.name for path in (self.layout.refs / curriculum / slot).glob("[!.]*")))
            raise NotFoundError(
                f"stage {stage} of {curriculum} has no alias {alias!r}",
                where=self.root,
                expected=f"one of {known}" if known else f"one of the stages {self._known(curriculum)}",
                next_step="`plyfold tree` shows what there is; `plyfold train` trains what is missing",
            )
        return digest

    def curricula(self) -> list[str]:
        """Names of the curricula that have a stage or a merge."""
        if not self.layout.refs.is_dir():
            return []  # a copy that left empty folders out, where none can be made
        return sorted(path.name for path in self.layout.refs.iterdir() if path.is_dir() and any(path.glob("*/[!.]*")))

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
            next_step=f"name one that is there, as {known[0]}; `plyfold train -c FILE` trains another"
            if known
            else "`plyfold train` or `plyfold quickstart` trains one",
        )

    def stages(self, curriculum: str) -> dict[int, str]:
        """Stage number -> digest of its `latest`, in order of the numbers; the objects are not opened."""
        found = {}
        for path in (self.layout.refs / curriculum).glob("*/latest"):
            if re.fullmatch(NUMBER, path.parent.name) and (digest := attestations.read_ref(path)):
                found[int(path.parent.name)] = digest
        return dict(sorted(found.items()))

    def merges(self, curriculum: str) -> dict[str, str]:
        """Slug -> digest of every registered composition; the objects are not opened."""
        paths = sorted((self.layout.refs / curriculum / MERGES).glob("[!.]*"))
        return {path.name: digest for path in paths if (digest := attestations.read_ref(path))}

    def stage(self, curriculum: str, stage: int | str) -> Entry:
        """The verified object a stage is at, by number or name.

        Raises:
            NotFoundError: No such stage; the known ones are listed.
            IntegrityError: Its bytes are damaged.
        """
        return self.load(self.ref(curriculum, stage))

    # ---- inside

    def _known(self, curriculum: str) -> str:
        named = []
        for number, digest in self.stages(curriculum).items():
            name = self._stage_name(digest)
            named.append(f"{number} ({name})" if name else str(number))
        return ", ".join(named) or "(none)"

    def _stage_name(self, digest: str) -> str | None:
        try:
            stage = self.read_record(digest).record.stage
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
        if re.fullmatch(NUMBER, text):
            if (self.layout.refs / curriculum / str(int(text))).is_dir():
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
        return self.layout.refs / curriculum / slot / alias
