"""Which problems count as persistent failures, what it costs to find them, and what the samples say of a pass rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from plyfold.adapters.base.resolve import Quantisation
from plyfold.core.config import LINEAR_MODULES, AdapterConfig, MiningConfig, StageConfig, load_config
from plyfold.core.errors import ConfigError
from plyfold.data.rationale.parse import Rationale
from plyfold.stages.mining.mining import MiningResult, check_mining, judge, mine, mining_cost, pass_rate_bound, verdict
from plyfold.stages.plan.staleness import recipe_digest
from plyfold.stages.rollouts.sampling import Sample


def _problems(count: int) -> list[Rationale]:
    return [Rationale(question=f"{index}?", steps=("a", "b"), answer=str(index)) for index in range(count)]


class _Scripted:
    """Gives each problem's outcomes in order, the last one for ever, and counts what it was asked."""

    def __init__(self, scripts: Sequence[str]) -> None:
        self.scripts, self.asked, self.calls = scripts, Counter[int](), list[tuple[list[int], str, int]]()

    def __call__(self, indices: Sequence[int], label: str, start: int) -> list[str]:
        self.calls.append((list(indices), label, start))
        return [self._next(index) for index in indices]

    def _next(self, index: int) -> str:
        script = self.scripts[index]
        letter = script[min(self.asked[index], len(script) - 1)]
        self.asked[index] += 1
        return {"r": "right", "w": "wrong", "t": "truncated", "u": "unanswered"}[letter]


def _mine(scripts: Sequence[str], batch: int = 2, **config: object) -> tuple[MiningResult, _Scripted]:
    ask = _Scripted(scripts)
    return mine(_problems(len(scripts)), MiningConfig(**config), ask, batch), ask  # type: ignore[arg-type]


def test_a_right_sample_ends_a_problem_and_only_the_unsolved_are_confirmed() -> None:
    mined, ask = _mine(["r", "wr", "wwwwwr", "w"], samples=4, confirm=16)
    assert ask.asked == {0: 1, 1: 2, 2: 16, 3: 16}
    assert mined.verdicts == ("solved", "solved", "solved", "wrong")
    assert mined.failures == (3,)
    assert mined.outcomes[2] == {"wrong": 5, "right": 11}
    assert (mined.samples, mined.k, mined.drawn) == (4, 16, 35)
    assert max(len(indices) for indices, *_ in ask.calls) == 2
    assert len({(label, start) for _, label, start in ask.calls}) == len(ask.calls)  # no two calls share their samples


def test_without_confirmation_the_first_samples_decide() -> None:
    for config in ({"samples": 4}, {"samples": 4, "confirm": 4}):
        mined, ask = _mine(["wwwwwr", "w"], **config)
        assert mined.failures == (0, 1)
        assert ask.asked == {0: 4, 1: 4}
        assert mined.k == 4
    assert len(_mine(["w"] * 9, problems=5)[0].verdicts) == 5


def test_form_is_no_hardness() -> None:
    mined, _ = _mine(["w", "t", "u", "wttt", "wwtt", "wtu", "tttr"], samples=4, wrong_share=0.5)
    assert mined.verdicts == ("wrong", "truncated", "unanswered", "truncated", "wrong", "unanswered", "solved")
    assert verdict({"wrong": 1, "truncated": 15}, wrong_share=0.5) == "truncated"
    assert verdict({"truncated": 4}, wrong_share=0.0) == "wrong"  # where the config asks for all of them


def test_the_cost_is_known_beforehand() -> None:
    config = MiningConfig(samples=4, confirm=16, unaided_samples=8, unaided_problems=64)
    assert mining_cost(800, config) == {
        "problems": 800, "samples": 4, "k": 16, "mining": 12800, "unaided": 1024
    }  # fmt: skip
    assert mining_cost(40, replace(config, confirm=None, held_out_share=0.5))["unaided"] == 2 * 40 * 8
    assert mining_cost(800, replace(config, problems=10, unaided_samples=0)) == {
        "problems": 10, "samples": 4, "k": 16, "mining": 160, "unaided": 0
    }  # fmt: skip
    mined, ask = _mine(["w"] * 5, samples=2, confirm=6)
    assert mined.drawn == ask.asked.total() == mining_cost(5, MiningConfig(samples=2, confirm=6))["mining"]


def test_only_what_decides_the_failures_makes_a_stage_stale() -> None:
    def digest(**mining: object) -> str:
        stage = StageConfig(number=3, task="rewrite", mining=MiningConfig(**mining))  # type: ignore[arg-type]
        return recipe_digest(stage, load_config("sandbox"), ("acme/base", "0" * 40), Quantisation(), "0" * 64)

    same = digest()
    assert digest(unaided_samples=0) == digest(unaided_problems=9) == digest(confirm=None) == digest(minimum=1) == same
    others = [digest(confirm=16), digest(samples=8), digest(wrong_share=0.0), digest(held_out_share=0.2),
              digest(rehearsal_share=0.5)]  # fmt: skip
    assert len({same, *others}) == 6


def test_pool_rates_are_shares_of_all_problems_tried() -> None:
    # solved: two by the first sample, one by the third; one of the others only when it is confirmed
    mined, _ = _mine(["r", "r", "wwr", "wwwwwr", "w"], samples=4, confirm=8)
    assert mined.pool_rates() == {1: 2 / 5, 4: 3 / 5}
    assert _mine(["r", "w"], samples=1)[0].pool_rates() == {1: 0.5}


@pytest.mark.parametrize(("k", "bound"), [(4, 0.527), (8, 0.312), (16, 0.171), (32, 0.089)])
def test_the_bound_is_the_rate_that_fails_k_times_in_one_case_of_twenty(k: int, bound: float) -> None:
    assert pass_rate_bound(k) == pytest.approx(bound, abs=5e-4)
    assert (1 - pass_rate_bound(k)) ** k == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "complete", "outcome"),
    [
        ("Step 1: 9\nAnswer: 18", True, "right"),
        ("Step 1: 9\nAnswer: 18", False, "right"),  # as evaluation has it
        ("so 18", True, "right"),
        ("Step 1: 9\nAnswer: 17", True, "wrong"),
        ("Answer: 17\nand on and on", False, "wrong"),  # it stated an answer before it was cut off
        ("so 17", True, "wrong"),
        ("Step 1: 9 + 8 = 17", False, "truncated"),
        ("and on and on", False, "truncated"),
        ("I do not know.", True, "unanswered"),
        ("", True, "unanswered"),
    ],
)
def test_how_a_sample_ends(text: str, complete: bool, outcome: str) -> None:
    assert judge(Sample(text=text, complete=complete), "18") == outcome


@pytest.mark.parametrize(
    "values",
    [{"samples": 0}, {"samples": 4, "confirm": 3}, {"temperature": 0.0}, {"temperature": float("nan")},
     {"wrong_share": 1.1}, {"held_out_share": 1.0}, {"rehearsal_share": 1.0}, {"rehearsal_share": -0.1},
     {"unaided_samples": -1}, {"unaided_problems": 0},
     {"minimum": 0}, {"problems": 0}],
)  # fmt: skip
def test_what_cannot_be_mined_with_is_refused(values: dict[str, float]) -> None:
    check_mining(MiningConfig(), "stages.x")
    with pytest.raises(ConfigError, match=next(reversed(values))):
        check_mining(MiningConfig(**values), "stages.x")  # type: ignore[arg-type]


def test_equal_configurations_keep_the_digests_they_were_published_under() -> None:
    def digest(task: str) -> str:
        sandbox = load_config("sandbox")
        return recipe_digest(
            StageConfig(number=3, task=task), sandbox, ("acme/base", "0" * 40), Quantisation(), "0" * 64
        )

    assert {task: digest(task)[7:15] for task in ("reconstruct", "complete", "rewrite")} == {
        "reconstruct": "d7662c09", "complete": "a04d48b0", "rewrite": "cbda3824"
    }  # fmt: skip


def test_what_decides_no_weights_is_in_no_digest() -> None:
    def digest(*targets: str, **trainer: object) -> str:
        adapter = AdapterConfig(targets=list(targets)) if targets else AdapterConfig()
        stage = StageConfig(number=1, task="complete", adapter=adapter, trainer=trainer)
        return recipe_digest(stage, load_config("sandbox"), ("acme/base", "0" * 40), Quantisation(), "0" * 64)

    same = digest()
    assert same[7:15] == "0978abad"  # as published
    assert same == digest(*reversed(LINEAR_MODULES))
    assert digest("q_proj", "own", "mlp.up_proj") == digest("own", "mlp.up_proj", "q_proj") != same
    for field in ("gradient_checkpointing", "ddp_timeout", "logging_first_step", "num_generations_eval"):
        assert digest(**{field: 2}) == same
    assert digest(learning_rate=2) != same
