"""What variants scored, attested beside the adapters they were measured on, and which scores may stand side by side.

A score says something beside another one only where both were measured on the same problems, asked in the same way, by
the same engine within the same limits, and read by the same grader: on equal `Terms`. Wherever several scores are
shown, one set of terms is chosen for all of them; the others stand apart and say what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...core.disk.digest import PREFIX, short
from ...core.errors import IntegrityError, NotFoundError
from ..record import DataRef, Metric
from ..store import Entry, Snapshot, Store
from ..store.attestations import Attestation
from ..trust.trust import Trust
from .contamination import Overlap, overlaps

EVAL = "eval"
"""Kind of the attestations that hold scores."""
BASE_VARIANT = "base"


UNKNOWN_GRADER = "grader unknown"
"""Of scores from before they named it."""


class Terms(NamedTuple):
    """What a score was measured on and with; None and empty are what it does not say."""

    data: str = ""
    """Name of the problems, for people: `gsm8k test`."""
    digest: str | None = None
    """Digest of the problems, or else of their rows."""
    n: int = 0
    """Number of problems."""
    protocol: str | None = None
    """Digest of how they were asked, or else its name."""
    engine: str | None = None
    limits: str = ""
    """`at most 512 tokens`, and how they were sampled."""
    grader: str | None = None
    """Version and digest of what read the answers."""

    def __str__(self) -> str:
        return ", ".join(self._said().values())

    def against(self, other: Terms) -> str:
        """What of these terms is not as in the others: `on other.jsonl (n=500), grader unknown`."""
        mine, theirs = self._said(), other._said()
        differs = [text for key, text in mine.items() if text != theirs.get(key)]
        if not differs and self != other:
            differs = ["on other problems of that name" if self.digest != other.digest else "asked otherwise"]
        return ", ".join(differs)

    def to_json(self) -> dict[str, Any]:
        """The terms as plain values."""
        return self._asdict()

    def _said(self) -> dict[str, str]:
        protocol = self.protocol or ""
        asked = f"protocol {short(protocol, 8)}" if protocol.startswith(PREFIX) else protocol
        return {
            "data": f"on {self.data or 'unnamed problems'} (n={self.n})",
            **({"protocol": asked} if asked else {}),
            **({"engine": f"engine {self.engine}"} if self.engine else {}),
            **({"limits": self.limits} if self.limits else {}),
            "grader": f"grader {self.grader}" if self.grader else UNKNOWN_GRADER,
        }


NO_TERMS = Terms()


@dataclass(frozen=True, kw_only=True)
class RecordedScore:
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
    terms: Terms = NO_TERMS
    heard: bool = False
    """Whether somebody else measured it, and it came with a pull."""

    @property
    def accuracy(self) -> float | None:
        """Fraction, where it was measured."""
        return next((metric.value for metric in self.metrics if metric.name == "accuracy"), None)

    def apart_from(self, shown: Terms) -> str:
        """The score in a line, with what keeps it from standing beside scores of those terms."""
        value = f"{100 * self.accuracy:.1f} %" if self.accuracy is not None else "no accuracy"
        said = [value, self.terms.against(shown), "measured elsewhere, pulled" if self.heard else ""]
        return ", ".join(part for part in said if part)

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
    entry = store.read_record(known[max(stages) if stages else min(known)])
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


def read_score(statement: Attestation) -> RecordedScore | None:
    """The score that a statement holds; None where it is another tool's.

    Raises:
        IntegrityError: It is one of ours, and not readable.
    """
    payload = statement.payload
    inputs = payload.get("inputs")
    if statement.kind != EVAL or not isinstance(inputs, dict) or not all(str(key).isdecimal() for key in inputs):
        return None
    try:
        return RecordedScore(
            variant=variant_name([int(number) for number in inputs]),  # whatever name it gives itself
            inputs={str(number): str(digest) for number, digest in inputs.items()},
            metrics=[Metric.model_validate(item) for item in payload.get("metrics") or []],
            data=DataRef.model_validate(payload["data"]) if payload.get("data") else None,
            created=statement.created,
            terms=_terms(payload),
            heard=statement.heard,
        )
    except (ValueError, TypeError) as error:  # a number of 5,000 digits is no `ValidationError`
        raise IntegrityError(
            "a score is not readable",
            where=f"attest/{statement.digest.removeprefix(PREFIX)}, of {statement.created}",
            next_step="remove that file and score again",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a curriculum's variants as they are now."""

    terms: Terms
    """Those of every score in `shown`."""
    shown: Mapping[str, RecordedScore]
    """Variant -> its score."""
    apart: Mapping[str, tuple[RecordedScore, ...]]
    """Variant -> scores on other terms, the latest of each, which cannot be compared with those shown."""


def side_by_side(found: Iterable[RecordedScore], preferred: Terms | None = None) -> Scores:
    """Choose the terms on which scores are shown side by side.

    Own scores come before pulled ones, known graders before unknown ones; then the terms on which most variants were
    measured, on most problems, at last. Of one variant on equal terms the own score counts, then the latest.

    Args:
        found: Scores of any variants on any terms.
        preferred: Terms that are taken where a score is on them, such as those of the whole curriculum.
    """
    groups: dict[Terms, dict[str, RecordedScore]] = {}
    for score in found:
        group = groups.setdefault(score.terms, {})
        best = group.get(score.variant)
        if best is None or (not score.heard, score.created) >= (not best.heard, best.created):
            group[score.variant] = score

    def rank(terms: Terms) -> tuple[object, ...]:
        scores = groups[terms].values()
        own = [score for score in scores if not score.heard]
        latest = max(score.created for score in scores)
        return terms == preferred, bool(own), terms.grader is not None, len(own) or len(scores), terms.n, latest

    terms = max(groups, key=rank, default=Terms())
    shown = groups.pop(terms, {})
    apart: dict[str, tuple[RecordedScore, ...]] = {}
    for other in sorted(groups, key=rank, reverse=True):
        for variant, score in groups[other].items():
            apart[variant] = (*apart.get(variant, ()), score)
    return Scores(terms=terms, shown=shown, apart=apart)


def scored(store: Store, curriculum: str) -> Scores:
    """The scores of the base and the stages as they are.

    Where PLYFOLD_PUBLIC_KEY names keys, only what was measured here or is signed by one of them counts.

    Raises:
        IntegrityError: An attestation is not readable.
    """
    store, trust = Snapshot.of(store), Trust()
    stages = {str(number): digest for number, digest in store.stages(curriculum).items()}
    bases = set()
    for digest in stages.values():
        with suppress(IntegrityError, NotFoundError):  # `tree` marks it as damaged or missing
            bases.add(_base_name(store.read_record(digest)))
    said = (item for item in store.statements(EVAL, curriculum) if str(item.payload.get("base")) in bases)
    known = (score for item in said if trust.believes(item) and (score := read_score(item)))
    return side_by_side(
        score for score in known if all(stages.get(key) == digest for key, digest in score.inputs.items())
    )


def scores(store: Store, curriculum: str) -> dict[str, list[Metric]]:
    """Variant name -> the metrics of its score among those that `scored` shows."""
    return {variant: score.metrics for variant, score in scored(store, curriculum).shown.items()}


def overlapping_scores(store: Store, digest: str) -> list[tuple[RecordedScore, list[Overlap]]]:
    """Scores attested beside an adapter that are of rows its variant was trained on, with who was.

    Raises:
        NotFoundError: No such object.
        IntegrityError: An attestation is not readable.
    """
    known = (read_score(statement) for statement in store.attestations(digest, EVAL))
    found = ((score, overlaps(store, score.inputs.values(), score.data)) for score in known if score and score.data)
    return [(score, hits) for score, hits in found if hits]


def _terms(payload: Mapping[str, Any]) -> Terms:
    """The terms of a measurement; what another tool wrote in a field of that name is not taken for it."""
    engine, problems, data = map(_mapping, map(payload.get, ("engine", "problems", "data")))
    metrics = [_mapping(item) for item in payload.get("metrics") or []]
    counts = [item["n"] for item in metrics if isinstance(item.get("n"), int)]
    named = next((str(item["protocol"]) for item in metrics if item.get("protocol")), None)
    source = data.get("id") or problems.get("source")
    return Terms(
        data=" ".join(str(part) for part in (source, data.get("split")) if part),
        digest=_text(problems.get("digest")) or _text(data.get("sha256")),
        n=max(counts, default=0),
        protocol=_text(payload.get("protocol")) or named,
        engine=_text(engine.get("engine")),
        limits=limits(engine.get("max_new_tokens"), engine.get("temperature"), engine.get("seed")),
        grader=_text(payload.get("grader")),
    )


def limits(max_new_tokens: object, temperature: object = None, seed: object = None) -> str:
    """The limits of a measurement, as `Terms` says them."""
    said = [f"at most {max_new_tokens} tokens"] if max_new_tokens else []
    return ", ".join([*said, *([f"temperature {temperature}, seed {seed}"] if temperature else [])])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _base_name(entry: Entry) -> str:
    return f"{entry.record.base.repo}@{entry.record.base.revision}"


def variant_name(stages: Sequence[int]) -> str:
    """Stages 1 and 2 -> `1+2`; none -> `base`."""
    return "+".join(str(number) for number in sorted(set(stages))) or BASE_VARIANT
