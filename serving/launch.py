"""One vLLM server for a base and its variants: planned, prepared, started, watched and stopped.

`plan_server` refuses everything that can be refused from headers, `prepare_server` makes the twin and the composed
adapters, `run_server` starts vLLM behind a gateway, waits until it answers, and leaves no process behind however it
ends. Adapters are static modules: nothing can be loaded over HTTP.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say, verbosity
from ..core.disk.links import open_log
from ..core.errors import ConfigError, ConflictError, FailedError
from ..core.interrupts import INTERRUPTED
from ..core.one_host import UNANSWERED, ask
from ..core.reading.strict_json import parse_json
from ..engines.processes import DRAIN_S, POLL_S, Watch, launched, sigterm_interrupts
from ..engines.vllm import model_dtype
from ..engines.vllm_options import EngineOptions, engine_options, vllm_version
from ..variants import BASE, Ground, Variant, VariantPlan, check_fits, ground_of, materialise, plan_variant
from .access import KEY_VARIABLE, api_key, check_reach, gateway_environment, gateway_flags, server_url, shell_line

if TYPE_CHECKING:
    from ..adapters.base.resolve import BaseRef
    from ..merge.inputs import BaseWord
    from ..registry.store import Store

START_TIMEOUT_S = 1800.0
"""Longest wait for a first answer; a large base is read and, on a GPU, compiled before it."""
REQUEST_TIMEOUT_S = 300.0
MAX_ANSWER_BYTES = 4_000_000
LOG_CAUSES = 3
"""Different error lines of vLLM's log that an error quotes."""


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """A server that can be started."""

    curriculum: str
    variants: tuple[VariantPlan, ...]
    """As asked for, without duplicates; the base is served whether it is among them or not, a checkpoint alone."""
    names: tuple[str, ...]
    """What the model below the adapters is served as."""
    ground: Ground
    """That model: the base, or the checkpoint."""
    twin: Path
    """Folder of its weights, made or not: the dequantised base, or the model as it is."""
    options: EngineOptions
    vllm: str
    """Version of vLLM."""
    host: str
    port: int
    log: Path
    """vLLM's own output, unless `-v` shows it."""
    command: tuple[str, ...]
    environment: dict[str, str]
    """Variables set for vLLM beside the present ones; the key is not among them."""
    key: str | None = field(default=None, repr=False)
    """That the server asks for; never shown."""
    key_file: Path | None = None
    """Where it was read; null with a key is VLLM_API_KEY."""

    @property
    def base(self) -> BaseRef:
        """The base, or the checkpoint."""
        return self.ground.base

    @property
    def url(self) -> str:
        """Where the server answers; a wildcard host is reached through localhost."""
        return server_url(self.host, self.port)

    @property
    def modules(self) -> dict[str, Path]:
        """Served name -> composed adapter."""
        return {plan.variant.name: plan.path for plan in self.variants if plan.path is not None}

    @property
    def shell_command(self) -> str:
        """The exact command with its environment, to be pasted into a shell."""
        return shell_line(self.command, self.environment, self.key_file)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "curriculum": self.curriculum,
            "url": self.url,
            "key": None if self.key is None else str(self.key_file or KEY_VARIABLE),
            "base": {"repo": self.base.repo, "revision": self.base.revision, "names": list(self.names)},
            "twin": str(self.twin),
            "variants": [
                {
                    "name": plan.variant.name,
                    "slug": plan.variant.slug,
                    "stages": list(plan.variant.stages),
                    "rank": plan.r,
                    "path": str(plan.path) if plan.path else None,
                    "digests": [entry.digest for entry in plan.entries],
                }
                for plan in self.variants
            ],
            "vllm": self.vllm,
            **self.options.describe(),
            "log": str(self.log),
            "environment": self.environment,
            "command": list(self.command),
        }


def plan_server(
    store: Store,
    variants: Sequence[Variant],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_model_len: int | None = None,
    key_file: Path | None = None,
    base: BaseWord | None = None,
) -> ServerPlan:
    """Decide everything about a server without writing or starting anything.

    Args:
        store: Registry the stages are in.
        variants: What to serve; all of one base, or one checkpoint.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        max_model_len: Longest prompt plus answer in tokens; null takes the base's, on a CPU at most 4096.
        key_file: Holds the key that requests have to carry; null takes VLLM_API_KEY, and without one none is asked for.
        base: The user's word on the base of plain folders, over what they call it.

    Raises:
        ConfigError: Two variants of one name from different curricula, a checkpoint beside others, a context longer
            than the base's, an address that others reach without a key, or a key that is none.
        NotFoundError: An unknown stage or curriculum, or no vLLM (the command that installs it is named).
        BaseMismatchError, ShapeMismatchError, UnsupportedAdapterError, IncompatibleError: What vLLM would refuse late,
            or apply wrongly without a word.
        ConflictError: The port is taken.
    """
    key = api_key(key_file)
    check_reach(host, key)
    version = vllm_version()
    plans = [plan_variant(store, variant, base=base) for variant in dict.fromkeys(variants)]
    _refuse_shared_names(plans)
    names, ground = _model(store, plans, base)
    ranks = [plan.r for plan in plans if plan.composition]
    dtype = ground.quantisation.compute_dtype if ground.quantisation else model_dtype(ground.base.path)
    options = engine_options(ground.base.path, dtype, ranks, max_model_len=max_model_len)
    port = _free_port(host, port)
    twin = ground.path(store.cache)
    return ServerPlan(
        curriculum=plans[0].variant.curriculum,
        variants=tuple(plans),
        names=names,
        ground=ground,
        twin=twin,
        options=options,
        vllm=version,
        host=host,
        port=port,
        log=store.cache / "serve" / f"{port}.log",
        command=_command(names, twin, plans, options, host, port),
        environment=options.environment() | gateway_environment(key),
        key=key,
        key_file=key_file,
    )


def prepare_server(plan: ServerPlan, store: Store) -> None:
    """Make what the server reads: the twin and the composed adapters. What is there is verified and kept.

    Raises:
        DiskFullError: No room; nothing of it is half-written.
    """
    with progress("prepare", len(plan.variants) + 1) as task:
        plan.ground.ensure(store.cache)
        task.advance(note="base")
        for variant in plan.variants:
            materialise(store, variant)
            task.advance(note=variant.variant.name)


def run_server(plan: ServerPlan, on_ready: Callable[[], None] = lambda: None) -> int:
    """Start vLLM, call `on_ready` once every variant has answered, and stay until it ends.

    Ctrl-C and SIGTERM stop it in order: requests in flight have DRAIN_S seconds, then every process of it goes.

    Returns:
        130 when interrupted.

    Raises:
        FailedError: vLLM ended by itself, never answered, or does not serve what was planned; with its own reason.
    """
    secret = {} if plan.key is None else {KEY_VARIABLE: plan.key}
    with (
        sigterm_interrupts(),
        _log(plan.log) as output,
        launched(plan.command, plan.environment | secret, stdout=output, stderr=output) as server,
    ):
        watch = Watch(server)
        try:
            _wait_until_healthy(watch, plan)
            watch.look()
            _check_answers(plan)
            watch.look()
            on_ready()
            while not (lost := watch.lost()):
                time.sleep(POLL_S)
            raise _died(plan, lost)
        except KeyboardInterrupt:
            say("stopping …")
            return INTERRUPTED


def _model(store: Store, plans: Sequence[VariantPlan], word: BaseWord | None) -> tuple[tuple[str, ...], Ground]:
    """The model that is served, and its names.

    Raises:
        ConfigError: A checkpoint beside other variants.
        BaseMismatchError, ShapeMismatchError, IncompatibleError: Adapters that are not of the base.
    """
    from ..adapters.base.resolve import BaseRef

    alone = next((plan for plan in plans if plan.checkpoint), None)
    if alone is None:
        ground = ground_of(store, plans, word=word)
        assert ground is not None  # only checkpoints stand on none
        check_fits(ground.base, plans)
        return (BASE, ground.base.repo), ground
    name = alone.variant.name
    if len(plans) > 1:
        raise ConfigError(
            "a checkpoint is an engine of its own, and is served alone",
            found=", ".join(plan.variant.name for plan in plans),
            next_step=f"plyfold serve {shlex.quote(name)}",
        )
    assert alone.checkpoint is not None
    folder = alone.checkpoint.resolve()
    return (name,), Ground(base=BaseRef(repo=name, revision="", path=folder), quantisation=None)


def _refuse_shared_names(plans: Sequence[VariantPlan]) -> None:
    owner: dict[str, Variant] = {}
    for plan in plans:
        other = owner.setdefault(plan.variant.name, plan.variant)
        if other != plan.variant and plan.composition:
            raise ConfigError(
                "two variants would be served under one name",
                found=f"{other.alias} and {plan.variant.alias}",
                next_step="serve one curriculum at a time",
            )


def _command(
    names: Sequence[str], twin: Path, plans: Sequence[VariantPlan], options: EngineOptions, host: str, port: int
) -> tuple[str, ...]:
    modules = [json.dumps({"name": plan.variant.name, "path": str(plan.path)}) for plan in plans if plan.path]
    command = [sys.executable, "-m", "plyfold.engines.vllm_main", "serve", str(twin)]
    command += ["--served-model-name", *names, "--host", host, "--port", str(port)]
    command += ["--shutdown-timeout", str(DRAIN_S), *options.flags(), *gateway_flags("ServeGateway")]
    return tuple(command + (["--lora-modules", *modules] if modules else []))


def _free_port(host: str, port: int) -> int:
    """`port` if it can be bound, or a free one for 0.

    Raises:
        ConflictError: It is taken.
        ConfigError: No such address or port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (socket.gaierror, OverflowError) as error:
            raise ConfigError(
                "cannot listen there", found=f"{host}:{port}", expected="an address and a port"
            ) from error
        except OSError as error:
            raise ConflictError(
                "the port cannot be used",
                where=f"{host}:{port}",
                found=error.strerror or str(error),
                next_step="stop what listens there, or choose another with --port (0 takes a free one)",
            ) from error
        return int(probe.getsockname()[1])


@contextmanager
def _log(path: Path) -> Iterator[Any]:
    """Where vLLM's output goes: this process's stderr with `-v`, else a file."""
    if verbosity() > 0:
        yield sys.stderr
        return
    with open_log(path) as file:
        yield file


def _wait_until_healthy(watch: Watch, plan: ServerPlan) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with progress("start vLLM") as task:
        while time.monotonic() < deadline_s:
            watch.look()
            if lost := watch.lost():
                raise _died(plan, f"{lost} before it answered")
            try:
                if ask(f"{plan.url}/health", headers={}, timeout_s=5, max_bytes=0).status == 200:
                    return
            except UNANSWERED:
                pass  # not yet
            time.sleep(POLL_S)
            task.advance(0)
    raise _died(plan, f"vLLM did not answer within {START_TIMEOUT_S:.0f} s")


def _check_answers(plan: ServerPlan) -> None:
    """Ask for the list of models, then each one for a token: an engine can be healthy and die at its first request."""
    try:
        listed = {model["id"] for model in _ask(plan, "/v1/models")["data"]}
        expected = {*plan.names, *plan.modules}
        if listed != expected:
            raise _died(plan, f"vLLM lists other models than planned: {', '.join(sorted(listed))}")
        for name in (plan.names[0], *plan.modules):
            _ask(plan, "/v1/completions", {"model": name, "prompt": "1", "max_tokens": 1, "temperature": 0})
    except (*UNANSWERED, ValueError, KeyError, TypeError) as error:
        raise _died(plan, f"vLLM started and then failed: {error or type(error).__name__}") from error


def _ask(plan: ServerPlan, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if plan.key is not None:
        headers["Authorization"] = f"Bearer {plan.key}"
    data = json.dumps(body).encode() if body else None
    url = f"{plan.url}{path}"
    reply = ask(url, data=data, headers=headers, timeout_s=REQUEST_TIMEOUT_S, max_bytes=MAX_ANSWER_BYTES)
    if reply.status != 200:
        raise ConnectionError(f"HTTP {reply.status}: {reply.data[:300].decode(errors='replace')}")
    return dict(parse_json(reply.data, max_bytes=MAX_ANSWER_BYTES))


def _died(plan: ServerPlan, what: str) -> FailedError:
    shown = verbosity() > 0 or not plan.log.is_file()
    causes = [] if shown else log_causes(plan.log.read_text(errors="replace"))
    return FailedError(
        what,
        where=plan.url if shown else plan.log,
        found="; ".join(causes),
        next_step="see vLLM's messages above" if shown else "see that log, or run again with -v",
    )


def log_causes(log: str) -> list[str]:
    """The last different error lines of vLLM's log, without its prefixes; its last line where there is none."""
    found = re.findall(
        r"^(?:\([^)]*\) )?(?:ERROR \S+ \S+ \[[^]]*\] )?((?:[\w.]+)?(?:Error|Exception)\b: .+|\S+: error: .+)$",
        log,
        re.MULTILINE,
    )
    lines = log.strip().splitlines()
    return list(dict.fromkeys(found))[-LOG_CAUSES:] or lines[-1:]
