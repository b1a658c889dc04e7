"""The persistent failures a stage trains on: mined once a run, kept with what they were mined with, measured unaided.

    mined.json          the manifest: rows, policy, sampling, all outcomes, and which failures are trained on
    mined.draws.jsonl   samples drawn so far; a killed run goes on from them

Once the manifest is there it stands: a rerun reads the failures from its outcomes, whatever engine or version it runs
with, since checkpoints may rest on them.

Mining reads the train split only: before the first sample, questions are compared with those that variants are
scored on. Failures of form (cut off, no answer) are counted and not trained on. Solved problems that are rehearsed
beside the failures follow from the outcomes and the seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.tensors import tensor_digest
from ...core.config import MiningConfig
from ...core.console import say
from ...core.disk.digest import digest_json
from ...core.disk.files import write_bytes, write_json
from ...core.errors import FailedError, IntegrityError
from ...core.reading.strict_json import read_json, read_object
from ...data.dataset import load_problems, question_hash, require_disjoint, require_train_split
from ...data.rationale.parse import Rationale
from ...registry.record import DataRef
from ..plan.stage_plan import CurriculumPlan, StagePlan
from ..rollouts.sampling import BATCH, Sampler
from ..runtime.metrics import METRICS, read_metrics
from .mining import DECIDING, OUTCOMES, MiningResult, mine, mining_cost
from .pass_at_k import PassRates, measure_pass_rates
from .report import SETS, compare_pass_rates, describe, summarise, tell_change
from .sample_log import Draws, verifier

MINED = "mined.json"
MAX_MINED_BYTES = 256_000_000
"""Longest file of mined failures: 200,000 problems with their rationales."""
DRAWS = "mined.draws.jsonl"


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What was mined, and how often it is solved unaided before the stage."""

    sets: dict[str, tuple[Rationale, ...]]
    """Of SETS; a set without problems is left out."""
    rehearsed: tuple[Rationale, ...]
    """Solved problems that are trained on beside the failures."""
    summary: dict[str, Any]
    """For the record."""
    before: dict[str, PassRates]
    """Of those sets, measured on at most `mining.unaided_problems` problems."""
    label: str
    """Number and name of the stage."""
    draws: Draws
    config: MiningConfig
    metrics: Path
    """metrics.jsonl of the run."""
    batch: int
    """Prompts sampled at once."""

    @property
    def rationales(self) -> tuple[Rationale, ...]:
        """What is trained on."""
        return (*self.sets["trained"], *self.rehearsed)

    def report(self, sampler: Sampler, adapter: Path, step: int) -> dict[str, Any]:
        """Measure the trained policy on the same problems and say what changed, in metrics.jsonl as well.

        Args:
            sampler: Draws from the policy with the trained adapter.
            adapter: Its folder.
            step: Optimiser steps made.

        Returns:
            The summary; with `unaided`, set -> {problems, samples, before, after, change} where it was measured.
        """
        if not self.before:
            return self.summary
        start_s = time.monotonic()
        after = _measure(self.sets, self.config, self.draws, tensor_digest(adapter), sampler, self.batch)
        _note(self.metrics, step, after)
        unaided = {name: compare_pass_rates(self.before[name], after[name]) for name in after}
        for name, compared in unaided.items():
            say(f"stage {self.label}: {tell_change(name, compared)}")
        drawn = sum(2 * rates.samples * len(rates.right) for rates in after.values())
        after_s = time.monotonic() - start_s
        say(f"stage {self.label}: before and after are fresh samples, {drawn} in all ({after_s:.0f} s after training); "
            f"of the {self.summary['k']} that picked these problems not one was right, so against them anything would "
            "be a gain")  # fmt: skip
        return {**self.summary, "unaided": unaided, "unaided_samples": drawn}


def find_failures(
    plan: CurriculumPlan, stage: StagePlan, prior: Path | None, sampler: Sampler, run_dir: Path, batch: int = BATCH
) -> Failures:
    """Mine a stage's failures; samples that an interrupted run has drawn are not drawn again.

    Args:
        plan: For the protocol, the seed and the rows that variants are scored on.
        stage: Whose rows are mined.
        prior: The policy, as earlier stages composed into one adapter; null is the base.
        sampler: Draws from that policy.
        run_dir: Where manifest and draws are kept.
        batch: Prompts sampled at once.

    Raises:
        ConfigError: Rows of another split than train, or questions that variants are scored on.
        IntegrityError: The manifest in `run_dir` is of other failures than these.
        FailedError: Too few of them.
    """
    config, label = stage.stage.mining, f"{stage.number} {stage.name}"
    held_out = _require_train_only(plan, stage)
    policy = tensor_digest(prior) if prior is not None else "base"
    draws = Draws(run_dir / DRAWS, config, plan.protocol, plan.config.seed)
    start_s, path = time.monotonic(), run_dir / MINED
    if path.is_file():
        mined = _on_file(path, len(stage.rationales[: config.problems]), config)
        told = f"mined before, {path} holds the outcomes of {mined.drawn} samples"
    else:
        say(f"stage {label}: {_cost(len(stage.rationales), config)}")
        mined = mine(stage.rationales, config, draws.asking(policy, sampler, stage.rationales), batch)
        told = f"mined with {mined.drawn} samples in {time.monotonic() - start_s:.0f} s"
    hashes = [question_hash(item.question) for item in stage.rationales[: config.problems]]
    uses = _uses(mined, hashes, config.held_out_share, plan.config.seed)
    sets = {name: _spread([stage.rationales[index] for index in indices], plan.config.seed)
            for name in SETS if (indices := [index for index, use in uses.items() if use == name])}  # fmt: skip
    rehearsed = _rehearsed(stage, mined, hashes, len(sets.get("trained", ())), plan.config.seed)
    manifest = _keep(path, _manifest(plan, stage, mined, uses, hashes, policy, held_out))
    earlier = {question_hash(item.question) for other in plan.stages if other.number < stage.number
               for item in other.rationales}  # fmt: skip
    summary = summarise(mined, uses, [digest in earlier for digest in hashes], digest_json(manifest), len(rehearsed))
    for line in describe(summary):
        say(f"stage {label}: {line}")
    say(f"stage {label}: {told}")
    _require_enough(stage, summary)
    before = _measure(sets, config, draws, policy, sampler, batch)
    _note(run_dir / METRICS, 0, before)
    return Failures(
        sets=sets,
        rehearsed=rehearsed,
        summary=summary,
        before=before,
        label=label,
        draws=draws,
        config=config,
        metrics=run_dir / METRICS,
        batch=batch,
    )


def _require_train_only(plan: CurriculumPlan, stage: StagePlan) -> dict[str, Any]:
    where = f"stages.{stage.name}"
    assert stage.stage.data is not None
    require_train_split(stage.stage.data, where)
    questions = [problem.question for problem in load_problems(plan.config.eval.data)]
    require_disjoint([rationale.question for rationale in stage.rationales], questions, where)
    return {"problems": len(questions), "sha256": digest_json(sorted(map(question_hash, questions)))}


def _cost(rows: int, config: MiningConfig) -> str:
    cost = mining_cost(rows, config)
    text = f"mining {cost['problems']} problems, {cost['samples']} samples each at most"
    return f"{text}, {cost['k']} where none of them is right" if cost["k"] > cost["samples"] else text


def _uses(mined: MiningResult, hashes: Sequence[str], share: float, seed: int) -> dict[int, str]:
    """Which failures are trained on; rows with one question are kept together."""
    questions = sorted({hashes[index] for index in mined.failures}, key=lambda digest: digest_json([seed, digest]))
    apart = set(questions[: round(share * len(questions))])
    return {index: "held_out" if hashes[index] in apart else "trained" for index in mined.failures}


def _rehearsed(
    stage: StagePlan, mined: MiningResult, hashes: Sequence[str], failures: int, seed: int
) -> tuple[Rationale, ...]:
    """As many solved problems as `mining.rehearsal_share` asks for beside the failures, or as many as there are."""
    share = stage.stage.mining.rehearsal_share
    failed = {hashes[index] for index in mined.failures}  # a question may stand in two rows
    solved = [stage.rationales[index] for index in mined.solved if hashes[index] not in failed]
    return _spread(solved, seed)[: round(failures * share / (1 - share))]


def _shown(rationale: Rationale, use: str) -> dict[str, str]:
    return {"use": use, "text": rationale.question, "answer": rationale.answer}


def _spread(rationales: Sequence[Rationale], seed: int) -> tuple[Rationale, ...]:
    """The same in an order that has nothing to do with the dataset's, so that the first few stand for all."""
    return tuple(sorted(rationales, key=lambda item: digest_json([seed, question_hash(item.question)])))


def _manifest(
    plan: CurriculumPlan,
    stage: StagePlan,
    mined: MiningResult,
    uses: dict[int, str],
    hashes: Sequence[str],
    policy: str,
    held_out: dict[str, Any],
) -> dict[str, Any]:
    """All that decides the failures, and what became of each problem."""
    return {
        "schema": 2,
        "stage": f"{stage.number} {stage.name}",
        "data": DataRef.of(stage.report).model_dump(mode="json"),
        "held_out": held_out,
        "base": {"repo": plan.base.repo, "revision": plan.base.revision, **plan.quantisation.to_json()},
        "policy": policy,
        "protocol": plan.protocol.digest(),
        "seed": plan.config.seed,
        "mining": {name: getattr(stage.stage.mining, name) for name in DECIDING},
        "k": mined.k,
        "problems": [
            {"index": index, "question": digest, "outcomes": mined.outcomes[index], "verdict": mined.verdicts[index]}
            | (_shown(stage.rationales[index], uses[index]) if index in uses else {})
            for index, digest in enumerate(hashes)
        ],
    }


def _on_file(path: Path, problems: int, config: MiningConfig) -> MiningResult:
    """What the outcomes in a manifest come to; whether they are those of this run is seen once they are written out."""
    try:
        outcomes = [problem["outcomes"] for problem in read_json(path, max_bytes=MAX_MINED_BYTES)["problems"]]
        sound = len(outcomes) == problems and all(
            name in OUTCOMES and isinstance(count, int) for found in outcomes for name, count in found.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise _others(path, f"not the outcomes of {problems} problems")
    return MiningResult.of(outcomes, config)


def _keep(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest; one that is there stands, since checkpoints may rest on it, if it is of the same failures.

    Rows are compared by their digest, whatever their file is called, and held-out rows not at all: whether these and
    the mined ones differ is looked at anew in every run.

    Returns:
        The manifest on file, but for who verified its samples.
    """
    if not path.is_file():
        write_json(path, {**manifest, "verifier": verifier()})
        return manifest
    found = read_object(path, "the file of mined failures", max_bytes=MAX_MINED_BYTES)
    expected = json.loads(json.dumps(manifest))
    different = [key for key in expected.keys() - {"data", "held_out"} if found.get(key) != expected[key]]
    if found.get("data", {}).get("sha256") != expected["data"]["sha256"]:
        different.append("data")
    if different:
        raise _others(path, f"another {', '.join(sorted(different))}")
    return {key: found[key] for key in expected}


def _others(path: Path, found: str) -> IntegrityError:
    return IntegrityError(
        "the failures on file are not those this run finds",
        where=path,
        expected="rows, policy and sampling as they were",
        found=found,
        next_step=f"remove {path.parent} to mine and train the stage afresh",
    )


def _require_enough(stage: StagePlan, summary: dict[str, Any]) -> None:
    config, name = stage.stage.mining, f"stages.{stage.name}.mining"
    if summary["failures"] >= config.minimum:
        return
    form = summary["problems"]["truncated"] + summary["problems"]["unanswered"]
    steps = [f"try more rows ({name}.problems)", "fewer samples (mining.samples, mining.confirm)"]
    if form:
        steps.append(f"{form} more are unsolved for their form: a larger mining.max_new_tokens, or a smaller "
                     "mining.wrong_share to train on them too")  # fmt: skip
    raise FailedError(
        "too few persistent failures to train on",
        where=stage.label,
        found=f"{summary['failures']} of {summary['tried']} problems",
        expected=f"{config.minimum} or more",
        next_step="; ".join(steps),
    )


def _measure(
    sets: dict[str, tuple[Rationale, ...]],
    config: MiningConfig,
    draws: Draws,
    policy: str,
    sampler: Sampler,
    batch: int,
) -> dict[str, PassRates]:
    if not config.unaided_samples:
        return {}
    measured = {name: rationales[: config.unaided_problems] for name, rationales in sets.items()}
    return {
        name: measure_pass_rates(
            len(rationales), config.unaided_samples, draws.asking(policy, sampler, rationales), "unaided", batch
        )
        for name, rationales in measured.items()
    }


def _note(path: Path, step: int, measured: dict[str, PassRates]) -> None:
    """Add pass rates to metrics.jsonl, unless an interrupted run has."""
    rates = {
        f"unaided/{name}/pass@{k}": round(found.pass_at(k), 6) for name, found in measured.items() for k in found.ks
    }
    line = {"step": step, **rates}
    lines = read_metrics(path)
    if rates and line not in lines:  # written anew: a kill may have cut the last line
        write_bytes(path, "".join(f"{json.dumps(each)}\n" for each in [*lines, line]).encode())
