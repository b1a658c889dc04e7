"""The record beside an adapter: what it is, what it came from and which bytes belong to it.

A record is written once, as canonical JSON in `lineage.json`; the sha256 of those bytes is the adapter's identity.
Parents are named by that digest, so a record is a node of a Merkle DAG: changing any ancestor changes every name
below it. What is learnt later (scores, locations) is attested beside the object and never enters the record.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from ..core.config import CURRICULUM_NAME, MAX_STAGE, STAGE_NAME
from ..core.disk.digest import canonical_json, sha256_bytes
from ..core.disk.files import read_capped
from ..core.environment import EnvironmentText
from ..core.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from ..data.dataset import LoadReport

SCORED = "scored"
"""Key of a recipe's details: the rows a stage was to be scored on, as `DataRef` names rows."""
RECORD_FILE = "lineage.json"
RECORD_SCHEMA = "plyfold/adapter-record/1"
MAX_RECORD_BYTES = 1_000_000
"""Largest record read or written; a bigger file is not a record."""

UTC_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
_LOCAL_PATH = re.compile(r"(?:/(?!/)\S|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\\w|file:/)")
_SUSPECT = ('"/', ":/", "~", "\\", "NaN", "Infinity")
"""One of them is in the JSON text of whatever `check_portable` refuses, and of some that it does not."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
RepoId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=200)]


class _RecordModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class _PlainJson:
    """Takes values that came out of JSON as they are; pydantic would look at each of them again, in Python."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())
        return core_schema.json_or_python_schema(
            json_schema=plain,
            python_schema=handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(dict, return_schema=plain),
        )


_JsonObject = Annotated[dict[str, JsonValue], _PlainJson]


class StageId(_RecordModel):
    """Which stage of its curriculum an adapter is."""

    number: int = Field(ge=1, le=MAX_STAGE)
    name: str = Field(pattern=STAGE_NAME)


class BaseRecord(_RecordModel):
    """The frozen base an adapter belongs to."""

    repo: RepoId
    """Hub id; never a local path."""
    revision: Commit
    """Commit of the base, or the 40-hex digest of its files where it has none."""
    quantisation: dict[str, str | int | bool] | None = None
    """How the base was quantised while training (`compute_dtype`, `double_quant`, `quant_type`, `blocksize`)."""
    config_digest: Digest | None = None
    tokenizer_digest: Digest | None = None
    weights_digest: Digest | None = None
    """Of the base's weights, as `adapters.base_digest` takes it; left out of records that do not say it."""

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Records made before the field was there keep their spelling, and so their digest.
        fields: dict[str, Any] = dump(self)
        if fields.get("weights_digest", "") is None:
            del fields["weights_digest"]
        return fields


class Parent(_RecordModel):
    """An adapter this one came from."""

    role: Literal["active_during_training", "merged_into_base", "warm_start", "merge_input", "teacher"]
    digest: Digest
    scale: float = 1.0
    """Weight the parent had, dimensionless."""


class Recipe(_RecordModel):
    """How the adapter was made."""

    config: _JsonObject = Field(default_factory=dict)
    """Resolved configuration, portable (see `portable`)."""
    config_digest: Digest | None = None
    """Digest of the part of the configuration that decides this stage's weights; compared for staleness."""
    seed: int = 0
    steps: int = Field(default=0, ge=0)
    details: _JsonObject = Field(default_factory=dict)
    """What else is worth keeping: tokens, wall_s, method, weights, device."""


class DataRef(_RecordModel):
    """Rows an adapter was trained on."""

    id: str = Field(min_length=1)
    """Hub dataset id, `sandbox`, or a file's name."""
    revision: str | None = None
    split: str = "train"
    rows: int = Field(ge=0)
    sha256: Digest
    """Digest of the rows as used."""

    @classmethod
    def of(cls, report: LoadReport) -> DataRef:
        """The usable rows of a dataset that was read."""
        return cls(
            id=report.source, revision=report.revision, split=report.split, rows=report.parsed, sha256=report.sha256
        )


class Code(_RecordModel):
    """The program that made the adapter."""

    version: str
    git: str | None = None
    dirty: bool | None = None


class Metric(_RecordModel):
    """One measured number."""

    name: str = Field(min_length=1)
    """`accuracy` (fraction), `tokens` (mean number), ..."""
    value: float
    n: int | None = Field(default=None, ge=0)
    """Number of problems behind it."""
    ci95: tuple[float, float] | None = None
    """95 % interval, low then high."""
    protocol: str | None = None
    """Name of the protocol it was measured with."""


class Weights(_RecordModel):
    """The tensors of the adapter."""

    digest: Digest
    """Digest over sorted (name, dtype, shape, bytes): equal tensors, however packaged."""
    dtype: str
    r: int = Field(ge=1)
    alpha: float
    targets: list[str]


class FileEntry(_RecordModel):
    """One payload file of the adapter folder."""

    path: str
    """Relative POSIX path inside the folder."""
    size: int = Field(ge=0, le=2**53)
    """Bytes."""
    sha256: Digest

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        check_file_name(path)
        return path


class Record(_RecordModel):
    """Everything `lineage.json` says."""

    schema_: Literal["plyfold/adapter-record/1"] = Field(default="plyfold/adapter-record/1", alias="schema")
    kind: Literal["stage", "merge", "foreign"]
    curriculum: str = Field(pattern=CURRICULUM_NAME)
    stage: StageId | None = None
    """Set for stages, absent for merges."""
    base: BaseRecord
    parents: list[Parent] = Field(default_factory=list)
    requires: list[Digest] = Field(default_factory=list)
    """Adapters that must be composed with this one for it to mean what was measured."""
    recipe: Recipe = Field(default_factory=Recipe)
    data: list[DataRef] = Field(default_factory=list)
    code: Code
    env: dict[str, str] = Field(default_factory=dict)
    """Versions of what it ran on: python, torch, peft, device."""
    metrics: list[Metric] = Field(default_factory=list)
    weights: Weights
    files: list[FileEntry] = Field(default_factory=list)
    """Payload files; `Store.publish` fills it."""
    licence: str = "other"
    created: str = Field(default_factory=lambda: utc_now(), pattern=UTC_TIME)
    """UTC, to the second; a merge has that of its newest input, so that it is the same adapter wherever it is made."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "stage") != (self.stage is not None) and self.kind != "foreign":
            raise ValueError(f"a record of kind {self.kind} {'needs' if self.kind == 'stage' else 'has no'} stage")
        _check_names([entry.path for entry in self.files])
        text = self.model_dump_json(by_alias=True)
        if any(part in text for part in _SUSPECT):  # else no walk, which would take most of the time of a record
            check_portable(self.model_dump(mode="json", by_alias=True))
        return self

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    def to_bytes(self) -> bytes:
        """Canonical JSON, as stored."""
        return canonical_json(self.to_json())

    def digest(self) -> str:
        """Identity: sha256 of the canonical record."""
        return sha256_bytes(self.to_bytes())

    @property
    def above(self) -> list[str]:
        """Digests of all it came from or requires, each once."""
        return list(dict.fromkeys([*(parent.digest for parent in self.parents), *self.requires]))

    @property
    def label(self) -> str:
        """Short name for people: `1 structure`, `merge`, `foreign`."""
        return f"{self.stage.number} {self.stage.name}" if self.stage else self.kind


def parse_record(data: bytes, where: object = "") -> Record:
    """Read a record from untrusted bytes.

    Raises:
        IntegrityError: Too large, not canonical JSON, or not a record.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise IntegrityError(
            "the record is too large",
            where=where,
            expected=f"at most {MAX_RECORD_BYTES:,} bytes",
            found=f"{len(data):,} bytes or more",
            next_step="fetch the adapter again",
        )
    try:
        record = Record.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise IntegrityError(
            "not an adapter record this version understands",
            where=where,
            expected=f"schema {RECORD_SCHEMA}",
            found=first_fault(error),
            next_step="fetch or publish the adapter again; a newer plyfold may read newer records",
        ) from error
    if not _spells(record, data):
        raise IntegrityError(
            "the record is not spelt as records are, so another program may read it otherwise",
            where=where,
            expected="canonical JSON: every field, once, in the order of the names, without spaces",
            next_step="fetch or publish the adapter again",
        )
    return record


def _spells(record: Record, data: bytes) -> bool:
    """Are these the only bytes that mean this record? Of a name given twice, some readers take the first value."""
    try:
        return record.to_bytes() == data
    except ValueError:  # a number of thousands of digits
        return False


def first_fault(error: Exception) -> str:
    """What is wrong with untrusted JSON, in a line: for a `ValidationError` the first field at fault and why."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"[:120]
    first = error.errors(include_url=False, include_input=False)[0]
    field, fault = ".".join(str(part) for part in first["loc"])[:200], first["msg"][:500]
    return f"{field}: {fault}" if field else fault


def read_record_bytes(path: Path) -> bytes:
    """Bytes of a record file, never more than the cap plus one.

    Raises:
        OSError: There is none, or it is no plain file.
    """
    return read_capped(path, MAX_RECORD_BYTES)


def utc_now() -> str:
    """The time, as records write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_file_name(path: str) -> None:
    """Refuse a payload name that could leave its folder or hide in it.

    Raises:
        ConfigError: Absolute, `..`, empty, too long, a backslash, what cannot be seen, or the record's own name.
    """
    parts = path.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or not path.isprintable() or re.search(r"[\\:]", path)
    too_long = len(path) > 255 or any(len(part.encode()) > 255 for part in parts)
    if bad or too_long or parts[0].casefold() == RECORD_FILE:
        raise ConfigError(
            "not a name for a payload file",
            found=ascii(path[:100]),
            expected="a relative path inside the adapter folder",
        )


def _check_names(paths: Sequence[str]) -> None:
    """Refuse a file list that not every folder can hold.

    Raises:
        ValueError: A name twice, or twice where upper and lower case or spellings of a letter are the same, or as a
            file and as a folder.
    """
    alike = {unicodedata.normalize("NFC", path).casefold() for path in paths}
    if len(alike) != len(paths):
        raise ValueError("a payload file is listed twice")
    folders = {path[:at] for path in alike for at, sign in enumerate(path) if sign == "/"}
    if folders & alike:
        raise ValueError("a payload file is listed as a folder, too")


def check_portable(value: object) -> None:
    """Refuse what means something only on this machine, or is no JSON number.

    Raises:
        ConfigError: A local absolute path, a NaN or an infinity, named by its place in `value`.
    """
    for place, leaf in _leaves(value):
        if isinstance(leaf, str) and _LOCAL_PATH.match(leaf):
            raise ConfigError(
                "a record cannot hold a local path",
                where=place,
                found=leaf,
                expected="a Hub id, a relative path or a file's name",
            )
        if isinstance(leaf, float) and (leaf != leaf or leaf in (float("inf"), float("-inf"))):
            raise ConfigError("a record cannot hold NaN or infinity", where=place, found=leaf)


def portable(value: Any) -> Any:
    """A copy of `value` in which every local absolute path is cut to its last part, as records need it.

    So is what was read from the environment, which stays as it is spelt.
    """
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if isinstance(value, EnvironmentText):
        return value.last
    if isinstance(value, Path) or (isinstance(value, str) and _LOCAL_PATH.match(value)):
        text = str(value).replace("\\", "/").rstrip("/")
        return text.rsplit("/", 1)[-1] if _LOCAL_PATH.match(str(value)) else text
    return value


def _leaves(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{place}.{key}" if place else "a key", key
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    else:
        yield place, value
