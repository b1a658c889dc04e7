"""Signatures of pulled adapters: fetched with them, kept, and required where the user names keys.

Only what was asked for has to be signed: a record names its ancestors by digest, so a signature vouches for them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...trust.signing import check_signatures, verify_signature
from ..places import HubLocation
from ..references import PullContext
from ..remote_lineage import PullItem
from ..sidecars import MAX_COMPANION_BYTES, SIGNATURE_FILE


def fetch_signature(looked: PullContext, place: HubLocation, digest: str) -> bytes | None:
    """The signature that stands beside an adapter: that of the last commit before another adapter followed it.

    Raises:
        IntegrityError: Too large, or not what its commit lists.
    """
    remote = looked.remote
    if place.folder:
        return remote.small_file(place.repo, place.sha, f"{place.folder}/{SIGNATURE_FILE}", MAX_COMPANION_BYTES)
    sha = place.sha
    if sha != remote.head(place.repo):
        sha = remote.last_commit_of(place.repo, digest) or sha
    return remote.small_file(place.repo, sha, SIGNATURE_FILE, MAX_COMPANION_BYTES)


def check_keys(wanted: Sequence[PullItem], public_keys: Sequence[Path]) -> None:
    """Refuse keys that cannot verify anything, before they are needed.

    Raises:
        NotFoundError: No such key, or the extra is not installed.
        ConfigError: Not a public key that can verify.
    """
    for each in wanted[:1] if public_keys else ():
        check_signatures(Path(), each.record, each.digest, [], *public_keys)


def is_signed(looked: PullContext, wanted: PullItem, public_keys: Sequence[Path]) -> bool:
    """Whether an adapter that is held has a good signature here by one of the keys."""
    return wanted.data is None and verify_signature(looked.store, wanted.digest, *public_keys).verdict == "good"


def require_signature(
    wanted: PullItem, signature: bytes | None, public_keys: Sequence[Path], folder: Path | None
) -> None:
    """Refuse an adapter without a good signature by one of the keys; without keys, nothing.

    Args:
        wanted: The adapter.
        signature: What came with it.
        public_keys: PEM files.
        folder: Its files, record included; None looks only whether there is a signature.

    Raises:
        IntegrityError: The signature is missing, or not good.
    """
    if public_keys and not (folder is None and signature):
        signatures = [signature] if signature else []
        check = check_signatures(folder or Path(), wanted.record, wanted.digest, signatures, *public_keys)
        check.require(wanted.place.location or wanted.name)
