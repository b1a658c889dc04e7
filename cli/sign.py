"""`plyfold sign`: sign adapters with a local key."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ..core.console import emit_json, print_table, say
from ..core.digest import short
from ..core.errors import ConfigError
from .options import curriculum_option, json_option, registry_option

KEY_VARIABLE, PASSWORD_VARIABLE = "PLYFOLD_SIGNING_KEY", "PLYFOLD_SIGNING_PASSWORD"


@click.command("sign")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    envvar=KEY_VARIABLE,
    help=f"PEM file of an elliptic-curve private key; else {KEY_VARIABLE}.",
)
@curriculum_option
@registry_option
@json_option
def sign_command(
    refs: tuple[str, ...], key: Path | None, curriculum: str | None, registry: Path | None, as_json: bool
) -> None:
    """Sign adapters with a local key, in the OpenSSF model-signing format.

    REF is a stage's number or name, a merge's name, CURRICULUM:STAGE, or the start of a digest. The signature covers
    the adapter's files and its record and is kept beside them; push puts it into the repository as model.sig. Needs
    the extra `sign`. The password of an encrypted key comes from PLYFOLD_SIGNING_PASSWORD or is asked for.

    A key: `openssl ecparam -genkey -name prime256v1 -noout -out signing.pem`; what others check with:
    `openssl ec -in signing.pem -pubout -out signing.pub`.
    """
    from ..registry.bundle import parse_bundle
    from ..registry.graph import find
    from ..registry.signing import sign
    from ..registry.store import find_store

    if key is None:
        raise ConfigError(
            "no key to sign with", expected="a PEM file", next_step=f"add --key PEM or set {KEY_VARIABLE}"
        )
    store = find_store(registry)
    entries = [find(store, ref, curriculum) for ref in refs]
    password = signing_password(key)
    bundles = [parse_bundle(sign(store, entry.digest, key, password)) for entry in entries]
    if as_json:
        emit_json({"registry": str(store.root), "key": bundles[0].key, "signed": [entry.digest for entry in entries]})
        return
    rows = [[short(entry.digest), f"{entry.record.curriculum} {entry.record.label}"] for entry in entries]
    print_table(["digest", "adapter"], rows, caption=f"signed by the key {bundles[0].key}")
    say("check with: plyfold verify --signature --public-key PEM; push puts it beside the files as model.sig")


def signing_password(key: Path) -> str | None:
    """The password of a key that has one, from the environment or, on a terminal, from the user; never shown.

    Raises:
        NotFoundError: No such key.
        ConfigError: It cannot be read.
    """
    from ..registry.signing_keys import is_encrypted

    if not is_encrypted(key):
        return None
    if password := os.environ.get(PASSWORD_VARIABLE):
        return password
    if not sys.stdin.isatty():
        return None
    return str(click.prompt(f"password of {key.name}", hide_input=True, err=True))
