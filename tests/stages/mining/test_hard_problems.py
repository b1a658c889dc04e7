"""A stage's failures in its run folder: resumed draw for draw, on file with what they were mined with, train rows only.

The policy here is a stand-in that solves a known share of a problem's samples; integration tests have real ones.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.config import load_config
from plyfold.core.errors import ConfigError, FailedError, IntegrityError
from plyfold.data.answers.reader import extract, same_answer
from plyfold.data.dataset import question_hash
from plyfold.registry.record import DataRef
from plyfold.registry.store import Store
from plyfold.stages.mining.hard_problems import DRAWS, MINED, Failures, find_failures
from plyfold.stages.mining.sample_log import draw_seed
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.plan.stage_plan import CurriculumPlan, StagePlan
from plyfold.stages.prompts.tasks import make_rows
from plyfold.stages.rollouts.sampling import Sample
from plyfold.stages.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow

QUICK = [
    "data.rows=[0,20]",
    "stages.structure.data.rows=[0,20]",
    "stages.structure.epochs=1",
    "stages.brevity.data.rows=[10,40]",
    "stages.remedy.data.rows=[30,330]",
    "stages.remedy.data.rationales=null",
    "stages.brevity.data.rationales=null",
    "eval.data.rows=[0,20]",
    "stages.remedy.mining.problems=null",
    "stages.remedy.mining.minimum=4",
    "stages.remedy.mining.rehearsal_share=0",
]
MakePlan = Callable[..., tuple[CurriculumPlan, StagePlan]]


class _Killed(BaseException):
    pass


class _Policy:
    """Solves the share of samples that a digest of the question decides; the others end wrong, cut off or empty."""

    def __init__(self, golds: dict[str, str], gain: float = 0.0, calls: int | None = None) -> None:
        self.golds, self.gain, self.left, self.drawn = golds, gain, calls, 0
        self.asked: list[tuple[int, int]] = []

    def rate(self, prompt: str) -> float:
        """One problem in five is never solved, the others sometimes."""
        level = int(hashlib.sha256(prompt.encode()).hexdigest()[:4], 16) / 0xFFFF
        return max(0.0, level - 0.2) ** 2 + self.gain

    def __call__(self, prompts: Sequence[str], seed: int) -> list[Sample]:
        if self.left == 0:
            raise _Killed
        self.left = None if self.left is None else self.left - 1
        self.drawn += len(prompts)
        self.asked.append((seed, len(prompts)))
        rng = random.Random(seed)
        return [self._draw(prompt, rng.random(), rng.random()) for prompt in prompts]

    def _draw(self, prompt: str, luck: float, form: float) -> Sample:
        if luck < self.rate(prompt):
            return Sample(text=f"Answer: {self.golds[prompt]}", complete=True)
        if form < 0.1:
            return Sample(text="Step 1: and", complete=False)
        return Sample(text="no idea" if form < 0.15 else "Answer: -12345", complete=True)


@pytest.fixture(scope="module")
def make_plan(tmp_path_factory: pytest.TempPathFactory) -> MakePlan:
    @cache
    def make(*overrides: str) -> tuple[CurriculumPlan, StagePlan]:
        plan = plan_curriculum(load_config("sandbox", [*QUICK, *overrides]), Store(tmp_path_factory.mktemp("store")))
        return plan, plan.stages[2]

    return make


def _golds(plan: CurriculumPlan, stage: StagePlan) -> dict[str, str]:
    return {plan.protocol.prompt(item.question): item.answer for item in stage.rationales}


def _find(
    made: tuple[CurriculumPlan, StagePlan], folder: Path, batch: int = 64, **policy: Any
) -> tuple[Failures, _Policy]:
    sampler = _Policy(_golds(*made), **policy)
    folder.mkdir(exist_ok=True)
    return find_failures(*made, None, sampler, folder, batch), sampler


@pytest.mark.parametrize("calls", [0, 1, 3, 7, 12])
def test_a_killed_mining_goes_on_to_the_very_same_failures(make_plan: MakePlan, tmp_path: Path, calls: int) -> None:
    made = make_plan("stages.remedy.mining.confirm=8", "stages.remedy.mining.unaided_problems=20")
    whole, straight = _find(made, tmp_path / "whole")
    with pytest.raises(_Killed):
        _find(made, tmp_path / "killed", calls=calls)
    draws = tmp_path / "killed" / DRAWS
    if draws.is_file():
        draws.write_text(draws.read_text() + '{"key": "sha256:12', encoding="utf-8")  # a line cut by the kill
    first = len(draws.read_text().splitlines()) - 1 if draws.is_file() else 0
    resumed, again = _find(made, tmp_path / "killed")
    assert first == calls
    assert again.drawn < straight.drawn or calls == 0
    assert resumed.rationales == whole.rationales
    assert resumed.summary == whole.summary
    assert resumed.before == whole.before
    assert (tmp_path / "killed" / MINED).read_bytes() == (tmp_path / "whole" / MINED).read_bytes()
    third, nothing = _find(made, tmp_path / "killed", batch=512)
    assert (nothing.drawn, third.summary) == (0, whole.summary)
    assert len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) == 1  # told once


def test_the_manifest_says_what_was_mined_with_what(make_plan: MakePlan, tmp_path: Path) -> None:
    plan, stage = made = make_plan("stages.remedy.mining.confirm=16", "stages.remedy.mining.held_out_share=0.25")
    found, policy = _find(made, tmp_path)
    manifest = json.loads((tmp_path / MINED).read_text())
    assert manifest["schema"] == 2
    assert manifest["data"] == DataRef.of(stage.report).model_dump(mode="json")
    assert manifest["base"]["revision"] == plan.base.revision
    assert (manifest["policy"], manifest["seed"], manifest["k"]) == ("base", 0, 16)
    assert manifest["mining"]["temperature"] == 1.0
    assert set(manifest["verifier"]) == {"plyfold", "grader"}
    assert manifest["held_out"]["problems"] == 20
    assert [entry["question"] for entry in manifest["problems"]] == [
        question_hash(r.question) for r in stage.rationales
    ]
    uses = [entry.get("use") for entry in manifest["problems"]]
    summary = found.summary
    assert (uses.count("trained"), uses.count("held_out")) == (summary["failures"], summary["held_out"])
    assert summary["held_out"] == round((summary["failures"] + summary["held_out"]) * 0.25)
    assert sum(summary["problems"].values()) == summary["tried"] == len(stage.rationales)
    assert summary["bounds"] == {"4": pytest.approx(0.5271, abs=1e-4), "16": pytest.approx(0.1707, abs=1e-4)}
    for entry in manifest["problems"]:
        wrong, drawn = entry["outcomes"].get("wrong", 0), sum(entry["outcomes"].values())
        if "use" in entry:
            assert (entry["verdict"], drawn, entry["outcomes"].get("right")) == ("wrong", 16, None)
            assert wrong >= 8
            assert policy.golds[plan.protocol.prompt(entry["text"])] == entry["answer"]
    earlier = {item.question for item in plan.stages[1].rationales}
    mined = [entry for entry in manifest["problems"] if "use" in entry]
    assert summary["seen_before"] == sum(entry["text"] in earlier for entry in mined) > 0
    trained, apart = ({item.question for item in found.sets[name]} for name in ("trained", "held_out"))
    assert trained & apart == set()
    # every problem that is never solved is among the failures, and nearly nothing that is solved one time in two
    never = [item for item in stage.rationales if policy.rate(plan.protocol.prompt(item.question)) == 0]
    assert {item.question for item in never} <= trained | apart
    assert all(policy.rate(plan.protocol.prompt(question)) < 0.5 for question in trained | apart)


def test_solved_problems_are_rehearsed_beside_the_failures(make_plan: MakePlan, tmp_path: Path) -> None:
    alone, _ = _find(make_plan(), tmp_path / "alone")
    made = make_plan("stages.remedy.mining.rehearsal_share=0.25")
    found, policy = _find(made, tmp_path / "quarter")
    failures, beside = found.sets["trained"], found.rehearsed
    assert failures == alone.sets["trained"] == alone.rationales  # and none beside them by default
    assert found.rationales == (*failures, *beside)
    assert len(beside) == found.summary["rehearsed"] == round(len(failures) / 3)
    assert {item.question for item in failures}.isdisjoint(item.question for item in beside)
    assert all(policy.rate(made[0].protocol.prompt(item.question)) > 0 for item in beside)
    assert found.before.keys() == {"trained"}  # what is measured is the failures
    assert (tmp_path / "alone" / MINED).read_bytes() == (tmp_path / "quarter" / MINED).read_bytes()
    again, nothing = _find(made, tmp_path / "quarter")
    assert (again.rationales, nothing.drawn) == (found.rationales, 0)
    most, _ = _find(make_plan("stages.remedy.mining.rehearsal_share=0.99"), tmp_path / "most")
    assert len(most.rationales) == len(failures) + found.summary["problems"]["solved"]  # as many as there are


def test_a_policys_gain_is_measured_with_fresh_samples(make_plan: MakePlan, tmp_path: Path, make_adapter: Any) -> None:
    made = make_plan("stages.remedy.mining.samples=2", "stages.remedy.mining.held_out_share=0.3")
    found, policy = _find(made, tmp_path)
    before = found.before["trained"]
    assert before.pass_at(1) > 0.02  # 0 of 2 by selection; without fresh samples it would be 0
    report = found.report(_Policy(policy.golds, gain=0.3), make_adapter(tmp_path / "adapter"), step=16)
    for name in ("trained", "held_out"):
        unaided = report["unaided"][name]
        assert unaided["samples"] == 8
        assert unaided["problems"] == min(64, len(found.sets[name]))
        change = unaided["change"]["pass@1"]
        assert change["value"] == pytest.approx(0.3, abs=0.06)
        assert change["ci95"][0] < change["value"] < change["ci95"][1]
        assert unaided["after"]["pass@8"] > unaided["after"]["pass@1"]
    assert report["unaided_samples"] == 16 * sum(unaided["problems"] for unaided in report["unaided"].values())
    steps = {line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert steps[16]["unaided/trained/pass@1"] > steps[0]["unaided/trained/pass@1"]
    # the same policy with the same random numbers: nothing changed
    same = found.report(policy, make_adapter(tmp_path / "untrained", seed=1), step=0)
    assert same["unaided"]["trained"]["change"]["pass@1"] == {"value": 0.0, "ci95": None}


def test_nothing_is_measured_where_nothing_is_asked_for(make_plan: MakePlan, tmp_path: Path) -> None:
    made = make_plan("stages.remedy.mining.unaided_samples=0")
    found, policy = _find(made, tmp_path)
    assert found.report(policy, tmp_path, step=1) == found.summary
    assert not (tmp_path / "metrics.jsonl").exists()


def test_scored_questions_are_never_mined(make_plan: MakePlan, tmp_path: Path) -> None:
    plan, stage = make_plan()
    scored_rows = plan.config.eval.data
    scored = [
        json.dumps({"question": item.question.upper() + " !", "answer": "#### 1"}) for item in stage.rationales[:3]
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(scored), encoding="utf-8")
    config = replace(
        plan.config,
        eval=replace(plan.config.eval, data=replace(scored_rows, path=str(tmp_path / "test.jsonl"), rows=None)),
    )
    with pytest.raises(ConfigError, match="among the evaluation rows") as caught:
        _find((replace(plan, config=config), stage), tmp_path / "run")
    assert caught.value.found.startswith("3 shared")
    assert caught.value.next_step
    data = replace(stage.stage.data, split="test")  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="train split only"):
        _find((plan, replace(stage, stage=replace(stage.stage, data=data))), tmp_path / "run")
    assert not (tmp_path / "run" / DRAWS).exists()  # before the first sample


def test_a_manifest_of_other_failures_is_not_trained_on(make_plan: MakePlan, tmp_path: Path) -> None:
    made = make_plan()
    _find(made, tmp_path)
    path = tmp_path / MINED
    manifest = json.loads(path.read_text())
    for change in ({"policy": f"sha256:{'0' * 64}"}, {"schema": 1}, {"problems": manifest["problems"][1:]}):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(IntegrityError, match="not those this run finds") as caught:
            _find(made, tmp_path)
        assert str(tmp_path) in caught.value.next_step
    path.write_text("{")
    with pytest.raises(IntegrityError):
        _find(made, tmp_path)


def test_what_was_mined_stands_with_other_rows_to_be_scored_on_and_a_renamed_file(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    _, stage = made = make_plan()
    first, _ = _find(made, tmp_path)
    mined = (tmp_path / MINED).read_bytes()
    plan, other = make_plan("eval.data.rows=[20,60]")
    renamed = replace(other, report=replace(stage.report, source="moved.jsonl"))
    again, sampler = _find((plan, renamed), tmp_path)
    assert (sampler.drawn, again.rationales, again.summary) == (0, first.rationales, first.summary)
    assert (tmp_path / MINED).read_bytes() == mined
    with pytest.raises(IntegrityError, match="not those this run finds") as caught:
        _find((plan, replace(other, report=replace(stage.report, sha256=f"sha256:{0:064}"))), tmp_path)
    assert caught.value.found == "another data"


def test_what_was_mined_stands_after_an_upgrade_or_with_another_engine(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_plan("stages.remedy.mining.confirm=8", "stages.remedy.mining.unaided_problems=20")
    first, _ = _find(made, tmp_path)
    mined = (tmp_path / MINED).read_bytes()
    other, sampler = _find(made, tmp_path, batch=512)  # of an engine
    assert (sampler.drawn, other.rationales, other.summary) == (0, first.rationales, first.summary)
    assert other.before == first.before
    monkeypatch.setattr("plyfold.stages.mining.sample_log.verifier", lambda: {"plyfold": "9", "grader": "other"})
    upgraded, sampler = _find(made, tmp_path)
    assert (upgraded.rationales, upgraded.summary) == (first.rationales, first.summary)
    assert sampler.drawn == 20 * 8  # what is measured with this version, before and after
    assert (tmp_path / MINED).read_bytes() == mined


def test_mining_goes_on_with_another_batch_from_what_was_drawn(make_plan: MakePlan, tmp_path: Path) -> None:
    made = make_plan("stages.remedy.mining.confirm=8", "stages.remedy.mining.unaided_samples=0")
    with pytest.raises(_Killed):
        _find(made, tmp_path, calls=3)
    drawn = [json.loads(line)["outcomes"] for line in (tmp_path / DRAWS).read_text().splitlines()]
    assert [len(line) for line in drawn] == [64, 64, 64]
    found, sampler = _find(made, tmp_path, batch=512)
    assert sampler.drawn == found.summary["samples"] - 3 * 64
    seeds = [seed for seed, _ in sampler.asked]
    assert len(set(seeds)) == len(seeds)
    assert draw_seed(0, "round 0 192") == seeds[0]  # of the first that was missing: no seed is used twice


def test_too_few_failures_name_what_would_give_more(
    make_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_plan("stages.remedy.mining.minimum=200", "stages.remedy.mining.wrong_share=1")
    with pytest.raises(FailedError, match="too few persistent failures") as caught:
        _find(made, tmp_path)
    assert "mining.problems" in caught.value.next_step
    assert "mining.max_new_tokens" in caught.value.next_step
    told = capsys.readouterr().err
    assert "matter of form, not trained on" in told
    assert "52.7 % of samples or more is among them with a chance of 5 % at most" in told
    assert "were among the rows of earlier stages" in told  # rows 30 to 39 are stage 2's too


def test_no_rewriting_prompt_of_a_failure_says_what_it_comes_to(make_plan: MakePlan, tmp_path: Path) -> None:
    plan, stage = made = make_plan("stages.remedy.mining.wrong_share=0")
    found, _ = _find(made, tmp_path)
    rows = make_rows(found.rationales, replace(stage.stage, epochs=1), plan.protocol, 0, len)
    bare = [row["prompt"] for row in rows if row["unaided"]]
    assert len(bare) == round(stage.stage.unaided_share * len(found.rationales))
    assert set(bare) <= {plan.protocol.prompt(item.question) for item in found.rationales}
    questions = {item.question: item for item in found.rationales}
    for row in rows:
        if not row["unaided"]:
            question, _, reference = row["prompt"].removeprefix("Question: ").partition("\nReference:\n")
            assert questions[question].answer == row["gold"]
            read = extract(reference)
            assert read.method in ("last-number", "none") or not same_answer(read.value, row["gold"])
            results = re.findall(r"=\s*([\d.,]*\d)", reference.rstrip().splitlines()[-2])  # the last is the cue
            assert not any(same_answer(result, row["gold"]) for result in results), row["prompt"]


def test_a_seed_belongs_to_a_draw_and_not_to_its_turn() -> None:
    labels = [f"round {number} {start}" for number in range(16) for start in range(0, 640, 64)]
    assert len({draw_seed(0, label) for label in labels}) == len(labels)
    assert draw_seed(0, "confirm 0") != draw_seed(1, "confirm 0")
