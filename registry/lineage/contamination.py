"""Was a model scored on rows that it, or an adapter it stands on, was trained on? Told from records alone.

Records name their rows by dataset, split and digest. Equal digests are the same rows; one split of one dataset may
share rows, whatever ranges were taken of it; another split of the dataset is what a score should be of, and so is
another part of its questions (`train [0, 0.1)`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ...core.disk.digest import short
from ...core.errors import IntegrityError, NotFoundError
from ..record import DataRef, Record
from ..store import Store


class Rows(Protocol):
    """Rows of a dataset, as `record.DataRef` names them."""

    @property
    def id(self) -> str:
        """Hub dataset id, `sandbox`, or a file's name."""

    @property
    def revision(self) -> str | None:
        """Commit of the dataset."""

    @property
    def split(self) -> str:
        """Split of the dataset."""

    @property
    def sha256(self) -> str:
        """Digest of the rows as used."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """One adapter that was trained on what a model is scored on."""

    digest: str
    label: str
    """`gsm8k 1 structure`."""
    same: Literal["rows", "split"]
    """`rows`: the very rows; `split`: the same split of the dataset, so that rows may be shared."""
    trained: DataRef
    """What it was trained on."""

    def to_json(self) -> dict[str, object]:
        return {
            "digest": self.digest,
            "label": self.label,
            "same": self.same,
            "trained": self.trained.model_dump(mode="json"),
        }

    def __str__(self) -> str:
        who, split = f"{self.label} ({short(self.digest)})", f"{self.trained.split} of {self.trained.id}"
        if self.same == "rows":
            return f"{who} was trained on the very rows that are scored ({split})"
        return f"{who} was trained on the split that is scored ({split}), so rows may be shared"


def overlaps(store: Store, digests: Iterable[str], evaluated: Rows) -> list[Overlap]:
    """Adapters trained on the evaluated data among some and all they came from, ancestors first.

    Parents and requirements are followed; what the store does not hold, or holds damaged, says nothing.

    Args:
        store: The registry.
        digests: The adapters of the model that is scored.
        evaluated: The rows it is scored on.
    """
    lineage = _ancestors_first(store, digests)
    return [found for digest, record in lineage if (found := _own(digest, record, evaluated))]


def nearest(store: Store, digests: Iterable[str], evaluated: Rows) -> dict[str, Overlap]:
    """Digest -> an adapter trained on the evaluated data, itself or one it came from; others are left out.

    One walk for any number of adapters, where `overlaps` would take one for each.
    """
    reached: dict[str, Overlap] = {}
    for digest, record in _ancestors_first(store, digests):
        inherited = (reached[above] for above in record.above if above in reached)
        found = _own(digest, record, evaluated) or next(inherited, None)
        if found:
            reached[digest] = found
    return reached


def _own(digest: str, record: Record, evaluated: Rows) -> Overlap | None:
    label = f"{record.curriculum} {record.label}"
    for data in record.data:
        if data.sha256 == evaluated.sha256:
            return Overlap(digest=digest, label=label, same="rows", trained=data)
    for data in record.data:
        if data.id == evaluated.id and _may_share(data.split, evaluated.split):
            return Overlap(digest=digest, label=label, same="split", trained=data)
    return None


_PART = re.compile(r"(?P<split>.*) \[(?P<start>[0-9.e-]{1,24}), (?P<stop>[0-9.e-]{1,24})\)", re.DOTALL)


def _may_share(one: str, other: str) -> bool:
    """Whether two splits are the same one, or parts of it that meet."""
    (name, start, stop), (other_name, other_start, other_stop) = _part(one), _part(other)
    return name == other_name and start < other_stop and other_start < stop


def _part(split: str) -> tuple[str, float, float]:
    """A split's name, and the shares of its questions between which the part of it lies; all of it is [0, 1)."""
    match = _PART.fullmatch(split)
    try:
        return (match["split"], float(match["start"]), float(match["stop"])) if match else (split, 0.0, 1.0)
    except ValueError:
        return split, 0.0, 1.0


def _ancestors_first(store: Store, digests: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Adapters and what they came from, each once and after all above it; without recursion."""
    seen: set[str] = set()
    waiting: list[tuple[str, Record | None]] = [(digest, None) for digest in digests]
    while waiting:
        digest, record = waiting.pop()
        if record is not None:
            yield digest, record
        elif digest not in seen:
            seen.add(digest)
            try:
                record = store.read_record(digest).record
            except (NotFoundError, IntegrityError):
                continue
            waiting.append((digest, record))
            waiting += [(above, None) for above in record.above if above not in seen]
