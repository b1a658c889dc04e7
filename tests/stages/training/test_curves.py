"""The page of curves: every logged number has its place, one scale a measure, and nothing from a file is HTML."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import IntegrityError
from plyfold.stages.runtime.metrics import MAX_METRICS_BYTES
from plyfold.stages.training.curves import (
    HEIGHT,
    LEFT,
    RELOAD_S,
    RIGHT,
    TOP,
    WIDTH,
    read_stages,
    render_curves,
    write_curves,
)


def run(folder: Path, name: str, lines: list[dict[str, Any]]) -> None:
    """A run folder with these lines of metrics."""
    path = folder / name / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def charts(page: str, title: str) -> list[list[list[tuple[float, float]]]]:
    """Lines of points of each chart of a measure."""
    (row,) = (row for row in page.split("<tr>") if f"<th scope=row>{title}</th>" in row)
    faint = [re.findall(r'<polyline class="faint[^>]*points="([^"]*)"', svg) for svg in row.split("<svg")[1:]]
    return [[[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in svg]
            for svg in faint]  # fmt: skip


def test_metrics_too_large_to_be_read_are_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, "1-s", [{"step": 1, "reward": 1.0}])
    path = tmp_path / "1-s" / "metrics.jsonl"
    os.truncate(path, MAX_METRICS_BYTES + 1)  # nothing of it is on the disk
    with pytest.raises(IntegrityError, match="too large") as error:
        write_curves(tmp_path, running=False)
    assert error.value.where == str(path)


def test_a_measure_has_one_scale_in_all_stages(tmp_path: Path) -> None:
    for number, rewards in ((2, [0.0, 1.0]), (3, [2.0, 4.0])):
        run(tmp_path, f"{number}-s", [{"step": step, "reward": value} for step, value in enumerate(rewards, start=1)])
    (first,), (second,) = charts(render_curves("c", read_stages(tmp_path), running=False), "reward")
    bottom, height = first[0][1], first[0][1] - TOP
    assert second[1] == (WIDTH - RIGHT, TOP)  # the largest of all, at its last step
    assert first[0] == (LEFT, bottom)
    assert [first[1][1], second[0][1]] == [bottom - height / 4, bottom - height / 2]


def test_a_share_is_drawn_from_none_to_all(tmp_path: Path) -> None:
    run(tmp_path, "2-s", [{"step": 1, "accuracy": 0.5}, {"step": 2, "accuracy": 0.5, "accuracy_unaided": 0.25}])
    page = render_curves("c", read_stages(tmp_path), running=False)
    (drawn,) = charts(page, "right answers")
    middle = {y for _, y in drawn[0]}
    assert len(drawn) == 2
    assert middle == {TOP + (HEIGHT - 20 - TOP) / 2}
    assert "unaided 25.0 %" in page


def test_a_share_of_all_has_its_axis_up_to_all_and_a_late_alarm_its_place(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"step": step, "mean_token_accuracy": 1.0} for step in (1, 2)]
    run(tmp_path, "1-s", [*lines, {"step": 9, "alarms": [{"step": 9, "name": "adapter_unmoved"}]}])
    page = render_curves("c", read_stages(tmp_path), running=False)
    assert "200 %" not in page
    assert f'<line class=alarm x1="{WIDTH - RIGHT:.1f}"' in page


def test_what_was_not_logged_or_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    lines = [{"step": 1, "reward": 1.0}, {"step": 2, "reward": None}, {"step": 3, "reward": float("nan")},
             {"step": 4, "reward": 2.0}, {"other": 1}]  # fmt: skip
    run(tmp_path, "1-s", lines)
    page = render_curves("c", read_stages(tmp_path), running=False)
    ((line,),) = charts(page, "reward")
    assert [x for x, _ in line] == [LEFT, WIDTH - RIGHT]
    assert "entropy" not in page


@pytest.mark.parametrize("value", [1e18, -1e18, 1e299, -1e299, 0])
def test_a_number_of_any_size_has_a_place_or_none(tmp_path: Path, value: float) -> None:
    run(tmp_path, "1-s", [{"step": 1, "reward": value}])
    run(tmp_path, "2-s", [{"step": 1, "reward": 1.0}])
    page = render_curves("c", read_stages(tmp_path), running=False)
    assert "nan" not in page
    assert "inf" not in page
    run(tmp_path / "alone", "1-s", [{"step": 1, "reward": value, "loss": 1.0}])
    assert read_stages(tmp_path / "alone")[0].name in render_curves("c", read_stages(tmp_path / "alone"), running=False)


def test_a_kl_of_nothing_but_zeros_and_a_policys_loss_are_left_out(tmp_path: Path) -> None:
    run(tmp_path, "1-s", [{"step": 1, "loss": 0.1, "reward": 1.0, "kl": 0.0}])
    page = render_curves("c", read_stages(tmp_path), running=False)
    assert ">loss<" not in page
    assert "KL" not in page


def test_a_long_run_is_thinned_and_ends_where_it_ended(tmp_path: Path) -> None:
    run(tmp_path, "1-s", [{"step": step, "reward": float(step)} for step in range(1, 5001)])
    ((line,),) = charts(render_curves("c", read_stages(tmp_path), running=False), "reward")
    assert len(line) <= 300
    assert line[-1] == (WIDTH - RIGHT, TOP)


def test_alarms_stages_in_order_and_times_are_told(tmp_path: Path) -> None:
    alarm = {"step": 2, "name": "entropy_collapse", "value": 0.1}
    run(tmp_path, "10-late", [{"step": 1, "reward": 1.0, "wall_s": 3725.0}])
    run(tmp_path, "2-early", [{"step": 1, "reward": 1.0}, {"step": 2, "reward": 1.0, "alarms": [alarm]}])
    run(tmp_path, "2-early.0a1b2c3d", [{"step": 1, "reward": 9.0}])  # set aside
    page = render_curves("c", read_stages(tmp_path), running=False)
    assert page.index("2 early") < page.index("10 late")
    assert "<title>step 2: entropy_collapse</title>" in page
    assert "1 h 2 min" in page
    assert "0a1b2c3d" not in page


def test_nothing_from_a_file_is_html_and_nothing_is_fetched(tmp_path: Path) -> None:
    alarm = {"step": 1, "name": "<script>alert(1)</script>", "value": 0.1}
    run(tmp_path / "<b>", "1-<i>x<", [{"step": 1, "reward": 1.0, "alarms": [alarm]}])
    page = render_curves("<b>", read_stages(tmp_path / "<b>"), running=False)
    assert not re.search(r"<script|<i>|<b>x|src=|href=", page)
    assert "default-src 'none'" in page


def test_a_running_page_loads_itself_again_and_a_finished_one_does_not(tmp_path: Path) -> None:
    assert write_curves(tmp_path, running=True) is None  # nothing to draw
    assert list(tmp_path.iterdir()) == []
    run(tmp_path, "1-s", [{"step": 1, "reward": 1.0}])
    page = write_curves(tmp_path, running=True)
    assert page is not None
    assert f'http-equiv="refresh" content="{RELOAD_S}"' in page.read_text()
    write_curves(tmp_path, running=False)
    assert "refresh" not in page.read_text()
