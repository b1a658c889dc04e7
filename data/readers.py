"""Records of a data file, or of a folder or Hub dataset as the `datasets` library reads it: objects with named columns.

JSON is read as the tools of the field write it: a list of rows, a row a line (also where the file is called `.json`, as
`Dataset.to_json` does), and of pandas' `to_json` every orientation that can only be meant one way. Knows nothing about
which columns mean what.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
import zlib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ..core.config import DataConfig
from ..core.disk.files import expanded
from ..core.environment import EnvironmentText, meaning
from ..core.errors import ConfigError, IntegrityError, NotFoundError, OfflineError, first_line
from ..core.reading.strict_json import MalformedJSONError, unique

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Of the files that are read; of those of text also packed, as `.jsonl.gz`."""
MAX_UNPACKED = 100
"""Times what a packed file has that it may grow to; rows of text do by three to thirty."""
MIN_UNPACKED_BYTES = 64 << 20
"""That much it may grow to in any case."""
_ALSO = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".arrow": ".arrow"}
_OTHER_SUFFIXES = (".txt", ".xlsx", ".xls", ".gz", ".bz2", ".xz", ".zst", ".zip", ".pkl", ".yaml", ".feather")
_SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote: of several splits, of one."""


def is_local_path(path: str) -> bool:
    """Whether a path means a file or folder of this machine and not a dataset of the Hub.

    It does if it is there, is spelt as only a path is, or ends as data files do; and where a variable of the
    environment holds it, in a config or as a record keeps it.
    """
    if isinstance(path, EnvironmentText):
        return is_local_path(meaning(path))
    spelt = path.startswith((".", "/", "~", "${")) or path.endswith("/") or path.count("/") > 1 or "\\" in path
    return spelt or Path(path).suffix in (*FILE_SUFFIXES, *_ALSO, *_OTHER_SUFFIXES) or Path(path).exists()


_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?(?P<rest>[^?#\s]+)", re.IGNORECASE
)
_HUB_PATH = re.compile(r"(?:hf://(?:datasets/)?|datasets/)(?P<rest>[^?#\s]+)")


def refuse_address(path: str, section: str = "data") -> None:
    """Refuse an address in the place of a name, and say the name.

    Raises:
        ConfigError: A page or file of the Hub, or another URL.
    """
    match = _HUB_PAGE.match(path) or (_HUB_PATH.fullmatch(path) if not Path(path).exists() else None)
    if match:
        repo, revision, kind, rest = _of_address(match["rest"])
        said = [f"{section}.path={repo}"]
        if kind == "viewer":
            said += [f"{section}.{key}={value}" for key, value in zip(("name", "split"), rest, strict=False)]
        elif revision:
            said.append(f"{section}.revision={revision}")
        if kind in ("blob", "resolve", "") and rest:
            pinned = f" --revision {revision}" if revision else ""
            raise ConfigError(
                "the address of a file on the Hub, where a dataset's name or a file of this disk belongs",
                where=f"{section}.path",
                found=path,
                expected=f"the dataset, {' '.join(said)}, or the file once it is here",
                next_step=f"hf download --repo-type dataset {repo} {'/'.join(rest)}{pinned} --local-dir . && "
                f"plyfold data check -c FILE {section}.path={'/'.join(rest)}",
            )
        raise ConfigError(
            "the address of a dataset on the Hub, where its name belongs",
            where=f"{section}.path",
            found=path,
            expected=repo,
            next_step=" ".join(said),
        )
    if re.match(r"[a-z][a-z0-9+.-]*://", path, re.IGNORECASE):
        name = path.partition("?")[0].rstrip("/").rpartition("/")[2] or "rows.jsonl"
        here = path.partition("://")[2] if path.lower().startswith("file://") else ""
        fetched = path.lower().startswith(("http://", "https://"))
        raise ConfigError(
            "an address, where a file of this disk or a dataset of the Hub belongs",
            where=f"{section}.path",
            found=path,
            next_step=f"curl -L -o {name} '{path}', then {section}.path={name}" if fetched
            else f"{section}.path={here}" if here else f"copy it here, then {section}.path={name}",
        )  # fmt: skip


def _of_address(rest: str) -> tuple[str, str, str, list[str]]:
    """Repository, revision, kind of page and what follows, of what stands behind `datasets/`."""
    parts = [part for part in rest.split("/") if part]
    named, at, pinned = "/".join(parts[:2]).partition("@")
    kind, *more = parts[2:] or [""]
    if kind == "viewer":
        return named, pinned, kind, more
    if kind in ("tree", "blob", "resolve", "raw"):
        revision, *files = more or [""]
        return named, "" if revision == "main" else revision, "blob" if kind == "raw" else kind, files
    return named, pinned if at else "", "", [kind, *more] if kind and kind not in ("discussions", "settings") else []


def read_file(path: Path, section: str = "data") -> list[dict[str, Any]]:
    """The records of a file; what stands in a `.csv` or `.tsv` file stays text, as it is written.

    Args:
        path: `.jsonl`; `.json`; `.csv` or `.tsv` with column names in its first row; one of these packed, `.jsonl.gz`;
            or `.parquet`.
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
            next_step=f"one path is one file or a folder: cat {path} > rows.jsonl, then {section}.path=rows.jsonl"
            if any(sign in path.name for sign in "*?[")
            else f"check {section}.path; it is read from the folder the command runs in",
        )
    packed = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    suffix = _ALSO.get(suffix, suffix)
    if suffix not in FILE_SUFFIXES or (packed and suffix == ".parquet"):
        saved = suffix == ".arrow" and not packed and any((path.parent / name).is_file() for name in _SAVED)
        raise ConfigError(
            "a data file of a kind that is not read",
            where=path,
            expected=f"{', '.join(FILE_SUFFIXES)}, or .jsonl.gz",
            found="".join(path.suffixes[-2:] if packed else path.suffixes[-1:]) or "no suffix",
            next_step=f"{section}.path={path.absolute().parent} reads the folder it was saved in" if saved
            else f"write its rows as JSON, one object a line, and set {section}.path to that file",
        )  # fmt: skip
    if suffix == ".parquet":
        return _load(str(path), "parquet", section=section, data_files=str(path), split="train")
    text = _text(path, packed)
    if suffix in (".csv", ".tsv"):
        return _read_table(text, path, "\t" if suffix == ".tsv" else ",", section)
    return _read_lines(text, path) if suffix == ".jsonl" else _read_json(text, path, section)


def _unpacked(path: Path) -> bytes:
    bound = max(MIN_UNPACKED_BYTES, MAX_UNPACKED * path.stat().st_size)
    with gzip.open(path) as file:
        data = file.read(bound + 1)
    if len(data) > bound:
        raise IntegrityError(
            "the packed data file grows to more than rows do",
            where=path,
            expected=f"at most {bound:,} bytes, {MAX_UNPACKED} times what it has",
            next_step=f"if it is what you mean, unpack it: gunzip {shlex.quote(str(path))}",
        )
    return data


def _text(path: Path, packed: bool) -> str:
    try:
        data = _unpacked(path) if packed else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise IntegrityError(
            "the data file is not packed by gzip, or cut", where=path, found=error, next_step="fetch or write it again"
        ) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise IntegrityError(
            "the data file is not in UTF-8",
            where=path,
            found=f"byte {error.object[error.start]:#04x} at {error.start}",
            next_step=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
            if b"\0" in error.object[:64]
            else "write the file anew in UTF-8",
        ) from error


def _read_lines(text: str, path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f", line {number}"
            try:
                records.append(_record(_parse(line, path, place), path, place))
            except IntegrityError as error:
                if not records and _is_one_value(text):
                    error.next_step = f"the file is one JSON value, not one a line: mv {path.name} {path.stem}.json"
                raise
    return records


def _is_one_value(text: str) -> bool:
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) or (isinstance(value, dict) and "\n" in text.strip())


def _read_json(text: str, path: Path, section: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a row a line, as `Dataset.to_json` writes it under any name
            return _read_lines(text, path)
        raise _not_json(error, path, "") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(error, path, "") from error
    if isinstance(value, dict):
        value = _rows_of(value, path)
    elif isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        raise _no_rows(path, "a list of lists: its columns have no names (pandas' orient=values)")
    if not isinstance(value, list):
        raise IntegrityError(
            "the data file is no list of rows", where=path, expected="a list of objects", found=type(value).__name__
        )
    return [_record(record, path, f", row {index}") for index, record in enumerate(value)]


def _rows_of(value: dict[str, Any], path: Path) -> list[Any]:
    """The rows of a table that is written as one object, where that can only be meant one way.

    Raises:
        IntegrityError: It can be meant several ways, or none.
    """
    inner = list(value.values())
    lists = [name for name, each in value.items() if isinstance(each, list) and any(isinstance(i, dict) for i in each)]
    chats = lists and any("role" in item or "from" in item for item in value[lists[0]] if isinstance(item, dict))
    if any(not isinstance(each, (dict, list)) for each in inner):
        if lists and not chats:
            raise _no_rows(path, f"an object of {', '.join(list(value)[:4])}", lists[0])
        return [value]  # a file of one row
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and set(value) <= {"columns", "index", "data"}:  # split
        return [dict(zip(map(str, names), _as_wide(row, names, path), strict=True)) for row in data]
    if isinstance(data, list) and set(value) == {"schema", "data"} and isinstance(value["schema"], dict):  # table
        return data
    if inner and all(isinstance(each, dict) for each in inner):
        by_row, by_column = _numbered(value), all(map(_numbered, inner))
        if by_column and not by_row and all(each.keys() == inner[0].keys() for each in inner):  # columns, the default
            return [{name: column[label] for name, column in value.items()} for label in inner[0]]
        if by_row and not by_column:  # index
            return inner
        raise _no_rows(path, f"an object of objects, {', '.join(list(value)[:4])}: they may be rows or columns")
    if not lists and len(inner) > 1 and len({len(column) for column in inner}) == 1:  # a list a column, `to_dict`'s
        return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    if chats:
        return [value]
    raise _no_rows(path, f"an object of {', '.join(list(value)[:4]) or 'nothing'}", lists[0] if lists else "")


def _as_wide(row: Any, names: list[Any], path: Path) -> list[Any]:
    if not isinstance(row, list) or len(row) != len(names):
        raise _no_rows(path, f"a row of other columns than {', '.join(map(str, names[:4]))}")
    return row


def _numbered(labels: Mapping[str, Any]) -> bool:
    return bool(labels) and all(label.isdecimal() for label in labels)


def _no_rows(path: Path, found: str, key: str = "") -> IntegrityError:
    rows = f"json.load(open({path.name!r}))[{key!r}]"
    taken = f'python3 -c "import json; [print(json.dumps(row)) for row in {rows}]" > {path.stem}.jsonl'
    return IntegrityError(
        "which part of the data file is a row cannot be told",
        where=path,
        expected="a list of objects, or an object a line",
        found=found,
        next_step=taken if key else f'frame.to_json("{path.stem}.jsonl", orient="records", lines=True) in pandas',
    )


def _read_table(text: str, path: Path, delimiter: str, section: str) -> list[dict[str, Any]]:
    """Rows of comma- or tab-separated values (RFC 4180: quoted ones may hold line breaks)."""
    reader = csv.reader(StringIO(text), delimiter=delimiter, strict=True)
    records: list[dict[str, Any]] = []
    names: list[str] = []
    try:
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if not values:  # an empty line
                continue
            if not names:
                names = values
                if len(names) == 1 and (other := next((sign for sign in "\t;|," if sign in names[0]), "")):
                    pandas = f"pandas.read_csv({path.name!r}, sep={other!r}).to_csv('rows.csv', index=False)"
                    raise IntegrityError(
                        "the columns are separated by another sign",
                        where=place,
                        found=names[0],
                        expected=f"{'a tab' if delimiter == chr(9) else 'a comma'} between two of them",
                        next_step=f'python3 -c "import pandas; {pandas}", then {section}.path=rows.csv',
                    )
                named = names[1:] if names[0] == "" else names  # pandas writes its index first, without a name
                if not named or len(set(named)) < len(named) or not all(named):
                    raise IntegrityError(
                        "the first row does not name the columns",
                        where=place,
                        found=", ".join(names),
                        expected="a name of its own for each column",
                        next_step="name them in the first line, or leave out those that have none",
                    )
            elif len(values) != len(names):
                raise IntegrityError(
                    "a row has more or fewer values than there are columns",
                    where=place,
                    expected=f"{len(names)}: {', '.join(names)}",
                    found=len(values),
                    next_step="put a value that holds a separator or a line break into double quotes",
                )
            else:
                record = dict(zip(names, values, strict=True))
                record.pop("", None)
                records.append(record)
    except csv.Error as error:
        kind = "TSV" if delimiter == "\t" else "CSV"
        raise IntegrityError(
            f"the data file is not {kind}", where=f"{path}, line {reader.line_num}", found=error
        ) from error
    return records


def _parse(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, path, place) from error


def _not_json(error: Exception, path: Path, place: str) -> IntegrityError:
    next_step = "mend that line, or leave it out" if place else ""
    if isinstance(error, MalformedJSONError):
        next_step = "leave one of the two out"
    elif isinstance(error, json.JSONDecodeError) and error.msg.startswith("Invalid \\"):
        next_step = "in JSON a backslash is written twice, \\\\sqrt for \\sqrt, as json.dumps does"
    return IntegrityError(
        f"the data file is not {'JSON, one object a line' if place else 'JSON'}",
        where=f"{path}{place}",
        found="values nested too deep" if isinstance(error, RecursionError) else error,
        next_step=next_step,
    )


def _record(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IntegrityError(
            "a row of the data file is no object with named columns",
            where=f"{path}{place}",
            found=type(value).__name__,
        )
    return value


def read_dataset(config: DataConfig, section: str = "data") -> list[dict[str, Any]]:
    """The records of one split of a Hub dataset, of a local folder of data files, or of one that `save_to_disk` wrote.

    Raises:
        NotFoundError: No such dataset, or a folder without data files.
        IntegrityError: Data files that are not what their names say.
        ConfigError: The split, name or format cannot be read.
        OfflineError: A Hub dataset that is not cached, without a network.
    """
    folder = expanded(meaning(config.path))
    if any((folder / name).is_file() for name in _SAVED):
        return _read_saved(folder, config.split, section)
    return _load(config.path, str(folder), config.name, section=section, split=config.split, revision=config.revision)


def _read_saved(folder: Path, split: str, section: str) -> list[dict[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # what its files hold is anyone's
        raise IntegrityError(
            "a folder that save_to_disk wrote cannot be read",
            where=folder,
            found=first_line(error),
            next_step="save it again, or write it with Dataset.to_json and set data.path to that file",
        ) from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ConfigError(
                "the dataset has no such split",
                where=f"{section}.split",
                found=split,
                expected=", ".join(saved) or "none",
                next_step=f"{section}.split={next(iter(saved), 'train')}",
            )
        saved = saved[split]
    return [dict(row) for row in saved]


_LISTED = re.compile(r"\[\s*'([^'\[\]]{1,80})'")


def _load(where: str, *arguments: Any, section: str = "data", **options: Any) -> list[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        rows = load_dataset(*arguments, **options)
    except DatasetNotFoundError as error:
        gated = "gated" in str(error)
        raise NotFoundError(
            "no such dataset",
            where=where,
            found=error,
            next_step="ask for access on its page, then hf auth login" if gated
            else f"set {section}.path to ORG/NAME as its page on the Hub has it, or to a data file",
        ) from error  # fmt: skip
    except FileNotFoundError as error:
        raise NotFoundError(
            "the dataset holds no data files",
            where=where,
            found=first_line(error),
            next_step=f"set {section}.path to a data file, or put some into the folder",
        ) from error
    except DatasetsError as error:
        raise IntegrityError(
            "the dataset's files cannot be read",
            where=where,
            found=first_line(error.__cause__ or error),
            next_step=f"set {section}.path to one of its files: an error then names the line",
        ) from error
    except ConnectionError as error:
        raise OfflineError(
            "the dataset is not in the local cache and the Hub cannot be reached",
            where=where,
            next_step=f"connect once, or set {section}.path to a data file",
        ) from error
    except ValueError as error:
        if "data_files" in options:  # the caller's words are sound, so the file is not
            raise IntegrityError("the data file cannot be read", where=where, found=first_line(error)) from error
        text, listed = " ".join(str(error).split()), _LISTED.search(str(error))
        key = "split" if "split" in text.casefold() else "name"
        raise ConfigError(
            "the dataset cannot be read",
            where=where,
            found=text[:400],
            next_step=f"{section}.{key}={listed[1]}" if listed else "",
        ) from error
    return [dict(row) for row in rows]
