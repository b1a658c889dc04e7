"""Where adapters lie on the Hub: names of repositories, attested locations, what a reference means, what may travel."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..core.digest import short
from ..core.errors import ConfigError, IncompatibleError, NotFoundError, UnsupportedAdapterError
from .hub_client import HubClient, switched_off
from .ledger import LOCATION
from .record import CURRICULUM_NAME, MAX_RECORD_BYTES, Record, check_file_name
from .store import Store

DIGEST_LINE = "adapter-digest: "
"""Begins the line of a commit's description that names the adapter it brought."""
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
"""Files that run code when they are loaded."""

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
    """Where an adapter is known to lie on the Hub, the last learnt first."""
    said = [str(each.payload.get("location", "")) for each in store.attestations(digest, LOCATION)]
    return [place for place in reversed(said) if place.startswith("hf://")]


def held(store: Store) -> dict[str, str]:
    """Location -> digest of every object whose place on the Hub is known."""
    return {place: digest for digest in store.digests() for place in locations(store, digest)}


def attest_location(store: Store, digest: str, place: str) -> None:
    """Note where an adapter lies, once."""
    if place not in locations(store, digest)[:1]:
        store.attest(digest, LOCATION, {"location": place})


def check_shareable(folder: Path, record: Record) -> None:
    """Refuse an adapter that would harm or mislead who loads it elsewhere.

    Raises:
        UnsupportedAdapterError: It holds a pickle.
        IncompatibleError: Its configuration names another base than its record, such as a local path.
    """
    for entry in record.files:
        if PurePosixPath(entry.path).suffix.lower() in PICKLES:
            raise UnsupportedAdapterError(
                "the adapter holds a pickle; loading one can run any code",
                where=f"{record.curriculum} {record.label}: {entry.path}",
                expected="weights as safetensors",
                next_step="convert it with safetensors.torch.save_file and publish it again",
            )
    config = folder / "adapter_config.json"
    if not config.is_file():
        return
    with config.open("rb") as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    try:
        named = json.loads(data).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
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
class Place:
    """One adapter on the Hub, and what is known of it before it is read."""

    repo: str
    sha: str
    folder: str = ""
    stage: tuple[str, int] | None = None
    """Curriculum and number that the repository's name promises."""
    digest: str | None = None
    """What it has to be."""

    @property
    def location(self) -> str:
        return location(self.repo, self.sha, self.folder)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Where references are looked up."""

    store: Store
    client: HubClient
    held: dict[str, str]
    """Location -> digest, as `held` says."""


# ---- which adapters a reference means


def find_places(looked: Looked, ref: str, stages: Sequence[int] | None) -> list[Place]:
    """The adapters that `hf://org/repo[@revision][/folder]` or `NAMESPACE/CURRICULUM` means, each at one commit.

    With the Hub switched off, names are looked up among what was pulled from them before.

    Raises:
        ConfigError: Not such a reference, or one that several repositories answer to.
        NotFoundError: No such repository, revision or stage.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    if "://" not in ref:
        return _stages_of(looked, ref, stages)
    if stages is not None:
        raise ConfigError("--stages goes with NAMESPACE/CURRICULUM", found=ref, next_step="leave it out")
    return [_by_uri(looked, ref)]


def _by_uri(looked: Looked, ref: str) -> Place:
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    wanted = "hf://org/repo[@revision][/folder]"
    if not ref.startswith("hf://"):
        raise ConfigError("not a place on the Hub", found=ref, expected=wanted)
    try:
        uri = parse_hf_uri(ref)
    except HfUriError as error:
        raise ConfigError("not a place on the Hub", found=ref, expected=wanted) from error
    if uri.type != "model":
        raise ConfigError("adapters lie in model repositories", found=ref, expected=wanted)
    folder = uri.path_in_repo.rstrip("/")
    if folder:
        check_file_name(folder)
    revision = uri.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return Place(repo=uri.id, sha=revision, folder=folder)
    if switched_off() and (place := _last_pulled(looked, uri.id, folder)):
        return place
    return Place(repo=uri.id, sha=looked.client.resolve(uri.id, revision), folder=folder)


def _stages_of(looked: Looked, ref: str, stages: Sequence[int] | None) -> list[Place]:
    namespace, _, curriculum = ref.partition("/")
    if not re.fullmatch(CURRICULUM_NAME, curriculum):
        raise ConfigError(
            "neither a curriculum nor a place on the Hub",
            found=ref,
            expected="NAMESPACE/CURRICULUM, or hf://org/repo[@revision][/folder]",
            next_step=f"for one repository: hf://{ref}" if ref.count("/") == 1 else "",
        )
    checked_repo(ref)
    if switched_off() and (places := _held_stages(looked, namespace, curriculum, stages)):
        return places
    repos = stage_repos(looked.client.repos(namespace, curriculum), namespace, curriculum)
    lacking = [number for number in stages or [] if number not in repos]
    if lacking or not repos:
        raise NotFoundError(
            f"no stage {lacking[0]} of {ref} on the Hub, or not for this token" if lacking else f"no {ref} on the Hub",
            where=looked.client.endpoint,
            expected=f"one of the stages {', '.join(map(str, repos))}" if repos else f"repositories {ref}-s01-...",
            next_step=f"for a single repository: plyfold pull hf://{ref}; for a private one: hf auth login",
        )
    places = []
    for number in repos if stages is None else stages:
        if len(repos[number]) > 1:
            raise ConfigError(
                f"several repositories hold stage {number} of {ref}",
                found=", ".join(repos[number]),
                next_step=f"name one: plyfold pull hf://{repos[number][0]}",
            )
        repo = repos[number][0]
        places.append(Place(repo=repo, sha=looked.client.resolve(repo, "main"), stage=(curriculum, number)))
    return places


def _held_stages(looked: Looked, namespace: str, curriculum: str, stages: Sequence[int] | None) -> list[Place]:
    """The stages as last pulled from this namespace; empty unless all that are asked for are here."""
    here = looked.store.stages(curriculum)
    places = []
    for number in stages or here:
        names = locations(looked.store, here[number]) if number in here else []
        name = next((each for each in names if each.startswith(f"hf://{namespace}/{curriculum}-s")), None)
        if name is None:
            return []
        places.append(_parsed(name, stage=(curriculum, number)))
    return places


def _last_pulled(looked: Looked, repo: str, folder: str) -> Place | None:
    """The one place of a repository that something here was pulled from, or the one of a stage's `latest`."""
    known = {name for name in looked.held if (place := _parsed(name)).repo == repo and place.folder == folder}
    if len(known) > 1:
        current = {digest for name in looked.store.curricula() for digest in looked.store.stages(name).values()}
        known = {name for name in known if looked.held[name] in current}
    return _parsed(known.pop()) if len(known) == 1 else None


def _parsed(place: str, stage: tuple[str, int] | None = None) -> Place:
    repo, _, rest = place.removeprefix("hf://").partition("@")
    sha, _, folder = rest.partition("/")
    return Place(repo=repo, sha=sha, folder=folder, stage=stage)
