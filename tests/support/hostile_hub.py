"""Hubs that lie: a repository of a stranger, or the Hub itself, answers a pull with something else than the truth."""

from __future__ import annotations

import base64
import copy
import functools
import gzip
import importlib
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from plyfold.core import errors
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.push.push import pull
from plyfold.registry.store import Store

from . import hostile_records
from .hostile_records import ODD, spelt
from .hostile_stores import Case, digest_of
from .hostile_truth import lawful, strictly
from .hub_routes import Reply, Request
from .hub_server import HubServer
from .sound_registry import NAMES, REPO

Answer = Callable[[Reply, random.Random], Reply]
SPACE, ENDLESS = "acme", 1 << 30
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


class LyingHub(HubServer):
    """Replaces the answers to requests that match `match`."""

    match: re.Pattern[str] | None = None
    lie: Callable[[Reply], Reply]
    lied = 0

    def answer(self, request: Request) -> Reply:
        reply = super().answer(request)
        if self.match is None or not self.match.search(str(request)):
            return reply
        self.lied += 1
        return self.lie(reply)


@dataclass
class Site:
    """A Hub with three sound stages, and the client that talks to it."""

    hub: LyingHub
    client: HubClient
    files: dict[str, dict[str, bytes]]
    """Repository -> path -> bytes of the sound adapter."""
    digests: dict[int, str]
    """Stage -> its sound digest."""


_site: list[Site] = []


def site(store: Store) -> Site:
    """The process's Hub, filled from a registry at the first call."""
    if not _site:
        hub = LyingHub(Path(tempfile.mkdtemp(prefix="lying-hub-", dir=store.root.parent.parent)))
        point_at(hub.url, hub.token, hub.store.root / "home")
        files, digests = {}, store.stages("toy")
        for number, digest in digests.items():
            folder = store.read_record(digest).path
            repo = f"{SPACE}/toy-s{number:02d}-{NAMES[number - 1]}"
            files[repo] = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
            fill(hub, repo, files[repo], f"adapter-digest: {digest}")
        _site.append(Site(hub, HubClient(timeout_s=1.0, first_wait_s=0.001), files, digests))
    return _site[0]


def point_at(url: str, token: str, home: Path, *, pauses: bool = False) -> None:
    """Send this process to a Hub, where no Hugging Face home of this machine can play a part.

    Args:
        url: Of the Hub.
        token: Taken there.
        home: Hugging Face home of this process.
        pauses: Keep those of the Hub's own library, 23 s for some requests.
    """
    from huggingface_hub import close_session, constants

    os.environ |= {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HOME": str(home), "NO_PROXY": "*"}
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        setattr(constants, name, value)
    if not pauses:
        importlib.import_module("huggingface_hub.utils._http").time = SimpleNamespace(  # type: ignore[attr-defined]
            **{**vars(time), "sleep": lambda seconds: None}
        )
    close_session()


def fill(hub: HubServer, repo: str, files: dict[str, bytes], description: str = "") -> str:
    """One commit in a new or old repository, through no client, large files in git as well."""
    if repo not in hub.store.repos():
        hub.store.create(repo, private=False, author="stranger", url=hub.url)
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "x", "description": description}}]
    for path, data in files.items():
        lines.append({"key": "file", "value": {"path": path, "content": base64.b64encode(data).decode()}})
    return hub.store.commit(repo, "main", lines, "stranger")


def empty(hub: HubServer, repo: str) -> None:
    """Take a repository away, with its history."""
    shutil.rmtree(hub.store.root / "repos" / repo)


# ---- a stranger's repository


def hostile_repository(case: Case, kind: str) -> str:
    """A sound Hub with one repository of lies; `right`, the class of the refusal, or a fault as an exception."""
    there = site(case.store)
    repo = f"{SPACE}/toy-s02-brevity"
    files = dict(there.files[repo])
    files |= REPOSITORY_KINDS[kind](files, case.chance)
    empty(there.hub, repo)
    fill(there.hub, repo, files, f"adapter-digest: {there.digests[2]}")
    away = Store(case.root / "away")
    ref = case.chance.choice([f"hf://{repo}", f"{SPACE}/toy"])
    try:
        pulled = pull(away, ref, client=there.client)
    except errors.PlyfoldError as error:
        check_clean(away, there)
        return told(error)
    finally:
        empty(there.hub, repo)
        fill(there.hub, repo, there.files[repo], f"adapter-digest: {there.digests[2]}")
    data = files["lineage.json"]
    value = strictly(data) if lawful(data) else {"files": []}
    same = all(
        files.get(item["path"]) is not None
        and digest_of(files[item["path"]]) == item["sha256"]
        and len(files[item["path"]]) == item["size"]
        and not item["path"].lower().endswith(PICKLES)
        for item in value["files"]
    )
    if not lawful(data) or not same or not value["files"]:
        raise AssertionError("pulled, though the repository does not hold what a lawful record says")
    if digest_of(data) not in {each.digest for each in pulled}:
        raise AssertionError("another adapter than the repository's was pulled")
    for each in pulled:
        away.load(each.digest)
    return "right"


def lying_record(files: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    kind = chance.choice(list(hostile_records.KINDS))
    data = hostile_records.record_bytes(kind, json.loads(files["lineage.json"]), chance)
    return {"lineage.json": data[:3_000_000]}


def lying_list(files: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    """Files that the record does not mean."""
    name = chance.choice(["adapter_model.safetensors", "adapter_config.json", "notes/one.txt"])
    data = bytearray(files[name])
    data[chance.randrange(len(data))] ^= 1
    other = json.dumps({"base_model_name_or_path": chance.choice([None, 7, "/x", "a/b", REPO])}).encode()
    return chance.choice(
        [
            {name: bytes(data)},
            {name: files[name][:-1]},
            {name: files[name] + b"\0" * chance.choice([1, 5_000_000])},
            {name: b""},
            {"adapter_model.bin": b"\x80\x04."},
            {"extra": b"x", ".hidden/x": b"y", "README.md": b"---\nlicense: mit\n---\n"},
            {"adapter_config.json": other},
        ]
    )


def lying_statements(files: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    digest = digest_of(files["lineage.json"])
    payload: dict[str, Any] = {"reason": "bad data", "label": "toy 2 brevity", "withdraws": []}
    one: dict[str, Any] = {
        "digest": digest, "kind": "revoked", "created": "2026-01-02T03:04:05Z", "payload": payload
    }  # fmt: skip
    value: dict[str, Any] = {"schema": 1, "statements": [one]}
    for _ in range(chance.choice([1, 1, 2])):
        holder = chance.choice([value, one, payload])
        key = chance.choice([*holder, "extra"])
        holder[key] = chance.choice(
            [*ODD, "\x1b[2J", [copy.deepcopy(one)] * 2, [copy.deepcopy(one)] * 20_000, "sha256:" + "7" * 64, ["0" * 16]]
        )
    data = spelt(value)
    twice = data.replace(b'"reason":', b'"reason":"none","reason":', 1)
    texts = [b"", b"[]", b"null", b"[" * 100_000, data[:-2], b"\xef\xbb\xbf" + data, twice, b"\0" * 2_000_000]
    return {"revocations.json": data if chance.random() < 0.7 else chance.choice(texts)}


def lying_signature(files: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    texts = [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{" * 10_000,
        b"\x80\x04.",
        b"x" * 2_000_000,
        b'{"a":1,"a":2}',
        b"\xff",
        b"NaN",
    ]
    bundle: dict[str, Any] = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "x"}},
        "dsseEnvelope": {
            "payload": "e30=",
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "AA=="}],
        },
    }
    holder = chance.choice([bundle, bundle["verificationMaterial"], bundle["dsseEnvelope"]])
    holder[chance.choice(list(holder))] = chance.choice(ODD)
    return {"model.sig": chance.choice([*texts, *[spelt(bundle)] * 8])}


REPOSITORY_KINDS: dict[str, Callable[[dict[str, bytes], random.Random], dict[str, bytes]]] = {
    "repository: lineage.json": lying_record,
    "repository: files": lying_list,
    "repository: revocations.json": lying_statements,
    "repository: model.sig": lying_signature,
}


# ---- the Hub itself


def lying_hub(case: Case, kind: str) -> str:
    """A Hub whose answers to one kind of request are lies: the truth is pulled in spite of them, or nothing."""
    there = site(case.store)
    away, hub = Store(case.root / "away"), there.hub
    hub.match, hub.lied = re.compile(HUB_KINDS[kind]), 0
    seed = case.chance.random()
    lie = case.chance.choice([garbled, retyped, retyped, elsewhere, headers, endless])
    hub.lie = lambda reply: lie(reply, random.Random(seed))
    try:
        stages = case.chance.choice([None, [1], [1, 2, 3], [3]])
        pulled = pull(away, f"{SPACE}/toy", stages=stages, with_parents=stages == [3], client=there.client)
    except errors.PlyfoldError as error:
        hub.match = None
        check_clean(away, there)
        return told(error)
    finally:
        hub.match = None
    for each in pulled:
        away.load(each.digest)
    if any(there.digests.get(number) != digest for number, digest in away.stages("toy").items()):
        raise AssertionError("a stage is at another adapter than the Hub has")
    if not {each.digest for each in pulled} <= {*there.digests.values()}:
        raise AssertionError("pulled what is on no Hub")
    return "right"


def garbled(reply: Reply, chance: random.Random) -> Reply:
    data = bytearray(reply.body)
    for _ in range(chance.choice([1, 4]) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    texts = [
        bytes(data),
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"\xff",
        b"7",
        b"NaN",
    ]
    return reply._replace(body=chance.choice([bytes(data), *texts]))


def retyped(reply: Reply, chance: random.Random) -> Reply:
    """One value of the JSON by another, once or everywhere."""
    try:
        value = json.loads(reply.body)
    except ValueError:
        return garbled(reply, chance)
    places = hostile_records.places(value) if value else []
    if not places:
        return reply._replace(body=spelt(chance.choice(ODD)))
    holder, key = chance.choice(places)
    now = holder[key]
    evil = [*ODD, "../../evil", "/etc/passwd", "a" * 40, "--upload-pack=x", f"{SPACE}/toy-s01-structure", "refs/pr/1"]
    holder[key] = chance.choice(evil)
    if chance.random() < 0.2 and isinstance(holder, dict):
        del holder[key]
    elif chance.random() < 0.2 and isinstance(now, (list, dict)):
        holder[key] = [now] * 2
    return reply._replace(body=spelt(value))


def elsewhere(reply: Reply, chance: random.Random) -> Reply:
    """Sent on: in circles, to a file, to a port where nobody listens, to a next page that never ends."""
    place = chance.choice(
        ["/loop", "file:///etc/passwd", "http://127.0.0.1:9/x", "//", "http://[::1", "", "/api/models"]
    )
    if chance.random() < 0.3:
        url = _site[0].hub.url
        return reply._replace(
            headers={**reply.headers, "Link": f'<{chance.choice([url + "/api/models", place])}>; rel="next"'}
        )
    return Reply(chance.choice([301, 302, 303, 307, 308]), b"", {"Location": place})


def headers(reply: Reply, chance: random.Random) -> Reply:
    """Statuses and headers that do not fit."""
    odd: dict[str, str] = chance.choice(
        [
            {"Content-Encoding": "gzip"},
            {"Content-Encoding": "br"},
            {"Content-Type": "text/html; charset=utf-99"},
            {"X-Error-Code": "RepoNotFound"},
            {"X-Error-Message": "x" * 20_000},
            {"X-Error-Message": f"your token {_site[0].hub.token} is bad"},
            {"X-Request-Id": "\x1b[2J"},
            {"Retry-After": "100000"},
        ]
    )
    status = chance.choice(
        [200, 200, 201, 204, 206, 304, 400, 402, 404, 408, 409, 410, 416, 418, 451, 500, 502, 507, 599]
    )
    bomb = gzip.compress(b" " * 50_000_000) if chance.random() < 0.2 else reply.body
    return Reply(status, bomb, {**reply.headers, **odd, **({"Content-Encoding": "gzip"} if bomb != reply.body else {})})


def endless(reply: Reply, chance: random.Random) -> Reply:
    """A gigabyte; as zeros, which cost the server no memory."""
    return reply._replace(body=zeros(chance.choice([40_000_000, ENDLESS])))


@functools.cache
def zeros(size: int) -> bytes:
    return bytes(size)


HUB_KINDS = {
    "Hub: list of repositories": "GET /api/models[?]",
    "Hub: refs": "GET .*/refs",
    "Hub: commits": "GET .*/commits/",
    "Hub: list of files": "GET .*/(tree|paths-info)/",
    "Hub: a record": "GET .*/resolve/.*/lineage.json",
    "Hub: a file": "GET .*/resolve/.*/adapter_",
    "Hub: any answer": ".",
}


# ---- verdicts


def check_clean(away: Store, there: Site) -> None:
    """After a refusal there is no name, nothing half-done, and no object but the Hub's sound ones.

    Raises:
        AssertionError: There is.
    """
    if away.curricula() or any((away.root / "tmp").iterdir()):
        raise AssertionError("a refusal leaves a name or something half-done")
    if not {*away.digests()} <= {*there.digests.values()}:
        raise AssertionError("a refusal leaves what was refused")
    for digest in away.digests():
        away.load(digest)


def told(error: errors.PlyfoldError) -> str:
    """The class of a refusal that says enough, and not too much.

    Raises:
        AssertionError: It does not.
    """
    text = str(error)
    if len(text) > 2000 or not (error.where or error.found) or _site[0].hub.token in text:
        raise AssertionError(f"an error of {len(text):,} characters, without a place or with the token: {text[:200]!r}")
    return type(error).__name__
