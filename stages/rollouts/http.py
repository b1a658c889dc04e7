"""Rollouts from a running vLLM server, which may have GPUs of its own and serve several training processes.

The server reads adapters from the run's folder, so that folder has to lie where both see it under one path. How it has
to be started is `serving.rollouts`. What the server answers is held to a length and a time and checked, a redirect is
refused, so that the key goes to one host alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from ...adapters.base.resolve import TWIN_NAME
from ...core.console import warn
from ...core.disk.digest import digest_json
from ...core.errors import (
    AuthError,
    BaseMismatchError,
    ConfigError,
    FailedError,
    IncompatibleError,
    OfflineError,
    PlyfoldError,
)
from ...core.one_host import UNANSWERED, Reply, ask, is_loopback
from ...core.reading.strict_json import MalformedJSONError, parse_json, read_json
from ...serving.access import api_key
from .engine import START, Completion, Request, Sampling, adapter_prefix

ATTEMPTS = 4
"""Times something is asked for before a server counts as gone."""
WAIT_S = 2.0
"""Before the second attempt; doubled before each further one."""
LOOK_TIMEOUT_S = 10.0
"""Longest wait for an answer that takes no work."""
CONCURRENT = 64
"""Prompts on their way at once; the server batches what arrives."""

MAX_ANSWER_BYTES = 4_000_000
"""Longest answer that holds no completions."""
TOKEN_BYTES = 500
"""Most that an answer takes for one token, with its id, text and log probabilities."""

_UNAVAILABLE = {502, 503, 504}
_DENIED = {401, 403}


class HttpRollouts:
    """A RolloutEngine behind a URL.

    A request carries its seed, so that asking again after a lost answer asks for the same samples. An adapter that the
    server has lost in a restart is loaded again.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Remember where the server is; nothing is asked yet.

        Args:
            url: Of the server, with or without `/v1`.
            timeout_s: Longest wait for the completions of one prompt, and for an adapter to be loaded.

        Raises:
            ConfigError: No http address, or one that carries a password or a query.
        """
        self._url, self._timeout_s = _address(url), timeout_s
        self._folders: dict[str, Path] = {}
        self._model: dict[str, Any] = {}

    def check(self, context: int, *, temperature: float = 1.0, twin: dict[str, Any] | None = None) -> None:
        """Refuse a server that is not as rollouts need it.

        Args:
            context: Longest prompt plus completion, in tokens.
            temperature: Completions are drawn at.
            twin: What the twin's `twin.json` holds; compared where the server says what its model is a twin of, or
                its model lies on this machine.

        Raises:
            OfflineError: Nothing answers there.
            AuthError: It asks for a key that is missing or wrong.
            ConfigError: VLLM_API_KEY is empty, or no key.
            BaseMismatchError: It serves another model.
            IncompatibleError: It loads no adapters while it runs, gives other log probabilities, or is too short.
        """
        host = urlsplit(self._url)
        if api_key() and host.scheme == "http" and not is_loopback(host.hostname or ""):
            warn(f"the key goes to {host.netloc} over http, for everybody between to read")
        self._model = self._base_card()
        self._check_twin(twin)
        longest = self._model.get("max_model_len")
        if type(longest) is int and longest < context:
            raise self._unfit("the server's context is too short", f"{context} tokens", longest)
        # A server that loads adapters complains of an empty name; another one has no such path.
        status, _ = self._once("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}, LOOK_TIMEOUT_S)
        if status in (404, 405):
            raise self._unfit(
                "the server loads no adapters while it runs", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora", ""
            )
        if temperature != 1.0 and self._first_logprob(1.0) == self._first_logprob(temperature):
            raise self._unfit("the server leaves temperature out of log probabilities",
                              "--logprobs-mode processed_logprobs", "")  # fmt: skip

    def sweep(self, run_dir: Path) -> None:
        """Let the server forget adapters of a run folder, which a killed run has left there."""
        for card in self._models():
            if card.get("parent") and str(card["id"]).startswith(adapter_prefix(run_dir)):
                self._forget(card["id"])

    def load(self, name: str, folder: Path) -> None:
        """Let the server take an adapter.

        Raises:
            OfflineError: It is out of reach.
            IncompatibleError: It refuses the adapter, or does not see its folder.
        """
        self._folders[name] = folder
        status, answer = self._patiently("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if status != 200 and not self._holds(name):  # held: the answer to an earlier attempt was lost
            raise IncompatibleError(
                "the server does not take the adapter",
                where=f"{self._url} {folder}",
                found=_message(answer),
                next_step="the server has to see the run's folder under this path, and to be started with a "
                "--max-lora-rank that holds the adapter",
            )

    def unload(self, name: str) -> None:
        """Let the server forget an adapter; that it is out of reach is told and harms nothing."""
        self._folders.pop(name, None)
        self._forget(name)

    def sample(self, name: str, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Draw completions, all prompts at once.

        Raises:
            OfflineError: The server is out of reach, also after waiting.
            FailedError: It answers with an error.
        """
        waiting: SimpleQueue[tuple[int, Request]] = SimpleQueue()
        ended: SimpleQueue[tuple[int, list[Completion], BaseException | None]] = SimpleQueue()
        for item in enumerate(requests):
            waiting.put(item)

        def work() -> None:
            while not waiting.empty():
                with suppress(Empty):
                    place, request = waiting.get_nowait()
                    try:
                        ended.put((place, self._complete(name, request, sampling), None))
                    except BaseException as error:
                        ended.put((place, [], error))

        # Daemons: an error or Ctrl-C does not wait for the requests beside it, nor does the end of the process.
        for _ in range(min(CONCURRENT, len(requests))):
            Thread(target=work, daemon=True).start()
        drawn: dict[int, list[Completion]] = {}
        try:
            while len(drawn) < len(requests):
                place, drawn[place], error = ended.get()
                if error:
                    raise error
        finally:
            with suppress(Empty):
                while True:
                    waiting.get_nowait()
        return [drawn[place] for place in range(len(requests))]

    def describe(self) -> dict[str, Any]:
        """Engine and limit; not where it is, which is nobody else's."""
        return {"engine": "http", "max_model_len": self._model.get("max_model_len")}

    def close(self) -> None:
        """Let the server forget what it was given."""
        for name in list(self._folders):
            self.unload(name)

    def _complete(self, name: str, request: Request, sampling: Sampling) -> list[Completion]:
        body = {
            "model": name,
            "prompt": list(request.prompt_ids),
            "n": request.n,
            "seed": request.seed,
            "temperature": sampling.temperature,
            "top_p": 1.0,  # stated, since a server may have defaults of its own
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "ignore_eos": True,  # the trainer's end tokens alone, as `generate` is told
            "logprobs": 0,
            "return_token_ids": True,
        }
        tokens = len(request.prompt_ids) + request.n * sampling.max_tokens
        answer = self._completions(body, MAX_ANSWER_BYTES + TOKEN_BYTES * tokens)
        try:
            choices = {choice["index"]: choice for choice in answer["choices"]}
            each = [choices[index] for index in range(request.n)]
            drawn = [Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in each]
            sound = len(answer["choices"]) == request.n and all(_is_sound(one, sampling.max_tokens) for one in drawn)
        except (KeyError, TypeError):
            sound = False
        if not sound:
            raise self._no_completions(answer)
        return drawn

    def _completions(self, body: dict[str, Any], max_bytes: int) -> Any:
        status, answer = self._patiently("/v1/completions", body, max_bytes)
        if status != 200:
            raise FailedError("the rollout server answers with an error", where=self._url, found=_message(answer))
        return answer

    def _no_completions(self, answer: Any) -> IncompatibleError:
        return IncompatibleError(
            "the server's completions lack their token ids or log probabilities, or hold what is none",
            where=self._url,
            expected="vLLM 0.32's /v1/completions",
            found=_message(answer),
        )

    def _patiently(self, path: str, body: dict[str, Any], max_bytes: int = MAX_ANSWER_BYTES) -> tuple[int, Any]:
        """The answer, asked for again for a while where the server is out of reach or has lost the adapter."""
        wait_s, found = WAIT_S, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(wait_s)
                wait_s *= 2
            try:
                status, answer = self._once(path, body, self._timeout_s, max_bytes)
            except OfflineError as error:
                found = error.found
                continue
            lost = status == 404 and "model" in body  # a restarted server has no adapters
            if status not in _UNAVAILABLE and not lost:
                return status, answer
            found = f"{status}: {_message(answer)}"
            if lost and (folder := self._folders.get(body["model"])):
                with suppress(OfflineError):
                    warn(f"{self._url} has lost the adapter {body['model']}, was it restarted? It is loaded again")
                    load = {"lora_name": body["model"], "lora_path": str(folder)}
                    self._once("/v1/load_lora_adapter", load, self._timeout_s)
        raise self._gone(found, f"{ATTEMPTS} attempts")

    def _once(
        self, path: str, body: dict[str, Any] | None, timeout_s: float, max_bytes: int = MAX_ANSWER_BYTES
    ) -> tuple[int, Any]:
        """Status and answer of one attempt.

        Raises:
            OfflineError: There was none.
            AuthError: It was a refusal.
            IncompatibleError: It leads elsewhere, or is no JSON though the server says that all is well.
        """
        headers = {"Content-Type": "application/json"}
        if key := api_key():
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode() if body is not None else None
        try:
            reply = ask(f"{self._url}{path}", data=data, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes)
        except (*UNANSWERED, ValueError) as error:  # ValueError: a chunk's length that is no number
            raise self._gone(str(getattr(error, "reason", error)) or type(error).__name__) from error
        if reply.status in _DENIED:
            raise AuthError("the rollout server asks for a key", where=self._url,
                            next_step="set VLLM_API_KEY to the key it was started with")  # fmt: skip
        if reply.location:
            elsewhere = reply.location.partition("?")[0][:200]
            raise self._unfit("the server sends its callers elsewhere, and the key goes to one host alone",
                              "an answer", f"HTTP {reply.status} to {elsewhere}")  # fmt: skip
        return reply.status, self._read(reply, max_bytes)

    def _read(self, reply: Reply, max_bytes: int) -> Any:
        try:
            return parse_json(reply.data, max_bytes=max_bytes)
        except MalformedJSONError as error:
            if reply.status == 200 and reply.data.strip().startswith((b"{", b"[")):
                raise self._unfit("the server's answer is not sound JSON", "vLLM 0.32's answers", error) from error
            return reply.data[:1000].decode(errors="replace")

    def _models(self) -> list[dict[str, Any]]:
        status, answer = self._once("/v1/models", None, LOOK_TIMEOUT_S)
        cards = answer.get("data") if isinstance(answer, dict) else None
        if status != 200 or not isinstance(cards, list) or not all(map(_is_card, cards)):
            raise self._unfit("what answers is no vLLM server", "a list of models at /v1/models", _message(answer))
        return cards

    def _base_card(self) -> dict[str, Any]:
        bases = [card for card in self._models() if not card.get("parent")]
        if not bases:
            raise self._unfit("the server serves no base", "the twin", "")
        return bases[0]

    def _check_twin(self, twin: dict[str, Any] | None) -> None:
        """Whether it is the twin of another base or quantisation: `plyfold rollouts` says it, by a digest.

        Of another server it is known where its model's folder, as it gives it, lies on this machine.
        """
        if twin is None:
            return
        folder, expected, found = Path(str(self._model.get("root"))), str(twin), self._model.get("twin")
        if found is not None:
            expected = digest_json(twin)
        elif folder.is_dir():
            try:
                found = str(read_json(folder / TWIN_NAME))
            except (OSError, ValueError):
                found = f"a folder without {TWIN_NAME}"
        else:
            return
        if found != expected:
            raise BaseMismatchError(
                "the rollout server serves another model than the one that is trained on",
                where=self._url,
                expected=expected,
                found=str(found)[:300],
                next_step=START,
            )

    def _first_logprob(self, temperature: float) -> float:
        body = {"model": self._model["id"], "prompt": [0], "max_tokens": 1, "temperature": temperature, "top_k": 0,
                "seed": 0, "logprobs": 5, "ignore_eos": True}  # fmt: skip
        answer = self._completions(body, MAX_ANSWER_BYTES)
        try:
            values = list(answer["choices"][0]["logprobs"]["top_logprobs"][0].values())
            if not values or not all(map(_is_logprob, values)):
                raise ValueError("no log probabilities")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise self._no_completions(answer) from error
        return float(max(values))

    def _holds(self, name: str) -> bool:
        return any(card["id"] == name for card in self._models())

    def _forget(self, name: str) -> None:
        try:
            self._once("/v1/unload_lora_adapter", {"lora_name": name}, LOOK_TIMEOUT_S)
        except PlyfoldError as error:
            warn(f"{self._url} could not be told to forget {name}: {error.found or error.what}")

    def _gone(self, found: str, after: str = "") -> OfflineError:
        return OfflineError(
            f"the rollout server does not answer{f' after {after}' if after else ''}",
            where=self._url,
            found=found,
            next_step=f"start it again ({START}), then plyfold train: it continues from the last checkpoint",
        )

    def _unfit(self, what: str, expected: str, found: object) -> IncompatibleError:
        return IncompatibleError(what, where=self._url, expected=expected, found=found, next_step=START)


def _address(url: str) -> str:
    """A server's root.

    Raises:
        ConfigError: No http address, or one that carries more than an address.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        sound = sound and url.isascii() and url.isprintable() and " " not in url
        more = bool(parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:  # brackets or a port that no address has
        sound = more = False
    if not sound or more:
        raise ConfigError(
            "the rollout server's address carries more than an address" if more else "not the address of a server",
            where="rollout.url",
            expected="as http://127.0.0.1:8001",
            found="" if more else url.rpartition("@")[2].partition("?")[0][:200],
        )
    return url.rstrip("/").removesuffix("/v1")


def _is_card(card: object) -> bool:
    return isinstance(card, dict) and isinstance(card.get("id"), str)


def _is_sound(drawn: Completion, max_tokens: int) -> bool:
    """Whether a server's completion is token ids with a log probability each, and no longer than was asked for."""
    tokens: Any = drawn.token_ids
    logprobs: Any = drawn.logprobs
    return (
        isinstance(tokens, list)
        and isinstance(logprobs, list)
        and 0 < len(tokens) == len(logprobs) <= max_tokens
        and all(type(token) is int and 0 <= token < 1 << 31 for token in tokens)
        and all(map(_is_logprob, logprobs))
    )


def _is_logprob(value: object) -> bool:
    """Whether a value is a log probability; one of 0 may have been rounded up."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value <= 1e-3


def _message(answer: Any) -> str:
    """The text of an error as vLLM gives it, or the beginning of whatever came."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
