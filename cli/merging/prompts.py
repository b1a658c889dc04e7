"""What `plyfold merge` learns by running prompts: where outputs matter, and whether a fold does what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.console import progress
from .inputs import Inputs, MergeOptions, base_at_hand, base_of_fold

if TYPE_CHECKING:
    from ...merge.calibrate.logits import BaseViewReport, LogitReport
    from ...merge.calibrate.moments import Statistics
    from ...merge.fold.fold import FoldPlan
    from ...merge.plan import ComposePlan


class Verified(NamedTuple):
    """A folded checkpoint on prompts."""

    logits: LogitReport
    views: BaseViewReport | None
    """Where the twin and the original base are both at hand."""


def statistics_of(plan: ComposePlan, inputs: Inputs, wanted: MergeOptions) -> Statistics:
    """Run the prompts of `--method activation` once through the base with all adapters active."""
    from ...adapters.base.resolve import load_tokenizer, load_twin
    from ...merge.calibrate.moments import collect
    from ...merge.calibrate.prompts import read_prompts

    assert wanted.prompts is not None
    prompts = read_prompts(wanted.prompts)
    base = base_of_fold(plan, inputs, wanted)
    with progress("prompts", len(prompts.texts)) as task:
        return collect(load_twin(base), plan, prompts, load_tokenizer(base), task.advance)


def verify(plan: FoldPlan, checkpoint: Path, inputs: Inputs, wanted: MergeOptions) -> Verified:
    """Run the prompts of `--verify-logits` through the fold and through what it stands for."""
    from ...merge.calibrate.logits import COMPARE_PASSES, VERIFY_PASSES, compare_base_views, verify_logits
    from ...merge.calibrate.prompts import read_prompts

    assert wanted.verify_logits is not None
    prompts = read_prompts(wanted.verify_logits)
    with progress("logits", VERIFY_PASSES * len(prompts.texts)) as task:
        logits = verify_logits(checkpoint, plan.base.path, plan.compose, prompts, advance=task.advance)
    original = base_at_hand(inputs, wanted)
    if inputs.store is None or original is None or original == plan.base.path:
        return Verified(logits, None)
    with progress("base views", COMPARE_PASSES * len(prompts.texts)) as task:
        views = compare_base_views(plan.base.path, original, plan.compose, prompts, advance=task.advance)
    return Verified(logits, views)
