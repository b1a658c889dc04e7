"""The one base that variants stand on: which model at which commit, and how it was quantised while they were trained.

Adapters of other tools do not say how their base was quantised. That is unknown, which is not the same as different:
they go with stages of the same commit that say it, and what is assumed is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..core.console import progress, warn
from ..core.disk.digest import canonical_json, short
from ..core.environment import spelt
from ..core.errors import (
    BaseMismatchError,
    IncompatibleError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    PlyfoldError,
)

if TYPE_CHECKING:
    from ..adapters.base.resolve import BaseRef, Quantisation
    from ..registry.record import BaseRecord
    from ..registry.store import Entry, Store
    from .name import Variant


def base_of(
    store: Store, variants: Sequence[Variant], *, told: Callable[[str], object] = warn
) -> tuple[BaseRef, Quantisation]:
    """The one base that all variants stand on, as their stages' records name it, and where it lies here.

    Stages that do not say how their base was quantised are taken to be as those that do, and that is told.

    Args:
        store: The registry.
        variants: All of one base.
        told: Called with what was assumed.

    Raises:
        BaseMismatchError: Variants of different bases, revisions, tokenizers or quantisations; or what lies here under
            the base's name has another config or tokenizer than the stages were trained with.
        NotFoundError: A stage or curriculum that does not exist.
        IncompatibleError: No record says how its base was quantised.
        OfflineError, AuthError: The base is neither where it was last seen nor in the Hub cache, and cannot be had.
    """
    from ..adapters.base.resolve import Quantisation
    from ..registry.store.store import MERGES

    found: dict[str, BaseRecord] = {}
    others: dict[str, BaseRecord] = {}
    for variant in variants:
        curriculum = store.default_curriculum(variant.curriculum)
        stages = store.stages(curriculum)
        digests = [store.ref(curriculum, stage) for stage in variant.stages or list(stages)[:1]]
        if variant.merge is not None:
            digests = [store.ref(curriculum, MERGES, variant.merge)]
        elif variant.digest is not None:
            digests = [variant.digest]
        for digest in digests:
            entry = store.read_record(digest)
            found[f"{curriculum} {entry.record.label}"] = entry.record.base
        others |= {f"{curriculum} {number}": base for number, base in _bases(store, stages)}
    if not found:
        raise NotFoundError("no stage says which base to serve", where=store.root, next_step="plyfold train")
    record = _same_base(found)
    if record.quantisation is None:  # then as the rest of its curriculum
        told_by = next((name for name, base in others.items() if _says_how(base, record)), None)
        if told_by is None:
            raise IncompatibleError(
                "no record says how the base was quantised while training",
                where=next(iter(found)),
                next_step="if it was trained on the base in NF4, import it again with --quantisation nf4",
            )
        found[told_by] = record = others[told_by]
    for text in _assumed(found):
        told(text)
    return on_disk(store, record), Quantisation(**record.quantisation)  # type: ignore[arg-type]


def on_disk(store: Store, record: BaseRecord) -> BaseRef:
    """Where the base of a record lies here, held against that record.

    Raises:
        As `check_folder`; OfflineError, AuthError: It is neither where it was last seen nor can it be had.
    """
    from ..adapters.base.resolve import BaseRef, resolve_base
    from ..core.config import BaseConfig

    known = store.base_path(record.repo, record.revision)
    if known is not None:
        ref = BaseRef(repo=record.repo, revision=record.revision, path=known)
    else:
        ref = resolve_base(BaseConfig(repo=record.repo, revision=record.revision))
    check_folder(ref.path, record, store.cache)
    return replace(ref, weights=record.weights_digest)


def shared_base(entries: Sequence[Entry]) -> BaseRecord:
    """The base of stages that go together, with how it was quantised where one of them says it.

    Raises:
        BaseMismatchError: They are of different bases, revisions or quantisations.
    """
    return _same_base(_by_label(entries))


def assumed(entries: Sequence[Entry]) -> list[str]:
    """What is taken for granted where some stages say how their base was quantised and others do not."""
    return _assumed(_by_label(entries))


def twin_of(store: Store, variants: Sequence[Variant]) -> Path:
    """The dequantised base that all variants stand on, made in the store's cache where it is missing.

    Raises:
        As `base_of`, and DiskFullError.
    """
    from ..adapters.base.twin import ensure_twin

    ref, quantisation = base_of(store, variants)
    return ensure_twin(ref, quantisation, store.cache)


def check_folder(path: Path, record: BaseRecord, cache: Path) -> None:
    """Refuse a folder that is not the base of a record, as far as the record can tell.

    Args:
        path: Folder that is taken for the base.
        record: The base as it is on record.
        cache: The registry's cache, where the digest of unchanged weights is noted.

    Raises:
        BaseMismatchError: Its config or tokenizer is another.
        IntegrityError: Its weights are others.
        IncompatibleError: Its weights are quantised already.
    """
    from ..adapters.base.resolve import config_digest, refuse_quantised, tokenizer_digest

    refuse_quantised(path, record.repo)
    pairs = (
        ("config.json", record.config_digest, config_digest(path)),
        ("tokenizer", record.tokenizer_digest, tokenizer_digest(path)),
    )
    for name, expected, found in pairs:
        if expected is not None and found != expected:
            raise BaseMismatchError(
                f"the base that lies here has another {name} than the stages were trained with",
                where=path,
                expected=expected,
                found=found or "none",
                next_step=f"fetch {record.repo}@{record.revision[:12]} again, or train with the base that lies here",
            )
    if record.weights_digest is not None and (found := digest_of(path, cache)) != record.weights_digest:
        raise IntegrityError(
            "the base that lies here has other weights than the stages were trained with",
            where=path,
            expected=record.weights_digest,
            found=found,
            next_step=f"fetch {record.repo}@{record.revision[:12]} again; nothing was made from these weights",
        )


def digest_of(path: Path, cache: Path) -> str:
    """Digest of a base's weights, with progress where it has to be taken; as `base_digest`."""
    from ..adapters.base.digest import base_bytes, base_digest

    with progress("check the base's weights", base_bytes(path)) as task:
        return base_digest(path, cache, advance=task.advance)


class BaseCheck(NamedTuple):
    """What was found of one base that records name."""

    repo: str
    revision: str
    path: Path | None
    """Where it lies here; None where it is not at hand."""
    fault: str
    """What is wrong with it; empty where nothing is."""
    note: str
    """What could not be told; empty where all could."""

    def to_json(self) -> dict[str, str | None]:
        """Plain JSON values."""
        return {**self._asdict(), "path": spelt(str(self.path)) if self.path else None}


def check_bases(store: Store, digests: Sequence[str]) -> list[BaseCheck]:
    """Hold every base that some adapters' records name, and that lies on this machine, against those records."""
    from ..adapters.base.resolve import resolve_base
    from ..core.config import BaseConfig

    records = {
        canonical_json(base.model_dump()): base for base in (store.read_record(each).record.base for each in digests)
    }
    found = []
    for record in records.values():
        path = store.base_path(record.repo, record.revision)
        fault = note = ""
        try:
            if path is None:
                path = resolve_base(BaseConfig(repo=record.repo, revision=record.revision), local_only=True).path
            check_folder(path, record, store.cache)
            if record.weights_digest is None:
                note = "its weights are not on record"
        except (OfflineError, NotFoundError):
            note = "not on this machine"
        except PlyfoldError as error:
            fault = f"{error.what}: expected {error.expected}, found {error.found}"
        found.append(BaseCheck(record.repo, record.revision, path, fault, note))
    return found


def _by_label(entries: Sequence[Entry]) -> dict[str, BaseRecord]:
    return {entry.record.label: entry.record.base for entry in entries}


def _bases(store: Store, stages: Mapping[int, str]) -> Iterator[tuple[int, BaseRecord]]:
    for number, digest in stages.items():
        with suppress(NotFoundError, IntegrityError):  # its own use tells
            yield number, store.read_record(digest).record.base


def _same_base(found: Mapping[str, BaseRecord]) -> BaseRecord:
    """The base that all named records share; an unknown quantisation is not another one."""
    first = next((name for name, base in found.items() if base.quantisation is not None), next(iter(found)))
    base = found[first]
    for name, other in found.items():
        alike = all(
            getattr(other, field) in (None, getattr(base, field)) or getattr(base, field) is None
            for field in ("quantisation", "config_digest", "tokenizer_digest", "weights_digest")
        )
        if (other.repo, other.revision) != (base.repo, base.revision) or not alike:
            raise BaseMismatchError(
                "the stages were trained on different bases",
                where=name,
                expected=f"{_describe(base)}, as {first}",
                found=_describe(other),
                next_step="serve variants of one base at a time",
            )
    return base


def _says_how(base: BaseRecord, unknown: BaseRecord) -> bool:
    same = (base.repo, base.revision) == (unknown.repo, unknown.revision)
    return same and base.quantisation is not None


def _assumed(found: Mapping[str, BaseRecord]) -> list[str]:
    says = next((name for name, base in found.items() if base.quantisation is not None), None)
    if says is None:
        return []
    return [
        f"{name} does not say how its base was quantised while training: it is put on the base of {says}, "
        f"{_quantised(found[says])}, which may not be the one it was trained on"
        for name, base in found.items()
        if base.quantisation is None
    ]


def _describe(base: BaseRecord) -> str:
    digests = {"config": base.config_digest, "tokenizer": base.tokenizer_digest, "weights": base.weights_digest}
    files = "".join(f", {name} {short(digest)}" for name, digest in digests.items() if digest)
    return f"{base.repo}@{base.revision[:12]} ({_quantised(base)}{files})"


def _quantised(base: BaseRecord) -> str:
    return "quantisation not on record" if base.quantisation is None else described_quantisation(base.quantisation)


def described_quantisation(quantisation: Mapping[str, object]) -> str:
    """How a base was quantised, as records hold it, in one line."""
    return ", ".join(f"{key} {value}" for key, value in sorted(quantisation.items())) or "not quantised"
