"""What a pull is about to do, and everything in it that can be refused from records alone. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....core.errors import ConfigError, IntegrityError
from ...record import RECORD_FILE, Record
from ..client import switched_off
from ..places import HubLocation, refuse_pickles
from ..references import PullContext
from ..remote import RemoteRecord
from ..remote_lineage import PullItem, RemoteAncestor, name_of, parents_first


def resolve_item(looked: PullContext, place: HubLocation, here: set[str]) -> PullItem:
    """The adapter of a place, verified where it is held, else by its record alone.

    Raises:
        IntegrityError: Not the one asked for, or without a file.
        UnsupportedAdapterError: It holds a pickle.
    """
    promised = place.digest if place.pinned and place.digest in here else None
    digest = looked.held.get(place.location, promised)
    asks = not (place.pinned and digest in here) and not switched_off()
    if digest is None or digest not in here:
        found = looked.remote.record(place)
        _check_promises(place, found.digest, found.record)
        if found.digest not in here:
            return _to_fetch(found, place, asked_for=True)
        digest = found.digest
    record = looked.store.load(digest).record
    _check_promises(place, digest, record)
    return PullItem(digest=digest, record=record, place=place, data=None, asked_for=True, asks=asks)


def distinct(wanted: Sequence[PullItem]) -> list[PullItem]:
    """One of each adapter.

    Raises:
        ConfigError: Two of them for one stage.
    """
    found: dict[str, PullItem] = {}
    stages: dict[tuple[str, int], PullItem] = {}
    for each in wanted:
        kept = found.setdefault(each.digest, each)
        if each.asks and not kept.asks:
            found[each.digest] = each
        if each.record.stage is None:
            continue
        other = stages.setdefault((each.record.curriculum, each.record.stage.number), each)
        if other.digest != each.digest:
            raise ConfigError(
                f"two adapters for {each.record.curriculum} stage {each.record.stage.number}",
                found=f"{other.place.location} and {each.place.location}",
                expected="one, since it becomes the stage's `latest`",
                next_step="pull them one after the other; both are kept",
            )
    return list(found.values())


def missing_ancestors(walked: Mapping[str, RemoteAncestor]) -> list[PullItem]:
    """What of the ancestors is to be fetched, parents first."""
    found = {digest: (each.found, each.place) for digest, each in walked.items() if each.found and each.place}
    order = parents_first({digest: record.record for digest, (record, _) in found.items()})
    return [_to_fetch(*found[digest], asked_for=False) for digest in order]


def _to_fetch(found: RemoteRecord, place: HubLocation, *, asked_for: bool) -> PullItem:
    _refuse_empty(found.record, place)
    refuse_pickles(found.record)
    return PullItem(
        digest=found.digest, record=found.record, place=place, data=found.data, asked_for=asked_for, asks=True
    )


def _refuse_empty(record: Record, place: HubLocation) -> None:
    """Refuse a record that declares no file.

    Raises:
        IntegrityError: It does.
    """
    if not record.files:
        raise IntegrityError(
            "the record's file list cannot be of an adapter",
            where=f"{place.location}/{RECORD_FILE}",
            found="no file",
        )


def _check_promises(place: HubLocation, digest: str, record: Record) -> None:
    """Refuse an adapter that is not the one asked for.

    Raises:
        IntegrityError: Another digest, curriculum or stage.
    """
    own = (record.curriculum, record.stage.number if record.stage else 0)
    if place.digest is not None and digest != place.digest:
        pair = place.digest, digest
    elif place.stage is not None and own != place.stage:
        pair = f"{place.stage[0]} stage {place.stage[1]}" if place.stage[1] else "no stage", name_of(record)
    else:
        return
    raise IntegrityError(
        "another adapter than the one asked for", where=place.location, expected=pair[0], found=pair[1]
    )
