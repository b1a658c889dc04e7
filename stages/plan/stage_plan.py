"""What a `train` will do, as values: each stage with its rows, state and memory, and the curriculum they belong to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.base.resolve import BaseRef, Quantisation
from ...adapters.base.twin import twin_path
from ...core.config import AdapterConfig, CurriculumConfig, StageConfig
from ...data.dataset import LoadReport
from ...data.rationale.parse import Rationale
from ...evaluation.protocols import Protocol
from ...registry.record import DataRef
from ..gates import Condition
from ..mining.mining import mining_cost
from .memory_estimate import MemoryEstimate

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage, and whether it has to be trained."""

    name: str
    stage: StageConfig
    """With its data and adapter filled in."""
    rationales: tuple[Rationale, ...]
    report: LoadReport
    """What became of its rows."""
    steps: int
    """Optimiser steps, or an upper bound of them where `bounded`; 0 where even that is not known."""
    trainable: int | None
    """Parameters of its adapter; None where the base's sizes are not known."""
    config_digest: str
    """Of everything that decides its weights, but its parents."""
    digest: str | None
    """The adapter the registry has for it now."""
    reasons: tuple[str, ...]
    """Why it is missing or stale; empty where it is up to date."""
    selected: bool
    """Whether this run may train it."""
    arguments: TrainingArguments
    """TRL's, as on a machine without a GPU."""
    parents: tuple[int, ...]
    """Numbers of the earlier stages, which together are its prior."""
    prior_rank: int
    """Sum of their ranks."""
    memory: MemoryEstimate | None
    """None where the base's shape is not known, or the plan is to be carried out and leaves the stage alone."""
    gate: tuple[Condition, ...] = ()
    """What it has to reach before a later stage trains."""
    unknown: str = ""
    """Why its rows, steps and staleness are not known; empty where they are."""

    @property
    def number(self) -> int:
        return self.stage.number

    @property
    def label(self) -> str:
        """As people are told of it: `stage 2 brevity`."""
        return f"stage {self.number} {self.name}"

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.number}-{self.name}"

    @property
    def adapter(self) -> AdapterConfig:
        assert self.stage.adapter is not None
        return self.stage.adapter

    @property
    def status(self) -> str:
        """`trained`, `missing`, `stale`, or `unknown` where its rows are not at hand."""
        if self.unknown and self.digest:
            return "unknown"
        return "trained" if not self.reasons else "stale" if self.digest else "missing"

    @property
    def will_train(self) -> bool:
        return self.selected and bool(self.reasons)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "number": self.number,
            "name": self.name,
            "task": self.stage.task,
            "status": self.status,
            "reasons": list(self.reasons),
            "will_train": self.will_train,
            "digest": self.digest,
            "data": None if self.unknown else self.report.to_json(),
            "rows": None if self.unknown else len(self.rationales) * self.stage.epochs,
            "rows_unknown": self.unknown or None,
            "steps": self.steps or None,
            "steps_bound": self.bounded,
            "batch": self.batch,
            "learning_rate": self.arguments.learning_rate,
            "adapter": asdict(self.adapter),
            "trainable_parameters": self.trainable,
            "parents": list(self.parents),
            "prior_rank": self.prior_rank,
            "mining": self.mining,
            "gate": " and ".join(map(str, self.gate)) or None,
            "memory": self.memory.to_json() if self.memory else None,
        }

    @property
    def mining(self) -> dict[str, int] | None:
        """Samples its mining draws at most; None where nothing is mined, or its rows are not known."""
        mined = self.stage.task == "rewrite" and not self.unknown
        return mining_cost(len(self.rationales), self.stage.mining) if mined else None

    @property
    def bounded(self) -> bool:
        """Whether `steps` is an upper bound: failures are yet to be mined, or rows yet to be read."""
        return self.arguments.max_steps <= 0 and (self.stage.task == "rewrite" or bool(self.unknown))

    @property
    def batch(self) -> dict[str, int]:
        """Rows (completions, for GRPO): of a forward pass; of an optimiser step and a generation on all processes."""
        size, times = self.arguments.per_device_train_batch_size, self.arguments.gradient_accumulation_steps
        generated = {"generation": self.arguments.generation_batch_size, "group": self.arguments.num_generations} \
            if hasattr(self.arguments, "num_generations") else {}  # fmt: skip
        count = self.arguments.world_size
        return {"device": size, "processes": count, "step": size * times * count, **generated}


@dataclass(frozen=True, kw_only=True)
class CurriculumPlan:
    """A whole `train`, before it starts."""

    config: CurriculumConfig
    base: BaseRef
    quantisation: Quantisation
    protocol: Protocol
    stages: tuple[StagePlan, ...]
    """In order of their numbers."""
    base_note: str = ""
    """What of the base is not here; empty where all is."""
    scored: DataRef | None = None
    """The rows variants are scored on; None where they are not at hand."""
    eval_note: str = ""
    """Why training and evaluation rows were not compared; empty where they were."""
    shape_source: str = ""
    """Where the sizes behind the memory estimate come from, or why there is none."""
    cache: Path = Path()
    """The registry's folder of what can be made again."""
    rollout: dict[str, Any] = field(default_factory=dict)
    """The engine of GRPO's completions as far as it is known before it starts; empty where no such stage trains."""

    @property
    def twin(self) -> Path:
        """Folder of the dequantised base, made or not."""
        return twin_path(self.base, self.quantisation, self.cache)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "curriculum": self.config.curriculum,
            "base": {"repo": self.base.repo, "revision": self.base.revision, "missing": self.base_note or None},
            "evaluation_rows_unknown": self.eval_note or None,
            "shape_source": self.shape_source,
            "rollout": self.rollout or None,
            "twin": str(self.twin),
            "quantisation": self.quantisation.to_json(),
            "stages": [stage.to_json() for stage in self.stages],
        }
