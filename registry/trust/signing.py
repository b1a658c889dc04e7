"""Signatures over an adapter's files: OpenSSF model-signing with local keys.

A signature covers the payload and its record, nothing else, and is kept beside the object as an attestation: the object
itself never changes. Beside the files in a repository it is `model.sig`, which model-signing's own command verifies
without plyfold. Keeping and reading signatures needs no extra; making and checking them needs `plyfold[sign]`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.disk.digest import PREFIX, sha256_file, short
from ...core.errors import IntegrityError, NotFoundError
from ..record import RECORD_FILE, Record
from ..store import Entry, Store
from ..store.objects import find_problems
from .bundle import Bundle, parse_bundle
from .signing_keys import is_encrypted, key_fingerprint, load_public_keys, pem, public_half

SIGNATURE = "signature"
"""Kind of the attestations that hold a signature; payload `{"bundle": "<the JSON of model.sig>", "key": ...}`."""
MAX_SIGNATURES = 8
"""Most signatures that are kept of an adapter while nobody says whose they are."""
BESIDE = (
    "README.md",
    "model.sig",
    "revocations.json",
    "evaluations.json",
    ".eval_results",  # scores
    ".cache",  # what `hf download --local-dir` leaves
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
)
"""What may lie beside an adapter in its repository unsigned; every signature names these, any other file is a fault."""


@dataclass(frozen=True, kw_only=True)
class SignatureCheck:
    """What checking an adapter's signatures against public keys showed."""

    digest: str
    """The adapter."""
    verdict: Literal["good", "missing", "bad"]
    """`good` if any of its signatures is by any of the keys, over exactly its files."""
    key: str = ""
    """`sha256:` of the PEM public key that verified; empty unless good."""
    expected: str = ""
    found: str = ""
    """What is wrong; empty when good."""

    @property
    def good(self) -> bool:
        return self.verdict == "good"

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def require(self, where: object = "") -> None:
        """Refuse an adapter without a good signature.

        Raises:
            IntegrityError: The verdict is not `good`.
        """
        if not self.good:
            missing = self.verdict == "missing"
            raise IntegrityError(
                f"adapter {short(self.digest)} " + ("is not signed" if missing else "has no good signature"),
                where=where or self.digest,
                expected=self.expected,
                found=self.found,
                next_step="name the public key its owner signs with, or ask its owner to `plyfold sign` it",
            )


# ---- without the extra


def signature_of(store: Store, digest: str) -> bytes | None:
    """The newest signature kept for an adapter, as the bytes of its `model.sig`.

    Raises:
        NotFoundError: No such object.
        IntegrityError: What is kept is not readable.
    """
    kept = _kept(store, digest)
    return kept[-1].to_bytes() if kept else None


def signs(store: Store, digest: str, data: bytes, where: object = "") -> bool:
    """Whether a signature is over this adapter's files, whoever made it; one left by an older version is not.

    Raises:
        NotFoundError: No such object.
        IntegrityError: Not a signature this version understands.
    """
    entry = store.read_record(digest)
    return _difference(parse_bundle(data, where), entry.record, entry.digest) is None


def keep_signature(store: Store, digest: str, data: bytes, where: object = "", *, verified: bool = False) -> None:
    """Keep a signature that was fetched; whose it is shows only when it is verified. A known one changes nothing.

    Args:
        store: The registry.
        digest: An object of it.
        data: The bytes of `model.sig`.
        where: Where they came from.
        verified: It is good, by a key that the user names.

    Raises:
        NotFoundError: No such object.
        IntegrityError: Too large, not a signature this version understands, or one over other files; or one of nobody
            knows whom where enough are kept: a repository can have a new one every day.
    """
    entry = store.read_record(digest)
    bundle = parse_bundle(data, where)
    if difference := _difference(bundle, entry.record, entry.digest):
        raise IntegrityError(
            "the signature is of another adapter",
            where=where,
            expected=difference[0],
            found=difference[1],
            next_step="ask the adapter's owner to sign it again with `plyfold sign`",
        )
    kept = _kept(store, entry.digest)
    if bundle in kept:
        return
    if len(kept) >= MAX_SIGNATURES and not verified:
        raise IntegrityError(
            "as many are kept of this adapter as may be",
            where=where,
            expected=f"at most {MAX_SIGNATURES}, or one by a key that is named with --public-key",
            found=f"another one by {bundle.key or 'what is no public key'}",
        )
    _keep(store, entry.digest, bundle)


# ---- with the extra


def sign(store: Store, digest: str, private_key: Path, password: str | None = None) -> bytes:
    """Sign an adapter's files, every byte verified first, and keep the signature beside it.

    Signing again with the same key gives the signature that is there, so that a repository does not change for it.

    Args:
        store: The registry.
        digest: An object of it, or an unambiguous prefix.
        private_key: PEM file of an elliptic-curve key: P-256, P-384 or P-521.
        password: Opens the key if it is encrypted, else not looked at.

    Returns:
        The bytes of `model.sig`.

    Raises:
        NotFoundError: No such object or key, or the extra is not installed.
        ConfigError: Not a private key that can sign.
        AuthError: The key is encrypted and the password missing or wrong.
        IntegrityError: A file of the object is damaged.
    """
    _require_extra()
    public_key = public_half(private_key, password)
    entry = store.load(digest)
    with tempfile.TemporaryDirectory() as folder:
        public = Path(folder) / "signing.pub"
        public.write_bytes(pem(public_key))
        keys = {key_fingerprint(public_key): public}
        kept = _kept(store, entry.digest)
        good = (
            each for each in reversed(kept) if _find_fault(each, entry.path, entry.record, entry.digest, keys) is None
        )
        bundle = next(good, None) or _make(entry, private_key, password, Path(folder) / "model.sig")
    if kept[-1:] != [bundle]:
        _keep(store, entry.digest, bundle)
    return bundle.to_bytes()


def verify_signature(store: Store, digest: str, *public_keys: Path) -> SignatureCheck:
    """Check an adapter's kept signatures: good if any of them is by any of the keys, over exactly its files.

    Raises:
        NotFoundError: No such object or key, or the extra is not installed.
        ConfigError: Not a public key that can verify.
    """
    _require_extra()
    full = store.resolve(digest)
    try:
        entry, signatures = store.read_record(full), [bundle.to_bytes() for bundle in _kept(store, full)]
    except IntegrityError as error:  # the record or what is kept beside it, told like any other changed file
        load_public_keys(public_keys)
        return SignatureCheck(digest=full, verdict="bad", expected=error.expected, found=error.found or error.what)
    return check_signatures(entry.path, entry.record, full, signatures, *public_keys)


def check_signatures(
    folder: Path, record: Record, digest: str, signatures: Sequence[bytes], *public_keys: Path
) -> SignatureCheck:
    """As `verify_signature`, for files that are not in the store yet.

    Args:
        folder: Holds the record and the files it declares, and nothing else.
        record: That record, read.
        digest: Its digest.
        signatures: What came with it, oldest first.
        public_keys: PEM files.

    Raises:
        NotFoundError: No such key, or the extra is not installed.
        ConfigError: Not a public key that can verify.
    """
    _require_extra()
    keys = load_public_keys(public_keys)
    if not signatures:
        return SignatureCheck(digest=digest, verdict="missing", expected=_by(keys), found="no signature")
    faults = []
    for data in reversed(signatures):
        try:
            bundle = parse_bundle(data)
            fault = _find_fault(bundle, folder, record, digest, keys)
        except IntegrityError as error:
            fault = error.expected, error.found
        else:
            if fault is None:
                return SignatureCheck(digest=digest, verdict="good", key=bundle.key)
        faults.append(fault)
    expected, found = faults[0]
    return SignatureCheck(digest=digest, verdict="bad", expected=expected, found=found)


# ---- inside


def _kept(store: Store, digest: str) -> list[Bundle]:
    where = f"attest/{store.resolve(digest).removeprefix(PREFIX)}"
    kept = store.attestations(digest, SIGNATURE)
    return [parse_bundle(str(item.payload.get("bundle", "")).encode(), where) for item in kept]


def _keep(store: Store, digest: str, bundle: Bundle) -> None:
    # As text: base64 that starts with a slash is no local path.
    store.attest(digest, SIGNATURE, {"bundle": bundle.to_bytes().decode(), "key": bundle.key})


def _difference(bundle: Bundle, record: Record, digest: str) -> tuple[str, str] | None:
    """Expected and found of the first file that a signature names otherwise than the record; None when all agree."""
    own = {RECORD_FILE: digest, **{file.path: file.sha256 for file in record.files}}
    signed = bundle.files
    for name in sorted(own.keys() | signed.keys()):
        if own.get(name) != signed.get(name):
            return f"{name} {own.get(name, '(no such file)')}", f"{name} {signed.get(name, 'is not signed')}"
    return None


def _find_fault(
    bundle: Bundle, folder: Path, record: Record, digest: str, keys: Mapping[str, Path]
) -> tuple[str, str] | None:
    """Expected and found of the first thing wrong with one signature; None when it is good."""
    if difference := _difference(bundle, record, digest):
        return difference
    if bundle.key not in keys:
        return _by(keys), f"a signature by {bundle.key or 'what is no public key'}"
    if (found := sha256_file(folder / RECORD_FILE)) != digest:
        return f"{RECORD_FILE} {digest}", f"{RECORD_FILE} {found}"
    if problems := find_problems(folder, record):
        first = problems[0]
        return f"{first.path} {first.expected or '(no such file)'}", f"{first.path} {first.found or first.fault}"
    from model_signing import hashing, verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=keys[bundle.key])
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.sig"
        path.write_bytes(bundle.to_bytes())
        try:
            config.verify(folder, path)
        except Exception:  # hostile bytes meet many parsers in there; whatever one raises, the signature is not good
            return _by([bundle.key]), "one that this key did not make"
    return None


def _make(entry: Entry, private_key: Path, password: str | None, path: Path) -> Bundle:
    from model_signing import hashing, signing

    own = {file.path.split("/")[0] for file in entry.record.files}
    beside = [name for name in BESIDE if name not in own]
    # As text, model-signing 1.1.1 cannot open an encrypted key; as bytes it can.
    secret: Any = password.encode() if password and is_encrypted(private_key) else None
    config = signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=beside, ignore_git_paths=False))
    config.sign(entry.path, path)
    bundle = parse_bundle(path.read_bytes())
    if difference := _difference(bundle, entry.record, entry.digest):
        raise IntegrityError(
            "the files changed while they were signed", where=entry.path, expected=difference[0], found=difference[1]
        )
    return bundle


def _by(keys: Iterable[str]) -> str:
    return f"a signature by {' or '.join(keys)}"


def _require_extra() -> None:
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise NotFoundError(
            "signatures need model-signing, which is not installed",
            expected="the packages of plyfold's extra `sign`",
            found=str(error),
            next_step="pip install 'plyfold[sign]'",
        ) from error
