"""Key files for signing: read, checked, named by their fingerprint. No key and no password gets into a message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.disk.digest import PREFIX
from ...core.errors import AuthError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""What model-signing takes, by their names in certificates and elsewhere."""
MAKE_PRIVATE = "make one: openssl ecparam -genkey -name prime256v1 -noout -out signing.pem"
MAKE_PUBLIC = "write it from the private key: openssl ec -in signing.pem -pubout -out signing.pub"
MAX_KEY_BYTES = 100_000


def is_encrypted(private_key: Path) -> bool:
    """Whether a key file asks for a password.

    Raises:
        NotFoundError: No such file.
        ConfigError: Not readable, or far too large for a key.
    """
    return _is_encrypted(_read(private_key, MAKE_PRIVATE))


def public_half(private_key: Path, password: str | None) -> EllipticCurvePublicKey:
    """The public key of a private key that can sign; see `private_half`."""
    return private_half(private_key, password).public_key()


def private_half(private_key: Path, password: str | None) -> EllipticCurvePrivateKey:
    """A private key that can sign.

    Args:
        private_key: PEM file.
        password: Opens it if it is encrypted, else not looked at.

    Raises:
        NotFoundError: No such file.
        ConfigError: Not a private key that can sign.
        AuthError: It is encrypted and the password missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(private_key, MAKE_PRIVATE)
    encrypted = _is_encrypted(data)
    if encrypted and not password:
        raise AuthError(
            "the signing key is encrypted, and no password was given",
            where=private_key,
            next_step="set PLYFOLD_SIGNING_PASSWORD, or run this on a terminal, where it is asked for",
        )
    try:
        key: Any = load_pem_private_key(data, password.encode() if password and encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise AuthError(
                "the password does not open the signing key",
                where=private_key,
                expected="the password it was encrypted with",
                next_step="set PLYFOLD_SIGNING_PASSWORD to it, or unset that and type it on a terminal",
            ) from error
        public = b"PUBLIC KEY-----" in data
        raise ConfigError(
            "not a private key",
            where=private_key,
            expected="a PEM file of an elliptic-curve private key",
            found="a public key" if public else "no private key in it",
            next_step="name the private key it belongs to" if public else MAKE_PRIVATE,
        ) from error
    _on_known_curve(key.public_key(), private_key, MAKE_PRIVATE)
    private: EllipticCurvePrivateKey = key
    return private


def load_public_keys(paths: Iterable[Path]) -> dict[str, Path]:
    """Fingerprint -> file, every file read and checked.

    Raises:
        NotFoundError: No such file.
        ConfigError: Not a public key that can verify, or no path at all.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for path in paths:
        data = _read(path, MAKE_PUBLIC)
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            private = b"PRIVATE KEY-----" in data
            raise ConfigError(
                "not a public key",
                where=path,
                expected="a PEM file of an elliptic-curve public key",
                found="a private key: keep it to yourself" if private else "no public key in it",
                next_step=f"openssl ec -in {path.name} -pubout -out signing.pub" if private else MAKE_PUBLIC,
            ) from error
        keys[key_fingerprint(_on_known_curve(key, path, MAKE_PUBLIC))] = path
    if not keys:
        raise ConfigError("no public key to verify with", next_step="name one or more with --public-key PEM")
    return keys


def key_fingerprint(public_key: EllipticCurvePublicKey) -> str:
    """`sha256:` of a public key's PEM: what `sha256sum signing.pub` prints."""
    return PREFIX + hashlib.sha256(pem(public_key)).hexdigest()


def pem(public_key: EllipticCurvePublicKey) -> bytes:
    """A public key as the bytes of its file."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _on_known_curve(key: Any, path: Path, make: str) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        curve = isinstance(key, EllipticCurvePublicKey)
        raise ConfigError(
            "a key of a kind that model-signing does not take",
            where=path,
            expected=f"an elliptic-curve key on {', '.join(CURVES.values())}",
            found=f"curve {key.curve.name}" if curve else type(key).__name__.removesuffix("PublicKey"),
            next_step=make,
        )
    return key


def _is_encrypted(data: bytes) -> bool:
    return b"ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data


def _read(path: Path, make: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError("no such key file", where=path, next_step=make) from error
    except OSError as error:
        raise ConfigError("the key file cannot be read", where=path, found=error.strerror or "") from error
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError("not a key file", where=path, expected=f"at most {MAX_KEY_BYTES:,} bytes", next_step=make)
    return data
