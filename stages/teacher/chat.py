"""One OpenAI-compatible chat/completions endpoint, asked patiently: what passes is tried again, the rest is an error.

The client is httpx2, which huggingface-hub brings to every install; of the protocol one request and one answer are
needed. Sends the key in a header and nowhere else: no message and no file of plyfold holds it, no redirect is followed.
An answer is held to a length, on the wire and unpacked, and to a time, before anything is made of it.
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

from ...core.errors import AuthError, ConfigError, FailedError, NotFoundError, OfflineError, first_line
from ...core.one_host import is_loopback, unpacked
from ...core.reading.strict_json import MalformedJSONError, parse_json

if TYPE_CHECKING:
    pass

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
MAX_ANSWER_BYTES = 8_000_000
"""Longest answer, on the wire and unpacked: a completion of 128,000 tokens with its thoughts takes 2 MB."""
MAX_REFUSAL_BYTES = 100_000
"""Longest answer of another status; of a longer one nothing is told."""


class RefusedRequestError(ValueError):
    """The endpoint takes requests, but not this one; caught and counted, never shown."""


class MalformedAnswerError(ValueError):
    """What the endpoint sent is no completion; caught and counted, never shown."""

    def __init__(self, reason: str, detail: object = "") -> None:
        """Of one kind, `reason`, with what was seen of it."""
        super().__init__(reason)
        self.reason = reason
        self.detail = str(detail)[:200]


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
        return bool(self.key) and parts.scheme == "http" and not is_loopback(parts.hostname or "")

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

        headers = {"Accept-Encoding": "identity"}  # packed answers would blur the limit
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        self.endpoint = endpoint
        host = urlsplit(endpoint.url).hostname or ""
        pattern = f"all://[{host}]" if ":" in host else f"all://{host}"
        self.retries = 0
        """Requests sent once more than they should have needed."""
        try:
            self._client = httpx2.AsyncClient(
                headers=headers,
                timeout=httpx2.Timeout(endpoint.timeout_s, connect=min(30.0, endpoint.timeout_s)),
                limits=httpx2.Limits(max_connections=connections),
                mounts={pattern: None} if is_loopback(host) else None,  # no proxy sees what stays on this machine
                follow_redirects=False,  # a key is for one host
            )
        except (ImportError, ValueError) as error:  # a kind of proxy it does not speak to, or no address
            raise ConfigError(
                "the proxy that the environment names cannot be used",
                where="HTTPS_PROXY, HTTP_PROXY or ALL_PROXY",
                found=first_line(error),
                next_step="unset it, or name the endpoint's host in NO_PROXY",
            ) from error

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
            MalformedAnswerError: It sent something that is no completion.
            AuthError: It wants a key, or another one.
            NotFoundError: It has no such model or address.
            OfflineError: It cannot be reached, or is still too busy after the last try.
            FailedError: It refuses, or sends its callers elsewhere.
        """
        body = {"model": self.endpoint.model, "messages": list(messages), **sampling}
        problem = ""
        for number in range(TRIES):
            if number:
                self.retries += 1
            wait_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**number) * random.uniform(0.5, 1.0)
            reply = await self._post(body)
            if isinstance(reply, str):
                problem = reply
            elif reply.passing:
                problem = self._said(reply)
                wait_s = self._asked_wait_s(reply, wait_s)
            elif 200 <= reply.status < 300:
                return self._completion(reply)
            else:
                raise self._refusal(reply)
            if number + 1 < TRIES:
                await asyncio.sleep(wait_s)
        raise OfflineError(
            "the endpoint does not answer",
            where=self.endpoint.host,
            found=f"{problem}, {TRIES} times",
            next_step="run the same command again; it continues from what is complete",
        )

    async def _post(self, body: Mapping[str, Any]) -> _Reply | str:
        """What the endpoint says; or, where nothing came, why.

        Raises:
            MalformedAnswerError: An answer began and is cut, packed wrongly, too long, or has no end.
        """
        import httpx2

        status, raw, packed = 0, bytearray(), ""
        try:
            async with (
                asyncio.timeout(self.endpoint.timeout_s),  # of the whole answer, however slowly it drips
                self._client.stream("POST", self.endpoint.completions_url, json=body) as response,
            ):
                status, packed = response.status_code, response.headers.get("content-encoding", "")
                limit = MAX_ANSWER_BYTES if response.is_success else MAX_REFUSAL_BYTES
                async for chunk in response.aiter_raw():
                    raw += chunk
                    if len(raw) > limit:
                        break
        except (httpx2.TransportError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}".rstrip(": ")
            if 200 <= status < 300:
                raise MalformedAnswerError("the endpoint's answer has no end", problem) from error
            return problem
        try:
            data = unpacked(bytes(raw), packed, limit)
        except ValueError as error:
            if 200 <= status < 300:
                kind = "is too long" if len(raw) > limit else "cannot be unpacked"
                raise MalformedAnswerError(f"the endpoint's answer {kind}", error) from error
            data = b""
        return _Reply(status, response.headers.get("retry-after", ""), response.headers.get("location", ""), data)

    def _completion(self, reply: _Reply) -> Answer:
        """The completion in an answer.

        Raises:
            MalformedAnswerError: There is none that can be read.
        """
        try:
            found = parse_json(reply.data, max_bytes=MAX_ANSWER_BYTES)
        except MalformedJSONError as error:
            raise MalformedAnswerError("the endpoint's answer is not sound JSON", error) from error
        if isinstance(found, dict) and found.get("error"):
            raise MalformedAnswerError("an error in the place of an answer", self._said(reply))
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
            if isinstance(text, list):
                text = "".join(part["text"] for part in text if part.get("type") == "text")
            counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise MalformedAnswerError("the endpoint's answer is no chat completion", repr(error)) from error
        if not isinstance(text, str) or not isinstance(finish, str):
            raise MalformedAnswerError("the endpoint's answer is no chat completion", "content that is no text")
        return Answer(self._without_key(text), finish[:40], *counts)

    def _asked_wait_s(self, reply: _Reply, otherwise_s: float) -> float:
        asked = reply.retry_after
        try:
            wait_s = float(asked) if asked.replace(".", "", 1).isdecimal() else _seconds_until(asked)
        except (ValueError, TypeError, OverflowError):
            return otherwise_s
        if wait_s > PATIENCE_S:
            raise OfflineError(
                "the endpoint asks for a longer wait than this command waits",
                where=self.endpoint.host,
                found=f"{self._said(reply)}, come back in {wait_s:.0f} s",
                next_step="run the same command again then; it continues from what is complete",
            )
        return max(0.0, wait_s)

    def _refusal(self, reply: _Reply) -> Exception:
        status, found, where = reply.status, self._said(reply), self.endpoint.host
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
        if 300 <= status < 400:
            target = self._without_key(reply.location.partition("?")[0])[:200]
            return FailedError(
                "the endpoint refuses: it sends its callers elsewhere, and a key goes to one host alone",
                where=where,
                found=f"{found} to {target}",
                next_step="if you trust that address, give it as --endpoint",
            )
        return FailedError("the endpoint refuses", where=where, found=found)

    def _said(self, reply: _Reply) -> str:
        """Status and message; some endpoints repeat the key in it."""
        told = reply.error
        message = told.get("message") or "" if isinstance(told, dict) else told or ""
        text = self._without_key(" ".join(str(message).split()))[:200]
        return f"HTTP {reply.status}" + (f": {text}" if text else "")

    def _without_key(self, text: str) -> str:
        return text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text


@dataclass(frozen=True)
class _Reply:
    """An answer, unpacked and no longer than allowed."""

    status: int
    retry_after: str
    location: str
    data: bytes

    @property
    def error(self) -> Any:
        """What stands under `error`, or None."""
        try:
            found = parse_json(self.data, max_bytes=MAX_REFUSAL_BYTES)
        except MalformedJSONError:
            return None
        return found.get("error") if isinstance(found, dict) else None

    @property
    def passing(self) -> bool:
        """Whether a later try may be answered; gateways give such a status inside a 200, too."""
        status: Any = self.status
        if 200 <= self.status < 300 and isinstance(told := self.error, dict) and type(told.get("code")) is int:
            status = told["code"]
        return status in PASSING or 500 <= status < 600


def _count(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or not 0 <= value < 1e12:
        raise ValueError("a number of tokens that is none")
    return int(value)


def _seconds_until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
