"""Texts that lie: configs, overrides, data rows, and the answers of teachers and rollout servers.

A sound text is broken in one way from a seed: values of another type, numbers no float holds, names twice, brackets,
bytes flipped or cut, bombs of aliases. What is accepted is held against a second reading without plyfold's parser.
"""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import CONFIG_MAPPING

from plyfold.adapters.base.model_config import model_config
from plyfold.core import errors
from plyfold.core.config import DataConfig, build_config, config_dict, find_config, load_config
from plyfold.core.one_host import Reply
from plyfold.data.dataset import load_rows
from plyfold.engines.protocol import end_token_ids
from plyfold.engines.vllm_options import engine_options
from plyfold.stages.plan.model_shape import find_shape
from plyfold.stages.rollouts import http as rollout_http
from plyfold.stages.rollouts.engine import Request, Sampling
from plyfold.stages.teacher import chat
from plyfold.stages.training.curves import read_stages, render_curves

from .hostile_records import ODD, places
from .hostile_truth import strictly

CONFIG_MAPPING["qwen2"]  # imported once, before workers are forked
MAX_MESSAGE = 2000
SANDBOX = find_config("sandbox")

# ---- how a text is broken

NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 65, "9" * 5000, "1e308", "-0", "01", "0x7", "1_0")
STRINGS = (
    '"\\ud800"',
    '"\\udfff x"',
    '"\\ud83d\\ude00"',
    '"\\u202e"',
    '"\\u0000"',
    '"\x7f"',
    "'one'",
    '"' + "x" * 70_000 + '"',
)


def json_text(value: Any, chance: random.Random) -> bytes:
    """A JSON value, broken."""
    value = json.loads(json.dumps(value))
    way = chance.random()
    found = places(value) if isinstance(value, (dict, list)) else []
    if way < 0.35 and found:
        for _ in range(chance.choice([1, 1, 3])):
            holder, key = chance.choice(found)
            if chance.random() < 0.15 and isinstance(holder, dict):
                holder.pop(key, None)
            elif chance.random() < 0.15:
                holder[key] = [holder.get(key) if isinstance(holder, dict) else holder[key]] * 2
            else:
                holder[key] = chance.choice(ODD)
        return json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    text = json.dumps(value)
    if way < 0.55:  # a token by another
        spots = [at for at, sign in enumerate(text) if sign in ":,["]
        at = chance.choice(spots)
        stop = next((end for end in range(at + 1, len(text)) if text[end] in ",]}"), at + 1)
        return f"{text[: at + 1]}{chance.choice([*NUMBERS, *STRINGS])}{text[stop:]}".encode()
    if way < 0.65 and '"' in text:  # a name twice
        at = text.find("{") + 1
        name, number = chance.choice(["choices", "data", "r", "question"]), chance.choice(NUMBERS[6:9])
        return f'{text[:at]}"{name}": {number}, {text[at:]}'.encode()
    if way < 0.72:
        depth = chance.choice([20, 31, 33, 200, 2000, 200_000])
        return chance.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth])
    if way < 0.78:
        whole = [text.encode("utf-16"), text.encode("utf-32"), text.encode() + b"\0", b" " * 100_000, b"\xef\xbb\xbf{}"]
        return chance.choice([*whole, b"", b"null", b"7", b'"x"', b"[]", b"{}", b"<html>", b"\xff", b"{} {}"])
    data = bytearray(text.encode())
    for _ in range(chance.choice([1, 2, 8])):
        at = chance.randrange(len(data))
        cut = chance.random()
        if cut < 0.4:
            data[at] ^= 1 << chance.randrange(8)
        elif cut < 0.7:
            del data[at : at + chance.choice([1, 3, 20])]
        else:
            data[at:at] = chance.choice(
                [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\x00", b"\xed\xa0\x80", b"\n", b"1"]
            )
        if not data:
            break
    return bytes(data)


LAUGHS = "z: &a0 [x, x]\n" + "".join(f"z{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
YAML_VALUES = (
    ".nan", ".inf", "1e999", "9" * 65, "9" * 5000, "[" * 500, "{a: " * 300, "&a [*a]", "*none",
    "!!python/name:os.system",
    '"\\ud800"', "[1, 2]", "{}", "null", "true", "'x'", "${seed}", "${oc.env:HOME}", "${", "${${seed}}", "-1", "1:30",
    "|", "2026-01-01", "? a", "\t", "@", "%", "x" * 5000, "0x10", "0o7", "~", "=", "<<: *a",
)  # fmt: skip


def yaml_text(chance: random.Random) -> bytes:
    """The sandbox's config, broken."""
    lines = SANDBOX.read_text().split("\n")
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(lines))
        way, line = chance.random(), lines[at]
        if way < 0.5 and ":" in line:
            lines[at] = f"{line.partition(':')[0]}: {chance.choice(YAML_VALUES)}"
        elif way < 0.6:
            lines.insert(at, line)
        elif way < 0.7:
            del lines[at]
        elif way < 0.8:
            lines[at] = " " * chance.choice([1, 2, 40]) + line
        elif way < 0.85:
            lines.insert(0, LAUGHS)
        else:
            spot = chance.randrange(len(line) + 1)
            lines[at] = (
                line[:spot]
                + chance.choice(["\x00", "\x1b", "\u2028", "é", ":", "- ", "#", "'", '"', "&a", "*a"])
                + line[spot:]
            )
        lines = lines or [""]
    data = "\n".join(lines).encode()
    return data if chance.random() < 0.95 else data[: chance.randrange(len(data))] + b"\xff\xfe"


# ---- what has to come of it


class WrongError(Exception):
    """What plyfold did is neither right nor a refusal."""


def _config(folder: Path, chance: random.Random) -> None:
    path = folder / "mine.yaml"
    path.write_bytes(yaml_text(chance))
    config = load_config(path)
    again = build_config(config_dict(config))
    if config_dict(again) != config_dict(config):
        raise WrongError("a config accepted is another one, read again")
    if any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in _leaves(config_dict(config))):
        raise WrongError("a config with NaN or infinity is accepted")


def _override(folder: Path, chance: random.Random) -> None:
    keys = [
        "seed",
        "base.repo",
        "stages.brevity.trainer",
        "eval.temperature",
        "data.rows",
        "adapter.targets",
        "a" + ".a" * 3000,
        "",
    ]
    load_config("sandbox", [f"{chance.choice(keys)}={chance.choice(YAML_VALUES)}"])


ROWS = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(1, 5)]


def _rows(folder: Path, chance: random.Random) -> None:
    if chance.random() < 0.5:
        lines = [json.dumps(row).encode() for row in ROWS]
        lines[chance.randrange(4)] = json_text(ROWS[0], chance).replace(b"\n", b" ")
        path, data = folder / "rows.jsonl", b"\n".join(lines)
    else:
        path, data = folder / "rows.json", json_text(ROWS, chance)
    path.write_bytes(data)
    rows = load_rows(DataConfig(path=str(path), columns={"question": "question", "answer": "answer"}))
    for row in rows:
        row.question.encode()
        row.answer.encode()


CHOICE = {
    "message": {"role": "assistant", "content": "Step 1: 1 + 1 = 2\nAnswer: 2"},
    "finish_reason": "stop",
    "index": 0,
}
COMPLETION = {"id": "x", "choices": [CHOICE], "usage": {"prompt_tokens": 30, "completion_tokens": 20}}


def _teacher(folder: Path, chance: random.Random) -> None:
    data = json_text(COMPLETION, chance)
    teacher = chat.Chat(chat.Endpoint(url="http://127.0.0.1:9/v1", model="toy", key="sk-secret"), 1)
    reply = chat._Reply(200, "", "", data)
    if reply.passing:
        raise errors.OfflineError("busy", where=teacher._said(reply))
    try:
        answer = teacher._completion(reply)
    except chat.MalformedAnswerError as error:
        if len(f"{error.reason}{error.detail}") > 300:
            raise WrongError("a reason of too many characters") from None
        raise errors.FailedError("malformed", where=error.reason) from None
    content = strictly(data)["choices"][0]["message"].get("content") or ""
    text = (
        content if isinstance(content, str) else "".join(part["text"] for part in content if part.get("type") == "text")
    )
    if answer.text != text or not 0 <= answer.completion_tokens < 1e12:
        raise WrongError("a completion accepted is another one")
    answer.text.encode()


ROLLOUT = {"choices": [{"index": 0, "token_ids": [3, 1], "logprobs": {"token_logprobs": [-0.5, -0.25]}, "text": "a"}]}


def _rollout(folder: Path, chance: random.Random) -> None:
    data = json_text(ROLLOUT, chance)
    with _answered(Reply(200, data, "")):
        engine = rollout_http.HttpRollouts("http://127.0.0.1:9", timeout_s=1)
        drawn = engine._complete(
            "a", Request(prompt_ids=(5,), n=1, seed=1), Sampling(temperature=1.0, max_tokens=8, stop_token_ids=())
        )
    choice = strictly(data)["choices"][0]
    if (drawn[0].token_ids, drawn[0].logprobs) != (choice["token_ids"], choice["logprobs"]["token_logprobs"]):
        raise WrongError("completions accepted are other ones")
    if not all(type(token) is int and token >= 0 for token in drawn[0].token_ids) or not all(
        math.isfinite(value) and value < 0.01 for value in drawn[0].logprobs
    ):
        raise WrongError("what is no token or log probability is accepted")


_lock = threading.Lock()


class _answered:  # noqa: N801 - a context manager
    """Every request to a rollout server is answered so."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def __enter__(self) -> None:
        _lock.acquire()
        self.before = rollout_http.ask
        rollout_http.ask = lambda *_, **__: self.reply  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        rollout_http.ask = self.before  # type: ignore[assignment]
        _lock.release()


MODEL = {
    "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 256,
    "eos_token_id": [1, 2], "rope_theta": 1e6,
}  # fmt: skip


def _model(folder: Path, chance: random.Random) -> None:
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes(json_text(MODEL, chance) if chance.random() < 0.7 else json.dumps(MODEL).encode())
    from plyfold.core.config import BaseConfig

    find_shape(BaseConfig(repo="acme/toy", revision="0" * 40, path=str(folder)))
    told = []
    for ask in (
        lambda: model_config(folder),
        lambda: end_token_ids(folder),
        lambda: engine_options(folder, "float32", [8], cpu=True),
    ):
        try:
            ask()
        except errors.PlyfoldError as error:
            told.append(error)
    if told:
        raise told[0]
    if not all(type(token) is int for token in end_token_ids(folder)):
        raise WrongError("end tokens that are none")


LINE = {"step": 1, "loss": 0.5, "reward": 1.0, "wall_s": 3.0, "alarms": [{"name": "x", "step": 1, "value": 2.0}]}


def _metrics(folder: Path, chance: random.Random) -> None:
    run = folder / "1-structure"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b"\n".join(json_text({**LINE, "step": n}, chance) for n in range(3)) + b"\n")
    page = render_curves("toy", read_stages(folder), running=False)
    if "\x1b" in page or "\u202e" in page or "NaN" in page:
        raise WrongError("a page shows what it should not")


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "text: config": _config,
    "text: override": _override,
    "text: data rows": _rows,
    "text: teacher's answer": _teacher,
    "text: rollout server's answer": _rollout,
    "text: config of a base": _model,
    "text: metrics": _metrics,
}


def verdict(folder: Path, kind: str, seed: int) -> str:
    """Break one text in an empty folder and read it.

    Returns:
        `right`, the name of the error class that refused it, or a sentence that starts with `FAULT`.
    """
    try:
        KINDS[kind](folder, random.Random(seed))
    except errors.PlyfoldError as error:
        if len(str(error)) > MAX_MESSAGE:
            return f"FAULT an error of {len(str(error)):,} characters"
        if not error.where and not error.found:
            return f"FAULT a refusal that names no place: {error.what}"
        return type(error).__name__
    except yaml.YAMLError as error:
        return f"FAULT {type(error).__name__}: {str(error)[:200]!r}"
    except Exception as error:
        return f"FAULT {type(error).__name__}: {str(error)[:200]!r}"
    return "right"
