"""What mining found and what a stage made of it, as plain values and as sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .mining import VERDICTS, MiningResult, pass_rate_bound
from .pass_at_k import PassRates, pass_rate_difference

SETS = {"trained": "trained on", "held_out": "held out"}
"""Failures that are trained on, failures that are only measured, and their words."""


def summarise(
    mined: MiningResult, uses: Mapping[int, str], seen: Sequence[bool], manifest: str, rehearsed: int
) -> dict[str, Any]:
    """What was mined, as plain values for a record.

    Args:
        mined: The outcomes.
        uses: Failure -> the set it is in.
        seen: Of each problem tried, whether an earlier stage had its question.
        manifest: Digest of the manifest.
        rehearsed: Solved problems that are trained on, too.
    """
    verdicts, used = Counter(mined.verdicts), Counter(uses.values())
    ended = sum((Counter(mined.outcomes[index]) for index in mined.failures), Counter[str]())
    return {
        "tried": len(mined.verdicts),
        "samples": mined.drawn,
        "problems": {name: verdicts[name] for name in VERDICTS},
        "failures": used["trained"],
        "held_out": used["held_out"],
        "rehearsed": rehearsed,
        "outcomes": dict(sorted(ended.items())),
        "seen_before": sum(seen[index] for index in uses),
        "k": mined.k,
        "bounds": {str(k): round(pass_rate_bound(k), 6) for k in sorted({mined.samples, mined.k})},
        "pool": {f"pass@{k}": round(rate, 6) for k, rate in mined.pool_rates().items()},
        "manifest": manifest,
    }


def describe(summary: Mapping[str, Any]) -> list[str]:
    """What `summarise` says, in sentences."""
    problems, k, bounds = summary["problems"], summary["k"], summary["bounds"]
    first = next(iter(bounds))
    rates = ", ".join(f"{name} {percent(rate)}" for name, rate in summary["pool"].items())
    lines = [
        f"{problems['solved']} of {summary['tried']} problems solved at least once (unaided {rates})",
        f"{problems['wrong']} never right in {k} samples and mostly wrong; one that is solved in "
        f"{percent(bounds[str(k)])} of samples or more is among them with a chance of 5 % at most"
        + (f" (after the first {first}: {percent(bounds[first])})" if first != str(k) else ""),
    ]
    if problems["truncated"] or problems["unanswered"]:
        lines.append(f"never right and not mostly wrong: {problems['truncated']} rather cut off, "
                     f"{problems['unanswered']} without an answer; a matter of form, not trained on")  # fmt: skip
    if summary["held_out"] or summary["seen_before"]:
        lines.append(f"{summary['failures']} failures to train on, {summary['held_out']} held out; "
                     f"{summary['seen_before']} were among the rows of earlier stages")  # fmt: skip
    if rehearsed := summary["rehearsed"]:
        lines.append(f"trained on beside them: {rehearsed} of the solved problems")
    return lines


def compare_pass_rates(before: PassRates, after: PassRates) -> dict[str, Any]:
    """pass@k before and after with their paired difference: {problems, samples, before, after, change}."""
    change = {}
    for k in before.ks:
        value, interval = pass_rate_difference(before, after, k)
        ci95 = [round(bound, 6) for bound in interval] if interval else None
        change[f"pass@{k}"] = {"value": round(value, 6), "ci95": ci95}
    sizes = {"problems": len(before.right), "samples": before.samples}
    return {**sizes, "before": before.to_json(), "after": after.to_json(), "change": change}


def tell_change(name: str, compared: Mapping[str, Any]) -> str:
    """What `compare_pass_rates` says of a set, in one sentence."""
    rates = [
        f"{rate} {percent(compared['before'][rate])} -> {percent(compared['after'][rate])} ({points(change)})"
        for rate, change in compared["change"].items()
    ]
    return f"unaided on {compared['problems']} failures {SETS[name]}: {'; '.join(rates)}"


def percent(share: float) -> str:
    """A fraction in percent."""
    return f"{100 * share:.1f} %"


def points(change: Mapping[str, Any]) -> str:
    """A change in percentage points, with its interval where there is one."""
    interval = " [{:+.1f}, {:+.1f}]".format(*(100 * bound for bound in change["ci95"])) if change["ci95"] else ""
    return f"{100 * change['value']:+.1f}{interval}"
