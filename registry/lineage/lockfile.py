"""`curriculum.lock.json`: which adapters a project means by its stages, and where they lie on the Hub.

The file belongs into the project's own version control. It is what is atomic across stages: a digest names an
adapter and, through its record, everything that adapter came from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...core.config import CURRICULUM_NAME, STAGE_NAME
from ...core.disk.digest import canonical_json
from ...core.disk.files import write_json
from ...core.errors import IntegrityError, NotFoundError
from ...core.reading.strict_json import read_json
from ..record import MAX_RECORD_BYTES, Commit, Digest, RepoId, first_fault
from ..store import Store
from ..store.attestations import LOCATION

LOCK_FILE = "curriculum.lock.json"

PLACE = r"^hf://[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+@[0-9a-f]{40}(/[A-Za-z0-9_./-]+)?$"
Location = Annotated[str, Field(pattern=PLACE)]


class _LockModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LockedBase(_LockModel):
    """The base of all stages."""

    repo: RepoId
    revision: Commit


class LockedStage(_LockModel):
    """One stage as it was when the lock was written."""

    name: str | None = Field(default=None, pattern=STAGE_NAME)
    digest: Digest
    base: LockedBase
    location: Location | None = None
    """`hf://org/repo@commit`; null where it was never pushed or pulled."""


class Lock(_LockModel):
    """The whole file."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    curriculum: str = Field(pattern=CURRICULUM_NAME)
    stages: dict[Annotated[int, Field(ge=1, le=999)], LockedStage]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def make_lock(store: Store, curriculum: str) -> Lock:
    """What the stages of a curriculum are at now.

    Raises:
        NotFoundError: No such curriculum, or a stage whose object is not held.
        IntegrityError: A ref, record or attestation is damaged.
    """
    store.default_curriculum(curriculum)
    stages = {}
    for number, digest in store.stages(curriculum).items():
        record = store.read_record(digest).record
        said = (str(item.payload.get("location", "")) for item in store.attestations(digest, LOCATION))
        places = [place for place in said if re.fullmatch(PLACE, place)]
        stages[number] = LockedStage(
            name=record.stage.name if record.stage else None,
            digest=digest,
            base=LockedBase(repo=record.base.repo, revision=record.base.revision),
            location=places[-1] if places else None,
        )
    return Lock(curriculum=curriculum, stages=stages)


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the file atomically; equal locks give equal bytes."""
    write_json(path, lock.to_json())


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        NotFoundError: No such file.
        IntegrityError: Too large, not JSON, or not a lock file this version understands.
    """
    try:
        value = read_json(path, max_bytes=MAX_RECORD_BYTES)
        lock = Lock.model_validate(value)
        if canonical_json(lock.model_dump(mode="json", by_alias=True, exclude_unset=True)) != canonical_json(value):
            raise ValueError("a value of another type than it should have")
        return lock
    except FileNotFoundError as error:
        raise NotFoundError("no such lock file", where=path, next_step="`plyfold lock` writes one") from error
    except (OSError, ValueError) as error:
        raise IntegrityError(
            "not a lock file this version understands",
            where=path,
            expected="schema 1 of curriculum.lock.json",
            found=first_fault(error),
            next_step="`plyfold lock` writes it anew",
        ) from error


@dataclass(frozen=True, kw_only=True)
class LockDifference:
    """A stage that the registry does not have as the lock says."""

    stage: int
    locked: str | None
    """Digest in the lock; None where it has no such stage."""
    now: str | None
    """Digest the stage is at; None where there is no such stage."""
    what: str

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "locked": self.locked, "now": self.now, "what": self.what}


def lock_differences(lock: Lock, store: Store) -> list[LockDifference]:
    """Where the registry departs from a lock, in the order of the stages; where they lie on the Hub does not count."""
    stages = store.stages(lock.curriculum)
    held = set(store.digests())
    found = []
    for number in sorted({*lock.stages, *stages}):
        locked, now = lock.stages.get(number), stages.get(number)
        if locked is None:
            what = "not in the lock"
        elif now is None:
            what = "no such stage here" + ("" if locked.digest in held else ", and its adapter is not held")
        elif now != locked.digest:
            what = "another adapter" + ("" if locked.digest in held else "; the locked one is not held")
        elif now not in held:
            what = "its adapter is not held"
        else:
            continue
        found.append(LockDifference(stage=number, locked=locked.digest if locked else None, now=now, what=what))
    return found
