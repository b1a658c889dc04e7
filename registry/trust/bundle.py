"""The file of a signature: a sigstore bundle of OpenSSF model-signing, read from untrusted bytes without that library.

Source: model-signing 1.1, predicate `https://model_signing/signature/v1.0`; sigstore bundle 0.3; DSSE; in-toto 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.disk.digest import PREFIX, canonical_json
from ...core.errors import IntegrityError
from ...core.reading.strict_json import parse_json
from ..record import first_fault

MAX_SIGNATURE_BYTES = 400_000
"""Largest bundle read: a thousand files in one adapter."""

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _BundleModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Resource(_BundleModel):
    name: str = Field(max_length=255)
    algorithm: Literal["sha256"]
    digest: _Hex


class _Serialization(_BundleModel):
    method: Literal["files"]


class _Predicate(_BundleModel):
    serialization: _Serialization
    resources: list[_Resource] = Field(min_length=1, max_length=10_000)


class _RootDigest(_BundleModel):
    sha256: _Hex


class _Subject(_BundleModel):
    digest: _RootDigest


class _InTotoStatement(_BundleModel):
    """What is signed."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    subject: tuple[_Subject]
    predicate: _Predicate

    @model_validator(mode="after")
    def _check(self) -> Self:
        resources = self.predicate.resources
        if len({item.name for item in resources}) != len(resources):
            raise ValueError("a file is named twice")
        root = hashlib.sha256(b"".join(bytes.fromhex(item.digest) for item in resources)).hexdigest()
        if root != self.subject[0].digest.sha256:
            raise ValueError("the subject is not the digest of the files it names")
        return self


class _Signed(_BundleModel):
    sig: str = Field(pattern=r"^[A-Za-z0-9+/]{8,1000}={0,2}$")
    keyid: Literal[""] = ""


class _Envelope(_BundleModel):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: tuple[_Signed]


class Bundle(_BundleModel):
    """A signature: what it signs, the signature itself, and what it says it verifies with."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    material: dict[str, Any] = Field(alias="verificationMaterial")
    envelope: _Envelope = Field(alias="dsseEnvelope")

    @property
    def files(self) -> dict[str, str]:
        """Name -> `sha256:` digest of the files it says it signs."""
        statement = _InTotoStatement.model_validate(parse_json(base64.b64decode(self.envelope.payload, validate=True)))
        return {item.name: PREFIX + item.digest for item in statement.predicate.resources}

    @property
    def key(self) -> str:
        """`sha256:` of the PEM public key it says it verifies with; empty for certificates and identities."""
        named = self.material.get("publicKey")
        hint = named.get("hint") if isinstance(named, dict) else None
        return PREFIX + hint if isinstance(hint, str) and re.fullmatch(r"[0-9a-f]{64}", hint) else ""

    def to_bytes(self) -> bytes:
        """Canonical JSON of the parts that are read, which model-signing reads too."""
        return canonical_json(self.model_dump(by_alias=True))


def parse_bundle(data: bytes, where: object = "") -> Bundle:
    """Read a signature from untrusted bytes; nothing is said of whether it is good.

    Raises:
        IntegrityError: Too large, not JSON, or not a signature this version understands.
    """
    try:
        bundle = Bundle.model_validate(parse_json(data, max_bytes=MAX_SIGNATURE_BYTES))
        if bundle.files and len(bundle.to_bytes()) > MAX_SIGNATURE_BYTES:
            raise ValueError(f"more than {MAX_SIGNATURE_BYTES:,} bytes")
        return bundle
    except ValueError as error:
        raise IntegrityError(
            "not a signature this version understands",
            where=where,
            expected="a bundle of model-signing 1 over the sha256 of every file",
            found=first_fault(error),
            next_step="ask the adapter's owner to sign it again with `plyfold sign`",
        ) from error
