"""Registries that lie: the files of a sound one broken in one way, as a disk, a stranger or another program could.

A case is a folder with a registry in it, three stages and a merge of one curriculum, and a file outside that nothing
may touch.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from plyfold.registry.store import Store

from .hostile_records import ODD, spelt
from .sound_registry import REPO, REVISION

HUGE_BYTES = 1 << 30
CANARY = "outside/canary"


@dataclass
class Case:
    """A registry to be broken, and what was done to it."""

    root: Path
    """Folder of the case; the registry is `registry` in it."""
    chance: random.Random
    target: Path | None = None
    """Object folder that was broken."""
    open_files: list[BinaryIO] = field(default_factory=list)
    """Files to keep open while the case runs."""

    @property
    def store(self) -> Store:
        return Store(self.root / "registry")

    @property
    def lock_file(self) -> Path:
        return self.root / "curriculum.lock.json"


# ---- the folder of an object


def file_by_another(case: Case) -> None:
    """A declared file, or the record, as something that is no plain file of its own."""
    path = case.chance.choice(_files(_target(case)))
    outside = case.root / CANARY
    data = path.read_bytes()
    path.unlink()
    copy = case.root / "outside" / "copy"
    copy.write_bytes(data)
    case.chance.choice(
        [
            lambda: path.symlink_to(copy),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(os.path.relpath(outside, path.parent)),
            lambda: path.mkdir(),
            lambda: os.mkfifo(path),
            lambda: _socket(case, path),
            lambda: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)) if os.geteuid() == 0 else os.mkfifo(path),
            lambda: os.link(outside, path),
            lambda: os.link(copy, path),  # the same bytes under another name: as good as a copy, today
            lambda: None,
        ]
    )()


def file_bytes(case: Case) -> None:
    """Other bytes: shorter, longer, flipped, huge and sparse."""
    path = case.chance.choice(_files(_target(case)))
    data = path.read_bytes()
    path.chmod(0o644)
    case.chance.choice(
        [
            lambda: path.write_bytes(data[: case.chance.randrange(len(data))]),
            lambda: path.write_bytes(data + b"\0"),
            lambda: path.write_bytes(_flipped(data, case.chance)),
            lambda: os.truncate(path, HUGE_BYTES),
            lambda: path.write_bytes(b""),
            lambda: path.write_bytes(case.chance.randbytes(len(data))),
        ]
    )()


def file_beside(case: Case) -> None:
    """Something in the folder that no record declares."""
    folder = _target(case)
    name = case.chance.choice(["extra", "notes/extra", ".hidden", "adapter_model.bin", "Adapter_Config.json", "\udcff"])
    path = folder / name
    case.chance.choice(
        [
            lambda: path.write_bytes(b"x"),
            lambda: path.symlink_to(case.root / "outside"),
            lambda: path.symlink_to(folder),
            lambda: path.symlink_to("nowhere"),
            lambda: os.mkfifo(path),
            lambda: (path.mkdir(), (path / "x").write_bytes(b"")),
            lambda: path.mkdir(),
            lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), HUGE_BYTES),
        ]
    )()


def folder_by_another(case: Case) -> None:
    """The object's folder, or one in it, as something else."""
    folder = case.chance.choice([_target(case), _target(case) / "notes"])
    aside = case.root / "outside" / "moved"
    folder.rename(aside)
    case.chance.choice(
        [
            lambda: folder.symlink_to(aside),
            lambda: folder.symlink_to(folder.name),
            lambda: folder.write_bytes(b"x"),
            lambda: folder.mkdir(),
            lambda: os.mkfifo(folder),
            lambda: None,
            lambda: aside.rename(folder.with_name(case.chance.choice(["0" * 64, "0" * 63, "G" * 64, "x"]))),
            lambda: shutil.copytree(aside, folder.with_name("f" * 64)),
        ]
    )()


# ---- refs, statements, the log and the rest


def refs(case: Case) -> None:
    path = case.root / "registry" / "refs" / "toy" / case.chance.choice(["1/latest", "2/latest", "merges/toy-s1.s2.s3"])
    other = case.chance.choice(case.store.digests())
    data = path.read_bytes()
    texts = [
        b"", b"\n", b"x", b"sha256:", data.upper(), data.strip() + b" " * 5000, b"\xef\xbb\xbf" + data, data * 2,
        data.decode().encode("utf-16"), b"sha256:" + b"0" * 64, b"../../objects", other.encode(), data.rstrip()[:-1],
        data.replace(b"\n", b"\r\n"), case.chance.randbytes(71), b"\0" * 71, b"\x1b[2J" + data,
    ]  # fmt: skip
    _replace(case, path, texts)


def ref_names(case: Case) -> None:
    """Folders and files among the refs that no command made."""
    refs, chance = case.root / "registry" / "refs", case.chance
    one = (refs / "toy" / "1" / "latest").read_bytes()
    names = [
        "toy/01/latest", "toy/\u0661/latest", "toy/\u00b2/latest", "toy/-1/latest", "toy/1000/latest", "toy/0/latest",
        "toy/" + "9" * 200 + "/latest", "toy/x/latest", "toy/merges/../x", "toy/merges/a b", "toy/merges/\x1b[2J",
        "toy/1/.latest.tmp", "toy/1/latest~", "Toy/1/latest", "a b/1/latest", "\udcff/1/latest", "toy/\udcff/latest",
        "toy/merges/\udcff", "toy/1/\udcff", "toy/1/x/y", "toy/merges/d/y", "latest", "toy/latest",
        "other/merges/s1.s2",
    ]  # fmt: skip
    path = refs / chance.choice(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(one)


def attestations(case: Case) -> None:
    digest = case.chance.choice(case.store.digests())
    folder = case.root / "registry" / "attest" / digest.removeprefix("sha256:")
    path = case.chance.choice(sorted(folder.iterdir()))
    value = json.loads(path.read_bytes())
    where = case.chance.choice(["top", "payload", "deeper"])
    holder = value if where == "top" else value["payload"]
    key = case.chance.choice(sorted(holder))
    if where == "deeper" and isinstance(holder[key], list) and holder[key]:
        holder[key][0] = case.chance.choice(ODD)
    elif case.chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = case.chance.choice(
            [*ODD, "hf://", "hf://../..", "revoked", "withdrawn", "eval", "pin", "location"]
        )
    _replace(case, path, [spelt(value), *([] if case.chance.random() < 0.6 else _no_json(path.read_bytes()))])


def statements(case: Case) -> None:
    """Revocations, as they lie in a registry."""
    digest = case.chance.choice(case.store.digests())
    payload: dict[str, Any] = {"reason": "bad data", "label": "toy 1 structure", "withdraws": []}
    value = {"schema": 1, "digest": digest, "kind": case.chance.choice(["revoked", "withdrawn"]),
             "created": "2026-01-02T03:04:05Z", "payload": payload}  # fmt: skip
    for _ in range(case.chance.choice([0, 1, 1, 2])):
        holder = case.chance.choice([value, payload])
        holder[case.chance.choice([*holder, "extra"])] = case.chance.choice(ODD)
    folder = case.root / "registry" / "attest" / digest.removeprefix("sha256:")
    _replace(case, folder / "revoked-0123456789abcdef.json", [spelt(value), *_no_json(spelt(value))])


def attest_folder(case: Case) -> None:
    attest = case.root / "registry" / "attest"
    name = case.chance.choice(["0" * 64, "x", "\udcff", ".hidden", "f" * 64, "A" * 64])
    path = attest / name
    case.chance.choice(
        [
            lambda: path.write_bytes(b"{}"),
            lambda: path.mkdir(),
            lambda: path.symlink_to(case.root / "outside"),
            lambda: path.symlink_to(attest),
            lambda: (path.mkdir(), (path / "x.json").mkdir()),
            lambda: (path.mkdir(), (path / "x.json").write_bytes(b"{}")),
            lambda: (path.mkdir(), os.mkfifo(path / "x.json")),
        ]
    )()


def log_lines(case: Case) -> None:
    path = case.root / "registry" / "log.jsonl"
    digest = case.store.digests()[0]
    row: dict[str, Any] = {"time": "2026-01-02T03:04:05Z", "event": "ref", "digest": digest, "previous": None}
    row[case.chance.choice(list(row))] = case.chance.choice(
        [
            *ODD,
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59+00:00",
            "2026-13-01",
            "20260102",
            "0001-01-01T00:00:00+14:00",
        ]
    )
    lines = [spelt(row), *_no_json(spelt(row))]
    data = path.read_bytes()
    choices = [data + lines[0] + b"\n"] + [data + line + b"\n" + data for line in lines] + [data[:-20], data[5:]]
    _replace(case, path, choices)


def locations(case: Case) -> None:
    path = case.root / "registry" / "locations.json"
    value = {"bases": case.chance.choice([*ODD, {f"{REPO}@{REVISION}": case.chance.choice(ODD)}])}
    _replace(case, path, [spelt(value), *_no_json(spelt(value))])


def leases(case: Case) -> None:
    folder = case.root / "registry" / "locks" / "leases"
    folder.mkdir()
    path = folder / "0123.json"
    value = {"schema": 1, "digests": case.chance.choice([*ODD, case.store.digests()[:1]])}
    _replace(case, path, [spelt(value), spelt(case.chance.choice([*ODD, value])), *_no_json(spelt(value))])
    if path.is_file() and case.chance.random() < 0.8:
        file = path.open("rb")
        fcntl.flock(file, fcntl.LOCK_EX)
        case.open_files.append(file)


def leftovers(case: Case) -> None:
    """In `tmp/` and beside refs, old enough to be swept."""
    registry = case.root / "registry"
    path = registry / case.chance.choice(["tmp/old", "tmp/.old", "refs/toy/.old", "attest/.old", "tmp/\udcff"])
    case.chance.choice(
        [
            lambda: path.write_bytes(b"x"),
            lambda: path.mkdir(),
            lambda: path.symlink_to(case.root / "outside"),
            lambda: path.symlink_to(registry / "objects"),
            lambda: path.symlink_to("nowhere"),
            lambda: os.mkfifo(path),
            lambda: (path.mkdir(), (path / "link").symlink_to(case.root / "outside"), os.utime(path, (0, 0))),
        ]
    )()
    os.utime(path, (0, 0), follow_symlinks=False)


def lock_file(case: Case) -> None:
    path = case.lock_file
    value = json.loads(path.read_bytes())
    stages = value["stages"]
    one = stages["1"]
    base = one["base"]
    for _ in range(case.chance.choice([0, 1, 1, 2])):
        holder = case.chance.choice([value, stages, one, base])
        key = case.chance.choice([*holder, "extra", "0", "1000", "-1", "01", "\u0661", "1.0", " 1"])
        if case.chance.random() < 0.2:
            holder.pop(key, None)
        else:
            holder[key] = case.chance.choice(
                [*ODD, copy.deepcopy(one), f"hf://../..@{REVISION}", f"hf://a/b@{REVISION}/../x"]
            )
    twice = spelt({**value, "stages\u0001": value.get("stages")}).replace(b"\\u0001", b"")
    _replace(case, path, [spelt(value), twice, *_no_json(spelt(value))])


def swapped(case: Case) -> None:
    """Sound things in the wrong place."""
    objects, chance = case.root / "registry" / "objects" / "sha256", case.chance
    one, other = chance.sample(sorted(objects.iterdir()), 2)
    aside = objects / "aside"
    what = chance.choice(["folders", "records", "files"])
    if what == "folders":
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
    else:
        name = "lineage.json" if what == "records" else "adapter_model.safetensors"
        (one / name).rename(aside)
        (other / name).rename(one / name)
        aside.rename(other / name)
    case.target = one


KINDS: dict[str, Callable[[Case], None]] = {
    "object: a file that is none": file_by_another,
    "object: a file's bytes": file_bytes,
    "object: a file beside": file_beside,
    "object: a folder that is none": folder_by_another,
    "object: swapped with another": swapped,
    "refs: contents": refs,
    "refs: names": ref_names,
    "attestations": attestations,
    "revocations": statements,
    "attest: folders": attest_folder,
    "log.jsonl": log_lines,
    "locations.json": locations,
    "leases": leases,
    "leftovers": leftovers,
    "curriculum.lock.json": lock_file,
}


# ---- inside


def _target(case: Case) -> Path:
    case.target = case.root / "registry" / "objects" / "sha256" / case.store.ref("toy", 2).removeprefix("sha256:")
    return case.target


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _socket(case: Case, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name is short
        end.bind(path.name)
        os.chdir(here)


def _no_json(data: bytes) -> list[bytes]:
    return [
        b"", b"null", b"[]", b"7", b"NaN", data[:-3], b"\xef\xbb\xbf" + data, b"[" * 100_000, b'{"a":' * 5000,
        b"\xff\xfe",
        data.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass"), b"9" * 5000, b"\0" * 100, data + data,
        b'{"x":"' + b"x" * 2_000_000 + b'"}', b'"\\ud800"', data.replace(b"{", b'{"digest":"x",', 1),
    ]  # fmt: skip


def _replace(case: Case, path: Path, texts: list[bytes]) -> None:
    """Other contents, or now and then no plain file at all."""
    if case.chance.random() < 0.75:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(texts[0] if case.chance.random() < 0.4 else case.chance.choice(texts))
        return
    data = path.read_bytes() if path.is_file() else texts[0]
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    copy = case.root / "outside" / "copy"
    copy.write_bytes(data)
    case.chance.choice(
        [
            lambda: path.mkdir(),
            lambda: os.mkfifo(path),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(copy),
            lambda: path.symlink_to("nowhere"),
            lambda: (path.write_bytes(data), os.truncate(path, HUGE_BYTES)),
            lambda: _socket(case, path),
        ]
    )()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
