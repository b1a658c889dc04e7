"""Where a GRPO stage's completions come from: plain `generate`, vLLM beside the trainer, or a vLLM server.

vLLM holds the twin, which is bit for bit the base that is trained on, and gets what has been learnt as one LoRA: prior
and default composed exactly, 1 to 3 % of a 3B base in bytes, under a name it has never seen. Under an old name it
would go on serving old weights, and its prefix cache is keyed by name. Nothing is ever merged into the 4-bit base:
TRL's own sync does that, and the base drifts (benchmarks/rollout_sync.py).

What a resumed run draws: a request's seed follows from the config's seed, the optimiser step and the request's place,
so a rerun asks for the very same samples. `hf` then gives the same tokens bit for bit. vLLM's sums depend on what
shares a batch, so there a token may differ where two are equally likely to the last bits; the importance ratio, which
TRL computes from vLLM's log probabilities against the trainer's, covers that as it covers every rounding.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol

from ...adapters.base.resolve import BaseRef
from ...core.errors import IncompatibleError
from ..runtime.distributed import join

if TYPE_CHECKING:
    from peft import PeftModel

START = "plyfold rollouts -c CONFIG --port PORT"
"""The command that starts a server as rollouts need it."""
ROLLOUT_FOLDER = "rollout"
"""Folder of a run in which the adapters lie that an engine reads; empty when the run is over."""
LOGP_BOUND = {"float32": 1e-3, "bfloat16": 0.05}
"""Most that log probabilities of an engine and the trainer may differ on average before anything is learnt, in nats.

Rounding gives 1e-6 in float32 and 0.002 to 0.02 in bfloat16; the unquantised base in the twin's place gives 0.08."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn: from the whole distribution, at a temperature."""

    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    """Tokens that end a completion and count as its last."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how many completions of it."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    """Of the first completion; the others take the numbers after it."""


@dataclass(frozen=True)
class Completion:
    """A sampled completion."""

    token_ids: list[int]
    """Its end token included."""
    logprobs: list[float]
    """Of each token, under the distribution it was drawn from."""


def adapter_prefix(run_dir: Path) -> str:
    """What the names of all adapters of a run folder begin with, and those of no other: a server keeps them by name."""
    place = run_dir.resolve()
    return f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}-"


class RolloutEngine(Protocol):
    """Samples from adapters that it is given by name; a name never comes twice."""

    def load(self, name: str, folder: Path) -> None:
        """Take a PEFT folder under a new name."""

    def unload(self, name: str) -> None:
        """Forget a name nobody samples from any more."""

    def sample(self, name: str, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Draw every request's n completions from an adapter, in the order of the requests."""

    def describe(self) -> dict[str, Any]:
        """For the record: engine, version, limits."""

    def close(self) -> None:
        """Give back what it holds; it cannot be used afterwards."""


@dataclass
class RolloutMeter:
    """Where the time of a run goes, between two lines of metrics."""

    rollout_s: float = 0.0
    """Waiting for completions."""
    sync_s: float = 0.0
    """Handing the engine a new adapter."""
    sync_bytes: int = 0
    """Size of the adapters handed over."""
    since_s: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self.rollout_s, self.sync_s, self.sync_bytes, self.since_s = 0.0, 0.0, 0, time.perf_counter()

    def take(self) -> dict[str, float]:
        """What has been counted, as metrics; counting begins anew."""
        wall_s = time.perf_counter() - self.since_s
        counted = {
            "rollout/seconds": self.rollout_s,
            "rollout/sync_seconds": self.sync_s,
            "rollout/sync_bytes": float(self.sync_bytes),
            "rollout/wall_seconds": wall_s,
            "rollout/share": (self.rollout_s + self.sync_s) / wall_s if wall_s else 0.0,
        }
        self.start()
        return counted


class TrlRollouts:
    """What TRL 1.16 asks of a trainer's `vllm_generation`, answered by a RolloutEngine.

    Of several processes the first hands over adapters; all sample from them.
    """

    def __init__(self, engine: RolloutEngine, trainer: Any, folder: Path, meter: RolloutMeter) -> None:
        """Stand between.

        Args:
            engine: Whatever samples.
            trainer: TRL's, for the model, the step and how to sample.
            folder: Where adapters are put for the engine to read.
            meter: Counts seconds and bytes of syncs.
        """
        self._engine, self._trainer, self._folder, self._meter = engine, trainer, folder, meter
        self._processes = join()
        # Of this run alone: a server may still hold what a killed one gave it.
        self._run = self._processes.on_first(lambda: f"{adapter_prefix(folder.resolve().parent)}{token_hex(4)}")
        self._version = 0
        self._drawn = (-1, 0)

    @property
    def name(self) -> str:
        """The adapter that completions come from now."""
        return f"{self._run}-v{self._version}"

    def sync_weights(self) -> None:
        """Hand the engine what the model is now, and let the version before go."""
        start_s = time.perf_counter()
        before, self._version = self.name, self._version + 1
        self._processes.on_first(self._publish)
        # The processes have met: none samples from the version before any more.
        if not self._processes.is_first:  # the engine has it by now; it is for a server that forgets it in a restart
            self._engine.load(self.name, (self._folder / self.name).resolve())
        if self._version > 1:
            self._engine.unload(before)
        if self._processes.is_first:
            shutil.rmtree(self._folder / before, ignore_errors=True)
        self._meter.sync_s += time.perf_counter() - start_s

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[None, list[list[int]], list[list[list[float]]], None]:
        """Completions of prompts in which each stands as often as it is to be completed."""
        trainer = self._trainer
        step = int(trainer.state.global_step)
        self._drawn = (step, self._drawn[1] + 1 if self._drawn[0] == step else 0)
        place = f"{trainer.args.seed}:{step}:{self._drawn[1]}:{self._processes.rank}"
        requests = [
            Request(prompt_ids=ids, n=sum(1 for _ in group), seed=random.Random(f"{place}:{index}").getrandbits(62))
            for index, (ids, group) in enumerate(groupby(tuple(ids) for ids in prompts))
        ]
        sampling = Sampling(
            temperature=trainer.temperature,
            max_tokens=trainer.max_completion_length,
            stop_token_ids=tuple(trainer.eos_token_ids),
        )
        drawn = [each for group in self._engine.sample(self.name, requests, sampling) for each in group]
        return None, [each.token_ids for each in drawn], [[[lp] for lp in each.logprobs] for each in drawn], None

    def _publish(self) -> None:
        trainer, folder = self._trainer, self._folder / self.name
        self._meter.sync_bytes += publish_adapter(trainer.accelerator.unwrap_model(trainer.model), trainer.base, folder)
        self._engine.load(self.name, folder.resolve())


def publish_adapter(model: PeftModel, base: BaseRef, folder: Path) -> int:
    """Write all that a model has learnt, earlier stages included, as one adapter for an engine to read.

    Args:
        model: A base with prior and default adapters.
        base: Its name, for the adapter's config.
        folder: To write; made with its parents.

    Returns:
        Bytes written.
    """
    from ...adapters.stack import composed
    from ...adapters.tensors import write_adapter

    folder.mkdir(parents=True)
    factors = composed(model, model.get_base_model().dtype)
    write_adapter(folder, factors, base_repo=base.repo, base_revision=base.revision)
    return sum(file.stat().st_size for file in folder.iterdir())


def check_agreement(difference: float, dtype: str, engine: dict[str, Any]) -> None:
    """Refuse an engine whose log probabilities are not the trainer's, before a step is made with them.

    Args:
        difference: Mean over tokens of |trainer's - engine's|, in nats, at a policy both should hold.
        dtype: The base's compute dtype.
        engine: As it describes itself.

    Raises:
        IncompatibleError: They are further apart than rounding brings them.
    """
    if not difference <= LOGP_BOUND[dtype]:
        raise IncompatibleError(
            "the rollout engine does not sample from the model that is trained",
            where=f"rollout.engine={engine['engine']}",
            expected=f"log probabilities within {LOGP_BOUND[dtype]:g} nats of the trainer's on average",
            found=f"{difference:.4g}",
            next_step=f"serve the base's twin, as `{START}` does",
        )
