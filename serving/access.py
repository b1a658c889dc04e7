"""Who may reach a server: the key it asks for, and the address it listens on.

Without a key a server listens on this machine alone. A key is read from a file or from VLLM_API_KEY and handed on in
the environment only: a command line can be read by everybody on the machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.console import warn
from ..core.disk.files import read_capped
from ..core.errors import ConfigError

KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's own variable, for servers and for what asks them."""
KEY_REQUIRED = "PLYFOLD_KEY_REQUIRED"
"""Variable that keeps a server from starting without its key, as when a printed command is pasted."""
KEY_MAX_BYTES = 4096
_AUTHORITY = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::[0-9]{0,5})?", re.ASCII)
"""A host and its port as a header has them: no user, path or anything else."""
_KEY = re.compile(r"[!-~]+")  # what a header can carry, without spaces


def api_key(file: Path | None = None) -> str | None:
    """The key a server asks for and a client sends; None where there is none.

    Args:
        file: That holds it, on one line; null takes VLLM_API_KEY.

    Raises:
        ConfigError: The file cannot be read, or what is there is empty or no key. Its text is never shown.
    """
    said = os.environ.get(KEY_VARIABLE)
    if file is None:
        return None if said is None else _checked(said, KEY_VARIABLE)
    try:
        raw = read_capped(file, KEY_MAX_BYTES)
        mode = file.stat().st_mode
    except OSError as error:
        raise ConfigError(
            "the key's file cannot be read", where=file, found=error.strerror or type(error).__name__,
            expected="a file that holds the key and nothing else",
        ) from error  # fmt: skip
    if len(raw) > KEY_MAX_BYTES:
        raise ConfigError("too long for a key", where=file, expected=f"at most {KEY_MAX_BYTES} bytes")
    key = _checked(raw.decode("utf-8", errors="replace").strip(), str(file))
    if mode & stat.S_IROTH:
        warn(f"everybody on this machine can read the key in {file}; chmod 600 {file} keeps it to you")
    if said is not None and said != key:
        warn(f"{KEY_VARIABLE} holds another key than {file}; the file's is taken")
    return key


def check_reach(host: str, key: str | None) -> None:
    """Refuse an address that others reach where no key is asked for.

    Raises:
        ConfigError: It is not a loopback address, or no address at all.
    """
    if key is None and not listens_on_loopback(host):
        raise ConfigError(
            "others would reach this server, and it asks for no key",
            where="--host",
            found=host or "every address",
            expected="a loopback address as 127.0.0.1, or a key",
            next_step=f"name a file that holds a key: --api-key-file FILE (or set {KEY_VARIABLE})",
        )


def listens_on_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there, however the address is spelt.

    Raises:
        ConfigError: There is no such address.
    """
    if not host:
        return False  # every address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as vLLM binds
    try:
        found = {str(address[0]) for *_, address in socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError("cannot listen there", where="--host", found=host, expected="an address") from error
    return all(_is_loopback_address(address) for address in found)


def key_variable(file: Path) -> str:
    """A shell's assignment that reads the key from its file."""
    return f'{KEY_VARIABLE}="$(cat {shlex.quote(str(file))})"'


def bearer_header(file: Path | None) -> str:
    """The header that carries the key, as a word of a shell that reads it there."""
    return f'"Authorization: Bearer {f"$(cat {shlex.quote(str(file))})" if file else f"${KEY_VARIABLE}"}"'


def server_url(host: str, port: int) -> str:
    """Where a server answers; a wildcard address is reached through this machine's own."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_loopback(authority: str) -> bool:
    """Whether a Host or Origin header names this machine, `localhost:8000`, by a name no other can take."""
    named = _AUTHORITY.fullmatch(authority)
    host = (named["name"] or named["address"]).lower().removesuffix(".") if named else ""
    return host == "localhost" or host.endswith(".localhost") or _is_loopback_address(host)


def _is_loopback_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _checked(key: str, where: str) -> str:
    if not key:
        raise ConfigError(
            "the key is empty", where=where, expected="a key; without one, leave it unset and listen on 127.0.0.1"
        )
    if len(key) > KEY_MAX_BYTES or not _KEY.fullmatch(key):
        raise ConfigError(
            "not a key", where=where, found=f"{len(key)} characters, not shown",
            expected="printable ASCII without spaces, on one line",
        )  # fmt: skip
    return key


def gateway_flags(gateway: str) -> list[str]:
    """Flags of `vllm serve` that put a class of `serving.gateway` in front of it and close what it opens beside.

    Args:
        gateway: Name of the class.
    """
    return ["--middleware", f"plyfold.serving.gateway.{gateway}", "--allowed-origins", "[]", "--disable-fastapi-docs"]


def gateway_environment(key: str | None) -> dict[str, str]:
    """Variables for the gateway; the key itself is handed on apart from what is shown."""
    return {} if key is None else {KEY_REQUIRED: "1"}


def shell_line(command: Sequence[str], environment: Mapping[str, str], key_file: Path | None = None) -> str:
    """A command with the variables set for it, to be pasted into a shell; a key is read from its file there."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    if key_file is not None:
        variables.append(key_variable(key_file))
    return " ".join([*variables, shlex.join(command)])
