"""Rationales from a real HTTP server that fails in every way endpoints do: what is kept is verified and teachable."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.config import DataConfig, load_config
from plyfold.core.errors import OfflineError
from plyfold.data.dataset import load_rationales
from plyfold.registry.store import find_store
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.teacher import chat
from plyfold.stages.teacher.collect import PROMPT

KEY = "sk-not-to-be-seen-anywhere"
ROWS = [{"question": f"What is {n} + {n} + 1000?", "answer": f"#### {2 * n + 1000}"} for n in range(1, 13)]


class Teacher(ThreadingHTTPServer):
    """Answers the n-th request about a question with the n-th of the faults set for it, and rightly after that."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.faults: dict[str, list[str]] = {}
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.seen: Counter[str] = Counter()
        self.pause_s, self.flying, self.most_flying = 0.0, 0, 0
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][-1]["content"].rpartition("\n")[2]
        with server.lock:
            server.asked.append(body)
            server.keys.add(self.headers["authorization"])
            number = server.seen[question]
            server.seen[question] += 1
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
        try:
            time.sleep(server.pause_s)
            faults = server.faults.get(question, server.faults.get("*", []))
            self._answer(faults[number] if number < len(faults) else "right", question)
        except OSError:
            pass  # the client gave up, as it should
        finally:
            with server.lock:
                server.flying -= 1

    def _answer(self, fault: str, question: str) -> None:
        n = int(question.split()[2])
        steps = f"Step 1: {n} + {n} = {2 * n}\nStep 2: {2 * n} + 1000 = \\boxed{{{2 * n + 1000}}}"
        texts = {
            "wrong": f"{steps}\nAnswer: 7",
            "silent": "Step 1: I add.\nStep 2: I am done.",
            "bare": f"Answer: {2 * n + 1000}",
            "empty": "",
            "surrogate": f"{steps} \ud83d\nAnswer: {2 * n + 1000}",
            "thinking": f"<think>Step 1: 7\nAnswer: 7</think>\n{steps}\nAnswer: {2 * n + 1000}",
        }
        text = texts.get(fault, f"{steps}\nAnswer: {2 * n + 1000}")
        text = [{"type": "reasoning"}, {"type": "text", "text": text}] if fault == "parts" else text
        reply = {"choices": [{"message": {"content": text}, "finish_reason": "length" if fault == "long" else "stop"}],
                 "usage": {"prompt_tokens": 30, "completion_tokens": 20}}  # fmt: skip
        time.sleep(5.0 if fault == "slow" else 0.0)
        if fault == "redirect":
            return self._send(302, {}, {"location": f"{self.server.url}/elsewhere"})
        if fault in ("nonsense", "error"):  # an error is a gateway's way to refuse
            return self._send(200, {fault: {"message": "no free worker", "code": 429}})
        if fault.isdecimal():
            headers = {"429": {"retry-after": "0"}, "503": {"retry-after": formatdate(time.time() - 5, usegmt=True)}}
            return self._send(int(fault), {"error": {"message": f"no, not with {KEY}"}}, headers.get(fault, {}))
        if fault in SENT:
            return self._raw(*SENT[fault])
        if fault == "later":
            return self._send(429, {"error": {"message": "quota"}}, {"retry-after": "86400"})
        return self._send(200, reply, cut=fault == "cut")

    def _send(
        self, status: int, reply: dict[str, Any], headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)

    def _raw(self, headers: dict[str, str], data: bytes | Iterator[bytes]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for chunk in [data] if isinstance(data, bytes) else iter(data):
            self.wfile.write(chunk)

    def log_message(self, *_: object) -> None: ...


class _Endless:
    """An answer that goes on, a chunk every so many seconds."""

    def __init__(self, chunk: bytes, pause_s: float) -> None:
        self.chunk, self.pause_s = chunk, pause_s

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.chunk
            time.sleep(self.pause_s)


def _answer(**fields: Any) -> bytes:
    choice = {"message": {"content": "Answer: 1"}, "finish_reason": "stop", **fields}
    return json.dumps({"choices": [choice]}).encode()


_BOMB = gzip.compress(b" " * 60_000_000)
SENT: dict[str, tuple[dict[str, str], Any]] = {
    "bomb": ({"content-encoding": "gzip"}, _BOMB),
    "bomb of bombs": ({"content-encoding": "gzip, gzip"}, gzip.compress(_BOMB)),
    "deflated bomb": ({"content-encoding": "deflate"}, zlib.compress(b" " * 60_000_000)),
    "bad gzip": ({"content-encoding": "gzip"}, b"\x1f\x8b\x08" + b"\xff" * 99),
    "cut gzip": ({"content-encoding": "gzip"}, gzip.compress(_answer())[:-9]),
    "br": ({"content-encoding": "br"}, b"\x8b\x02\x80"),
    "zstd": ({"content-encoding": "zstd"}, b"\x28\xb5\x2f\xfd"),
    "endless": ({}, _Endless(b"x" * 1_000_000, 0.0)),
    "dripping": ({}, _Endless(b" ", 0.05)),
    "cut chunks": ({"transfer-encoding": "chunked"}, b"ff\r\n{"),
    "no chunks": ({"transfer-encoding": "chunked"}, b"{}{}{}"),
    "declared 1e18": ({"content-length": str(10**18)}, b"{"),
    "deep": ({}, b'{"choices":' * 100_000),
    "beyond float": ({}, b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1e999}}'),
    "huge": ({}, b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": ' + b"9" * 5000 + b"}}"),
    "many tokens": ({}, b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1e300}}'),
    "NaN": ({}, b'{"choices": [{"message": {"content": "a"}}], "x": NaN}'),
    "twice": ({}, b'{"choices": [{"message": {"content": "a", "content": "b"}}]}'),
    "half a pair": ({}, b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
    "HTML": ({"content-type": "text/html"}, b"<!doctype html><title>Sign in</title>"),
    "nothing": ({}, b""),
    "another charset": ({"content-type": "application/json; charset=utf-16"}, _answer().decode().encode("utf-16")),
    "Latin 1": ({}, '{"choices": [{"message": {"content": "é"}}]}'.encode("latin-1")),
    "an error": ({}, b'{"error": {"message": "out of credit", "code": 402}}'),
    "a bare error": ({}, b'{"error": "out of credit"}'),
    "a list": ({}, b"[]"),
    "no choice": ({}, b'{"choices": []}'),
    "null message": ({}, b'{"choices": [{"message": null}]}'),
    "a number": ({}, _answer(message={"content": 7})),
    "a mapping": ({}, _answer(message={"content": {"text": "a"}})),
    "parts of numbers": ({}, _answer(message={"content": [{"type": "text", "text": 7}]})),
    "finish": ({}, _answer(finish_reason=["stop"])),
    "true tokens": ({}, b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": true}}'),
    "usage": ({}, b'{"choices": [{"message": {"content": "a"}}], "usage": [1]}'),
}
"""What is no completion, and how it is sent."""


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Teacher]:
    monkeypatch.setattr(chat, "FIRST_DELAY_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Teacher()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `data rationales` on ROWS; its JSON, or (with `code`) what it said on stderr."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))

    def call(*options: str, code: int = 0, url: str = "", plain: bool = False) -> Any:
        arguments = [
            "data", "rationales", "-c", "gsm8k", "-o", str(tmp_path / "out.jsonl"), "--endpoint", url or teacher.url,
            "--model", "toy", *([] if plain else ["--json"]),
            f"data.path={rows}", "eval.data.path=sandbox", "eval.data.name=null", "eval.data.rows=[0,20]", *options,
        ]  # fmt: skip
        assert run(arguments) == code
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        assert not any(KEY in file.read_text() for file in tmp_path.iterdir() if file.is_file())
        if plain:
            return [" ".join(line.split()) for line in captured.out.splitlines()]
        return captured.err if code else {**json.loads(captured.out), "stderr": captured.err}

    return call


def _kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_through_every_fault_the_verified_ones_are_kept(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    hindered = ["429", "503", "error", "cut", "nonsense", "thinking"]
    teacher.faults = {row["question"]: faults for row, faults in zip(ROWS, [
        hindered, ["slow"], ["wrong", "wrong", "silent", "right"], ["wrong"] * 4, ["long"] * 3, ["bare", "empty"],
        ["400"], ["surrogate"], ["parts"],
    ], strict=False)}  # fmt: skip
    found = ask("--timeout", "4", "--concurrency", "3")
    assert teacher.most_flying <= 3 + 1  # one that was given up may still be answered
    assert teacher.keys == {f"Bearer {KEY}"}
    assert found["rejected"] == {
        "the rationale's answer is not the gold one": 6, "cut off": 3, "the rationale states no answer": 1,
        "fewer than 2 steps": 1, "empty": 1, "refused by the endpoint": 1, "the endpoint's answer has no end": 1,
        "the endpoint's answer is no chat completion": 1, "the endpoint's answer is not sound JSON": 1,
    }  # fmt: skip
    kept = _kept(tmp_path)
    assert [row["index"] for row in kept] == [0, 1, 2, 4, 5, 7, 8, 9, 10, 11]
    assert (found["kept"], found["unsolved"], found["complete"]) == (10, 2, True)
    assert {row["index"]: row["attempt"] for row in kept if row["attempt"] > 1} == {0: 3, 2: 4, 4: 4, 5: 3, 7: 2}
    assert found["retries"] == 4
    assert found["tokens"] == {"prompt": 30 * 22, "completion": 20 * 22}
    assert kept[0]["answer"].startswith("Step 1: 1 + 1 = 2\n")  # without the thoughts
    assert kept[0]["answer"].endswith("\n#### 1002")
    for body in teacher.asked:
        question = body["messages"][0]["content"].rpartition("\n")[2]
        assert body["messages"] == [{"role": "user", "content": PROMPT.replace("{question}", question)}]
        assert "answer" not in question
    assert {body["seed"] for body in teacher.asked} == {1, 2, 3, 4}
    assert found["teacher"] == {"model": "toy", "prompt": PROMPT, "sampling": {
        "temperature": 0.6, "top_p": 0.95, "max_tokens": 4096, "seed": 0}}  # fmt: skip
    assert found["endpoint"] == f"127.0.0.1:{teacher.server_port}"
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert {row["finish"] for row in rejected} == {"stop", "length", "refused", "malformed"}
    assert all(row["completion"] or row["reason"] == "empty" for row in rejected)


@pytest.mark.slow
def test_the_file_is_trained_on_as_it_is(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    ask()
    out = tmp_path / "out.jsonl"
    rationales, report = load_rationales(DataConfig(path=str(out)))
    assert (report.parsed, report.skipped) == (12, {})
    assert rationales[0].steps == ("1 + 1 = 2", "2 + 1000 = 1002")
    assert [known.answer for known in rationales] == [str(2 * n + 1000) for n in range(1, 13)]
    own = [f"stages.{name}.data=null" for name in ("structure", "brevity", "remedy")]
    config = load_config("sandbox", [f"data.path={out}", "data.rows=null", "stages.brevity.epochs=2", *own])
    plan = plan_curriculum(config, find_store(tmp_path / "registry", create=True), only_show=True)
    assert [len(stage.rationales) for stage in plan.stages] == [12, 12, 12]


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_file(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    teacher.faults = {ROWS[2]["question"]: ["wrong"], ROWS[5]["question"]: ["wrong"] * 9}
    ask()
    whole, once = (tmp_path / "out.jsonl").read_bytes(), Counter(teacher.seen)
    for file in tmp_path.glob("out.*"):
        file.unlink()
    teacher.seen.clear()
    teacher.pause_s = 0.15
    code = "import sys; from plyfold.cli.main import run; sys.exit(run(sys.argv[1:]))"
    arguments = ["data", "rationales", "-c", "gsm8k", "-o", str(tmp_path / "out.jsonl"), "--endpoint", teacher.url,
                 "--model", "toy", "--concurrency", "2", f"data.path={tmp_path / 'rows.jsonl'}",
                 "eval.data.path=sandbox", "eval.data.name=null", "eval.data.rows=[0,20]"]  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        out = tmp_path / "out.jsonl"
        while not (out.is_file() and out.read_bytes().count(b"\n") >= 4):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    time.sleep(0.3)  # what is in flight ends
    with out.open("ab") as file:
        file.write(b'{"question": "cut in the mid')
    assert not json.loads((tmp_path / "out.manifest.json").read_bytes())["complete"]
    teacher.pause_s = 0.0
    again = ask()
    assert out.read_bytes() == whole
    assert again["requests"] < sum(once.values())
    assert all(teacher.seen[question] <= count + 1 for question, count in once.items())  # what was in flight
    assert ask()["requests"] == 0


def test_a_cut_line_is_dropped_with_a_note_and_a_broken_one_refused(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    ask()
    out, whole = tmp_path / "out.jsonl", (tmp_path / "out.jsonl").read_bytes()
    out.write_bytes(whole[:-9])
    again = ask("--dry-run")
    assert (again["kept"], again["problems"]) == (11, 1)
    assert out.read_bytes() == whole[:-9]  # a dry run mends nothing
    again = ask()
    assert again["requests"] == 1
    assert "its last line was cut" in " ".join(again["stderr"].split())
    assert out.read_bytes() == whole
    out.write_bytes(whole.replace(b'{"question"', b'{"queer"', 1))
    assert "line 1" in ask(code=4)


@pytest.mark.slow
def test_what_no_retry_mends_stops_at_once_and_keeps_what_there_is(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    last = ROWS[11]["question"]
    for fault, code, told in (
        (["401"], 7, "wants a key"),
        (["404"], 3, "no such model"),
        (["302"], 1, "refuses"),
        (["418"], 1, "refuses"),
        (["later"], 6, "86400 s"),
        (["500"] * 6, 6, "does not answer"),
        (["error"] * 6, 6, "no free worker"),
    ):
        teacher.faults, teacher.seen = {last: fault}, Counter()
        said = ask("--concurrency", "1", code=code)
        assert told in said
        assert len(_kept(tmp_path)) == 11
    teacher.faults = {}
    assert ask()["kept"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [list(SENT)[start : start + 11] for start in range(0, len(SENT), 11)], ids=" ".join)
def test_a_bad_answer_is_one_rejected_row_and_the_others_are_kept(
    teacher: Teacher, ask: Any, tmp_path: Path, kinds: list[str]
) -> None:
    teacher.faults = {row["question"]: [kind] for row, kind in zip(ROWS, kinds, strict=False)}
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ask("--attempts", "1", "--timeout", "2")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) < 300_000
    assert (found["kept"], sum(found["rejected"].values())) == (len(ROWS) - len(kinds), len(kinds))
    assert not set(found["rejected"]) - {
        "the endpoint's answer has no end", "the endpoint's answer is not sound JSON",
        "the endpoint's answer is too long", "the endpoint's answer cannot be unpacked",
        "the endpoint's answer is no chat completion", "an error in the place of an answer",
    }  # fmt: skip
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert {row["finish"] for row in rejected} == {"malformed"}
    assert all(len(row["completion"]) <= 200 for row in rejected)
    assert ask("--attempts", "2")["kept"] == len(ROWS)


def test_an_endpoint_without_one_completion_is_a_failure_and_asked_no_longer(
    teacher: Teacher, ask: Any, tmp_path: Path
) -> None:
    teacher.faults = {"*": ["HTML"] * 9}
    said = ask(code=1)
    assert "no chat completions" in said
    assert "usually ends in /v1" in said
    assert len(teacher.asked) <= 32 + 8
    assert "no chat completions" in ask(
        "data.rows=[0,1]", "-o", str(tmp_path / "other.jsonl"), "--attempts", "1", code=1
    )


def test_an_answer_packed_though_nobody_asked_is_read(teacher: Teacher, ask: Any, monkeypatch: Any) -> None:
    text = "Step 1: 1 + 1 = 2\nStep 2: 2 + 1000 = 1002\nAnswer: 1002"
    reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    monkeypatch.setitem(SENT, "packed", ({"content-encoding": "gzip"}, gzip.compress(reply)))
    teacher.faults = {ROWS[0]["question"]: ["packed"]}
    assert ask("--attempts", "1")["kept"] == 12


@pytest.mark.parametrize(
    "asked", ["9" * 400, "99999999999", "Wed, 21 Oct 99999999 07:28:00 GMT", "\u0663", "nan", "-5"]
)
def test_a_wait_is_bounded_however_it_is_spelt(teacher: Teacher, ask: Any, monkeypatch: Any, asked: str) -> None:
    endpoint = chat.Chat(chat.Endpoint(url=teacher.url, model="toy"), 1)
    reply = chat._Reply(429, asked, "", b"")
    try:
        wait_s = endpoint._asked_wait_s(reply, 1.0)
    except OfflineError:
        wait_s = 0.0
    assert 0 <= wait_s <= chat.PATIENCE_S


def test_no_proxy_sees_what_stays_here_and_one_of_a_kind_unknown_is_named(
    teacher: Teacher, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    for name in ("HTTP_PROXY", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask("data.rows=[0,1]")["kept"] == 1
    monkeypatch.setenv("ALL_PROXY", "carrier-pigeon://127.0.0.1:9")
    assert "proxy" in ask("-o", str(tmp_path / "other.jsonl"), url="http://teacher.invalid/v1", code=2)


def test_settings_that_every_request_is_refused_for_are_named(teacher: Teacher, ask: Any) -> None:
    teacher.faults = {"*": ["400"] * 9}
    assert "HTTP 400: no, not with [key]" in ask(code=2)


def test_one_problem_refused_is_no_success_and_a_refused_field_can_be_left_out(teacher: Teacher, ask: Any) -> None:
    teacher.faults = {"*": ["400"]}
    assert "--request max_tokens= leaves a field out" in ask("data.rows=[0,1]", code=2)
    fields = ("max_tokens=", "seed=", "top_p=", "max_completion_tokens=99", "effort=low", 'extra={"a": 1}')
    options = [part for field in fields for part in ("--request", field)]
    assert ask("data.rows=[0,1]", "--dry-run", *options)["at_most"]["completion_tokens"] == 4 * 99
    found = ask("data.rows=[0,1]", *options)
    sent = {"temperature": 0.6, "max_completion_tokens": 99, "effort": "low", "extra": {"a": 1}}
    assert {**sent, "model": "toy", "messages": teacher.asked[-1]["messages"]} == teacher.asked[-1]
    assert (found["kept"], found["teacher"]["sampling"]) == (1, sent)
    teacher.faults = {"*": ["400"] * 9}
    assert ask("data.rows=[0,2]", *options)["rejected"] == {"refused by the endpoint": 1}  # it answers others


def test_a_mistyped_model_can_be_put_right(teacher: Teacher, ask: Any) -> None:
    teacher.faults = {"*": ["404"] * 9}
    ask("--model", "mistyped", code=3)
    teacher.faults, teacher.seen = {"*": ["400"] * 9}, Counter()
    ask("--model", "too-small", code=2)
    teacher.faults = {}
    found = ask("--model", "toy")
    assert (found["kept"], found["teacher"]["model"]) == (12, "toy")


def test_an_absent_server_is_offline(ask: Any) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as closed:
        port = closed.server_port
    assert "ConnectError" in ask(code=6, url=f"http://127.0.0.1:{port}/v1")


def test_dry_run_bounds_the_cost_and_asks_nothing(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    found = ask("--dry-run", "--attempts", "3", "--max-tokens", "100")
    prompts = sum(len(PROMPT.replace("{question}", row["question"])) for row in ROWS)
    assert found["at_most"] == {"requests": 36, "prompt_tokens": 3 * prompts, "completion_tokens": 3600}
    assert (found["rows"], found["problems"], found["kept"]) == (12, 12, 0)
    assert not teacher.asked
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_people_are_shown_the_same(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    teacher.faults = {ROWS[3]["question"]: ["empty", "wrong"]}
    planned = ask("--dry-run", "--attempts", "2", plain=True)
    assert f"rows.jsonl, asked of toy at 127.0.0.1:{teacher.server_port}" in planned
    assert {"rows read 12", "to be asked 12", "requests, at most 24", "completion tokens, at most 98,304"} <= set(
        planned
    )
    shown = ask("--attempts", "2", plain=True)
    assert {"rationales kept 11", "rejected: empty 1", "questions without one 1", "requests of this run 13"} <= set(
        shown
    )
    assert f"next: data.path={tmp_path / 'out.jsonl'}" in "".join(shown)
    shown = ask("--attempts", "2", "--stage", "2", "stages.brevity.data.rows=[4,12]", plain=True)
    own = "stages.brevity.data"
    assert f"next: {own}.path={tmp_path / 'out.jsonl'} {own}.rows=null" in " ".join(shown)


def test_more_attempts_ask_further(teacher: Teacher, ask: Any) -> None:
    teacher.faults = {ROWS[0]["question"]: ["wrong"] * 3}
    assert (ask("--attempts", "2")["unsolved"], ask("--attempts", "2")["requests"]) == (1, 0)
    more = ask("--attempts", "5")
    assert (more["kept"], more["requests"], more["unsolved"]) == (12, 2, 0)


def test_other_rationales_are_not_mixed_in(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    ask()
    assert "model" in ask("--model", "other", code=5)
    assert "0.6" in ask("--temperature", "1.0", code=5)
    from plyfold.core.disk.locks import locked

    with locked(tmp_path / ".out.jsonl.lock"):
        assert "another process" in ask(code=5)
    (tmp_path / "out.manifest.json").unlink()
    assert "no manifest" in ask(code=5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--endpoint", "ftp://x/v1"], "not the address"),
        (["--endpoint", "http://[bad/v1"], "not the address"),
        (["--endpoint", "http://x:99999/v1"], "not the address"),
        (["--endpoint", "http://user:pw@x/v1"], "more than an address"),
        (["--key-env", "NO_SUCH_KEY"], "is not set"),
        (["--temperature", "0"], "every attempt is the same"),
        (["--attempts", "0"], "has to be positive"),
        (["--top-p", "0"], "no such sampling"),
        (["--temperature", "nan"], "no such sampling"),
        (["--temperature", "inf"], "no such sampling"),
        (["--timeout", "0"], "has to be positive"),
        (["--timeout", "nan"], "has to be positive"),
        (["-o", "out.parquet"], ".jsonl"),
        (["--request", "model=x"], "fills in itself"),
        (["--request", "=1"], "is not FIELD=JSON"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_request(
    teacher: Teacher, ask: Any, options: list[str], told: str
) -> None:
    said = ask(*options, code=2)
    assert told in said
    assert "pw" not in said
    assert not teacher.asked


def test_questions_of_the_evaluation_are_not_asked(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    assert "among the evaluation rows" in ask(f"eval.data.path={tmp_path / 'rows.jsonl'}", code=2)
    assert not teacher.asked


def test_what_was_not_compared_and_a_key_in_the_open_are_said(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = ask("--dry-run", "eval.data.path=acme/none", f"eval.data.revision={'0' * 40}")
    assert "evaluation rows is not known" in " ".join(found["stderr"].split())
    for url, told in (("http://teacher.lan/v1", True), ("https://teacher.lan/v1", False), ("http://[::1]/v1", False)):
        assert chat.Endpoint(url=url, model="toy", key=KEY).tells_key is told
    assert not chat.Endpoint(url="http://teacher.lan/v1", model="toy").tells_key
    assert KEY not in repr(chat.Endpoint(url="http://x/v1", model="toy", key=KEY))


def test_rows_that_cannot_be_asked_are_counted(teacher: Teacher, ask: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    more = [ROWS[0], {"question": "Six?", "answer": "#### six"}, {"question": " ", "answer": "#### 6"}]
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in [*ROWS, *more]))
    found = ask("--dry-run")
    assert found["skipped"] == {"question seen before": 1, "no gold answer that is a number": 1, "no question": 1}
    assert (found["rows"], found["problems"]) == (15, 12)
