"""Where adapters lie on the Hub: names of repositories, attested locations, and which adapters may travel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...adapters.spec import MAX_CONFIG_BYTES
from ...core.console import warn
from ...core.disk.digest import PREFIX, short
from ...core.disk.files import disk_errors
from ...core.errors import ConfigError, IncompatibleError, UnsupportedAdapterError
from ...core.reading.strict_json import read_json
from ..record import Record
from ..store import Store
from ..store.attestations import LOCATION, prune_attestations, read_attestations, write_attestation
from ..store.objects import PICKLES
from ..trust.signing import BESIDE

MAX_LOCATIONS = 50
"""Most places that are kept of an adapter, the last learnt: every commit of its repository is one."""
DIGEST_LINE = "adapter-digest: "
"""Begins the line of a commit's description that names the adapter it brought."""

_NAMESPACE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*")


def repo_of(namespace: str, record: Record) -> str:
    """Hub id of an adapter's repository: `acme/gsm8k-s01-structure`, `acme/gsm8k-merge-0123456789ab`.

    Raises:
        ConfigError: Not a name the Hub takes.
    """
    stage = record.stage
    part = f"s{stage.number:02d}-{stage.name}" if stage else f"{record.kind}-{short(record.digest())}"
    return checked_repo(f"{namespace}/{record.curriculum}-{part}")


def checked_repo(repo: str) -> str:
    """The id itself, if the Hub takes it.

    Raises:
        ConfigError: No namespace, unfit characters, or over 96 of them.
    """
    namespace, _, name = repo.partition("/")
    fit = _NAMESPACE.fullmatch(namespace) and re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", name, re.ASCII)
    if not fit or "--" in repo or ".." in repo or len(repo) > 96 or name.endswith(".git"):
        raise ConfigError(
            "not the name of a repository on the Hub",
            found=repo,
            expected="NAMESPACE/NAME of letters, digits, single dashes, dots and underscores, 96 at most",
        )
    return repo


def stage_repos(repos: list[str], namespace: str, curriculum: str) -> dict[int, list[str]]:
    """Stage number -> repositories that hold it by their name."""
    found: dict[int, list[str]] = {}
    for repo in repos:
        match = re.fullmatch(rf"{re.escape(f'{namespace}/{curriculum}')}-s(\d{{2,3}})-[a-z][a-z0-9_-]*", repo)
        if match:
            found.setdefault(int(match[1]), []).append(repo)
    return dict(sorted(found.items()))


def location(repo: str, sha: str, folder: str = "") -> str:
    """`hf://org/repo@commit[/folder]`."""
    return f"hf://{repo}@{sha}" + (f"/{folder}" if folder else "")


def locations(store: Store, digest: str) -> list[str]:
    """Where an adapter, held or not, is known to lie on the Hub, the last learnt first."""
    folder = store.layout.attest
    if not (folder / digest.removeprefix(PREFIX)).is_dir():
        return []
    said = [each for each in read_attestations(folder, digest) if each.kind == LOCATION]
    places = [str(each.payload.get("location", "")) for each in reversed(said)]
    return [place for place in places if place.startswith("hf://")]


def known_locations(store: Store) -> dict[str, str]:
    """Location -> digest of every object whose place on the Hub is known."""
    return {place: digest for digest in store.digests() for place in locations(store, digest)}


def attest_location(store: Store, digest: str, place: str) -> None:
    """Note where an adapter, held or not, lies; once, and with a warning not where this user may not write."""
    known = locations(store, digest)
    if place in known[:1]:
        return
    if not store.writable:
        warn(f"{store.root} cannot be written by this user: that {short(digest)} lies at {place} is not noted there")
        return
    with disk_errors(store.root):
        write_attestation(store.layout.attest, digest, LOCATION, {"location": place})
        if len(known) >= MAX_LOCATIONS:
            prune_attestations(store.layout.attest, digest, LOCATION, MAX_LOCATIONS)


def refuse_pickles(record: Record) -> None:
    """Refuse an adapter whose record names a file that can run code when it is loaded.

    Raises:
        UnsupportedAdapterError: It does.
    """
    for entry in record.files:
        if PurePosixPath(entry.path).suffix.lower() in PICKLES:
            raise UnsupportedAdapterError(
                "the adapter holds a pickle; loading one can run any code",
                where=f"{record.curriculum} {record.label}: {entry.path}",
                expected="weights as safetensors",
                next_step="convert it with safetensors.torch.save_file and publish it again",
            )


def check_shareable(folder: Path, record: Record) -> None:
    """Refuse an adapter that would harm or mislead who loads it elsewhere.

    Raises:
        UnsupportedAdapterError: It holds a pickle.
        IncompatibleError: Its configuration names another base than its record, such as a local path; or a file of it
            has the name of what stands beside adapters on the Hub.
    """
    refuse_pickles(record)
    taken = [item.path for item in record.files if item.path.partition("/")[0] in BESIDE]
    if taken:
        raise IncompatibleError(
            "a file of the adapter has the name of what stands beside adapters on the Hub",
            where=f"{record.curriculum} {record.label}: {taken[0]}",
            expected=f"none of {', '.join(BESIDE)}",
            next_step="publish it again without that file",
        )
    config = folder / "adapter_config.json"
    if not config.is_file():
        return
    try:
        named = read_json(config, max_bytes=MAX_CONFIG_BYTES).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    if named != record.base.repo:
        raise IncompatibleError(
            "the adapter's configuration does not name the base of its record",
            where=f"{record.curriculum} {record.label}: adapter_config.json, base_model_name_or_path",
            expected=record.base.repo,
            found=named if isinstance(named, str) else "no base",
            next_step="publish it again from a configuration with the base's Hub id",
        )


@dataclass(frozen=True, kw_only=True)
class HubLocation:
    """One adapter on the Hub, and what is known of it before it is read."""

    repo: str
    sha: str
    folder: str = ""
    stage: tuple[str, int] | None = None
    """Curriculum and number that the repository's name promises; 0 for an adapter that is no stage."""
    digest: str | None = None
    """What it has to be."""
    pinned: bool = False
    """Named by its commit: what was pulled from it before is answered without a request."""

    @property
    def location(self) -> str:
        """`hf://org/repo@commit[/folder]`; empty for what lies nowhere but here."""
        return location(self.repo, self.sha, self.folder) if self.repo else ""


def parse_location(text: str, *, stage: tuple[str, int] | None = None, digest: str | None = None) -> HubLocation:
    """The place that a location names by its commit."""
    repo, _, rest = text.removeprefix("hf://").partition("@")
    sha, _, folder = rest.partition("/")
    return HubLocation(repo=repo, sha=sha, folder=folder, stage=stage, digest=digest, pinned=True)


def namespace_of(place: str) -> str:
    """User or organisation of a location or repository."""
    return place.removeprefix("hf://").partition("/")[0]
