"""Scores as they stand beside adapters on the Hub: claims of those who measured, kept with the adapters they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....core.errors import IntegrityError
from ...lineage.shared_scores import SharedScore, parse_evaluations
from ...trust.trust import Trust
from ..references import PullContext
from ..remote_lineage import PullItem
from ..sidecars import EVALUATIONS_FILE, MAX_COMPANION_BYTES


def fetch_scores(
    looked: PullContext, wanted: Sequence[PullItem], notice: Callable[[str], object], trust: Trust
) -> list[SharedScore]:
    """Read `evaluations.json` at the head of the repositories of adapters; keep what is of exactly these adapters.

    A file that cannot be read takes nothing from the adapters beside it: it is left out, and said. Where keys are
    named, or were when an adapter was pulled before, only scores that one of them signed are kept.

    Args:
        looked: The Hub and the registry.
        wanted: The adapters.
        notice: Called with each line that people should read.
        trust: The keys that are named.

    Raises:
        NotFoundError, OfflineError, AuthError: The repository cannot be read.
    """
    found: list[SharedScore] = []
    for each in wanted:
        repo = each.place.repo
        head = looked.remote.head(repo) if each.asks else None
        if head is None:
            continue
        try:
            data = looked.remote.small_file(repo, head, EVALUATIONS_FILE, MAX_COMPANION_BYTES)
            said = parse_evaluations(data, f"hf://{repo}@{head}/{EVALUATIONS_FILE}") if data is not None else []
        except IntegrityError as error:
            notice(f"the scores beside {each.name} were left out: {error.what}, {error.found}")
            continue
        own = [item for item in said if item.digest == each.digest]
        sound = [item for item in own if item.is_about(each.digest, each.record)]
        if len(sound) < len(own):
            count = len(own) - len(sound)
            notice(f"{count} of {len(own)} scores beside {each.name} were left out: they name other adapters or a base")
        if keys := trust.keys(looked.store, each.digest):
            signed = [item for item in sound if item.claimed in keys and item.signer]
            if len(signed) < len(sound):
                count = len(sound) - len(signed)
                notice(
                    f"{count} of {len(own)} scores beside {each.name} were left out: no key that was named signed them"
                )
            sound = signed
        found += sound
    return found
