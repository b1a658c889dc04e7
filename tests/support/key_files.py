"""Key pairs as people have them: NAME.pem and NAME.pub in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_key(folder: Path, name: str, kind: str = "p256", password: str | None = None) -> None:
    """A new key pair of a `kind`: p256, p384, p521, k1 (secp256k1), ed25519 or rsa; `password` encrypts the private."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "k1": ec.SECP256K1()}
    key: Any
    if kind in curves:
        key = ec.generate_private_key(curves[kind])
    else:
        key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else rsa.generate_private_key(65537, 2048)
    hidden = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
