"""Records of a data file, or of a folder or Hub dataset as the `datasets` library reads it: objects with named columns.

Knows nothing about which columns mean what.
"""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

from ..core.config import DataConfig
from ..core.environment import EnvironmentText, meaning
from ..core.errors import ConfigError, IntegrityError, NotFoundError, OfflineError, first_line

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Of the files that are read."""
_OTHER_SUFFIXES = (".arrow", ".txt", ".xlsx", ".gz", ".bz2", ".xz", ".zst", ".zip")


def is_local(path: str) -> bool:
    """Whether a path means a file or folder of this machine and not a dataset of the Hub.

    It does if it is there, is spelt as only a path is, or ends as data files do; and where a variable of the
    environment holds it, in a config or as a record keeps it.
    """
    if isinstance(path, EnvironmentText):
        return is_local(meaning(path))
    spelt = path.startswith((".", "/", "~", "${")) or path.count("/") > 1 or "\\" in path
    return spelt or Path(path).suffix in (*FILE_SUFFIXES, *_OTHER_SUFFIXES) or Path(path).exists()


def read_file(path: Path, section: str = "data") -> list[dict[str, Any]]:
    """The records of a file; what stands in a `.csv` or `.tsv` file stays text, as it is written.

    Args:
        path: `.jsonl`; `.json` that is one list; `.csv` or `.tsv` with column names in its first row; or `.parquet`.
        section: Of the configuration, for errors that name its keys.

    Raises:
        NotFoundError: No such file.
        ConfigError: A file of another kind.
        IntegrityError: The file is not UTF-8, not of the kind its name says, or its rows are not alike.
    """
    if not path.is_file():
        raise NotFoundError(
            "the data file does not exist",
            where=path,
            next_step=f"check {section}.path; it is read from the folder the command runs in",
        )
    if path.suffix not in FILE_SUFFIXES:
        raise ConfigError(
            "a data file of a kind that is not read",
            where=path,
            expected=", ".join(FILE_SUFFIXES),
            found=path.suffix or "no suffix",
            next_step=f"write its rows as JSON, one object a line, and set {section}.path to that file",
        )
    if path.suffix == ".parquet":
        return _load(str(path), "parquet", data_files=str(path), split="train")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise IntegrityError(
            "the data file is not in UTF-8",
            where=path,
            found=f"byte {error.object[error.start]:#04x} at {error.start}",
            next_step=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
            if b"\0" in error.object[:64]
            else "write the file anew in UTF-8",
        ) from error
    if path.suffix in (".csv", ".tsv"):
        return _read_table(text, path)
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        return [_record(_parse(line, path, f", line {number}"), path, f", line {number}")
                for number, line in lines if line.strip()]  # fmt: skip
    records = _parse(text, path, "")
    if not isinstance(records, list):
        raise IntegrityError(
            "the data file is no list of rows", where=path, expected="a list of objects", found=type(records).__name__
        )
    return [_record(record, path, f", row {index}") for index, record in enumerate(records)]


def _read_table(text: str, path: Path) -> list[dict[str, Any]]:
    """Rows of comma- or tab-separated values (RFC 4180: quoted ones may hold line breaks)."""
    reader = csv.reader(StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    records: list[dict[str, Any]] = []
    names: list[str] = []
    try:
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if not values:  # an empty line
                continue
            if not names:
                names = values
                if len(set(names)) < len(names) or not all(names):
                    raise IntegrityError("the first row does not name the columns", where=place, found=", ".join(names))
            elif len(values) != len(names):
                raise IntegrityError(
                    "a row has more or fewer values than there are columns",
                    where=place,
                    expected=f"{len(names)}: {', '.join(names)}",
                    found=len(values),
                    next_step="put a value that holds a separator or a line break into double quotes",
                )
            else:
                records.append(dict(zip(names, values, strict=True)))
    except csv.Error as error:
        kind = path.suffix[1:].upper()
        raise IntegrityError(
            f"the data file is not {kind}", where=f"{path}, line {reader.line_num}", found=error
        ) from error
    return records


def _parse(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"the data file is not {path.suffix[1:].upper()}",
            where=f"{path}{place}",
            found="values nested too deep" if isinstance(error, RecursionError) else error,
            next_step="mend that line, or leave it out" if place else "",
        ) from error


def _record(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IntegrityError(
            "a row of the data file is no object with named columns",
            where=f"{path}{place}",
            found=type(value).__name__,
        )
    return value


def read_dataset(config: DataConfig) -> list[dict[str, Any]]:
    """The records of one split of a Hub dataset, or of a local folder of data files.

    Raises:
        NotFoundError: No such dataset, or a folder without data files.
        IntegrityError: Data files that are not what their names say.
        ConfigError: The split, name or format cannot be read.
        OfflineError: A Hub dataset that is not cached, without a network.
    """
    return _load(
        config.path,
        str(Path(meaning(config.path)).expanduser()),
        config.name,
        split=config.split,
        revision=config.revision,
    )


def _load(where: str, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        rows = load_dataset(*arguments, **options)
    except DatasetNotFoundError as error:
        raise NotFoundError("no such dataset", where=where, found=error) from error
    except FileNotFoundError as error:
        raise NotFoundError(
            "the dataset holds no data files",
            where=where,
            found=first_line(error),
            next_step="set data.path to a data file, or put some into the folder",
        ) from error
    except DatasetsError as error:
        raise IntegrityError(
            "the dataset's files cannot be read", where=where, found=first_line(error.__cause__ or error)
        ) from error
    except ConnectionError as error:
        raise OfflineError(
            "the dataset is not in the local cache and the Hub cannot be reached",
            where=where,
            next_step="connect once, or set data.path to a data file",
        ) from error
    except ValueError as error:
        if "data_files" in options:  # the caller's words are sound, so the file is not
            raise IntegrityError("the data file cannot be read", where=where, found=first_line(error)) from error
        raise ConfigError("the dataset cannot be read", where=where, found=error) from error
    return [dict(row) for row in rows]
