"""The names that pulled adapters get here: `latest` of their stage, or the slug of a merge."""

from __future__ import annotations

import re
from contextlib import suppress

from ....core.disk.digest import short
from ....core.errors import ConflictError, IntegrityError, NotFoundError
from ...record import Record
from ...store.store import MERGES, Store
from ..remote_lineage import PullItem


def previous_digest(store: Store, wanted: PullItem) -> str | None:
    """What the stage's `latest` is at, if that changes."""
    stage = wanted.record.stage
    if stage is None or not wanted.asked_for:
        return None
    now = store.stages(wanted.record.curriculum).get(stage.number)
    return now if now != wanted.digest else None


def name(store: Store, wanted: PullItem) -> str | None:
    """Point the stage's `latest` at an adapter; ancestors only fill gaps. Return the name of what is no stage."""
    record = wanted.record
    if record.stage is None or not wanted.asked_for:
        return fill_gap(store, wanted.digest, record)
    store.set_ref(record.curriculum, record.stage.number, wanted.digest)
    return None


def fill_gap(store: Store, digest: str, record: Record) -> str | None:
    """Name an adapter if its stage has no `latest`, or it is no stage and has no name; return the latter's name."""
    if record.stage is None:
        return _name_merge(store, digest, record)
    if record.stage.number not in store.stages(record.curriculum):
        with suppress(ConflictError):
            store.set_ref(record.curriculum, record.stage.number, digest, expected=None)
    return None


def _name_merge(store: Store, digest: str, record: Record) -> str:
    taken = store.merges(record.curriculum)
    if known := next((alias for alias, named in taken.items() if named == digest), None):
        return known
    slug = _slug(store, record)
    if slug and slug not in taken:
        with suppress(ConflictError):
            store.set_ref(record.curriculum, MERGES, digest, slug, expected=None)
            return slug
    alias = f"pulled-{short(digest)}"
    store.set_ref(record.curriculum, MERGES, digest, alias)
    return alias


def _slug(store: Store, record: Record) -> str | None:
    """The name a record gives its merge, if it is of their kind and cannot be taken for a stage or a digest."""
    slug = record.recipe.details.get("slug")
    kind = rf"{re.escape(record.curriculum)}-(?:s[0-9]|base)[A-Za-z0-9_.+-]{{0,100}}"
    if not isinstance(slug, str) or not re.fullmatch(kind, slug):
        return None
    for digest in store.stages(record.curriculum).values():
        with suppress(NotFoundError, IntegrityError):  # such a stage is found by its number only
            stage = store.read_record(digest).record.stage
            if stage and stage.name == slug:
                return None
    return slug
