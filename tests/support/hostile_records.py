"""Records that lie: bytes for `lineage.json` made from a sound record by breaking it in one way.

Every kind is a function of a sound record's JSON value and a source of chance; `tests/support/hostile_truth.py` says
which of its results are lawful.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

Value = dict[str, Any]
Kind = Callable[[Value, random.Random], bytes]

EVIL_NAMES = (
    "../evil", "..", ".", "", "/", "/etc/passwd", "a/../../evil", "a/..", "a//b", "a/", "./a", "a\\b", "..\\evil",
    "C:\\evil", "C:evil", "a:stream", "nul\0byte", "new\nline", "\x1b[2Jscreen", "a\x7fb", "a\x85b",
    "photo\u202egpj.exe",
    "zero\u200bwidth", "\ufeffmark", "lineage.json", "LINEAGE.JSON", "lineage.json/x", "x" * 255, "x" * 256, "é" * 127,
    "é" * 128, "\U0001f600" * 64, "d/" * 120 + "f", "/".join(["y" * 200] * 5), "~/x", "~root/x", "file:///etc/passwd",
    "\\\\server\\share", "%2e%2e/evil", "..%2fevil", "\uff0e\uff0e/evil", "a\u2215..\u2215b", ".git/config", "-rf", " ",
    "a ", "a.", "aux", "e\u0301", "ﬁle", "adapter_config.json/x", "objects/../../x", "a/./b", "...", "..a", "a..",
)  # fmt: skip
SAME_NAMES = (
    ("a", "a"), ("A", "a"), ("README.md", "readme.MD"), ("\u00e9", "e\u0301"), ("\u212b", "\u00c5"), 
    ("stra\u00dfe", "STRASSE"),
    ("a", "a/b"), ("a/b/c", "a/b"), ("d/A", "d/a"), ("D/a", "d/b"), ("i", "\u0131"), ("a", "a "),
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 1000, 10**18, 2**63, -(2**64), 10**400, 0.0, -0.0, 1.0, 0.5, 1e308, 5e-324, "", " ",
    "1", "true", "null", "x", "sha256:" + "0" * 64, "SHA256:" + "0" * 64, "sha256:" + "0" * 63,
    "sha256:" + "0" * 64 + "\n", "0" * 40, "a" * 70_000, "/etc/passwd", "/", "//x", "~/secret", "C:\\x", "file:///x",
    "acme/t\u00e4st", "acme/tiny-qwen2",
    "\uff11\uff12", "2026-01-02T03:04:05Z", "\uff12\uff10\uff12\uff16-01-02T03:04:05Z", "\ud83d\ude00", "\0",
    "\x1b[2J", "../..", [], [[]], {},
    {"x": None}, [None], [1], ["a", "a"], {"": ""}, {"digest": "sha256:" + "1" * 64},
)  # fmt: skip


def spelt(value: Any) -> bytes:
    """Canonical JSON, also of what no record may hold (NaN, lone surrogates)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def record_bytes(kind: str, value: Value, chance: random.Random) -> bytes:
    """A record broken as `kind` says; `value` stays as it is."""
    return KINDS[kind](copy.deepcopy(value), chance)


# ---- the kinds


def names(value: Value, chance: random.Random) -> bytes:
    files = value["files"]
    item = {**chance.choice(files), "path": chance.choice(EVIL_NAMES)}
    files[chance.randrange(len(files))] = item
    return spelt(value)


def same_names(value: Value, chance: random.Random) -> bytes:
    pair = chance.choice(SAME_NAMES)
    some = value["files"][0]
    value["files"] += [{**some, "path": path} for path in chance.sample(pair, 2)]
    return spelt(value)


def file_fields(value: Value, chance: random.Random) -> bytes:
    item = chance.choice(value["files"])
    field = chance.choice(["size", "sha256", "path"])
    if chance.random() < 0.2:
        del item[field]
    else:
        item[field] = chance.choice([*ODD, item["size"] + 1, 10**12])
    return spelt(value)


def many_files(value: Value, chance: random.Random) -> bytes:
    some = value["files"][0]
    count = chance.choice([0, 1000, 4000, 20_000])
    value["files"] = [{**some, "path": f"{chance.choice(['f', 'd/f'])}{index}"} for index in range(count)]
    return spelt(value)


def another_type(value: Value, chance: random.Random) -> bytes:
    holder, key = chance.choice(places(value))
    holder[key] = chance.choice(ODD)
    return spelt(value)


def spelt_as_text(value: Value, chance: random.Random) -> bytes:
    """Numbers and truths as text, whole numbers as fractions: what lax readers take for the same."""
    found = [(holder, key) for holder, key in places(value) if type(holder[key]) in (int, float, bool)]
    holder, key = chance.choice(found)
    now = holder[key]
    holder[key] = chance.choice([str(now), float(now), f" {now}", bool(now), int(now)])
    return spelt(value)


def schema_and_kind(value: Value, chance: random.Random) -> bytes:
    field, known = chance.choice([("schema", "plyfold/adapter-record/1"), ("kind", "stage")])
    value[field] = chance.choice(
        [
            "plyfold/adapter-record/2",
            "",
            known + " ",
            known.upper(),
            [known],
            None,
            1,
            "x" * 100_000,
            "merge",
            "foreign",
        ]
    )
    return spelt(value)


def missing(value: Value, chance: random.Random) -> bytes:
    holder, key = chance.choice([place for place in places(value) if isinstance(place[0], dict)])
    del holder[key]
    return spelt(value)


def unknown(value: Value, chance: random.Random) -> bytes:
    holders = [holder for holder, _ in places(value) if isinstance(holder, dict)]
    chance.choice(holders)[
        chance.choice(["extra", "__class__", "", "$ref", "Schema", "path\0", "digest ", "k" * 100_000])
    ] = chance.choice(ODD)
    return spelt(value)


def huge_numbers(value: Value, chance: random.Random) -> bytes:
    digits = chance.choice([20, 400, 4300, 4301, 100_000, 900_000])
    number = chance.choice(["9" * digits, "-" + "9" * digits, "1" + "0" * digits, f"1e{digits}", f"0.{'1' * digits}"])
    _place(value, chance, "\u0001")
    return spelt(value).replace(b'"\\u0001"', number.encode())


def no_numbers(value: Value, chance: random.Random) -> bytes:
    _place(value, chance, chance.choice([math.nan, math.inf, -math.inf]))
    return spelt(value)


def keys_twice(value: Value, chance: random.Random) -> bytes:
    """One name twice in an object: the first or the last may be meant."""
    found = [(holder, key) for holder, key in places(value) if isinstance(holder, dict)]
    holder, key = chance.choice(found)
    again = chance.choice([holder[key], chance.choice(ODD)])
    holder[f"{key}\u0001"] = again
    return spelt(value).replace(b"\\u0001", b"")


def deep(value: Value, chance: random.Random) -> bytes:
    depth = chance.choice([20, 100, 150, 300, 1000, 5000, 100_000])
    opening, closing = chance.choice([("[", "]"), ('{"a":', "}")])
    inner = "1" if opening != "[" else ""
    value["recipe"][chance.choice(["config", "details"])] = {"x": "\u0001"}
    data = spelt(value).replace(b'"\\u0001"', (opening * depth + inner + closing * depth).encode())
    return data if chance.random() < 0.7 else opening.encode() * depth


def large(value: Value, chance: random.Random) -> bytes:
    size = chance.choice([900_000, 999_000, 1_000_001, 5_000_000, 30_000_000])
    text = chance.choice(["x", "é", "\\", "\n"]) * size
    field = chance.choice(["licence", "env", "config"])
    if field == "licence":
        value["licence"] = text
    elif field == "env":
        value["env"] = {"python": text}
    else:
        value["recipe"]["config"] = {text: 1}
    return spelt(value)


def encodings(value: Value, chance: random.Random) -> bytes:
    value["licence"] = chance.choice(["é", "\U0001f600", "licence"])
    data = spelt(value)
    return chance.choice(
        [
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.decode().encode("utf-16"),
            lambda: data.decode().encode("utf-32-le"),
            lambda: data.decode().encode("latin-1", "replace"),
            lambda: data.replace("é".encode(), b"\xc3"),
            lambda: data.replace("é".encode(), b"\xed\xa0\x80"),  # half of a surrogate pair
            lambda: data.replace("é".encode(), b"\xc1\xa9"),  # longer than need be
            lambda: data.replace("é".encode(), b"\\ud800"),
            lambda: json.dumps(value, sort_keys=True, separators=(",", ":")).encode(),
            lambda: b"\0" + data,
            lambda: data + b"\0",
        ]
    )()


def layout(value: Value, chance: random.Random) -> bytes:
    """The same value, spelt otherwise, cut short or followed by more."""
    data = spelt(value)
    return chance.choice(
        [
            lambda: json.dumps(value).encode(),
            lambda: json.dumps(value, indent=2, sort_keys=True).encode(),
            lambda: data + b"\n",
            lambda: b" " + data,
            lambda: data.replace(b'"kind"', b'"\\u006bind"'),
            lambda: data.replace(b":1.0", b":1.00"),
            lambda: data.replace(b":1.0", b":1E0"),
            lambda: data.replace(b":8.0", b":0.8e1"),
            lambda: data[: chance.randrange(len(data))],
            lambda: data + data,
            lambda: data + b"{}",
            lambda: b"[" + data + b"]",
            lambda: chance.choice([b"", b" ", b"null", b"0", b'""', b"[]", b"{}", b"<html>404</html>", b"\x80\x04}."]),
            lambda: data.replace(b",", b",,", 1),
            lambda: b"/*" + data + b"*/",
            lambda: data.replace(b"}", b",}", 1),
        ]
    )()


def bits(value: Value, chance: random.Random) -> bytes:
    data = bytearray(spelt(value))
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def parents(value: Value, chance: random.Random) -> bytes:
    """Parents that are nowhere, named often, or refer to each other; a digest cannot name itself."""
    known = [item["digest"] for item in value["parents"]] or ["sha256:" + "0" * 64]
    faked = "sha256:" + chance.randbytes(32).hex()
    role = "active_during_training"
    value["parents"] = chance.choice(
        [
            lambda: [{"role": role, "digest": faked, "scale": 1.0}],
            lambda: [{"role": role, "digest": known[0], "scale": 1.0}] * chance.choice([2, 1000]),
            lambda: [
                {"role": role, "digest": "sha256:" + chance.randbytes(32).hex(), "scale": 1.0} for _ in range(5000)
            ],
            lambda: [{"role": role, "digest": known[0], "scale": chance.choice([0, -1.0, 1e308, 5e-324])}],
            lambda: [{"role": chance.choice(["self", "", "PARENT"]), "digest": known[0], "scale": 1.0}],
            lambda: [{"role": role, "digest": chance.choice([known[0].upper(), "../..", known[0][7:]]), "scale": 1.0}],
        ]
    )()
    value["requires"] = chance.choice([[], [faked], known * 3, ["x"], known[0]])
    return spelt(value)


def local_paths(value: Value, chance: random.Random) -> bytes:
    _place(value, chance, chance.choice(["/home/me/model", "~/model", "C:\\model", "\\\\host\\x", "file:///x", "/x"]))
    return spelt(value)


def other_names(value: Value, chance: random.Random) -> bytes:
    field, texts = chance.choice(
        [
            ("curriculum", ["../toy", "toy/..", "Toy", "t\u00f6y", "a" * 64, "merges", "toy\n", "", "-", "other"]),
            ("stage", [None, {"number": 0, "name": "a"}, {"number": 1000, "name": "a"}, {"number": 2, "name": "../a"},
                       {"number": 2, "name": "1"}, {"number": 2, "name": "A"}, {"number": "2", "name": "brevity"},
                       {"number": 3, "name": "brevity"}, {"number": 2, "name": "latest", "x": 1}]),
            ("created", ["2026-99-99T99:99:99Z", "2026-01-02", "2026-01-02T03:04:05Z\n",
                         "\uff12\uff10\uff12\uff16-01-02T03:04:05Z", 0]),
            ("licence", ["", "MIT\n---\nbase_model: x", "<script>", "\x1b[2J", "a: b: c", "'", "{{x}}"]),
        ]
    )  # fmt: skip
    value[field] = chance.choice(texts)
    return spelt(value)


def two_at_once(value: Value, chance: random.Random) -> bytes:
    another_type(value, chance)
    second = chance.choice([missing, unknown, bits, layout, keys_twice, names])
    # names are changed inside of files; where the first change has left none, it stands alone
    return spelt(value) if second is names and not _has_files(value) else second(value, chance)


def _has_files(value: Value) -> bool:
    files = value.get("files")
    return isinstance(files, list) and bool(files) and all(isinstance(file, dict) for file in files)


KINDS: dict[str, Kind] = {
    "record: file names": names,
    "record: names twice": same_names,
    "record: fields of a file": file_fields,
    "record: no files or thousands": many_files,
    "record: another type": another_type,
    "record: numbers as text": spelt_as_text,
    "record: schema and kind": schema_and_kind,
    "record: a field missing": missing,
    "record: an unknown field": unknown,
    "record: huge numbers": huge_numbers,
    "record: NaN and infinity": no_numbers,
    "record: keys twice": keys_twice,
    "record: nesting": deep,
    "record: large fields": large,
    "record: encodings": encodings,
    "record: layout": layout,
    "record: bits flipped": bits,
    "record: parents": parents,
    "record: local paths": local_paths,
    "record: names, times, licences": other_names,
    "record: two at once": two_at_once,
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of everything inside a JSON value."""
    found = []
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        found.append((value, key))
        if isinstance(item, (dict, list)):
            found += places(item)
    return found


def _place(value: Value, chance: random.Random, what: Any) -> None:
    """Put something where a record holds what users gave."""
    holder, key = chance.choice(
        [
            (value["recipe"]["config"], "x"),
            (value["recipe"]["details"], "wall_s"),
            (value["recipe"], "seed"),
            (value["weights"], "alpha"),
            (value["env"], "device"),
            (value["files"][0], "size"),
            (value["code"], "git"),
        ]
    )
    holder[key] = what
