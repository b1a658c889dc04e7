"""What tells a GRPO run that looks healthy from one that learns nothing, read from the lines of metrics.jsonl.

    clipped_completions      too many completions reach the token limit before their answer
    groups_without_variance  the rewards within a prompt's group are all equal, so its advantages are zero
    rollouts_off_policy      what samples the completions is not what is trained
    entropy_collapse         the policy has stopped exploring
    no_learning_signal       at the end: every group of every step was equal
    adapter_unmoved          at the end: the trained adapter adds nothing to its base

Alarms are a function of the logged lines alone: a resumed run that reads its earlier lines again raises the same
ones. Nothing is stopped; a person decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLIPPED = "completions/clipped_ratio"
"""TRL's share of completions cut off at `max_completion_length`."""
ENTROPY = "entropy"
"""TRL's mean entropy of the policy over completion tokens, nats."""
EQUAL_GROUPS = "frac_groups_zero_std"
"""Share of prompts whose completions all got one reward.

TRL's own `frac_reward_zero_std` cannot serve: under `scale_rewards="batch"` it compares the whole batch, so it stays
0 while nearly every group is dead (TRL 1.16, `_generate_and_score_completions`).
"""

LOGP_DIFFERENCE = "sampling/sampling_logp_difference/mean"
"""TRL's mean over tokens of |log probability of the rollout engine - of the trainer|, nats; absent for `generate`."""

PATIENCE = 3
"""Logged steps in a row over a bound before an alarm: one batch says little."""
MAX_CLIPPED = 0.05
"""Source: the watch list for GRPO on GSM8K, where 512 tokens are ample: more than 5 % cut off is a fault."""
MAX_EQUAL_GROUPS = 0.9
"""Nine groups in ten teach nothing: ten times the rollouts for the same gradient. Our choice."""
MAX_LOGP_DIFFERENCE = 0.05
"""Nats: bfloat16 rounds by 0.002 to 0.02, another base in the twin's place gives 0.08 (benchmarks/rollout_sync.py)."""
ENTROPY_START = 5
"""Logged steps whose mean is the entropy that a collapse is measured against."""
MIN_ENTROPY_SHARE = 0.1
"""Of the first steps' entropy. Our choice: a sound sandbox run that turns to one style falls to a fifth of it."""

_BOUNDS = (
    ("clipped_completions", CLIPPED, MAX_CLIPPED, ".0%", "of completions are cut off before they end",
     "raise trainer.max_completion_length, or train the stage before until it ends its solutions"),
    ("groups_without_variance", EQUAL_GROUPS, MAX_EQUAL_GROUPS, ".0%",
     "of groups have one reward for all their completions",
     "they teach nothing; take problems that are solved sometimes, or raise trainer.num_generations or temperature"),
    ("rollouts_off_policy", LOGP_DIFFERENCE, MAX_LOGP_DIFFERENCE, ".3g",
     "nats a token lie between the rollout engine's log probabilities and the trainer's",
     "it samples from something else than what is trained; start it anew, and run plyfold train again"),
)  # fmt: skip
"""Name, figure, upper bound, its format, what it counts, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Something a person should look at."""

    name: str
    """Which of the module's alarms."""
    step: int
    """Optimiser step at which it was raised."""
    value: float
    """What was measured there."""
    message: str
    """The value, the bound and what to do."""

    def to_json(self) -> dict[str, Any]:
        """For the record: {name, step, value}."""
        return {"name": self.name, "step": self.step, "value": self.value}


class Alarms:
    """A fold over logged lines that raises an alarm once for each run of steps over its bound."""

    def __init__(self) -> None:
        self.raised: list[Alarm] = []
        self._streaks: dict[str, int] = {}
        self._first_entropies: list[float] = []
        self._groups_seen = 0
        self._groups_differed = False

    def observe(self, line: Mapping[str, Any]) -> list[Alarm]:
        """Take one line in and return the alarms it raises; a line without a figure leaves that figure's run as it is.

        Args:
            line: `step` and whatever TRL logged there.
        """
        step = int(line["step"])
        new: list[Alarm] = []
        for name, key, bound, form, what, advice in _BOUNDS:
            value = _number(line, key)
            if value is not None and self._lasts(name, value > bound):
                message = f"{value:{form}} {what} (bound {bound:{form}}, {PATIENCE} logged steps in a row): {advice}"
                new.append(Alarm(name=name, step=step, value=value, message=message))
        if (equal := _number(line, EQUAL_GROUPS)) is not None:
            self._groups_seen += 1
            self._groups_differed |= equal < 1
        if (entropy := _number(line, ENTROPY)) is not None:
            new += self._observe_entropy(step, entropy)
        self.raised += new
        return new

    def finish(self, step: int, *, moved: bool) -> list[Alarm]:
        """The alarms of a whole run.

        Args:
            step: Optimiser steps made.
            moved: Whether the trained adapter adds anything to its base.
        """
        new = []
        if self._groups_seen and not self._groups_differed:
            new.append(
                Alarm(
                    name="no_learning_signal",
                    step=step,
                    value=1.0,
                    message=f"in all {self._groups_seen} logged steps every group had one reward for all its "
                    "completions: this run taught nothing; look at the completions in its run folder, then take "
                    "problems the policy solves sometimes",
                )
            )
        if not moved:
            new.append(
                Alarm(
                    name="adapter_unmoved",
                    step=step,
                    value=0.0,
                    message="the adapter is after training what it was before (its B is 0, expected some other "
                    "value), so this stage changes nothing: look at the rewards and trainer.learning_rate",
                )
            )
        self.raised += new
        return new

    def _observe_entropy(self, step: int, entropy: float) -> list[Alarm]:
        if len(self._first_entropies) < ENTROPY_START:
            self._first_entropies.append(entropy)
            return []
        start = sum(self._first_entropies) / ENTROPY_START
        if not self._lasts("entropy_collapse", entropy < MIN_ENTROPY_SHARE * start):
            return []
        return [
            Alarm(
                name="entropy_collapse",
                step=step,
                value=entropy,
                message=f"the policy's entropy is {entropy:.3g}, below {MIN_ENTROPY_SHARE:.0%} of the first "
                f"{ENTROPY_START} logged steps' {start:.3g} for {PATIENCE} logged steps in a row: it no longer "
                "explores; lower trainer.learning_rate, raise trainer.beta, or stop earlier",
            )
        ]

    def _lasts(self, name: str, over: bool) -> bool:
        """Count a run of steps over a bound; true at the one that makes it an alarm."""
        self._streaks[name] = self._streaks.get(name, 0) + 1 if over else 0
        return self._streaks[name] == PATIENCE


def _number(line: Mapping[str, Any], key: str) -> float | None:
    value = line.get(key)
    return float(value) if isinstance(value, (int, float)) else None
