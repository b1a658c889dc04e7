"""A base's files from the Hub: the local cache first, the network only where it is missing and allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..core.disk.files import disk_errors
from ..core.errors import AuthError, ConfigError, DiskFullError, IncompatibleError, NotFoundError, OfflineError

NOT_OF_A_BASE = ["adapter_config.json", "adapter_model*"]
"""Files of an adapter that lies in a base's repository: transformers would load it with the base."""
PROBE_TIMEOUT_S = 10
_ID = re.compile(r"(?:\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII)


def is_local(repo: str) -> bool:
    """Whether a base is named by a folder rather than a Hub id (`name` or `owner/name`)."""
    return bool(repo) and (repo.count("/") > 1 or "\\" in repo or repo[0] in "/.~")


def hub_uri(text: str) -> str:
    """The `hf://[datasets/]org/repo[@revision][/path]` of an address as a browser shows it; other text as it stands."""
    from huggingface_hub import constants

    hosts = "|".join(["huggingface.co", "hf.co", re.escape(constants.ENDPOINT.rstrip("/").partition("://")[2])])
    page = re.fullmatch(rf"(?:https?://)?(?:www\.)?(?:{hosts})/(?P<rest>[^?#]+?)/?(?:[?#].*)?", text, re.IGNORECASE)
    if not page:
        return text
    kind, rest = ("datasets/", page["rest"][9:]) if page["rest"].startswith("datasets/") else ("", page["rest"])
    org, _, rest = rest.partition("/")
    repo, _, rest = rest.partition("/")
    view, _, rest = rest.partition("/")
    revision, _, path = rest.partition("/") if view in ("tree", "blob", "resolve", "commit") else ("", "", "")
    named = f"{org}/{repo}" if repo else org
    return f"hf://{kind}{named}" + (f"@{revision}" if revision else "") + (f"/{path}" if path else "")


def model_id(text: str) -> tuple[str, str | None]:
    """Hub id and revision of a model as people write it: `org/model[@revision]`, `hf://`, or an address.

    Text that is no id stays as it is, with no revision; `is_id` tells.
    """
    text = text.strip()
    uri = hub_uri(text)
    repo, _, rest = uri.removeprefix("hf://").partition("@")
    revision = rest.partition("/")[0]
    if uri.startswith("hf://"):  # of a file's address the repository counts
        repo = "/".join(repo.removeprefix("models/").split("/")[:2])
    repo = repo.rstrip("/")
    return (repo, revision or None) if is_id(repo) else (text, None)


def is_id(repo: str) -> bool:
    """Whether the Hub could have a model of that name, by the rules of `huggingface_hub.validate_repo_id`."""
    sound = _ID.fullmatch(repo) and "--" not in repo and ".." not in repo and not repo.endswith((".git", ".ipynb"))
    return bool(sound) and repo.partition("/")[0] not in ("datasets", "spaces")


def snapshot(
    repo: str,
    revision: str,
    *,
    patterns: Sequence[str],
    check: Callable[[Path], object],
    first: Callable[[Path], object] = lambda folder: None,
    local_only: bool = False,
) -> Path:
    """The folder of a repository at one commit in the local Hub cache, downloaded first where it is not there.

    Args:
        repo: Hub id.
        revision: Commit, or a branch or tag, which is looked up in the cache first.
        patterns: Names of the files to fetch.
        check: Raises NotFoundError for a folder that is cached only in part.
        first: Called with a folder that holds `config.json` alone, before weights are fetched; raises to refuse them.
        local_only: Never ask the Hub.

    Raises:
        ConfigError: No Hub id, or no revision to look for.
        NotFoundError: No such repository or revision, or not with the files that `check` wants.
        OfflineError: Not in the cache, and the Hub is switched off or out of reach.
        AuthError: The repository asks for access.
        DiskFullError: No room in the cache.
    """
    from huggingface_hub import HfApi, constants, get_token, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not is_id(repo):
        raise ConfigError(
            "the base is named by what is no Hub id, and no folder of that name is here",
            found=repo or "no name",
            expected="ORG/MODEL",
            next_step="name the base: base.repo=ORG/MODEL in a config, --base DIR or ORG/MODEL beside adapters",
        )
    if revision == "auto":
        raise ConfigError("a base on the Hub needs its commit", where="base.revision", found=revision)
    wanted, where = list(patterns), f"{repo}@{revision}"
    try:
        path = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_OF_A_BASE, local_files_only=True
            )
        )
        check(path)
        return path
    except (LocalEntryNotFoundError, NotFoundError):
        pass  # absent, or cached in part: the Hub has it
    if local_only:
        raise OfflineError("the base is not in the local cache", where=where)
    if constants.HF_HUB_OFFLINE:
        raise OfflineError(
            "the base is not in the local cache and the Hub is switched off (HF_HUB_OFFLINE)",
            where=where,
            next_step=f"unset HF_HUB_OFFLINE, or name a folder that holds {repo}: base.path=DIR in a config, "
            "--base DIR beside adapters",
        )
    check_address(constants.ENDPOINT)
    check_token(get_token())
    try:
        # Asked once, without the download's half minute of retries where there is no network at all.
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=PROBE_TIMEOUT_S)
        commit = info.sha or revision
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            first(Path(snapshot_download(repo, revision=commit, allow_patterns=["config.json"])))
            path = Path(snapshot_download(repo, revision=commit, allow_patterns=wanted, ignore_patterns=NOT_OF_A_BASE))
    except (DiskFullError, IncompatibleError):
        raise
    except GatedRepoError as error:
        raise AuthError("the base asks for access", where=where, next_step="run: hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFoundError("no such base on the Hub, or not without a token", where=where) from error
    except OSError as error:
        raise _unreachable(repo, revision, error) from error
    except Exception as error:  # the HTTP client's own errors share no base with OSError
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        raise _unreachable(repo, revision, error) from error
    check(path)
    return path


def _unreachable(repo: str, revision: str, error: Exception) -> OfflineError:
    return OfflineError(
        "the base is not in the local cache and the Hub cannot be reached",
        where=f"{repo}@{revision}",
        found=type(error).__name__,
        next_step=f"where connected: hf download {repo} --revision {revision}; then set base.path or HF_HOME",
    )


def check_address(endpoint: str) -> None:
    """Refuse what is no address of a Hub, or carries a password, which every error about the Hub would show.

    Raises:
        ConfigError: It is not one; its text is not shown.
    """
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        sound = sound and not re.search(r"[@?#\s]", endpoint) and endpoint.isprintable()
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(
            "not the address of a Hub",
            where="HF_ENDPOINT",
            expected="https://HOST, without a user, a password or a query; a token is read from HF_TOKEN",
            found=f"{len(endpoint)} characters, not shown",
            next_step="export HF_ENDPOINT=https://huggingface.co",
        )


def check_token(token: str | None) -> None:
    """Refuse a token that no header can carry, which would be told as a fault of the Hub.

    Raises:
        AuthError: It is one; its text is not shown.
    """
    if token and not re.fullmatch(r"[!-~]+", token):
        raise AuthError(
            "the token for the Hub is none",
            where="HF_TOKEN, or what `hf auth login` kept",
            expected="printable ASCII without spaces",
            found=f"{len(token)} characters, not shown",
            next_step="set HF_TOKEN to a token of https://huggingface.co/settings/tokens",
        )
