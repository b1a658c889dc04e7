"""Which adapters on the Hub a reference means, each at one commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...adapters.hub import hub_uri
from ...core.config import CURRICULUM_NAME
from ...core.disk.digest import PREFIX
from ...core.errors import ConfigError, IntegrityError, NotFoundError
from ..record import check_file_name
from ..store import Store
from .client import switched_off
from .places import HubLocation, checked_repo, locations, parse_location, stage_repos
from .remote import MAIN, Remote, RemoteRecord

ALL = "all"
MAX_MERGES = 200
"""Most repositories of merges that are looked into for one curriculum."""


@dataclass(frozen=True, kw_only=True)
class PullContext:
    """Where references are looked up."""

    store: Store
    remote: Remote
    held: dict[str, str]
    """Location -> digest, as `held` says."""

    @cached_property
    def came(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Curriculum and stage -> the digests it was at here, in the order of the registry's log.

        Raises:
            IntegrityError: The log is not readable.
        """
        found: dict[tuple[str, str], dict[str, None]] = {}
        for row in self.store.log():
            slot = found.setdefault((str(row.get("curriculum")), str(row.get("stage"))), {})
            slot |= {str(digest): None for digest in (row.get("previous"), row.get("digest"))}
        return {slot: tuple(order) for slot, order in found.items()}


def find_places(
    looked: PullContext, ref: str, stages: Sequence[int] | None = None, merges: Sequence[str] | None = None
) -> list[HubLocation]:
    """The adapters that `hf://org/repo[@revision][/folder]` or `NAMESPACE/CURRICULUM` means, each at one commit.

    With the Hub switched off, names are looked up among what was pulled from them before.

    Args:
        looked: Where to look.
        ref: The reference.
        stages: Stages of the curriculum; None is all there are, or none where merges are named.
        merges: Slugs of merges of the curriculum; `all` is every one.

    Raises:
        ConfigError: Not such a reference, or one that several repositories answer to.
        NotFoundError: No such repository, revision, stage or merge.
        OfflineError, AuthError: The Hub cannot be reached, or does not allow it.
    """
    if "://" in ref:
        for option, value in (("--stages", stages), ("--merges", merges)):
            if value is not None:
                raise ConfigError(f"{option} goes with NAMESPACE/CURRICULUM", found=ref, next_step="leave it out")
        return [_by_uri(looked, ref)]
    namespace, _, curriculum = ref.partition("/")
    if not re.fullmatch(CURRICULUM_NAME, curriculum):
        raise ConfigError(
            "neither a curriculum nor a place on the Hub",
            found=ref,
            expected="NAMESPACE/CURRICULUM, or hf://org/repo[@revision][/folder]",
            next_step=f"for one repository: hf://{ref}" if ref.count("/") == 1 else "",
        )
    checked_repo(ref)
    if merges is None:
        return _stages_of(looked, namespace, curriculum, stages)
    chosen = _stages_of(looked, namespace, curriculum, stages) if stages else []
    return [*chosen, *_merges_of(looked, namespace, curriculum, [] if list(merges) == [ALL] else merges)]


# ---- one repository


def _by_uri(looked: PullContext, ref: str) -> HubLocation:
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    wanted, ref = "hf://org/repo[@revision][/folder]", hub_uri(ref)
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
    revision = uri.revision or MAIN
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return HubLocation(repo=uri.id, sha=revision, folder=folder, pinned=True)
    if switched_off() and (place := _last_pulled(looked, uri.id, folder)):
        return place
    return HubLocation(repo=uri.id, sha=looked.remote.resolve(uri.id, revision), folder=folder)


def _last_pulled(looked: PullContext, repo: str, folder: str) -> HubLocation | None:
    """The one place of a repository that something here was pulled from, or the one of a stage's `latest`."""
    known = {name for name in looked.held if (place := parse_location(name)).repo == repo and place.folder == folder}
    if len(known) > 1:
        current = {digest for name in looked.store.curricula() for digest in looked.store.stages(name).values()}
        known = {name for name in known if looked.held[name] in current}
    return parse_location(known.pop()) if len(known) == 1 else None


# ---- the repositories of a curriculum


def _stages_of(looked: PullContext, namespace: str, curriculum: str, stages: Sequence[int] | None) -> list[HubLocation]:
    ref = f"{namespace}/{curriculum}"
    if switched_off() and (places := _held_stages(looked, namespace, curriculum, stages)):
        return places
    repos = stage_repos(looked.remote.repos(namespace, curriculum), namespace, curriculum)
    lacking = [number for number in stages or [] if number not in repos]
    if lacking or not repos:
        raise NotFoundError(
            f"no stage {lacking[0]} of {ref} on the Hub, or not for this token" if lacking else f"no {ref} on the Hub",
            where=looked.remote.endpoint,
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
        places.append(HubLocation(repo=repo, sha=looked.remote.resolve(repo, MAIN), stage=(curriculum, number)))
    return places


def _held_stages(
    looked: PullContext, namespace: str, curriculum: str, stages: Sequence[int] | None
) -> list[HubLocation]:
    """The stages as last pulled from this namespace; empty unless all that are asked for are here."""
    here = looked.store.stages(curriculum)
    places = []
    for number in stages or here:
        names = locations(looked.store, here[number]) if number in here else []
        name = next((each for each in names if each.startswith(f"hf://{namespace}/{curriculum}-s")), None)
        if name is None:
            return []
        places.append(parse_location(name, stage=(curriculum, number)))
    return places


def _merges_of(looked: PullContext, namespace: str, curriculum: str, slugs: Sequence[str]) -> list[HubLocation]:
    """Merges by the names their records give them, the newest first; two requests and their records each."""
    if switched_off() and (places := _held_merges(looked, namespace, curriculum, slugs)):
        return places
    pattern = re.compile(rf"{re.escape(f'{namespace}/{curriculum}')}-merge-([0-9a-f]{{12}})")
    repos = {
        repo: match[1] for repo in looked.remote.repos(namespace, curriculum) if (match := pattern.fullmatch(repo))
    }
    if len(repos) > MAX_MERGES:
        raise ConfigError(
            f"too many merges of {namespace}/{curriculum} to look into",
            expected=f"at most {MAX_MERGES}",
            found=len(repos),
            next_step=f"name them: plyfold pull hf://{next(iter(repos))}",
        )
    found: list[tuple[RemoteRecord, HubLocation]] = []
    for repo, start in repos.items():
        place = HubLocation(repo=repo, sha=looked.remote.resolve(repo, MAIN), stage=(curriculum, 0))
        merge = looked.remote.record(place)
        if not merge.digest.startswith(PREFIX + start):
            raise IntegrityError(
                "another adapter than the repository is named after",
                where=place.location,
                expected=f"{PREFIX}{start}...",
                found=merge.digest,
            )
        found.append((merge, place))
    found.sort(key=lambda pair: (pair[0].record.created, pair[0].digest), reverse=True)
    if not slugs and found:
        return [place for _, place in found]
    named: dict[str, list[HubLocation]] = {}
    for merge, place in found:
        named.setdefault(str(merge.record.recipe.details.get("slug", "")), []).append(place)
    for slug in slugs or [""]:
        if len(named.get(slug, [])) != 1:
            raise _not_one(f"{namespace}/{curriculum}", slug, named, looked.remote.endpoint)
    return [named[slug][0] for slug in slugs]


def _not_one(ref: str, slug: str, named: dict[str, list[HubLocation]], endpoint: str) -> ConfigError | NotFoundError:
    if slug in named:
        repos = [place.repo for place in named[slug]]
        step = f"name one: plyfold pull hf://{repos[0]}"
        return ConfigError(f"several merges of {ref} are named {slug}", found=", ".join(repos), next_step=step)
    known = ", ".join(sorted(filter(None, named)))
    return NotFoundError(
        f"no merge {slug} of {ref} on the Hub, or not for this token" if slug else f"no merge of {ref} on the Hub",
        where=endpoint,
        expected=f"one of {known}" if known else f"repositories {ref}-merge-...",
        next_step="publish it with plyfold push, or leave --merges out",
    )


def _held_merges(looked: PullContext, namespace: str, curriculum: str, slugs: Sequence[str]) -> list[HubLocation]:
    """The merges as last pulled from this namespace; empty unless all that are asked for are here."""
    here = looked.store.merges(curriculum)
    start = f"hf://{namespace}/{curriculum}-merge-"
    places = []
    for slug in slugs or here:
        names = locations(looked.store, here[slug]) if slug in here else []
        name = next((each for each in names if each.startswith(start)), None)
        if name:
            places.append(parse_location(name, stage=(curriculum, 0)))
        elif slugs:
            return []
    return places
