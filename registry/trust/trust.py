"""Who made a statement, and whose statements may lift or replace something.

A statement may carry a signature by a key that signs adapters, over its canonical JSON, which names the adapter by its
digest. Whoever can write to a repository may add caution, signed or not. What lifts a revocation, or takes the place of
a score, is believed as far as its signature goes: where the user names keys, or named them when the adapter was pulled,
only statements by these keys count; without any, a revocation that is signed is taken back by its signer alone.

Source: DSSE 1.0 for what is signed (github.com/secure-systems-lab/dsse); curves and hashes as model-signing 1.1.
"""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...core.disk.digest import canonical_json, sha256_bytes
from ...core.errors import ConfigError, NotFoundError
from ..store import Store
from ..store.attestations import Attestation
from .signing_keys import key_fingerprint, load_public_keys, pem, private_half

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

PUBLIC_KEY_VARIABLE = "PLYFOLD_PUBLIC_KEY"
PAYLOAD_TYPE = "application/vnd.plyfold.statement+json"
NAMED_KEYS = "named-keys"
"""Kind of the attestation that holds the keys that were named when an adapter was pulled; it never travels."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """A key to sign with."""

    key: Path
    """PEM file of an elliptic-curve private key."""
    password: str | None = None


class Signature(BaseModel):
    """A signature over a statement, and the public key it verifies with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(
        max_length=500, pattern=r"^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\n$"
    )
    """PEM, as its file holds it."""
    sig: str = Field(pattern=r"^[A-Za-z0-9+/]{8,250}={0,2}$")

    @property
    def claimed(self) -> str:
        """`sha256:` of the public key's file: whose signature it says it is."""
        return sha256_bytes(self.key.encode())


def sign_bytes(body: bytes, signer: Signer) -> Signature:
    """Sign a statement's canonical JSON.

    Raises:
        NotFoundError: No such key, or the extra is not installed.
        ConfigError: Not a private key that can sign.
        AuthError: The key is encrypted and the password missing or wrong.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    key = private_half(signer.key, signer.password)
    public = key.public_key()
    sig = key.sign(_envelope(body), ECDSA(_hash_of(public.curve.name)))
    return Signature(key=pem(public).decode(), sig=base64.b64encode(sig).decode())


@functools.lru_cache(maxsize=4096)
def signer_of(body: bytes, signature: Signature) -> str | None:
    """`sha256:` of the key that signed these bytes; None where it did not, or this cannot be checked here."""
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        return None
    try:
        key = load_pem_public_key(signature.key.encode())
        if not isinstance(key, EllipticCurvePublicKey) or key_fingerprint(key) != signature.claimed:
            return None
        key.verify(base64.b64decode(signature.sig, validate=True), _envelope(body), ECDSA(_hash_of(key.curve.name)))
    except (ValueError, KeyError, InvalidSignature, UnsupportedAlgorithm):
        return None
    return signature.claimed


def can_verify() -> bool:
    """Is what checks signatures of statements installed?"""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return False
    return True


class Trust:
    """The keys whose statements lift and replace.

    Args:
        public_keys: PEM files; None, or none, takes those that PLYFOLD_PUBLIC_KEY names.

    Raises:
        ConfigError: The variable is set, and empty.
    """

    def __init__(self, public_keys: Iterable[Path] | None = None) -> None:
        self._paths = tuple(public_keys or ()) or environment_keys()

    @cached_property
    def named(self) -> frozenset[str]:
        """Fingerprints of the keys that are named now.

        Raises:
            ConfigError: A file holds no public key.
            NotFoundError: No such file, or the extra is not installed.
        """
        if not self._paths:
            return frozenset()
        _require_cryptography()
        return frozenset(load_public_keys(self._paths))

    def keys(self, store: Store, digest: str) -> frozenset[str]:
        """Fingerprints of the keys that count for an adapter: those named now, else those named when it was pulled."""
        return self.named or named_before(store.attestations_of(digest))

    def vouches(self, item: Attestation) -> bool:
        """Was this said or measured here, or did a key that is named now sign it?"""
        return item.own or (bool(self.named) and attested_by(item) in self.named)

    def believes(self, item: Attestation) -> bool:
        """As `vouches`; where no key is named, whatever was said."""
        return not self.named or self.vouches(item)


def attested_by(item: Attestation) -> str | None:
    """`sha256:` of the key that signed what was attested; None where none did, or it cannot be checked here."""
    try:
        signature = Signature.model_validate(item.signature)
    except ValidationError:
        return None
    if item.verified:
        return signature.claimed
    body = {"digest": item.digest, "kind": item.kind, "created": item.created, "payload": item.payload}
    return signer_of(canonical_json(body), signature)


def named_before(said: Iterable[Attestation]) -> frozenset[str]:
    """The keys that were named when an adapter was last pulled with any, among what is attested about it."""
    kept = [item.payload.get("keys") for item in said if item.kind == NAMED_KEYS and item.own]
    keys = kept[-1] if kept else []
    return frozenset(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else frozenset()


def lifts(withdrawers: Collection[str | None], claimed: Collection[str], keys: Collection[str]) -> bool:
    """Is a revocation taken back?

    Args:
        withdrawers: Who signed the withdrawals that name it; None where nobody did, or it is not known.
        claimed: Who is said to have signed it, in each copy of it; empty where nobody is.
        keys: Those that count; none means that nobody named any.
    """
    if keys:
        return any(key in keys for key in withdrawers)
    return bool(withdrawers) and all(key in withdrawers for key in claimed if key)


def environment_keys() -> tuple[Path, ...]:
    """The files that PLYFOLD_PUBLIC_KEY names.

    Raises:
        ConfigError: It is set, and names no file, or an empty one among them.
    """
    text = os.environ.get(PUBLIC_KEY_VARIABLE)
    return () if text is None else key_files(text.split(os.pathsep), PUBLIC_KEY_VARIABLE)


def key_files(names: Iterable[str], where: str) -> tuple[Path, ...]:
    """Names of key files as paths.

    Raises:
        ConfigError: One is empty: as an unset variable in a script gives it, which must not mean that any key will do.
    """
    given = list(names)
    if any(not name.strip() for name in given):
        raise ConfigError(
            "an empty name of a public key",
            where=where,
            expected=f"a PEM file, several with {os.pathsep} between in {PUBLIC_KEY_VARIABLE}",
            found="nothing" if len(given) == 1 else os.pathsep.join(given),
            next_step=f"name the file, or take no key at all: unset {PUBLIC_KEY_VARIABLE}",
        )
    return tuple(Path(name) for name in given)


def _envelope(body: bytes) -> bytes:
    """DSSE's pre-authentication encoding: a signature over a statement is one over nothing else."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def _hash_of(curve: str) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    if curve == "secp256r1":
        return hashes.SHA256()
    return {"secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}[curve]


def _require_cryptography() -> None:
    if not can_verify():
        raise NotFoundError(
            "signatures of statements need the package cryptography, which is not installed",
            expected="the packages of plyfold's extra `sign`",
            next_step="pip install 'plyfold[sign]'",
        )
