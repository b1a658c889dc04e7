"""Several engines as one: adapters of one base, and checkpoints that are models of their own, one after the other.

Two models rarely fit beside each other, so the engine that holds what is asked for is loaded when it is asked, and the
one before it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .protocol import BASE, Engine, Generation


class InTurn:
    """Answers for several engines."""

    def __init__(self, adapted: Callable[[], Engine] | None, checkpoints: Mapping[str, Callable[[], Engine]]) -> None:
        """Load nothing yet.

        Args:
            adapted: Loads the engine of all variants that share a base; None where there is none.
            checkpoints: Variant name -> what loads its own engine, whose base it is.
        """
        self._adapted, self._checkpoints = adapted, checkpoints
        self._at: str | None = None
        self._engine: Engine | None = None
        self._described: dict[str | None, dict[str, Any]] = {}

    def generate(self, variant: str, prompts: Sequence[str]) -> list[Generation]:
        """Completions of one variant, in the order of the prompts."""
        return self.generate_all([variant], prompts)[variant]

    def generate_all(self, variants: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Generation]]:
        """Completions of several variants: those that share a base first, then each checkpoint."""
        found: dict[str, list[Generation]] = {}
        if shared := [name for name in variants if name not in self._checkpoints]:
            found |= self._load(None).generate_all(shared, prompts)
        for name in variants:
            if name in self._checkpoints:
                found[name] = self._load(name).generate(BASE, prompts)
        return found

    def probe(self, variant: str, prompts: Sequence[str]) -> list[tuple[float, ...]]:
        """Log probabilities of each prompt's likeliest first tokens."""
        if variant in self._checkpoints:
            return self._load(variant).probe(BASE, prompts)
        return self._load(None).probe(variant, prompts)

    def describe(self) -> dict[str, Any]:
        """As the engine that was loaded first says it; below `checkpoints`, what another has otherwise."""
        first, *_ = self._described.values()
        others = {
            name: {key: value for key, value in described.items() if first.get(key) != value}
            for name, described in self._described.items()
            if name is not None
        }
        return {**first, "checkpoints": others}

    def close(self) -> None:
        """Let go of the engine that is loaded."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._at = None

    def _load(self, name: str | None) -> Engine:
        if self._engine is None or self._at != name:
            self.close()
            load = self._adapted if name is None else self._checkpoints[name]
            assert load is not None
            self._engine, self._at = load(), name
            self._described.setdefault(name, self._engine.describe())
        return self._engine
