"""A base's files from the Hub: the local cache first, the network only where it is missing and allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.errors import AuthError, ConfigError, DiskFullError, NotFoundError, OfflineError
from ..core.files import disk_errors

PROBE_TIMEOUT_S = 10


def snapshot(
    repo: str, revision: str, *, patterns: Sequence[str], check: Callable[[Path], object], local_only: bool = False
) -> Path:
    """The folder of a repository at one commit in the local Hub cache, downloaded first where it is not there.

    Args:
        repo: Hub id.
        revision: Commit, or a branch or tag, which is looked up in the cache first.
        patterns: Names of the files to fetch.
        check: Raises NotFoundError for a folder that is cached only in part.
        local_only: Never ask the Hub.

    Raises:
        ConfigError: No revision to look for.
        NotFoundError: No such repository or revision, or not with the files that `check` wants.
        OfflineError: Not in the cache, and the Hub is switched off or out of reach.
        AuthError: The repository asks for access.
        DiskFullError: No room in the cache.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if revision == "auto":
        raise ConfigError("a base on the Hub needs its commit", where="base.revision", found=revision)
    wanted, where = list(patterns), f"{repo}@{revision}"
    try:
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True))
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
            next_step=f"unset HF_HUB_OFFLINE, or set base.path to a folder that holds {repo}",
        )
    try:
        # Asked once, without the download's half minute of retries where there is no network at all.
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=PROBE_TIMEOUT_S)
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            path = Path(snapshot_download(repo, revision=info.sha or revision, allow_patterns=wanted))
    except DiskFullError:
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
