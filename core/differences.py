"""Where two JSON values differ, place by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """One place where two values differ."""

    field: str
    """Keys from the top, joined by dots; list items by their index."""
    first: Any
    """None where the first has nothing there."""
    second: Any


def differences(first: Any, second: Any) -> list[Difference]:
    """All places where two values differ, in the order of `first`, then what only `second` has.

    What is null and what is absent count as equal. Lists of plain values differ as a whole.
    """
    one, other = dict(_leaves(first, "")), dict(_leaves(second, ""))
    places = [*one, *(place for place in other if place not in one)]
    compared = (Difference(place, one.get(place), other.get(place)) for place in places)
    return [each for each in compared if each.first != each.second]


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    elif value not in (None, {}, []):
        yield place, value
