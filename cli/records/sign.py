"""`plyfold sign`: sign adapters with a local key."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core.console import emit_json, print_table, say
from ...core.disk.digest import short
from ...core.errors import ConfigError
from ..options import curriculum_option, json_option, registry_option

if TYPE_CHECKING:
    from ...registry.trust.trust import Signer

KEY_VARIABLE, PASSWORD_VARIABLE = "PLYFOLD_SIGNING_KEY", "PLYFOLD_SIGNING_PASSWORD"


@click.command("sign")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--key", help=f"PEM file of an elliptic-curve private key; else {KEY_VARIABLE}.")
@curriculum_option
@registry_option
@json_option
def sign_command(
    refs: tuple[str, ...], key: str | None, curriculum: str | None, registry: Path | None, as_json: bool
) -> None:
    """Sign adapters with a local key, in the OpenSSF model-signing format.

    REF is a stage's number or name, a merge's name, CURRICULUM:STAGE, or the start of a digest. The signature covers
    the adapter's files and its record and is kept beside them; push puts it into the repository as model.sig. Needs
    the extra `sign`. The password of an encrypted key comes from PLYFOLD_SIGNING_PASSWORD or is asked for.

    A key: `openssl ecparam -genkey -name prime256v1 -noout -out signing.pem`; what others check with:
    `openssl ec -in signing.pem -pubout -out signing.pub`.
    """
    from ...registry.lineage.graph import find
    from ...registry.store import find_store
    from ...registry.trust.bundle import parse_bundle
    from ...registry.trust.signing import sign

    if key is not None and not key.strip():
        raise ConfigError("an empty name of a key", where="--key", expected="a PEM file", next_step="name the file")
    signer = signer_option(key or "")
    assert signer is not None
    store = find_store(registry)
    entries = [find(store, ref, curriculum) for ref in refs]
    bundles = [parse_bundle(sign(store, entry.digest, signer.key, signer.password)) for entry in entries]
    if as_json:
        emit_json({"registry": str(store.root), "key": bundles[0].key, "signed": [entry.digest for entry in entries]})
        return
    rows = [[short(entry.digest), f"{entry.record.curriculum} {entry.record.label}"] for entry in entries]
    print_table(["digest", "adapter"], rows, caption=f"signed by the key {bundles[0].key}")
    say("check with: plyfold verify --signature --public-key PEM; push puts it beside the files as model.sig")


def signer_option(option: str | None) -> Signer | None:
    """The key that `--sign` means, with its password; None where it is not given.

    Raises:
        ConfigError: It names none, and neither does PLYFOLD_SIGNING_KEY.
        NotFoundError: No such key.
    """
    from ...registry.trust.trust import Signer

    if option is None:
        return None
    key = option.strip() or os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ConfigError(
            "no key to sign with",
            expected="a PEM file",
            found=f"{KEY_VARIABLE} is empty" if KEY_VARIABLE in os.environ else "",
            next_step=f"--sign KEY.pem, or set {KEY_VARIABLE}",
        )
    return Signer(key=Path(key), password=signing_password(Path(key)))


def signing_password(key: Path) -> str | None:
    """The password of a key that has one, from the environment or, on a terminal, from the user; never shown.

    Raises:
        NotFoundError: No such key.
        ConfigError: It cannot be read, or PLYFOLD_SIGNING_PASSWORD is set and empty.
    """
    from ...registry.trust.signing_keys import is_encrypted

    if not is_encrypted(key):
        return None
    if (password := os.environ.get(PASSWORD_VARIABLE)) is not None:
        if not password:
            raise ConfigError(
                "an empty password",
                where=PASSWORD_VARIABLE,
                expected=f"the password of {key.name}, which is encrypted",
                next_step=f"set {PASSWORD_VARIABLE} to it, or unset that and type it on a terminal",
            )
        return password
    if not sys.stdin.isatty():
        return None
    return str(click.prompt(f"password of {key.name}", hide_input=True, err=True))
