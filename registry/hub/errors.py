"""What an exception of the Hub's library means, as one of plyfold's own errors; no text of it holds the token."""

from __future__ import annotations

import json
from typing import Any

from ...core.disk.files import DISK_FULL
from ...core.errors import AuthError, ConfigError, ConflictError, FailedError, NotFoundError, OfflineError, PlyfoldError
from .session import EndlessAnswerError

NONSENSE = (LookupError, TypeError, AttributeError, UnicodeError, json.JSONDecodeError, RecursionError)
"""What the library, which reads answers unchecked, raises on those that are cut off, changed on the way or made up."""


class HubBusyError(OfflineError):
    """The Hub was not reached or could not answer now: trying again may help."""


class HeadMovedError(ConflictError):
    """The branch is not at the commit that was to be its parent."""


def offline(where: str) -> OfflineError:
    """The error for what only the Hub has while HF_HUB_OFFLINE is set."""
    return OfflineError(
        "this is not in the registry and the Hub is switched off (HF_HUB_OFFLINE)",
        where=where,
        next_step="unset HF_HUB_OFFLINE and run the same command again",
    )


def translate(error: Exception, where: str) -> PlyfoldError | None:
    """What an exception of the Hub's library means, or None for one that is not about the Hub.

    NotFoundError, AuthError, ConflictError (HeadMovedError for a stale parent), ConfigError (an unfit name or card),
    HubBusyError (network, 408, 429, 5xx, an answer that cannot be read), FailedError (any other refusal). No text of it
    holds the token.
    """
    import httpx2
    from huggingface_hub import errors as hub

    found = _plain(str(error).strip().partition("\n")[0])
    if isinstance(error, hub.OfflineModeIsEnabled):
        return offline(where)
    if isinstance(error, (hub.GatedRepoError, hub.LocalTokenNotFoundError)):
        return _denied(where, "a gated repository" if isinstance(error, hub.GatedRepoError) else "no token")
    if isinstance(error, hub.HfHubHTTPError):
        return _of_status(error, where)
    if isinstance(error, hub.HFValidationError):
        return ConfigError("not a name the Hub takes", where=where, found=found)
    if isinstance(error, (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL)) or (
        isinstance(error, (ConnectionError, TimeoutError)) and error.errno not in DISK_FULL
    ):
        return _busy(where, f"{type(error).__name__}: {found}".rstrip(": "))
    if isinstance(error, EndlessAnswerError):
        return FailedError("the answer of the Hub is not one to be read to its end", where=where, found=found)
    if isinstance(error, (*NONSENSE, hub.HfUriError)):
        return HubBusyError(
            "the answer of the Hub makes no sense",
            where=where,
            found=f"{type(error).__name__}: {found}",
            next_step="run the same command again later; another proxy or network may help",
        )
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return translate(error.__cause__, where)  # uploads wrap what happened
    if isinstance(error, (ValueError, RuntimeError)) and type(error) in (ValueError, RuntimeError):
        return FailedError("the Hub refused the files", where=where, found=found)
    return None


def _of_status(error: Any, where: str) -> PlyfoldError:
    status = error.response.status_code
    said = _plain(str(error.server_message or "").strip().partition("\n")[0])
    found = f"HTTP {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        return _denied(where, found)
    if status == 404:
        return NotFoundError(
            "no such repository, revision or file on the Hub, or not for this token",
            where=where,
            found=found,
            next_step="check the name; for a private repository: hf auth login",
        )
    if status == 412:
        return HeadMovedError(
            "others keep changing the repository; nothing of yours was lost",
            where=where,
            found=found,
            next_step="run the same command again",
        )
    if status == 409:
        return ConflictError("the Hub has this already, or is changing it", where=where, found=found)
    if status in (408, 429) or status >= 500:
        return _busy(where, found)
    return FailedError("the Hub refused the request", where=where, found=found)


def _denied(where: str, found: str) -> AuthError:
    from huggingface_hub import get_token

    return AuthError(
        "the Hub does not allow this" if get_token() else "the Hub asks for a token",
        where=where,
        expected="a token that may read this repository, and write it to push",
        found=found,
        next_step="run `hf auth login`, or set HF_TOKEN",
    )


def _busy(where: str, found: str) -> HubBusyError:
    return HubBusyError(
        "the Hub cannot be reached or cannot answer now",
        where=where,
        found=found,
        next_step="run the same command again later; what is in the registry works without the Hub",
    )


def _plain(text: str) -> str:
    """At most 200 characters of what a server said, without the token should it echo one."""
    from huggingface_hub import get_token

    token = get_token()
    return (text.replace(token, "***") if token else text)[:200]
