"""What a store learns over time: names, its log, statements about objects, where bases and rows lie on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from ...core.config import STAGE_NAME
from ...core.console import printable, warn
from ...core.disk.digest import PREFIX, canonical_json, digest_json, sha256_bytes, short
from ...core.disk.files import expanded, read_capped, write_bytes, write_json
from ...core.disk.links import open_own
from ...core.environment import VARIABLE, EnvironmentText, meaning, value_of
from ...core.errors import ConfigError, IntegrityError
from ...core.reading import strict_json
from ..record import MAX_RECORD_BYTES, check_portable, utc_now

_SPELT = "spelt"
"""Bases whose folder a variable of the environment names -> digest of its path, and how a config spells it."""
_ROWS = "rows"
"""Digests of rows -> the file they were last read from."""
MAX_ROWS_PLACES = 100
"""Rows of which that is remembered."""
LOCATION = "location"
"""Kind of the attestation that says where an object lies; payload `{"location": "hf://org/repo@commit[/folder]"}`."""
TRAVELLING_FILE = "statements.json"
"""In the folder of what is attested about an object: all that travels, in one file."""
MAX_LOG_BYTES = 64_000_000
"""Largest log that is read; an event takes 200."""
SEEN_FILE = "seen.json"
"""What was seen of repositories on the Hub."""
_TRAVELLING_ALONE = re.compile(r"(?:revoked|withdrawn|eval)-[0-9a-f]{16}\.json")
"""Names of what travels in older registries: a file for each."""


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """Something learnt about an object after it was made."""

    digest: str
    """The object it speaks of."""
    kind: str
    """`eval` for measured metrics, or another word."""
    created: str
    """UTC, to the second."""
    payload: dict[str, Any]
    own: bool = True
    """Said or measured here; of what came over the Hub, and of what an older registry does not tell apart, False."""
    travels: bool = False
    """It goes to the Hub beside the object, or came from there."""
    signature: dict[str, Any] | None = None
    """Of what travels: who signed it, unchecked."""
    verified: bool = False
    """Its signature was verified when it was kept, and its file is what was written then."""

    @property
    def heard(self) -> bool:
        """Whether it came from elsewhere and was kept; else it was made here."""
        return not self.own

    def to_json(self) -> dict[str, Any]:
        value = {"digest": self.digest, "kind": self.kind, "created": self.created, "payload": self.payload}
        return value | ({"signature": self.signature} if self.signature else {})


def write_attestation(folder: Path, digest: str, kind: str, payload: Mapping[str, Any]) -> Path:
    """Write one statement about `digest` into `folder`.

    Raises:
        ConfigError: An unfit kind, a local path, NaN or infinity, or more than a record may hold.
    """
    if not re.fullmatch(STAGE_NAME, kind):
        raise ConfigError("not a kind of attestation", found=kind, expected="a letter, then a-z, 0-9 and dashes")
    check_portable(payload)
    value = {"schema": 1, "digest": digest, "kind": kind, "created": utc_now(), "payload": dict(payload)}
    if len(canonical_json(value)) > MAX_RECORD_BYTES:
        raise ConfigError("the attestation is too large", expected=f"at most {MAX_RECORD_BYTES:,} bytes")
    path = folder / digest.removeprefix(PREFIX) / f"{short(digest_json(value), 16)}.json"
    write_json(path, value)
    return path


def read_attestations(folder: Path, digest: str) -> list[Attestation]:
    """All statements about `digest`, oldest first.

    Raises:
        IntegrityError: One of them is not readable, or speaks of another object.
    """
    found: list[tuple[tuple[str, int, str, int], Attestation]] = []
    for path in _statement_files(folder / digest.removeprefix(PREFIX)):
        data = _read(path)
        value = _object(data, path)
        together = path.name == TRAVELLING_FILE
        travels = together or bool(_TRAVELLING_ALONE.fullmatch(path.name))
        sealed = together and _is_sealed(data)
        place = path.stat().st_mtime_ns, path.name
        try:
            for row in value["statements"] if together else [value]:
                statement = Attestation(
                    digest=value["digest"],
                    kind=str(row["kind"]),
                    created=str(row["created"]),
                    payload=row["payload"],
                    own=row.get("own") is True if together else not travels,
                    travels=travels,
                    signature=row.get("signature") if together else None,
                    verified=sealed and row.get("verified") is True,
                )
                if statement.digest != digest or not isinstance(statement.payload, dict):
                    raise ValueError("another object")
                found.append(((statement.created, *place, len(found)), statement))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise IntegrityError("not an attestation of its object", where=path, next_step="remove it") from error
    return [statement for _, statement in sorted(found, key=itemgetter(0))]


def write_together(path: Path, digest: str, attested: Collection[Attestation]) -> None:
    """Write all that travels of one object as its one file; the caller holds the store's lock.

    A digest of the file stands at its end where signatures are marked as verified, so that what was changed in it by
    hand or by accident is verified again. It is no secret: whoever may write here could as well take a revocation out,
    or call a score one that was measured here.
    """
    rows = [
        {key: value for key, value in item.to_json().items() if key != "digest"}
        | ({"own": True} if item.own else {})
        | ({"verified": True} if item.verified else {})
        for item in attested
    ]
    data = canonical_json({"schema": 2, "digest": digest, "statements": rows})
    if any(item.verified for item in attested):
        data = b'%s,"verified":"%s"}' % (data[:-1], sha256_bytes(data).encode())
    write_bytes(path, data + b"\n")


def _is_sealed(data: bytes) -> bool:
    start, _, seal = data.rpartition(b',"verified":"')
    return seal == b'%s"}\n' % sha256_bytes(start + b"}").encode() if b'"verified":true' in start else False


def travelling_alone(folder: Path, digest: str) -> list[Path]:
    """Files of an older registry that hold one travelling statement each."""
    files = _statement_files(folder / digest.removeprefix(PREFIX))
    return [path for path in files if _TRAVELLING_ALONE.fullmatch(path.name)]


def prune_attestations(folder: Path, digest: str, kind: str, max_kept: int) -> None:
    """Remove the oldest statements of one kind about `digest`, of what is attested here, beyond a number."""
    found = []
    for path in _statement_files(folder / digest.removeprefix(PREFIX)):
        value = read_store_json(path)
        if value.get("kind") == kind:
            found.append((str(value.get("created")), path.stat().st_mtime_ns, path))
    for _, _, path in sorted(found)[: max(0, len(found) - max_kept)]:
        path.unlink(missing_ok=True)


def remove_attestations(folder: Path, digest: str, kind: str) -> None:
    """Take back statements of one kind about `digest` that never left this machine."""
    for path in _statement_files(folder / digest.removeprefix(PREFIX)):
        if read_store_json(path).get("kind") == kind:
            path.unlink(missing_ok=True)


def _statement_files(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)  # a glob takes as long as reading the statements
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if name.endswith(".json") and not name.startswith(".")]


def read_ref(path: Path) -> str | None:
    """The digest a ref is at, or None where there is no such ref.

    Raises:
        IntegrityError: The file is not a digest.
    """
    try:
        text = read_capped(path, 100).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        text = error.strerror or str(error)
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise IntegrityError(
            "a ref is not a digest", where=path, found=text[:80], next_step="remove that file and train again"
        )
    return text


def append_log(path: Path, event: str, **fields: object) -> None:
    """Append one line, on disk before this returns; the caller holds the store's lock.

    A line that does not fit on the disk is taken back, and a line torn by a crash is closed first.
    """
    line = canonical_json({"time": utc_now(), "event": event, **fields}) + b"\n"
    descriptor = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    if os.fstat(descriptor).st_nlink > 1:  # the same file under another name, whose bytes are not this log's
        os.close(descriptor)
        write_bytes(path, path.read_bytes())
        descriptor = open_own(path, os.O_RDWR | os.O_APPEND)
    with os.fdopen(descriptor, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The log's events, oldest first; a line torn by a crash, or longer than any record, is left out.

    Raises:
        IntegrityError: No plain file, or one that is too large for a log.
    """
    try:
        descriptor = open_own(path)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "rb") as file:
        if (size := os.fstat(descriptor).st_size) > MAX_LOG_BYTES:
            raise IntegrityError(
                "the registry's log is too large to be read",
                where=path,
                expected=f"at most {MAX_LOG_BYTES:,} bytes",
                found=f"{size:,} bytes",
                next_step="move it aside; a new one is begun, and what was published or named before is as old as "
                "its files",
            )
        whole = True
        for line in iter(lambda: file.readline(MAX_RECORD_BYTES), b""):
            begins, whole = whole, line.endswith(b"\n")
            if not begins or (not whole and len(line) == MAX_RECORD_BYTES):
                continue
            yield from strict_json.parse_lines(line.rstrip(b"\n"))


def write_location(path: Path, repo: str, revision: str, base: Path, spelling: str | None = None) -> None:
    """Note where a base lies; the caller holds the store's lock.

    Args:
        path: The file of locations.
        repo: Of the base.
        revision: Of the base.
        base: Its folder.
        spelling: How a config has that folder where its environment names it. Then this is noted, with a digest of the
            folder's path: the variable is looked at again, and counts only if it still leads there.
    """
    name = f"{repo}@{revision}"
    bases, spelt = _bases(path), _bases(path, _SPELT)
    for known in (bases, spelt):
        known.pop(name, None)
    if spelling is None:
        bases[name] = str(expanded(base).resolve())
    else:
        spelt[name] = f"{sha256_bytes(_meant(spelling).encode())} {spelling}"
    _write_places(path, {"bases": bases, _SPELT: spelt})


def read_location(path: Path, repo: str, revision: str) -> Path | None:
    """Where a base was last seen, if it is still there."""
    name = f"{repo}@{revision}"
    value = _bases(path).get(name)
    try:
        if noted := _bases(path, _SPELT).get(name):
            digest, _, spelling = noted.partition(" ")
            value = _meant(spelling)
            # Not even looked for elsewhere: whoever wrote the file would learn of this environment.
            if sha256_bytes(value.encode()) != digest:
                warn(f"the base {name} was at {printable(spelling[:200])}, which is not set or leads elsewhere now")
                return None
            value = meaning(EnvironmentText(spelling, value))
        return Path(value) if value and Path(value).is_dir() else None
    except (OSError, ValueError, RuntimeError):  # not a path any system takes
        return None


def _meant(spelling: str) -> str:
    """The path that a spelling comes to in this environment, without a look at the disk."""
    return str(expanded(VARIABLE.sub(value_of, spelling)).absolute())


def write_rows_place(path: Path, sha256: str, file: Path) -> None:
    """Note in which file rows of a digest lie; the caller holds the store's lock."""
    others = {name: place for name, place in _bases(path, _ROWS).items() if name != sha256}
    kept = dict(list(others.items())[1 - MAX_ROWS_PLACES :])
    _write_places(path, {_ROWS: kept | {sha256: str(expanded(file).resolve())}})


def read_rows_place(path: Path, sha256: str) -> Path | None:
    """The file that rows of a digest were last read from, be it there or not."""
    value = _bases(path, _ROWS).get(sha256)
    return Path(value) if value else None


def _write_places(path: Path, changed: dict[str, dict[str, str]]) -> None:
    known = {key: _bases(path, key) for key in ("bases", _SPELT, _ROWS)} | changed
    write_json(path, {key: places for key, places in known.items() if places or key == "bases"}, mode=0o600)


def _bases(path: Path, key: str = "bases") -> dict[str, str]:
    value = read_store_json(path).get(key, {}) if path.exists() else {}
    if not isinstance(value, dict) or not all(isinstance(base, str) for base in value.values()):
        raise IntegrityError("not a file of this registry", where=path, next_step="remove it")
    return value


def read_store_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the store, never more than a record's cap.

    Raises:
        IntegrityError: Too large, not JSON, not an object, or no plain file.
    """
    return _object(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return read_capped(path, MAX_RECORD_BYTES)
    except (OSError, ValueError) as error:
        raise _no_file_of_ours(path, error) from error


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = strict_json.parse_json(data, max_bytes=MAX_RECORD_BYTES)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise _no_file_of_ours(path, error) from error
    return value


def _no_file_of_ours(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError("not a file of this registry", where=path, found=str(error)[:200], next_step="remove it")
