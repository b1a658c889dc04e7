"""Bundles that are no signature of the adapter they are offered for."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from plyfold.registry.trust.bundle import MAX_SIGNATURE_BYTES


def contents(bundle: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bundle and the statement in it."""
    value = json.loads(bundle)
    return value, json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))


def sealed(value: dict[str, Any], statement: Any) -> bytes:
    payload = base64.b64encode(statement if isinstance(statement, bytes) else json.dumps(statement).encode()).decode()
    return json.dumps({**value, "dsseEnvelope": {**value["dsseEnvelope"], "payload": payload}}).encode()


def bundles(good: bytes) -> dict[str, bytes]:
    """Name -> bytes that are no signature of the adapter `good` signs."""
    value, statement = contents(good)
    envelope, predicate = value["dsseEnvelope"], statement["predicate"]
    first = predicate["resources"][0]

    def outer(**fields: Any) -> bytes:
        return json.dumps({**value, **fields}).encode()

    def inner(**fields: Any) -> bytes:
        return sealed(value, {**statement, **fields})

    def resources(items: list[dict[str, str]]) -> bytes:
        root = hashlib.sha256(b"".join(bytes.fromhex(item["digest"].strip()) for item in items)).hexdigest()
        subject = [{"name": "x", "digest": {"sha256": root}}]
        return inner(subject=subject, predicate={**predicate, "resources": items})

    deep = b"[" * 100_000 + b"]" * 100_000
    return {
        "nothing": b"",
        "not UTF-8": b"\xff\xfe{}",
        "not JSON": b"-----BEGIN PGP SIGNATURE-----",
        "null": b"null",
        "a list": b"[]",
        "a number of 5000 digits": b"1" * 5000,
        "NaN": good.replace(b'"tlogEntries":[]', b'"tlogEntries":[NaN]'),
        "deep": deep,
        "deep inside": good.replace(b'"tlogEntries":[]', b'"tlogEntries":' + deep),
        "40 deep inside": good.replace(b'"tlogEntries":[]', b'"tlogEntries":' + b"[" * 40 + b"]" * 40),
        "payload 40 deep": inner(more=json.loads(b"[" * 40 + b"]" * 40)),
        "an infinite number": good.replace(b'"tlogEntries":[]', b'"tlogEntries":[1e999]'),
        "a lone surrogate": good.replace(b'"tlogEntries":[]', b'"tlogEntries":["\\ud800"]'),
        "too large": good[:-1] + b" " * MAX_SIGNATURE_BYTES + b"}",
        "no envelope": outer(dsseEnvelope=None),
        "a message signature": json.dumps({key: value[key] for key in ("mediaType", "verificationMaterial")}).encode(),
        "another media type": outer(mediaType="application/json"),
        "no material": outer(verificationMaterial=[]),
        "no signature": outer(dsseEnvelope={**envelope, "signatures": []}),
        "two signatures": outer(dsseEnvelope={**envelope, "signatures": envelope["signatures"] * 2}),
        "a signature that is no text": outer(dsseEnvelope={**envelope, "signatures": [{"sig": 5}]}),
        "another payload type": outer(dsseEnvelope={**envelope, "payloadType": "text/plain"}),
        "payload not base64": outer(dsseEnvelope={**envelope, "payload": "%%%"}),
        "payload not ASCII": outer(dsseEnvelope={**envelope, "payload": "é"}),
        "payload not JSON": sealed(value, b"hello"),
        "payload deep": sealed(value, deep),
        "payload a list": sealed(value, []),
        "another statement": inner(_type="https://in-toto.io/Statement/v0.1"),
        "another predicate": inner(predicateType="https://model_signing/Digests/v0.1"),
        "no subject": inner(subject=[]),
        "two subjects": inner(subject=statement["subject"] * 2),
        "another root": inner(subject=[{"name": "x", "digest": {"sha256": "0" * 64}}]),
        "sharded": inner(predicate={**predicate, "serialization": {"method": "shards", "shard_size": 1}}),
        "no files": resources([]),
        "a file less": resources(predicate["resources"][1:]),
        "a file twice": resources([*predicate["resources"], first]),
        "a file more": resources([*predicate["resources"], {**first, "name": "../../etc/passwd"}]),
        "another algorithm": resources([{**first, "algorithm": "blake2b"}, *predicate["resources"][1:]]),
        "a short digest": resources([{**first, "digest": first["digest"][:62]}, *predicate["resources"][1:]]),
        "a digest in capitals": resources([{**first, "digest": first["digest"].upper() + "\n"}]),
        "files are no list": inner(predicate={**predicate, "resources": {"a": 1}}),
    }
