"""Adapters that stay, whatever refs say: pins are known to one registry only and never travel."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.disk.digest import PREFIX
from ...core.errors import NotFoundError
from ..store import Store, attestations

PIN = "pin"
"""Kind of the attestations that keep an object from `gc`."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One adapter that is kept."""

    digest: str
    reason: str
    """Empty where none was given."""
    created: str
    """UTC, to the second."""

    def to_json(self) -> dict[str, str]:
        return {"digest": self.digest, "reason": self.reason, "created": self.created}


def pin(store: Store, digest: str, reason: str = "") -> Pin:
    """Keep an adapter and all it came from; the same again changes nothing.

    Raises:
        NotFoundError: No such object.
        ConfigError: A reason that holds a local path.
    """
    text = " ".join(reason.split())
    with store.locked():  # a sweep beside this takes it before, and that is said, or never
        full = store.resolve(digest)
        for known in pins_of(store, full):
            if known.reason == text:
                return known
        store.attest(full, PIN, {"reason": text})
        attestations.append_log(store.layout.log, "pin", digest=full)
    return pins_of(store, full)[-1]


def unpin(store: Store, digest: str) -> list[Pin]:
    """Take every pin of an adapter away and return them; `gc` then counts its time of grace from now.

    Raises:
        NotFoundError: No such object, or it has no pin.
    """
    with store.locked():
        full = store.resolve(digest)
        found = pins_of(store, full)
        if not found:
            raise NotFoundError("no pin to remove", where=full, next_step="`plyfold gc` lists what is pinned")
        attestations.remove_attestations(store.layout.attest, full, PIN)
        attestations.append_log(store.layout.log, "unpin", digest=full)
    return found


def pins_of(store: Store, digest: str) -> list[Pin]:
    """Pins of one adapter, oldest first."""
    return [
        Pin(digest=digest, reason=str(item.payload.get("reason", "")), created=item.created)
        for item in attestations.read_attestations(store.layout.attest, digest)
        if item.kind == PIN
    ]


def pins(store: Store) -> list[Pin]:
    """Every pin of a registry.

    Raises:
        IntegrityError: An attestation cannot be read, so that what is pinned is not known.
    """
    attested = store.layout.attest
    names = sorted(path.name for path in attested.iterdir()) if attested.is_dir() else []
    return [each for name in names for each in pins_of(store, PREFIX + name)]
