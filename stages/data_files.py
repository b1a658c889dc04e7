"""Records of a data file, or of a folder or Hub dataset as the `datasets` library reads it: objects with named columns.

Knows nothing about which columns mean what.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.config import DataConfig
from ..core.errors import ConfigError, IntegrityError, NotFoundError, OfflineError, first_line

FILE_SUFFIXES = (".jsonl", ".json")
"""Of the files that are read."""
_OTHER_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".txt", ".xlsx", ".gz", ".bz2", ".xz", ".zst", ".zip")


def is_local(path: str) -> bool:
    """Whether a path means a file or folder of this machine and not a dataset of the Hub.

    It does if it is there, is spelt as only a path is, or ends as data files do.
    """
    spelt = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    return spelt or Path(path).suffix in (*FILE_SUFFIXES, *_OTHER_SUFFIXES) or Path(path).exists()


def read_file(path: Path) -> list[dict[str, Any]]:
    """The records of a `.jsonl` file, or of a `.json` file that is one list.

    Raises:
        NotFoundError: No such file.
        ConfigError: A file of another kind.
        IntegrityError: The file is not UTF-8, a line of it (or all of it) not JSON, or it is no list of objects.
    """
    if not path.is_file():
        raise NotFoundError(
            "the data file does not exist",
            where=path,
            next_step="check data.path; it is read from the folder the command runs in",
        )
    if path.suffix not in FILE_SUFFIXES:
        raise ConfigError(
            "a data file of a kind that is not read",
            where=path,
            expected=" or ".join(FILE_SUFFIXES),
            found=path.suffix or "no suffix",
            next_step="write its rows as JSON, one object a line, and set data.path to that file",
        )
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
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        rows = load_dataset(config.path, config.name, split=config.split, revision=config.revision)
    except DatasetNotFoundError as error:
        raise NotFoundError("no such dataset", where=config.path, found=error) from error
    except FileNotFoundError as error:
        raise NotFoundError(
            "the dataset holds no data files",
            where=config.path,
            found=first_line(error),
            next_step="set data.path to a .jsonl file, or put data files into the folder",
        ) from error
    except DatasetsError as error:
        raise IntegrityError(
            "the dataset's files cannot be read", where=config.path, found=first_line(error.__cause__ or error)
        ) from error
    except ConnectionError as error:
        raise OfflineError(
            "the dataset is not in the local cache and the Hub cannot be reached",
            where=config.path,
            next_step="connect once, or set data.path to a .jsonl file",
        ) from error
    except ValueError as error:
        raise ConfigError("the dataset cannot be read", where=config.path, found=error) from error
    return [dict(row) for row in rows]
