"""Adapters of others, straight from the Hub: a commit first, then only the two files that make a PEFT adapter.

Such a repository has no record to hold its files to. What arrives is held to the digests that the Hub lists for the
commit, and the commit is noted beside the object, so that everybody can look where it came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.disk.files import require_space
from ...core.errors import ConfigError, ConflictError, IntegrityError, NotFoundError, UnsupportedAdapterError
from ..import_peft import UNKNOWN, base_record, check_name, fit_name, import_adapter
from ..record import RECORD_FILE
from ..store import Entry, Store
from ..store.objects import PICKLES
from .client import HubClient, RemoteFile
from .places import HubLocation, attest_location, known_locations, location
from .references import PullContext, find_places
from .remote import Remote

MAX_WEIGHTS_BYTES = 64_000_000_000
"""More is no adapter."""
MAX_CARD_BYTES = 1_000_000

_BASE_KEYS = ("base_model_name_or_path", "revision")
_CARD = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9][\w .+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of an adapter of the Hub."""

    entry: Entry
    location: str
    """`hf://org/repo@commit[/folder]`."""
    fetched: bool
    """False where the files were here already."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """An adapter's folder at one commit."""

    client: HubClient
    place: HubLocation
    files: dict[str, RemoteFile]
    """Path in the repository -> what the Hub lists."""

    def path(self, name: str) -> str:
        """A file of the adapter's folder as a path in the repository."""
        return f"{self.place.folder}/{name}" if self.place.folder else name


def import_from_hub(
    store: Store,
    ref: str,
    *,
    curriculum: str,
    name: str | None = None,
    stage: int | None = None,
    base: str | None = None,
    quantisation: str | None = None,
    licence: str | None = None,
    client: HubClient | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> Imported:
    """Fetch an adapter that another tool has published, and import it as `import_adapter` does.

    A location that was imported before is answered from the registry; of a name that leads to it, only the commit is
    asked for, and nothing where the Hub is switched off.

    Args:
        store: The registry.
        ref: `hf://org/repo[@revision][/folder]`.
        curriculum: Curriculum to name it in.
        name: Its name there; else the repository's, or the folder's in it.
        stage: Stage number to take; None names it beside the stages.
        base: `org/model@commit`, where the adapter's config does not say it.
        quantisation: As for `import_adapter`.
        licence: Licence of the adapter; else what its card says.
        client: How to reach the Hub.
        done: Called with the name of each file that has arrived.

    Raises:
        ConfigError: Not such a reference, a repository of plyfold's own, or a base, commit or name that is not known.
        NotFoundError: No such repository, revision or folder, or no adapter in it.
        UnsupportedAdapterError: Weights only as a pickle, or a feature that cannot be composed.
        IntegrityError: Not the bytes that the Hub lists, or not a sound adapter; nothing of it is left.
        ConflictError: Another adapter has that stage or name.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
        NotAllowedError: This user may not write to the registry.
    """
    store.require_writable()
    client = client or HubClient()
    known = known_locations(store)
    (place,) = find_places(PullContext(store=store, remote=Remote(client), held=known), ref)
    title = name or fit_name(PurePosixPath(place.folder or place.repo).name)
    check_name(title)
    said: dict[str, Any] = {"curriculum": curriculum, "name": title, "stage": stage, "base": base}
    digest = known.get(place.location)
    if here := digest in store.digests():
        was = store.load(str(digest)).record
        if was.kind != "foreign":
            raise _own(place)
        said |= {
            "licence": licence or (was.licence if was.licence != UNKNOWN else None),
            "quantisation": quantisation or ("nf4" if was.base.quantisation else None),
        }
        entry = import_adapter(store, store.read_record(str(digest)).path, **said)
    else:
        source = _look(client, place)
        _refuse_taken(store, curriculum, title, stage)
        with store.scratch() as folder:
            _fetch_adapter(source, folder, base, quantisation, done)
            said |= {"licence": licence or _licence(source, folder), "quantisation": quantisation}
            entry = import_adapter(store, folder, **said)
    attest_location(store, entry.digest, place.location)
    return Imported(entry=entry, location=place.location, fetched=not here)


def _look(client: HubClient, place: HubLocation) -> _Source:
    """What lies at a place, if it is an adapter of another tool."""
    from ...adapters.spec import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME

    source = _Source(client=client, place=place, files=client.files(place.repo, place.sha))
    prefix = source.path("")
    files = {path.removeprefix(prefix) for path in source.files if path.startswith(prefix)}
    if RECORD_FILE in files:
        raise _own(place)
    pickles = sorted(path for path in files if PurePosixPath(path).suffix.lower() in PICKLES and "/" not in path)
    if WEIGHTS_NAME not in files and pickles:
        raise UnsupportedAdapterError(
            "the adapter's weights are only there as a pickle; loading one can run any code",
            where=place.location,
            expected=WEIGHTS_NAME,
            found=PICKLE_NAME if PICKLE_NAME in pickles else pickles[0],
            next_step="ask its owner for safetensors; or, if you trust them, load it with PEFT where it can do no "
            "harm, save_pretrained(DIR), and plyfold import DIR",
        )
    lacking = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if name not in files]
    if lacking:
        inside = sorted({str(PurePosixPath(path).parent) for path in files if path.endswith(f"/{WEIGHTS_NAME}")})
        raise NotFoundError(
            "no PEFT adapter here",
            where=place.location,
            expected=lacking[0],
            found=f"adapters in {', '.join(inside[:5])}" if inside else f"{len(files)} other files",
            next_step=f"plyfold import {place.location}/{inside[0]}" if inside else "",
        )
    return source


def _refuse_taken(store: Store, curriculum: str, name: str, stage: int | None) -> None:
    """Refuse before the weights are fetched what could not be named; another foreign adapter may be the same one."""
    digest = store.merges(curriculum).get(name) if stage is None else store.stages(curriculum).get(stage)
    if digest in store.digests() and store.read_record(str(digest)).record.kind != "foreign":
        raise ConflictError(
            "another adapter has that name" if stage is None else "another adapter has that stage",
            where=f"{curriculum} {name if stage is None else stage}",
            found=digest,
            next_step="choose another with --stage or --name, or another --curriculum",
        )


def _fetch_adapter(
    source: _Source, folder: Path, base: str | None, quantisation: str | None, done: Callable[[str], object]
) -> None:
    """Fetch the config, and the weights only if the config can be taken."""
    from ...adapters.spec import CONFIG_NAME, MAX_CONFIG_BYTES, WEIGHTS_NAME, read_config

    _fetch(source, source.path(CONFIG_NAME), folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    done(CONFIG_NAME)
    config = read_config(folder)
    named, revision = (value if isinstance(value := config.get(key), str) else "" for key in _BASE_KEYS)
    base_record(named, revision, base, quantisation, where=f"{source.place.location}/{CONFIG_NAME}")
    weights = source.path(WEIGHTS_NAME)
    require_space(folder, 3 * source.files[weights].size)  # this, and the two copies that importing makes
    _fetch(source, weights, folder / WEIGHTS_NAME, MAX_WEIGHTS_BYTES)
    done(WEIGHTS_NAME)


def _fetch(source: _Source, path: str, target: Path, max_bytes: int) -> None:
    """Fetch one file and hold it to what the Hub lists for the commit.

    Raises:
        IntegrityError: Too large, or other bytes, twice.
    """
    listed, repo, sha = source.files[path], source.place.repo, source.place.sha
    where = f"{location(repo, sha)}/{path}"
    if listed.size > max_bytes:
        raise IntegrityError(
            "a file is too large for an adapter",
            where=where,
            expected=f"at most {max_bytes:,} bytes",
            found=f"{listed.size:,} bytes",
        )
    for fresh in (False, True):  # perhaps changed on the way, perhaps in a cache on the way
        digest = source.client.fetch(repo, sha, path, target, max_bytes=listed.size, fresh=fresh)
        found = digest if listed.sha256 else listed.digest_of(target)
        if found == listed.stated:
            return
    raise IntegrityError(
        "a file is not what the Hub lists for this commit; nothing of it was kept",
        where=where,
        expected=listed.stated,
        found=f"{found}, twice",
        next_step="the copy on the Hub or the way to it is damaged: try another network, or ask its owner",
    )


def _licence(source: _Source, folder: Path) -> str | None:
    listed, target = source.files.get(_CARD), folder / _CARD
    if listed is None or listed.size > MAX_CARD_BYTES:
        return None
    _fetch(source, _CARD, target, MAX_CARD_BYTES)
    return licence_stated(target)


def licence_stated(card: Path) -> str | None:
    """The licence that a model card states, where it is a plain name."""
    from huggingface_hub import metadata_load

    try:
        said = metadata_load(card) or {}
    except Exception:  # YAML of others: what cannot be read says nothing
        return None
    licence = said.get("license_name") if said.get("license") == "other" else said.get("license")
    return licence if isinstance(licence, str) and _LICENCE.fullmatch(licence) else None


def _own(place: HubLocation) -> ConfigError:
    return ConfigError(
        "this adapter has a record of its own, which an import would lose",
        where=f"{place.location}/{RECORD_FILE}",
        next_step=f"plyfold pull {place.location}",
    )
