"""One OpenAI-compatible chat/completions endpoint, asked patiently: what passes is tried again, the rest is an error.

The client is httpx2, which huggingface-hub brings to every install; of the protocol one request and one answer are
needed. Sends the key in a header and nowhere else: no message and no file of plyfold holds it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..core.errors import AuthError, ConfigError, FailedError, NotFoundError, OfflineError

if TYPE_CHECKING:
    import httpx2

FIRST_DELAY_S = 1.0
"""Wait before the second try of a request; each further one doubles it."""
LONGEST_DELAY_S = 60.0
TRIES = 6
"""Of one request, before the endpoint counts as down."""
PATIENCE_S = 300.0
"""An endpoint that asks for a longer wait is given up for now."""
PASSING = {408, 409, 425, 429}
"""Statuses besides 5xx that a later try may not meet."""
REFUSING = {400, 413, 422}
"""Statuses that are about one request, such as a prompt beyond the model's context."""


class RefusedRequestError(ValueError):
    """The endpoint takes requests, but not this one; caught and counted, never shown."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model answers, and how patiently it is asked."""

    url: str
    """Root of the API, such as `https://host/v1`."""
    model: str
    key: str = field(default="", repr=False)
    """Sent as a bearer token; empty for a server that wants none."""
    timeout_s: float = 600.0
    """Longest a whole answer may take."""

    @property
    def host(self) -> str:
        """Host and port: all of the address that is written anywhere."""
        return urlsplit(self.url).netloc

    @property
    def tells_key(self) -> bool:
        """Whether a key leaves this machine unencrypted."""
        parts = urlsplit(self.url)
        return bool(self.key) and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")

    @property
    def completions_url(self) -> str:
        """Where completions are asked for."""
        root = self.url.rstrip("/")
        return root if root.endswith("/chat/completions") else f"{root}/chat/completions"

    def check(self) -> None:
        """Refuse an address or a key that cannot be meant.

        Raises:
            ConfigError: No http address, one that carries a password or a query, a key no header can hold, or no time
                to answer in.
        """
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets or a port that no address has
            sound = False
        if not sound:
            raise ConfigError(
                "not the address of an endpoint",
                expected="http(s)://host[:port]/v1",
                found=self.url.rpartition("@")[2].partition("?")[0],  # without a password or a key
                next_step="give the address up to and with /v1",
            )
        if not 0 < self.timeout_s < math.inf:
            raise ConfigError("the longest an answer may take has to be positive", found=f"{self.timeout_s} s")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "the endpoint's address carries more than an address",
                where=parts.hostname,
                next_step="give the key by an environment variable",
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("the key holds characters that no header takes", next_step="set the variable anew")


@dataclass(frozen=True)
class Answer:
    """A completion."""

    text: str
    """Empty where the model wrote none."""
    finish: str
    """Why it ended: `stop`, `length`, or what else the endpoint says."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chat:
    """An open connection to an endpoint. Use it as an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        """A client with at most so many connections; nothing is sent yet."""
        import httpx2

        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self.endpoint = endpoint
        self.retries = 0
        """Requests sent once more than they should have needed."""
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(endpoint.timeout_s, connect=min(30.0, endpoint.timeout_s)),
            limits=httpx2.Limits(max_connections=connections),
            follow_redirects=False,  # a key is for one host
        )

    async def __aenter__(self) -> Chat:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> Answer:
        """One completion, tried again while what stands in its way may pass.

        Args:
            messages: As the protocol has them, `{role, content}`.
            sampling: Further fields of the request, such as temperature, top_p, max_tokens, seed.

        Raises:
            RefusedRequestError: The endpoint does not take this request; others may do.
            AuthError: It wants a key, or another one.
            NotFoundError: It has no such model or address.
            OfflineError: It cannot be reached, or is still too busy after the last try.
            FailedError: What answers is no chat endpoint.
        """
        import httpx2

        body = {"model": self.endpoint.model, "messages": list(messages), **sampling}
        problem = ""
        for number in range(TRIES):
            if number:
                self.retries += 1
            wait_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**number) * random.uniform(0.5, 1.0)
            try:
                async with asyncio.timeout(self.endpoint.timeout_s):  # of the whole answer, however slowly it drips
                    response = await self._client.post(self.endpoint.completions_url, json=body)
            except (httpx2.TransportError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if response.is_success:
                    answer = _read(response)
                    if answer is not None:
                        return answer
                    problem = self._said(response)  # with a message, where a gateway answers 200 with an error inside
                elif response.status_code in PASSING or response.status_code >= 500:
                    problem = self._said(response)
                    wait_s = self._asked_wait_s(response, wait_s)
                else:
                    raise self._refusal(response)
            if number + 1 < TRIES:
                await asyncio.sleep(wait_s)
        if problem.startswith("HTTP 2") and ":" not in problem:
            raise FailedError(
                "the endpoint's answers are no chat completions",
                where=self.endpoint.host,
                expected="choices[0].message.content",
                next_step="check the address: it usually ends in /v1",
            )
        raise OfflineError(
            "the endpoint does not answer",
            where=self.endpoint.host,
            found=f"{problem}, {TRIES} times",
            next_step="run the same command again; it continues from what is complete",
        )

    def _asked_wait_s(self, response: httpx2.Response, otherwise_s: float) -> float:
        asked = response.headers.get("retry-after", "")
        try:
            wait_s = float(asked) if asked.replace(".", "", 1).isdecimal() else _seconds_until(asked)
        except ValueError:
            return otherwise_s
        if wait_s > PATIENCE_S:
            raise OfflineError(
                "the endpoint asks for a longer wait than this command waits",
                where=self.endpoint.host,
                found=f"{self._said(response)}, come back in {wait_s:.0f} s",
                next_step="run the same command again then; it continues from what is complete",
            )
        return max(0.0, wait_s)

    def _refusal(self, response: httpx2.Response) -> Exception:
        status, found, where = response.status_code, self._said(response), self.endpoint.host
        if status in (401, 403):
            return AuthError(
                "the endpoint wants a key, or another one",
                where=where,
                found=found,
                next_step="set OPENAI_API_KEY, or name the variable that holds the key by --key-env",
            )
        if status == 404:
            return NotFoundError(
                "the endpoint has no such model or address",
                where=where,
                found=f"{found} (model {self.endpoint.model})",
                next_step="check the model's name, and that the address ends in /v1",
            )
        if status in REFUSING:
            return RefusedRequestError(found)
        return FailedError("the endpoint refuses", where=where, found=found)

    def _said(self, response: httpx2.Response) -> str:
        """Status and message; some endpoints repeat the key in it."""
        try:
            told = response.json()["error"]
            message = told["message"] if isinstance(told, dict) else told or ""
        except (ValueError, KeyError, TypeError):
            message = ""
        text = " ".join(str(message).split())[:200]
        if self.endpoint.key:
            text = text.replace(self.endpoint.key, "[key]")
        return f"HTTP {response.status_code}" + (f": {text}" if text else "")


def _read(response: httpx2.Response) -> Answer | None:
    try:
        found = response.json()
        choice, usage = found["choices"][0], found.get("usage") or {}
        text = choice["message"].get("content") or ""
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return Answer(text, str(choice.get("finish_reason") or "stop"), *counts) if isinstance(text, str) else None


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
