"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..core.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])


def registry_option(function: Command) -> Command:
    """`--registry DIR` as `registry: Path | None`."""
    return click.option(
        "--registry",
        type=click.Path(path_type=Path, file_okay=False),
        help="Registry folder; else PLYFOLD_REGISTRY, else .plyfold found upward.",
    )(function)


def curriculum_option(function: Command) -> Command:
    """`--curriculum NAME` as `curriculum: str | None`."""
    return click.option("--curriculum", help="Curriculum of the registry; not needed where there is only one.")(
        function
    )


def json_option(function: Command) -> Command:
    """`--json` as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(function)


def dry_run_option(function: Command) -> Command:
    """`--dry-run` as `dry_run: bool`."""
    return click.option("--dry-run", is_flag=True, help="Check everything, show the plan, change nothing.")(function)


def config_option(function: Command) -> Command:
    """`-c FILE` as `config: str | None`."""
    return click.option("-c", "--config", help="A YAML file, or a packaged config: sandbox, gsm8k, paper.")(function)


def api_key_file_option(function: Command) -> Command:
    """`--api-key-file FILE` as `api_key_file: Path | None`."""
    return click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="Holds the key that every request but /health has to carry; else VLLM_API_KEY. Needed where others reach "
        "the address.",
    )(function)


def public_key_option(function: Command) -> Command:
    """`--public-key PEM`, any number of times, else PLYFOLD_PUBLIC_KEY, as `public_keys: tuple[Path, ...]`."""

    def named(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[Path, ...]:
        from ..registry.trust.trust import environment_keys, key_files

        return key_files(given, "--public-key") if given else environment_keys()

    return click.option(
        "--public-key",
        "public_keys",
        metavar="PEM",
        multiple=True,
        callback=named,
        help=f"PEM file; any of several will do. Else PLYFOLD_PUBLIC_KEY, several with {os.pathsep} between.",
    )(function)


def sign_option(what: str) -> Callable[[Command], Command]:
    """`--sign [KEY.pem]` as `signing_key: str | None`; an empty one is what PLYFOLD_SIGNING_KEY names."""
    return click.option(
        "--sign",
        "signing_key",
        is_flag=False,
        flag_value="",
        metavar="[KEY.pem]",
        help=f"Sign {what} with this key, or the one that PLYFOLD_SIGNING_KEY names.",
    )


def parse_stages(text: str) -> list[int]:
    """`1,2,3` as numbers.

    Raises:
        ConfigError: Anything that is not a comma-separated list of stage numbers, or a number twice.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError("not a list of stage numbers", found=text, expected="for example 1,2,3")
    if len(set(numbers)) != len(numbers):
        raise ConfigError("a stage is named twice", found=text, next_step="name every stage once")
    return numbers
