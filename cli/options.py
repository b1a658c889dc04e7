"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..merge.inputs import BaseWord
    from ..registry.store import Store

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


def base_option(function: Command) -> Command:
    """`--base DIR|REPO` as `base: BaseWord | None`."""

    def parsed(context: click.Context, option: click.Parameter, given: str | None) -> BaseWord | None:
        from ..merge.inputs import parse_base

        return None if given is None else parse_base(given)

    return click.option(
        "--base",
        metavar="DIR|REPO",
        callback=parsed,
        help="The base of PEFT folders: a folder, or its Hub id. Known already for what is registered.",
    )(function)


def store_beside_folders(
    registry: Path | None, curriculum: str | None, names: Sequence[str], *, dry_run: bool = False
) -> tuple[Store, str]:
    """The registry and the curriculum that variants are looked up in; folders need neither, and make an empty one.

    Args:
        registry: Folder of the registry, if it is named.
        curriculum: The curriculum, if it is named.
        names: Variants, as typed.
        dry_run: Whether a missing registry is only looked at, as if it were empty.

    Raises:
        NotFoundError: No registry or no curriculum, and more than folders and their base are asked for.
        ConfigError: Several curricula, and none is named.
    """
    from ..registry.store import find_store
    from ..variants.name import BASE, names_folder

    folders = [name for name in names if names_folder(name)]
    beside = bool(folders) and all(name in folders or name == BASE for name in names)
    store = find_store(registry, create=beside, dry_run=dry_run)
    if beside and curriculum is None and (len(folders) == len(names) or not store.curricula()):
        return store, ""
    return store, store.default_curriculum(curriculum)


def registry_options(store: Store, curriculum: str) -> str:
    """What a command that is typed here needs to find a registry and a curriculum, with a space before each."""
    from ..core.errors import PlyfoldError
    from ..registry.store import find_store

    try:
        here = find_store().root == store.root
    except PlyfoldError:
        here = False
    named = "" if here else f" --registry {shlex.quote(str(store.root))}"
    return named if len(store.curricula()) == 1 else f"{named} --curriculum {curriculum}"


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
