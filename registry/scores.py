"""What variants scored, attested beside the adapters they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..core.errors import IntegrityError, NotFoundError
from .record import Metric
from .store import Entry, Store

EVAL = "eval"
"""Kind of the attestations that hold scores."""
BASE_VARIANT = "base"


def attest_scores(
    store: Store,
    curriculum: str,
    stages: Sequence[int],
    metrics: Sequence[Metric],
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write what a variant scored beside its last stage (beside the first stage for the base).

    Args:
        store: The registry.
        curriculum: Name of the curriculum.
        stages: Stage numbers of the variant, all with weight 1; empty for the base.
        metrics: `accuracy` (fraction) and `tokens` (mean number), with n and interval.
        details: More of the measurement, plain and portable: engine, protocol digest, data.

    Raises:
        NotFoundError: A stage that is not registered.
        ConfigError: `details` is not portable.
    """
    known = store.stages(curriculum)
    inputs = {str(number): store.ref(curriculum, number) for number in stages}
    if not known:
        raise NotFoundError(f"no stage of {curriculum} to attest scores to", where=store.root)
    entry = store.peek(known[max(stages) if stages else min(known)])
    payload = {
        **(details or {}),
        "curriculum": curriculum,
        "variant": variant_name(stages),
        "base": _base_name(entry),
        "inputs": inputs,
        "metrics": [metric.model_dump(mode="json") for metric in metrics],
    }
    store.attest(entry.digest, EVAL, payload)


def scores(store: Store, curriculum: str) -> dict[str, list[Metric]]:
    """Variant name -> its latest scores, of the base and the stages as they are now.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    stages = store.stages(curriculum)
    held = set(store.digests()) & set(stages.values())
    bases = set()
    for digest in held:
        with suppress(IntegrityError):  # `tree` marks it as damaged
            bases.add(_base_name(store.peek(digest)))
    found: dict[str, list[Metric]] = {}
    statements = [item for digest in store.digests() for item in store.attestations(digest, EVAL)]
    for payload in (item.payload for item in sorted(statements, key=lambda item: item.created)):
        inputs = payload.get("inputs")
        if payload.get("curriculum") != curriculum or payload.get("base") not in bases or not isinstance(inputs, dict):
            continue  # another curriculum's, or another tool's
        if inputs.items() <= {str(number): digest for number, digest in stages.items()}.items():
            found[str(payload.get("variant"))] = [Metric.model_validate(item) for item in payload.get("metrics", [])]
    return found


def _base_name(entry: Entry) -> str:
    return f"{entry.record.base.repo}@{entry.record.base.revision}"


def variant_name(stages: Sequence[int]) -> str:
    """Stages 1 and 2 -> `1+2`; none -> `base`."""
    return "+".join(str(number) for number in sorted(set(stages))) or BASE_VARIANT
