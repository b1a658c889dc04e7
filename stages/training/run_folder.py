"""A stage's run folder: whose it is, what a finished run left in it, and how it is held while one trains.

    runs/<curriculum>/<number>-<name>/
        config.resolved.yaml   run.json (fingerprint)   metrics.jsonl   completions/   checkpoints/
        mined.json and mined.draws.jsonl (rewrite)   adapter/ (when finished)

A run folder belongs to one fingerprint: configuration, rows and parents. A folder of another fingerprint is moved
aside, said aloud, and taken up again when its configuration comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.tensors import tensor_digest
from ...core.console import say, warn
from ...core.disk.digest import digest_json, short
from ...core.disk.files import staged_folder, sweep_staged, write_json
from ...core.disk.links import refuse_link, refuse_links_in
from ...core.disk.locks import file_lock
from ...core.errors import IncompatibleError, IntegrityError, NotFoundError, PlyfoldError
from ...core.reading.strict_json import read_json
from ..plan.stage_plan import CurriculumPlan, StagePlan
from .checkpoints import last_checkpoint, step_of

if TYPE_CHECKING:
    from ...registry.store import Store

RUN = "run.json"
ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A finished stage."""

    folder: Path
    """Canonical PEFT folder of the trained adapter."""
    steps: int
    """Optimiser steps."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the record: rows, seconds, device, mined failures, the last metrics, alarms."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of one run."""

    path: Path
    fingerprint: str
    """Digest of all that decides the adapter, its parents included."""
    processes: int
    """That train together; they decide the batches, so a run goes on with as many as it began with."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for this fingerprint; a folder of another one is moved aside first.

        Raises:
            ConflictError: Another run trains in it.
            IncompatibleError: The interrupted run in it was of another number of processes.
            IntegrityError: A link in it, or in the place of its curriculum's folder.
        """
        refuse_link(self.path.parent)
        with file_lock(self.path, "another process trains in this folder"):
            self._take_over()
            yield

    def finished(self) -> StageRun | None:
        """What the run came to; None where it is not over."""
        note = _note(self.path)
        if "steps" not in note or not (self.path / ADAPTER).is_dir():
            return None
        try:
            sound = tensor_digest(self.path / ADAPTER) == note["weights"]
        except (KeyError, PlyfoldError):
            sound = False
        if not sound:
            warn(f"{self.path / ADAPTER} is not as it was written: made again from the last checkpoint")
            return None
        return StageRun(folder=self.path / ADAPTER, steps=note["steps"], details=note["details"])

    def finish(self, steps: int, details: dict[str, Any]) -> StageRun:
        """Note that the run is over; its adapter has to lie there already."""
        write_json(self.path / RUN, {**self._beginning(), "steps": steps, "details": details,
                                     "weights": tensor_digest(self.path / ADAPTER)})  # fmt: skip
        return StageRun(folder=self.path / ADAPTER, steps=steps, details=details)

    def _take_over(self) -> None:
        refuse_links_in(self.path)
        sweep_staged(self.path)
        sweep_staged(self.path / ADAPTER)
        found = _note(self.path).get("fingerprint")
        if self.path.exists() and found != self.fingerprint:
            aside = self._free_name(found)
            self.path.rename(aside)
            say(f"{self.path} is a run of another configuration: kept as {aside.name}")
        if not self.path.exists() and (own := self._set_aside()):
            refuse_links_in(own)
            own.rename(self.path)
            say(f"{own.name} is a run of this configuration: taken up again as {self.path}")
        if not self.path.exists():
            with staged_folder(self.path) as staged:
                write_json(staged / RUN, self._beginning())
        note = _note(self.path)
        if (begun := note.get("processes", 1)) != self.processes and "steps" not in note:
            raise IncompatibleError(
                "this run was begun with another number of processes, which decides its batches",
                where=self.path,
                expected=f"{begun} processes",
                found=f"{self.processes}",
                next_step=f"start {begun} processes to continue, or remove that folder to start afresh",
            )

    def _beginning(self) -> dict[str, Any]:
        return {"schema": 1, "fingerprint": self.fingerprint, "processes": self.processes}

    def _set_aside(self) -> Path | None:
        """A run of this fingerprint that had to make room for another."""
        found = sorted(self.path.parent.glob(f"{self.path.name}.*"))
        return next((path for path in found if _note(path).get("fingerprint") == self.fingerprint), None)

    def _free_name(self, fingerprint: object) -> Path:
        stem = f"{self.path.name}.{short(str(fingerprint), 8) if fingerprint else 'unknown'}"
        names = [stem, *(f"{stem}.{count}" for count in range(2, 1000))]
        return next(self.path.with_name(name) for name in names if not self.path.with_name(name).exists())


def fingerprint(stage: StagePlan, parents: Sequence[str]) -> str:
    """Digest of all that decides a stage's adapter: its recipe and the digests of the weights of the stages below it.

    Not those of their records, which differ when a stage is published again.
    """
    return digest_json([stage.config_digest, list(parents)])


def unfinished(plan: CurriculumPlan, store: Store, runs_dir: Path) -> dict[int, int]:
    """Stages whose training was interrupted and would be gone on with -> the step it would go on from.

    A stage above one that is trained first is left out: what it would be trained on is not known yet.
    """
    found: dict[int, int] = {}
    parents: list[str] = []
    for stage in plan.stages:
        if stage.will_train and not stage.unknown:
            wanted = fingerprint(stage, parents)
            path = runs_dir / plan.config.curriculum / stage.folder
            for folder in [path, *path.parent.glob(f"{path.name}.*")]:
                if _note(folder).get("fingerprint") == wanted and (checkpoint := last_checkpoint(folder, wanted)):
                    found[stage.number] = step_of(checkpoint)
        if stage.will_train or stage.digest is None:
            break
        try:
            parents.append(store.read_record(stage.digest).record.weights.digest)
        except (NotFoundError, IntegrityError):  # what is above it cannot be gone on with
            break
    return found


def _note(folder: Path) -> dict[str, Any]:
    """What a run folder says of its run; nothing where there is none, or its file is not readable."""
    try:
        note = read_json(folder / RUN)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
