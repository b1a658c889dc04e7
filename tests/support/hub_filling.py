"""Repositories that were not filled by plyfold."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import suppress

from ..conftest import Hub
from .hub_store import HubError


def put(hub: Hub, repo: str, files: Mapping[str, bytes], description: str = "") -> str:
    """Commit files to a repository, which is made where it is missing; return the commit."""
    with suppress(HubError):
        hub.store.create(repo, private=False, author="another", url=hub.url)
    lines = [
        {"key": "header", "value": {"summary": "files", "description": description}},
        *(
            {"key": "file", "value": {"path": path, "content": base64.b64encode(data).decode()}}
            for path, data in files.items()
        ),
    ]
    return hub.store.commit(repo, "main", lines, "another")
