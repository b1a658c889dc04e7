"""The arithmetic behind benchmarks/curriculum.py: rows, equal compute, the order of jobs, intervals over seeds."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from plyfold.core.config import CurriculumConfig, load_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import curriculum_results as results
import curriculum_rows as rows
import curriculum_statistics as statistics
from curriculum_jobs import Job, JobError, measure, run_jobs


@pytest.fixture(scope="module")
def config() -> CurriculumConfig:
    return load_config("sandbox")


def _answers(right: list[list[int]], tokens: list[list[int]], seeds: tuple[int, ...]) -> statistics.Answers:
    return statistics.Answers(seeds=seeds, right_SP=np.array(right, float), tokens_SP=np.array(tokens, float))


def _random(accuracy: float, length: float, seed: int, seeds: int = 3, problems: int = 400) -> statistics.Answers:
    random = np.random.default_rng(seed)
    hard_P = random.normal(size=problems)  # of the problem, whatever the seed
    right_SP = hard_P + random.normal(size=(seeds, problems)) < np.quantile(hard_P, accuracy)
    return statistics.Answers(
        seeds=tuple(range(seeds)), right_SP=right_SP.astype(float),
        tokens_SP=length + random.integers(-5, 6, (seeds, problems)).astype(float),
    )  # fmt: skip


def test_rows_are_prefixes_left_outs_and_subsets_and_share_what_is_the_same(config: CurriculumConfig) -> None:
    found = {row.key: row for row in rows.curriculum_rows(config)}
    assert [key for key, row in found.items() if row.table == "main"] == [
        "base", "1", "1+2", "1+2+3", "without-1", "without-2"
    ]  # fmt: skip
    assert {row.variant for row in found.values() if row.table == "composed"} == {
        "full:1+3", "full:2+3", "full:2", "full:3"
    }  # fmt: skip
    assert (found["without-2"].training.stages, found["without-2"].training.shared) == ((1, 3), (1,))
    assert (found["without-1"].training.stages, found["without-1"].training.shared) == ((2, 3), ())
    assert found["only-2"].training == found["without-1"].training
    assert [row.training.shared for row in rows.reward_rows(config)] == [(1,), (1,)]


def test_a_row_differs_from_the_curriculum_in_nothing_but_what_makes_it(config: CurriculumConfig) -> None:
    trainings = {row.key: row.training for row in [*rows.curriculum_rows(config), *rows.reward_rows(config)]}
    full = rows.derive(config, trainings["1+2+3"], seed=3, problems=100, threads=1)
    assert full.stages == dict(config.stages)
    assert (full.seed, full.threads, full.eval.data.rows) == (3, 1, [0, 100])
    later = load_config("sandbox", ["eval.data.rows=[2000,3000]"])
    assert rows.derive(later, trainings["1+2+3"], seed=3, problems=100, threads=1).eval.data.rows == [2000, 2100]
    without = rows.derive(config, trainings["without-2"], seed=3, problems=100, threads=1)
    assert without.stages == {name: stage for name, stage in config.stages.items() if stage.number != 2}
    binary = rows.derive(config, trainings["binary-reward"], seed=3, problems=100, threads=1)
    assert {stage.reward.mode for stage in binary.stages.values() if stage.task != "reconstruct"} == {"binary"}
    added = rows.added_row(config, "long", ["stages.brevity.trainer.max_steps=99"]).training
    assert rows.derive(config, added, seed=3, problems=9, threads=1).stages["brevity"].trainer["max_steps"] == 99


def test_baselines_take_the_like_stages_trainer_bare_prompts_and_every_row(config: CurriculumConfig) -> None:
    swept = rows.baseline_rows(config, {"sft": [1, 1.5], "grpo": [0.5, 1]})
    assert [row.training.rate for row in swept["sft"]] == [1e-3, 1.5e-3]
    names = [row.training.name for kind in swept.values() for row in kind]
    assert names == ["sft-1e-03", "sft-15e-04", "grpo-15e-04", "grpo-3e-03"]
    for kind, like in (("sft", "structure"), ("grpo", "brevity")):
        made = rows.derive(config, swept[kind][1].training, seed=0, problems=9, threads=1, max_steps=77)
        (stage,) = made.stages.values()
        assert stage.data is not None
        ranges = [found for item in config.stages.values() if (found := (item.data or config.data).rows)]
        assert stage.data.rows == [min(start for start, _ in ranges), max(stop for _, stop in ranges)]
        assert (stage.unaided_share, stage.trainer["max_steps"]) == (1.0, 77)
        untouched = {key: value for key, value in stage.trainer.items() if key not in ("learning_rate", "max_steps")}
        assert untouched.items() <= config.stages[like].trainer.items()
        assert stage.reward == config.stages[like].reward
        assert stage.data.rationales == config.data.rationales  # the very rationales the curriculum has


def test_supervised_training_never_makes_a_step_of_what_is_left_of_its_rows(config: CurriculumConfig) -> None:
    training = rows.baseline_rows(config, {"sft": [1], "grpo": [1]})["sft"][0].training
    made = rows.derive(config, training, seed=0, problems=9, threads=1, max_steps=77, num_rows=50)
    (stage,) = made.stages.values()
    assert (stage.epochs - 1) * 50 < 77 * rows.completions_a_step(stage) <= stage.epochs * 50


def test_baselines_get_the_compute_of_the_curriculum(config: CurriculumConfig) -> None:
    sft, grpo = config.stages["structure"], config.stages["brevity"]
    assert (rows.passes_of(sft), rows.passes_of(grpo)) == (3, 4)
    assert rows.processed_tokens([{"num_tokens": 10}, {"loss": 1}, {"num_tokens": 25}]) == 25
    assert rows.processed_tokens([{"num_tokens": 10}, {"num_tokens": 6}, {"num_tokens": 12}]) == 22  # resumed
    batch = sft.trainer["per_device_train_batch_size"]
    assert rows.supervised_steps(3 * batch * 150 * 40, sft, 150) == 40
    batch = rows.completions_a_step(grpo)
    compute = 4 * batch * ((60 + 100) + (60 + 50) * 9)
    assert rows.grpo_steps(compute, grpo, 60, [100, 50]) == 10
    assert rows.grpo_steps(compute + 1, grpo, 60, [100, 50]) == 11  # never less than the curriculum's
    assert rows.grpo_steps(compute, grpo, 60, [50]) > 10


def test_a_difference_of_nothing_and_a_difference_of_everything() -> None:
    one = _random(0.6, 100, 0)
    same = statistics.compare(one, one)
    assert (same.accuracy.value, same.accuracy.ci95, same.length.ci95) == (0, (0, 0), (0, 0))
    assert statistics.verdict(same.accuracy) == "even"
    wrong = _answers([[0, 0, 0]], [[10, 10, 10]], (0,))
    right = _answers([[1, 1, 1]], [[4, 5, 6]], (0,))
    difference = statistics.compare(right, wrong)
    assert (difference.accuracy.value, difference.accuracy.ci95) == (1, (1, 1))
    assert difference.length.value == pytest.approx(-0.5)
    assert statistics.verdict(difference.tokens) == "less"


def test_intervals_equal_a_plain_bootstrap_of_seeds_and_problems() -> None:
    ours, theirs = _random(0.7, 50, 1), _random(0.6, 100, 1)
    found = statistics.compare(ours, theirs)
    random, draws = np.random.default_rng(5), []
    for _ in range(4000):
        lines, columns = random.integers(0, 3, 3), random.integers(0, 400, 400)
        cut = np.ix_(lines, columns)
        change = ours.right_SP[cut].mean() - theirs.right_SP[cut].mean()
        length = ours.tokens_SP[cut].mean() / theirs.tokens_SP[cut].mean() - 1
        draws.append((change, length))
    for place, interval in enumerate((found.accuracy.ci95, found.length.ci95)):
        expected = np.percentile([draw[place] for draw in draws], [2.5, 97.5])
        width = interval.high - interval.low
        assert np.abs(np.array(interval) - expected).max() < 0.1 * width
    assert found.accuracy.ci95.low < found.accuracy.value < found.accuracy.ci95.high


def test_pairing_narrows_an_interval() -> None:
    theirs = _random(0.6, 100, 2)
    mended_SP = np.random.default_rng(4).random(theirs.right_SP.shape) < 0.1
    better = statistics.Answers(
        seeds=theirs.seeds, right_SP=np.maximum(theirs.right_SP, mended_SP), tokens_SP=theirs.tokens_SP
    )
    paired = statistics.compare(better, theirs).accuracy.ci95
    other = statistics.compare(better, _random(0.6, 100, 3)).accuracy.ci95
    assert paired.high - paired.low < 0.8 * (other.high - other.low)
    accuracy, _ = statistics.estimate(theirs)
    assert accuracy.ci95.low < theirs.right_SP.mean() < accuracy.ci95.high


def test_only_common_seeds_are_compared() -> None:
    ours = _answers([[1, 1], [0, 0]], [[1, 1], [1, 1]], (0, 1))
    theirs = _answers([[0, 0]], [[1, 1]], (1,))
    assert (statistics.compare(ours, theirs).accuracy.value, statistics.compare(ours, theirs).seeds) == (0, 1)
    with pytest.raises(ValueError, match="common seed"):
        statistics.compare(theirs, _answers([[0, 0]], [[1, 1]], (2,)))


def test_jobs_wait_for_what_they_need_and_fail_with_it() -> None:
    done: list[str] = []
    together = threading.Barrier(2, timeout=10)

    def act(name: str) -> str:
        if name in ("a", "b"):
            together.wait()  # passes only if both run at once
        if name == "bad":
            raise JobError("it broke")
        if name == "worse":
            raise KeyError("a row's own fault")
        done.append(name)
        return "done"

    def job(name: str, *after: str) -> Job:
        return Job(name=name, act=lambda: act(name), after=after)

    said: list[str] = []
    failed = run_jobs(
        [job("last", "a", "b"), job("a"), job("b"), job("bad", "a"), job("lost", "bad"), job("too", "lost"),
         job("worse", "a")],
        2, said.append,
    )  # fmt: skip
    assert failed.pop("worse").startswith("KeyError")
    assert failed == {"bad": "it broke", "lost": "needs bad", "too": "needs lost"}
    assert set(done[:2]) == {"a", "b"}
    assert done[2:] == ["last"]
    assert sum("FAILED" in line for line in said) == 2


def test_a_process_is_measured_and_its_failure_is_shown(tmp_path: Path) -> None:
    program = "import sys, json; block = bytearray(200_000_000); print(json.dumps({'n': len(block)}))"
    said, cost = measure([sys.executable, "-c", program], tmp_path / "logs" / "one.log", 1)
    assert said == {"n": 200_000_000}
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # as much as this process ever held
    assert 200e6 < cost["peak_bytes"] < max(400e6, 1.01 * inherited)
    assert cost["cpu_s"] > 0
    with pytest.raises(JobError, match=r"(?s)exit 3.*told why"):
        measure([sys.executable, "-c", "import sys; print('told why', file=sys.stderr); sys.exit(3)"],
                tmp_path / "logs" / "two.log", None)  # fmt: skip


def test_the_seconds_of_a_resumed_training_are_those_of_all_its_steps() -> None:
    killed = [{"step": step, "loss": 1.0, "wall_s": 10.0 * step} for step in (1, 2, 3)]
    resumed = [*killed, {"step": 4, "loss": 1.0, "wall_s": 40.0}, {"step": 4, "train_runtime": 10.0}]
    assert results._training_s(resumed, 4) == 40.0
    assert results._training_s(resumed[-2:], 1) == 10.0
