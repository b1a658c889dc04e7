"""The benchmark in its folder: what curriculum.py trains and scores there, and what it skips because it is there.

settings.json   what `run` was asked for
seed-<n>/       registry (a curriculum a row), configs, runs, logs, costs (of each training process), answers
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curriculum_jobs import Job, measure, read_json
from curriculum_rows import (
    BASELINES,
    FULL,
    GRPO,
    REWARDS,
    SFT,
    Row,
    Training,
    added_row,
    baseline_rows,
    count_prompts,
    curriculum_rows,
    derive,
    extended_row,
    grpo_steps,
    passes_of,
    processed_tokens,
    reward_rows,
    supervised_steps,
    template_stage,
)

from plyfold.core.config import CurriculumConfig, config_dict, save_config
from plyfold.core.disk.digest import digest_json
from plyfold.core.disk.files import write_json
from plyfold.stages.runtime.metrics import read_metrics

if TYPE_CHECKING:
    from plyfold.registry.store import Store

PLYFOLD = [sys.executable, "-m", "plyfold"]
MODES = ("greedy", "sampled")


class Bench:
    """One benchmark in its folder."""

    def __init__(self, out: Path, settings: dict[str, Any], config: CurriculumConfig) -> None:
        self.out, self.settings, self.config = out, settings, config
        self.seeds: list[int] = settings["seeds"]
        self.threads: int | None = settings["threads"]
        self.problems: int = settings["problems"]
        self.baselines = baseline_rows(self.config, settings["sweep"])
        self.rows = curriculum_rows(self.config)
        self.rows += reward_rows(self.config, [mode for mode in REWARDS if mode in settings["rows"]])
        self.rows += [added_row(self.config, name, text) for name, text in settings["added"].items()]
        self._tokens: dict[int, tuple[float, float, int]] = {}

    # Folders -----------------------------------------------------------------------------------------------------

    def folder(self, seed: int) -> Path:
        """Everything of one seed."""
        return self.out / f"seed-{seed}"

    def store(self, seed: int) -> Store:
        """The registry of one seed; each row is a curriculum in it."""
        from plyfold.registry.store import find_store

        return find_store(self.folder(seed) / "registry", create=True)

    def run_dir(self, seed: int, training: Training, number: int) -> Path:
        """Where a stage of a row was trained."""
        owner = FULL if number in training.shared else training.name
        found = [path.parent for path in (self.folder(seed) / "runs" / owner).glob(f"{number}-*/run.json")]
        (current,) = (path for path in found if "." not in path.name)  # others were set aside by `train`
        return current

    def note(self, seed: int, training: Training, number: int) -> dict[str, Any]:
        """What training a stage of a row cost, as its process was measured; empty where it was not trained."""
        owner = FULL if number in training.shared else training.name
        return read_json(self.folder(seed) / "costs" / f"{owner}-{number}.json")

    def answers_path(self, seed: int, training: Training, stages: Sequence[int], mode: str) -> Path:
        """Where what a variant answered is kept."""
        name = "+".join(map(str, stages)) or "base"
        return self.folder(seed) / "answers" / f"{training.name}.{name}.{mode}.json"

    # Compute -----------------------------------------------------------------------------------------------------

    def compute(self, seed: int, training: Training) -> dict[int, float]:
        """Token-forwards of each stage of a row, counted from its own metrics; see curriculum_rows."""
        stages = {stage.number: stage for stage in self.config.stages.values()}
        spent = {}
        for number in training.stages:
            folder, stage = self.run_dir(seed, training, number), stages[number]
            spent[number] = passes_of(stage) * processed_tokens(read_metrics(folder / "metrics.jsonl"))
            spent[number] += self._mined(seed, training, number)
        return spent

    def _mined(self, seed: int, training: Training, number: int) -> float:
        """Tokens of mining: samples times prompt and completion, the latter as the stage before ended (or a bound)."""
        details = read_json(self.run_dir(seed, training, number) / "run.json").get("details", {})
        if not details.get("mined"):
            return 0.0
        drawn = int(details["mined"]["samples"])
        stages = {stage.number: stage for stage in self.config.stages.values()}
        length = float(stages[number].mining.max_new_tokens)
        for earlier in training.stages[: training.stages.index(number)]:
            final = read_json(self.run_dir(seed, training, earlier) / "run.json")["details"]["final"]
            length = final.get("completions/mean_length", length)
        return drawn * (self.row_tokens(seed)[0] + length)

    def row_tokens(self, seed: int) -> tuple[float, float, int]:
        """Mean tokens of the baselines' prompts, and of prompts with solutions; rows that have one."""
        if seed not in self._tokens:
            from plyfold.stages.plan.token_budget import token_counter

            training = self.baselines[SFT][0].training
            config = derive(self.config, training, seed=seed, problems=self.problems, threads=None, max_steps=1)
            counter = token_counter(config.base)
            assert counter is not None  # the curriculum has been trained
            self._tokens[seed] = count_prompts(config, counter.text)
        return self._tokens[seed]

    def steps(self, seed: int, training: Training) -> int:
        """Optimiser steps of a baseline: those that cost what it may, by the whole curriculum under this seed."""
        full = self.full()
        compute = training.compute * sum(self.compute(seed, full).values())
        template = template_stage(self.config, training.kind)
        prompt, row, _ = self.row_tokens(seed)
        if training.kind == SFT:
            return supervised_steps(compute, template, row)
        metrics = read_metrics(self.run_dir(seed, full, template.number) / "metrics.jsonl")
        lengths = [line["completions/mean_length"] for line in metrics if "completions/mean_length" in line]
        return grpo_steps(compute, template, prompt, lengths)

    def full(self) -> Training:
        """The whole curriculum."""
        return self.rows[0].training

    # Training ----------------------------------------------------------------------------------------------------

    def derived(self, seed: int, training: Training) -> CurriculumConfig:
        """The configuration of a row under a seed."""
        max_steps = self.steps(seed, training) if training.kind in BASELINES else None
        return derive(
            self.config,
            training,
            seed=seed,
            problems=self.problems,
            threads=self.threads,
            max_steps=max_steps,
            num_rows=self.row_tokens(seed)[2] if training.kind == SFT else None,
        )

    def check(self) -> None:
        """Refuse a configuration of any row before the first is trained.

        Raises:
            PlyfoldError: As `plyfold train --dry-run` of that row does.
        """
        from plyfold.stages.runtime.library_logging import quiet_libraries

        with quiet_libraries():
            from plyfold.stages.plan.curriculum_plan import plan_curriculum

        swept = [row.training for rows in self.baselines.values() for row in rows]
        for training in dict.fromkeys([*(row.training for row in self.rows), *swept]):
            config = derive(
                self.config, training, seed=self.seeds[0], problems=self.problems, threads=None, max_steps=1
            )
            plan_curriculum(config, self.store(self.seeds[0]), only_show=True)

    def train(self, seed: int, training: Training) -> str:
        """Train what a row lacks, a process a stage."""
        config, store, folder = self.derived(seed, training), self.store(seed), self.folder(seed)
        path = folder / "configs" / f"{training.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_config(config, path)
        wanted = digest_json(config_dict(config))
        self._share(store, training)
        trained = []
        for number in training.stages:
            cost_path = folder / "costs" / f"{training.name}-{number}.json"
            if number in training.shared:
                continue
            cost = read_json(cost_path)
            if (
                not trained
                and cost.get("config") == wanted
                and cost.get("digest") == store.stages(training.name).get(number, "")
            ):
                continue
            command = [*PLYFOLD, "train", "-c", str(path), "--registry", str(folder / "registry")]
            command += ["--runs", str(folder / "runs"), "--stages", str(number), "--json"]
            said, used = measure(command, folder / "logs" / f"train-{training.name}.log", self.threads)
            (stage,) = (item for item in said["stages"] if item["number"] == number)
            kept = {key: value for key, value in cost.items() if key in ("wall_s", "cpu_s", "peak_bytes")}
            used = used if stage["trained"] or not kept else kept
            cost_path.parent.mkdir(parents=True, exist_ok=True)
            write_json(cost_path, {"schema": 1, "config": wanted, "digest": stage["digest"], **used})
            trained += [str(number)] if stage["trained"] else []
        return f"trained stage {', '.join(trained)}" if trained else "up to date"

    def _share(self, store: Store, training: Training) -> None:
        """Register the full curriculum's first stages as this row's: the same weights, on a record of its own."""
        parents: dict[str, str] = {}
        for number in training.shared:
            entry = store.stage(FULL, number)
            record = entry.record.model_copy(
                update={
                    "curriculum": training.name,
                    "requires": [parents[digest] for digest in entry.record.requires],
                    "parents": [
                        parent.model_copy(update={"digest": parents[parent.digest]}) for parent in entry.record.parents
                    ],
                }
            )
            known = store.stages(training.name).get(number)
            if known and store.read_record(known).record == record:
                parents[entry.digest] = known
                continue
            parents[entry.digest] = store.publish(entry.path, record)
            store.set_ref(training.name, number, parents[entry.digest])

    # Scoring -----------------------------------------------------------------------------------------------------

    def score(self, seed: int, training: Training, rows: Sequence[Row], mode: str) -> str:
        """Score what a row's variants lack; nothing depends on the seed where the base answers greedily."""
        store, folder = self.store(seed), self.folder(seed)
        adapters = store.stages(training.name)
        settings = self.config.eval
        about = [settings.protocol, settings.engine, settings.batch_size, settings.max_new_tokens, self.problems,
                 config_dict(self.config)["eval"]["data"], mode, seed if mode == "sampled" else None]  # fmt: skip
        lacking = []
        for row in rows:
            key = digest_json([about, [adapters[number] for number in row.stages], self.settings["code"][-1]])
            path = self.answers_path(seed, training, row.stages, mode)
            if read_json(path).get("key") != key and not self._copied(path, key):
                lacking.append((row, path, key))
        if not lacking:
            return "up to date"
        command = [*PLYFOLD, "eval", *(row.variant for row, _, _ in lacking)]
        command += ["-c", str(folder / "configs" / f"{training.name}.yaml"), "--registry", str(folder / "registry")]
        command += ["--curriculum", training.name, "--runs", str(folder / "runs"), "--json"]
        command += ["eval.temperature=1.0", f"eval.seed={seed}"] if mode == "sampled" else []
        said, cost = measure(command, folder / "logs" / f"eval-{training.name}-{mode}.log", self.threads)
        for row, path, key in lacking:
            name = row.variant.partition(":")[2]
            lines = [json.loads(line) for line in (Path(said["folder"]) / f"{name}.jsonl").open()]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                path,
                {
                    "schema": 1,
                    "key": key,
                    "ids": digest_json([line["id"] for line in lines]),
                    "right": [int(line["correct"]) for line in lines],
                    "tokens": [line["num_tokens"] for line in lines],
                    "truncated": sum(line["finish_reason"] == "length" for line in lines),
                    "no_answer": sum(line["answer"] is None for line in lines),
                    "engine": said["engine"],
                    "protocol": said["protocol"],
                    "problems": said["problems"],
                    "every_answer": os.path.relpath(said["folder"], self.out),
                    "wall_s": cost["wall_s"],
                },
            )
        return ", ".join(row.variant.partition(":")[2] for row, _, _ in lacking)

    def _copied(self, path: Path, key: str) -> bool:
        """Whether another seed has the very same answers: the base's greedy ones."""
        for seed in self.seeds:
            other = self.folder(seed) / "answers" / path.name
            if other != path and (answers := read_json(other)).get("key") == key:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, answers)
                return True
        return False

    # Baselines ---------------------------------------------------------------------------------------------------

    def best(self, kind: str) -> Row:
        """The learning rate of a baseline that does best under the first seed: most right answers, then shortest."""
        rows = self.baselines[kind]
        if len(rows) == 1:
            return rows[0]

        def rank(row: Row) -> tuple[int, int]:
            answers = read_json(self.answers_path(self.seeds[0], row.training, row.stages, "greedy"))
            return (sum(answers["right"]), -sum(answers["tokens"])) if answers else (-1, 0)

        return max(rows, key=rank)

    def sweep(self, seed: int, row: Row) -> str:
        """Train a baseline at one rate and score it greedily."""
        return "; ".join([self.train(seed, row.training), self.score(seed, row.training, [row], "greedy")])

    def baseline(self, seed: int, kind: str) -> str:
        """Train and score a baseline at its best rate."""
        row = self.best(kind)
        done = [self.train(seed, row.training), *(self.score(seed, row.training, [row], mode) for mode in MODES)]
        return f"rate {row.training.rate:g}: {'; '.join(done)}"

    def extended(self) -> list[Row]:
        """GRPO alone at its best rate with more compute: where it comes as far as the curriculum, if it does."""
        return [extended_row(self.best(GRPO), factor) for factor in self.settings["more"]]

    def extend(self, seed: int, index: int) -> str:
        """Train and score one of these; its rate is known only now."""
        return self.sweep(seed, self.extended()[index])

    # All ---------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Everything, the full curriculum first: the baselines' steps follow from its compute."""
        wanted, full, first = self.settings["rows"], self.full(), self.seeds[0]
        trainings = list(dict.fromkeys(row.training for row in self.rows))
        if not {"curriculum", *REWARDS}.intersection(wanted) and not self.settings["added"]:
            trainings = [full]
        swept = {kind: self.baselines[kind] for kind in BASELINES if kind in wanted}
        sweeps = {kind: [row for row in rows if len(rows) > 1] for kind, rows in swept.items()}

        def name(verb: str, what: str, seed: int) -> str:
            return f"{verb} {what}, seed {seed}"

        jobs = [Job(name=name("train", FULL, seed), act=partial(self.train, seed, full)) for seed in self.seeds]
        for row in itertools.chain(*sweeps.values()):
            needs = (name("train", FULL, first),)
            jobs.append(Job(name=name("sweep", row.key, first), act=partial(self.sweep, first, row), after=needs))
        for seed in self.seeds:
            trained = (name("train", FULL, seed),)
            for training in trainings:
                if training != full:
                    act = partial(self.train, seed, training)
                    jobs.append(Job(name=name("train", training.name, seed), act=act, after=trained))
                for mode in MODES:
                    if rows := self.scored(training, mode):
                        act = partial(self.score, seed, training, rows, mode)
                        needs = (name("train", training.name, seed),)
                        jobs.append(Job(name=name(f"score {mode}", training.name, seed), act=act, after=needs))
            for kind in swept:
                needs = (*trained, *(name("sweep", row.key, first) for row in sweeps[kind]))
                jobs.append(Job(name=name("baseline", kind, seed), act=partial(self.baseline, seed, kind), after=needs))
        for seed, (index, factor) in itertools.product(self.seeds, enumerate(self.settings["more"])):
            needs = (name("baseline", GRPO, seed),)
            act = partial(self.extend, seed, index)
            jobs.append(Job(name=name(f"{factor:g} x", GRPO, seed), act=act, after=needs))
        return jobs

    def scored(self, training: Training, mode: str) -> list[Row]:
        """The rows that one training gives, for one mode: side tables are greedy only."""
        return [row for row in self.rows if row.training == training and (mode == "greedy" or row.table == "main")]
