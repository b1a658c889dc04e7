"""Which steps of a rationale are hidden. Pure index arithmetic on a seeded generator; knows nothing about text."""

from __future__ import annotations

import random

from ...core.config import MaskingConfig
from ...core.errors import ConfigError

MODES = ("one", "scattered", "consecutive", "keep-ends")
HIDES = ("step", "numbers", "operators")


def check_masking(config: MaskingConfig, where: str) -> None:
    """Refuse a masking that cannot be meant.

    Raises:
        ConfigError: Unknown mode or part to hide, a share or probability outside [0, 1], or a minimum below one.
    """
    if config.mode not in MODES:
        raise ConfigError("no such masking mode", where=where, found=config.mode, expected=", ".join(MODES))
    if config.hide not in HIDES:
        raise ConfigError("nothing that masking can hide", where=where, found=config.hide, expected=", ".join(HIDES))
    for name in ("probability", "share"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"masking.{name} is a share", where=where, found=getattr(config, name), expected="0 to 1")
    if config.minimum < 1:
        raise ConfigError("masking.minimum is too small", where=where, found=config.minimum, expected="1 or more")


def describe_masking(config: MaskingConfig) -> str:
    """The masking in words."""
    which = "one step"
    if config.mode != "one":
        which = f"{config.mode}, {config.share:.0%} of the steps and {config.minimum} at least"
    what = {"step": "", "numbers": ", their numbers", "operators": ", their operators and results"}[config.hide]
    return f"{which}{what}, in {config.probability:.0%} of the rows"


def draw_mask(num_steps: int, config: MaskingConfig, rng: random.Random) -> frozenset[int]:
    """Indices of the hidden steps.

    `one` hides a single step with the given probability. The other modes hide max(minimum, share of the steps), as far
    as they can: `scattered` the last step and others, at most all but one; `consecutive` steps in a row, at most all
    but one; `keep-ends` steps between the first and the last, hence none of two.
    """
    if rng.random() >= config.probability:
        return frozenset()
    if config.mode == "one":
        return frozenset({rng.randrange(num_steps)})
    wanted = max(config.minimum, int(num_steps * config.share + 1e-9))
    if config.mode == "keep-ends":
        middle = range(1, num_steps - 1)
        return frozenset(rng.sample(middle, min(wanted, len(middle))))
    count = min(wanted, num_steps - 1)
    if config.mode == "consecutive":
        start = rng.randrange(num_steps - count + 1)
        return frozenset(range(start, start + count))
    return frozenset({num_steps - 1, *rng.sample(range(num_steps - 1), count - 1)}) if count else frozenset()


def draw_order(num_steps: int, rng: random.Random) -> list[int]:
    """A random order of the steps, never the identity where there are two or more."""
    order = list(range(num_steps))
    while num_steps > 1 and order == list(range(num_steps)):
        rng.shuffle(order)
    return order
