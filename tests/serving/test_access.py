"""Keys and addresses of servers: what is taken, what is refused, and that a key is shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import ConfigError
from plyfold.serving.access import api_key, bearer_header, check_reach, listens_on_loopback, server_url

KEY = "canary-77-key"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "my key"
    path.write_text(f"  {KEY}\r\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "0x7f.1", "2130706433", "127.255.0.9", "::1", "0:0:0::1",
             "::ffff:127.0.0.1"],
)  # fmt: skip
def test_this_machine_however_it_is_spelt(host: str) -> None:
    assert listens_on_loopback(host)
    check_reach(host, None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "0", "10.0.0.7", "192.168.1.4", "255.255.255.255", "fe80::1", "::ffff:10.0.0.7",
             "::ffff:0.0.0.0", "8.8.8.8", "0x0"],
)  # fmt: skip
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="no key") as caught:
        check_reach(host, None)
    assert "--api-key-file" in caught.value.next_step
    check_reach(host, KEY)


@pytest.mark.parametrize("host", ["[::1]", "http://127.0.0.1", "no.such.host.invalid", "127.0.0.1:80", " ", "a" * 300])
def test_what_is_no_address_is_said(host: str) -> None:
    with pytest.raises(ConfigError):
        check_reach(host, None)


def test_a_key_comes_from_its_file_or_the_variable(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert api_key() is None
    assert api_key(key_file) == KEY
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("VLLM_API_KEY", "another")
    assert api_key() == "another"
    assert api_key(key_file) == KEY
    assert "another key" in capsys.readouterr().err
    key_file.chmod(0o644)
    assert api_key(key_file) == KEY
    said = capsys.readouterr().err
    assert "everybody" in said
    assert KEY not in said


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"two words", b"a\nb", b"\xff\xfe", "schlüssel".encode(), b"a\0b", b"x" * 5000]
)
def test_what_is_no_key_is_refused_without_showing_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        api_key(tmp_path / "key")
    assert "words" not in str(caught.value)


def test_what_is_no_file_of_a_key_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="cannot be read"):
            api_key(path)


@pytest.mark.parametrize("value", ["", "a b", "line\n", "ключ"])
def test_a_variable_that_is_no_key_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", value)
    with pytest.raises(ConfigError):
        api_key()


def test_urls_and_headers() -> None:
    assert server_url("::", 80) == "http://[::1]:80"
    assert server_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert server_url("mybox", 80) == "http://mybox:80"
    assert bearer_header(None) == '"Authorization: Bearer $VLLM_API_KEY"'


@pytest.mark.parametrize("command", [["serve", "base", "--port", "0"], ["rollouts"]])
class TestCommands:
    """Both servers, as typed, in a folder with a registry."""

    @pytest.fixture(autouse=True)
    def _here(self, make_store: object, tiny_base: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from plyfold.engines import vllm_options
        from plyfold.serving import launch

        make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"), stages=1)  # type: ignore[operator]
        monkeypatch.chdir(tmp_path)
        for module in (vllm_options, launch):
            monkeypatch.setattr(module, "vllm_version", lambda: "0.32.0+cpu")

    @pytest.mark.parametrize("dry", [[], ["--dry-run"], ["--dry-run", "--json"]])
    def test_others_without_a_key_are_refused(
        self, command: list[str], dry: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run([*command, "--host", "0.0.0.0", *dry]) == 2
        assert "asks for no key" in capsys.readouterr().err

    @pytest.mark.parametrize("form", [[], ["--json"]])
    def test_a_key_is_shown_nowhere(
        self, command: list[str], form: list[str], key_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run([*command, "--host", "0.0.0.0", "--api-key-file", str(key_file), "--dry-run", *form]) == 0
        said = "".join(capsys.readouterr())
        assert KEY not in said
        assert "my key" in said
        assert "PLYFOLD_KEY_REQUIRED" in said

    def test_an_empty_variable_is_refused(
        self, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("VLLM_API_KEY", "")
        assert run([*command, "--dry-run"]) == 2
        assert "VLLM_API_KEY" in capsys.readouterr().err
