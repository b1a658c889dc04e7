"""What `plyfold train` shows of a stage that mined its problems."""

from __future__ import annotations

from typing import Any


def show_mined(stage: str, mined: dict[str, Any]) -> None:
    """Print which problems were mined, and how often they are solved unaided before and after the stage.

    Args:
        stage: Number and name.
        mined: `mined` of the stage's details.
    """
    from ..core.console import print_table

    problems, k = mined["problems"], str(mined["k"])
    print_table(
        ["tried", "solved", "wrong", "cut off", "no answer", "pass rate", "trained on", "held out", "samples"],
        [
            [
                mined["tried"],
                *(problems[name] for name in ("solved", "wrong", "truncated", "unanswered")),
                f"< {mined['bounds'][k]:.1%}",
                mined["failures"],
                mined["held_out"],
                mined["samples"],
            ]
        ],
        title=f"{stage}: problems mined",
        right=("tried", "solved", "wrong", "cut off", "no answer", "trained on", "held out", "samples"),
        caption="\n".join(
            [
                f"wrong, cut off and no answer: not one of {k} samples right; only the wrong ones are failures",
                f"pass rate: of each of them, with 95 % confidence after 0 of {k}",
                "all problems tried, unaided: " + ", ".join(f"{name} {rate:.1%}" for name, rate in
                                                            mined["pool"].items()),
            ]
        ),
    )  # fmt: skip
    if unaided := mined.get("unaided"):
        _show_unaided(stage, unaided, mined["unaided_samples"])


def _show_unaided(stage: str, unaided: dict[str, Any], samples: int) -> None:
    from ..core.console import print_table

    rows = [
        [
            words,
            f"{rates['problems']} x {rates['samples']}",
            rate,
            f"{rates['before'][rate]:.1%}",
            f"{rates['after'][rate]:.1%}",
            f"{change['value']:+.1%}",
            "{:+.1%} to {:+.1%}".format(*change["ci95"]) if change["ci95"] else "",
        ]
        for name, words in (("trained", "trained on"), ("held_out", "held out"))
        if (rates := unaided.get(name))
        for rate, change in rates["change"].items()
    ]
    print_table(
        ["failures", "samples", "unaided", "before", "after", "change", "95 %"],
        rows,
        title=f"{stage}: solved from the bare prompt",
        right=("samples", "before", "after", "change"),
        caption=f"{samples} fresh samples, as many before as after: those that picked the failures were all wrong by "
        "selection,\nso against them anything would look like a gain",
    )
