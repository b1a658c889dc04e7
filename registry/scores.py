"""What variants scored, attested beside the adapters they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import NotFoundError
from .record import Metric
from .store import Store

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
    payload = {
        **(details or {}),
        "variant": variant_name(stages),
        "inputs": inputs,
        "metrics": [metric.model_dump(mode="json") for metric in metrics],
    }
    store.attest(known[max(stages) if stages else min(known)], EVAL, payload)


def scores(store: Store, curriculum: str) -> dict[str, list[Metric]]:
    """Variant name -> its latest scores, of the stages as they are now.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    stages = store.stages(curriculum)
    held = set(store.digests())
    statements = [item for digest in stages.values() if digest in held for item in store.attestations(digest, EVAL)]
    found: dict[str, list[Metric]] = {}
    for statement in sorted(statements, key=lambda item: item.created):
        payload = statement.payload
        inputs = payload.get("inputs")
        if not isinstance(inputs, dict) or "variant" not in payload:
            continue  # another tool's statement
        if all(stages.get(int(number)) == digest for number, digest in inputs.items() if number.isdecimal()):
            found[str(payload["variant"])] = [Metric.model_validate(item) for item in payload.get("metrics", [])]
    return found


def variant_name(stages: Sequence[int]) -> str:
    """Stages 1 and 2 -> `1+2`; none -> `base`."""
    return "+".join(str(number) for number in sorted(set(stages))) or BASE_VARIANT
