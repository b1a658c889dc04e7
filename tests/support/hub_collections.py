"""The Hub's collections, kept as files of a `HubSite`'s folder; importing this adds their routes."""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .hub_routes import HubSite, Reply, Request, as_json, route
from .hub_store import HubError

MAX_DESCRIPTION, MAX_NOTE = 150, 500
COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
_LOCK = threading.RLock()


@route("POST", "/api/collections")
def create(hub: HubSite, request: Request) -> Reply:
    user, wanted = hub.writer(request), request.json()
    title, owner = str(wanted.get("title", "")), wanted.get("namespace") or user.name
    if not title or len(wanted.get("description") or "") > MAX_DESCRIPTION:
        raise HubError(400, "Validation error: title or description")
    with _LOCK:
        for known in _all(hub):
            if (known["owner"], known["title"]) == (owner, title):
                raise HubError(409, "You already have a collection with this title", slug=known["slug"])
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        collection = {
            "slug": f"{owner}/{name}-{uuid.uuid4().hex[:24]}",
            "title": title,
            "description": wanted.get("description"),
            "owner": owner,
            "items": [],
            "private": bool(wanted.get("private")),
        }
        _save(hub, collection)
    return _answer(collection)


@route("GET", "/api/collections")
def listed(hub: HubSite, request: Request) -> Reply:
    user, owner = hub.user(request), request.first("owner")
    seen = [each for each in _all(hub) if (user and user.writes) or not each["private"]]
    rows = [_full(each) for each in seen if owner in ("", each["owner"])]
    return hub.paged(request, [{key: value for key, value in row.items() if key != "position"} for row in rows])


@route("GET", COLLECTION)
def read(hub: HubSite, request: Request, slug: str) -> Reply:
    user, collection = hub.user(request), _load(hub, slug)
    if collection["private"] and not (user and user.writes):
        raise HubError(404, "Collection not found")
    return _answer(collection)


@route("DELETE", COLLECTION)
def delete(hub: HubSite, request: Request, slug: str) -> Reply:
    hub.writer(request)
    with _LOCK:
        _load(hub, slug)
        _path(hub, slug).unlink()
    return as_json({})


@route("POST", COLLECTION + "/items")
def add_item(hub: HubSite, request: Request, slug: str) -> Reply:
    hub.writer(request)
    wanted = request.json()
    item, text = wanted["item"], wanted.get("note")
    if len(text or "") > MAX_NOTE:
        raise HubError(400, "Validation error: note")
    with _LOCK:
        collection = _load(hub, slug)
        hub.reader(request, item["id"])
        if any((each["type"], each["id"]) == (item["type"], item["id"]) for each in collection["items"]):
            raise HubError(409, "This item is already in the collection")
        row = {"_id": uuid.uuid4().hex[:24], **item, "position": len(collection["items"])}
        collection["items"].append({**row, "note": {"text": text, "html": text}} if text else row)
        _save(hub, collection)
    return _answer(collection)


def collections(hub: HubSite) -> dict[str, dict[str, Any]]:
    """Title -> collection, as a test looks at them."""
    return {each["title"]: each for each in _all(hub)}


def _full(collection: dict[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {**collection, "lastUpdated": now, "position": 0, "theme": "green", "upvotes": 0}


def _answer(collection: dict[str, Any]) -> Reply:
    return as_json(_full(collection))


def _path(hub: HubSite, slug: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", slug):
        raise HubError(404, "Collection not found")
    return hub.store.root / "collections" / f"{slug}.json"


def _all(hub: HubSite) -> list[dict[str, Any]]:
    with _LOCK:
        paths = sorted((hub.store.root / "collections").glob("*/*.json"))
        return [json.loads(path.read_text()) for path in paths]


def _load(hub: HubSite, slug: str) -> dict[str, Any]:
    path = _path(hub, slug)
    if not path.is_file():
        raise HubError(404, "Collection not found")
    collection: dict[str, Any] = json.loads(path.read_text())
    return collection


def _save(hub: HubSite, collection: dict[str, Any]) -> None:
    path = _path(hub, collection["slug"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(collection))
    os.replace(temporary, path)
