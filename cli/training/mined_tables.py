"""What `plyfold train` shows of a stage that mined its problems."""

from __future__ import annotations

from typing import Any


def show_mined(stage: str, mined: dict[str, Any]) -> None:
    """Print which problems were mined, and how often they are solved unaided before and after the stage.

    Args:
        stage: Number and name.
        mined: `mined` of the stage's details.
    """
    from ...core.console import print_table
    from ...stages.mining.report import percent

    problems, k = mined["problems"], str(mined["k"])
    print_table(
        ["tried", "solved", "wrong", "cut off", "no answer", "pass rate", "trained on", "held out", "samples"],
        [
            [
                mined["tried"],
                *(problems[name] for name in ("solved", "wrong", "truncated", "unanswered")),
                f"< {percent(mined['bounds'][k])}",
                mined["failures"],
                mined["held_out"],
                mined["samples"],
            ]
        ],
        title=f"{stage}: problems mined",
        right=("tried", "solved", "wrong", "cut off", "no answer", "trained on", "held out", "samples"),
        caption="\n".join(
            [
                f"wrong, cut off, no answer: not one of {k} samples right, and most of them so; the wrong are failures",
                f"pass rate: from there on 0 of {k} has a chance of 5 % at most",
                "all problems tried, unaided: " + ", ".join(f"{name} {percent(rate)}" for name, rate in
                                                            mined["pool"].items()),
                *([f"trained on beside them: {mined['rehearsed']} of the solved"] if mined.get("rehearsed") else []),
            ]
        ),
    )  # fmt: skip
    if unaided := mined.get("unaided"):
        _show_unaided(stage, unaided, mined["unaided_samples"])


def _show_unaided(stage: str, unaided: dict[str, Any], samples: int) -> None:
    from ...core.console import print_table
    from ...stages.mining.report import SETS, percent, points

    rows = [
        [
            words,
            f"{rates['problems']} x {rates['samples']}",
            rate,
            percent(rates["before"][rate]),
            percent(rates["after"][rate]),
            points(change),
        ]
        for name, words in SETS.items()
        if (rates := unaided.get(name))
        for rate, change in rates["change"].items()
    ]
    print_table(
        ["failures", "samples", "unaided", "before", "after", "change, 95 %"],
        rows,
        title=f"{stage}: solved from the bare prompt",
        right=("samples", "before", "after"),
        caption=f"{samples} fresh samples, as many before as after: of those that picked the failures not one was "
        "right,\nso against them anything would be a gain",
    )
