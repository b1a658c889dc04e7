"""Alarms over logged lines: which runs of steps raise one, once, and what a whole run is told at its end."""

from __future__ import annotations

from typing import Any

import pytest

from plyfold.stages.training.health import (
    CLIPPED,
    ENTROPY,
    ENTROPY_START,
    EQUAL_GROUPS,
    LOGP_DIFFERENCE,
    PATIENCE,
    Alarms,
)


def _feed(key: str, values: list[float | None]) -> tuple[Alarms, list[tuple[str, int, float]]]:
    alarms = Alarms()
    for step, value in enumerate(values, start=1):
        alarms.observe({"step": step, "loss": 0.1, **({} if value is None else {key: value})})
    return alarms, [(alarm.name, alarm.step, alarm.value) for alarm in alarms.raised]


@pytest.mark.parametrize(
    ("key", "name", "fine", "bad"),
    [
        (CLIPPED, "clipped_completions", 0.05, 0.06),
        (EQUAL_GROUPS, "groups_without_variance", 0.9, 0.95),
        (LOGP_DIFFERENCE, "rollouts_off_policy", 0.05, 0.08),
    ],
)
def test_an_alarm_needs_a_run_over_its_bound_and_is_raised_once_for_it(
    key: str, name: str, fine: float, bad: float
) -> None:
    assert PATIENCE == 3
    assert _feed(key, [fine] * 20)[1] == []  # at the bound
    assert _feed(key, [bad, bad, fine] * 5)[1] == []
    assert _feed(key, [bad] * 20)[1] == [(name, 3, bad)]
    assert _feed(key, [fine, bad, bad, bad, bad, fine, bad, bad, bad])[1] == [(name, 4, bad), (name, 9, bad)]
    assert _feed(key, [bad, None, bad, None, bad])[1] == [(name, 5, bad)]  # steps that drew no completions


def test_a_collapse_is_measured_against_the_first_steps() -> None:
    start = [0.4] * ENTROPY_START
    assert _feed(ENTROPY, [*start, 0.1, 0.05, 0.041, 0.041, 0.041])[1] == []
    assert _feed(ENTROPY, [*start, 0.2, 0.03, 0.02, 0.01, 0.01])[1] == [("entropy_collapse", 9, 0.01)]
    assert _feed(ENTROPY, [0.001] * 20)[1] == []  # low from the start
    assert _feed(ENTROPY, [0.0] * 20)[1] == []


def test_a_message_has_the_value_the_bound_and_what_to_do() -> None:
    for key, values, wanted in (
        (CLIPPED, [0.25] * 3, ("25%", "5%", "max_completion_length")),
        (EQUAL_GROUPS, [1.0] * 3, ("100%", "90%", "num_generations")),
        (LOGP_DIFFERENCE, [0.081] * 3, ("0.081 nats", "0.05", "start it anew")),
        (ENTROPY, [0.4] * 5 + [0.01] * 3, ("0.01", "10%", "0.4", "learning_rate")),
    ):
        (alarm,) = _feed(key, values)[0].raised
        assert all(part in alarm.message for part in wanted), alarm.message
        assert set(alarm.to_json()) == {"name", "step", "value"}


@pytest.mark.parametrize(
    ("key", "values", "moved", "names"),
    [
        (EQUAL_GROUPS, [1.0, 1.0], False, ["no_learning_signal", "adapter_unmoved"]),  # too short for a run of steps
        (EQUAL_GROUPS, [1.0, 0.99], True, []),
        (EQUAL_GROUPS, [1.0, 0.5], False, ["adapter_unmoved"]),
        ("mean_token_accuracy", [0.5, 0.5], True, []),  # supervised: no groups
        ("mean_token_accuracy", [0.5, 0.5], False, ["adapter_unmoved"]),
    ],
)
def test_a_run_for_nothing_is_told_at_its_end(key: str, values: list[Any], moved: bool, names: list[str]) -> None:
    alarms, before = _feed(key, values)
    assert before == []
    assert [alarm.name for alarm in alarms.finish(2, moved=moved)] == names
    assert [alarm.name for alarm in alarms.raised] == names


def test_reading_the_lines_again_raises_the_same_alarms() -> None:
    values = [0.9, 0.01, 0.2, 0.3, 0.4, 0.0, 1.0]
    whole, raised = _feed(CLIPPED, values)
    assert raised
    again = Alarms()
    for step, value in enumerate(values, start=1):
        again.observe({"step": step, CLIPPED: value, "alarms": [{"name": "x", "step": step, "value": 1.0}]})
    assert again.raised == whole.raised


def test_figures_that_are_missing_or_null_are_passed_over() -> None:
    alarms = Alarms()
    for step in range(1, 10):
        assert alarms.observe({"step": step, CLIPPED: None, ENTROPY: None, EQUAL_GROUPS: None}) == []
