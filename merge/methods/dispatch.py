"""From a plan's method to the function that carries it out on one module."""

from __future__ import annotations

from collections.abc import Callable

from ..factor_reader import ModuleStack
from ..plan import ComposePlan
from .core_space import core_space
from .dare import dare_linear, dare_ties
from .knots import knots
from .linear import linear
from .peft_numerics import peft_numerics
from .result import Merged
from .ties import ties

REDUCERS: dict[str, Callable[[ModuleStack, ComposePlan], Merged]] = {
    "linear": linear,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "knots": knots,
    "core": core_space,
}


def apply_method(stack: ModuleStack, plan: ComposePlan) -> Merged:
    """Merge one module by the plan's method and numerics, at the plan's rank; safe to call from several threads.

    Raises:
        NotFoundError: Numerics `peft` without PEFT.
    """
    return (peft_numerics if plan.numerics == "peft" else REDUCERS[plan.method])(stack, plan)
