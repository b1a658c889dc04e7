"""What variants scored, attested beside the adapters they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..core.digest import PREFIX
from ..core.errors import IntegrityError, NotFoundError
from .ledger import Attestation
from .overlap import Overlap, overlaps
from .record import DataRef, Metric
from .snapshot import Snapshot
from .store import Entry, Store

EVAL = "eval"
"""Kind of the attestations that hold scores."""
BASE_VARIANT = "base"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measurement of one variant."""

    variant: str
    """`base`, `1+2`."""
    inputs: dict[str, str]
    """Stage number -> digest of the adapter it was; empty for the base."""
    metrics: list[Metric]
    data: DataRef | None
    """The rows it was measured on, where they are on record."""
    created: str
    """UTC, to the second."""

    @property
    def n(self) -> int:
        """Number of problems behind it."""
        return max((metric.n or 0 for metric in self.metrics), default=0)


def attest_scores(
    store: Store,
    curriculum: str,
    stages: Sequence[int],
    metrics: Sequence[Metric],
    details: Mapping[str, Any] | None = None,
    data: DataRef | None = None,
) -> None:
    """Write what a variant scored beside its last stage (beside the first stage for the base).

    Args:
        store: The registry.
        curriculum: Name of the curriculum.
        stages: Stage numbers of the variant, all with weight 1; empty for the base.
        metrics: `accuracy` (fraction) and `tokens` (mean number), with n and interval.
        details: More of the measurement, plain and portable: engine, protocol digest.
        data: The rows it was measured on.

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
        "data": data.model_dump(mode="json") if data else None,
        "metrics": [metric.model_dump(mode="json") for metric in metrics],
    }
    store.attest(entry.digest, EVAL, payload)


def read_score(statement: Attestation) -> Score | None:
    """The score that a statement holds; None where it is another tool's.

    Raises:
        IntegrityError: It is one of ours, and not readable.
    """
    payload = statement.payload
    if statement.kind != EVAL or not isinstance(payload.get("inputs"), dict):
        return None
    try:
        return Score(
            variant=str(payload.get("variant")),
            inputs={str(number): str(digest) for number, digest in payload["inputs"].items()},
            metrics=[Metric.model_validate(item) for item in payload.get("metrics") or []],
            data=DataRef.model_validate(payload["data"]) if payload.get("data") else None,
            created=statement.created,
        )
    except (ValidationError, TypeError) as error:
        raise IntegrityError(
            "a score is not readable",
            where=f"attest/{statement.digest.removeprefix(PREFIX)}, of {statement.created}",
            next_step="remove that file and score again",
        ) from error


def scored(store: Store, curriculum: str) -> dict[str, Score]:
    """Variant name -> its score on the most problems, the latest among equals, of the base and the stages as they are.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    store = Snapshot.of(store)
    stages = {str(number): digest for number, digest in store.stages(curriculum).items()}
    bases = set()
    for digest in stages.values():
        with suppress(IntegrityError, NotFoundError):  # `tree` marks it as damaged or missing
            bases.add(_base_name(store.peek(digest)))
    found: dict[str, Score] = {}
    for statement in store.statements(EVAL, curriculum):
        if str(statement.payload.get("base")) not in bases:
            continue
        score = read_score(statement)
        if score and all(stages.get(number) == digest for number, digest in score.inputs.items()):
            best = found.get(score.variant)
            if best is None or (score.n, score.created) >= (best.n, best.created):
                found[score.variant] = score
    return found


def scores(store: Store, curriculum: str) -> dict[str, list[Metric]]:
    """Variant name -> the metrics of its score, as `scored` chooses it."""
    return {variant: score.metrics for variant, score in scored(store, curriculum).items()}


def overlapping_scores(store: Store, digest: str) -> list[tuple[Score, list[Overlap]]]:
    """Scores attested beside an adapter that are of rows its variant was trained on, with who was.

    Raises:
        NotFoundError: No such object.
        IntegrityError: An attestation is not readable.
    """
    known = (read_score(statement) for statement in store.attestations(digest, EVAL))
    found = ((score, overlaps(store, score.inputs.values(), score.data)) for score in known if score and score.data)
    return [(score, hits) for score, hits in found if hits]


def _base_name(entry: Entry) -> str:
    return f"{entry.record.base.repo}@{entry.record.base.revision}"


def variant_name(stages: Sequence[int]) -> str:
    """Stages 1 and 2 -> `1+2`; none -> `base`."""
    return "+".join(str(number) for number in sorted(set(stages))) or BASE_VARIANT
