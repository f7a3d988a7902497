"""Work that waits for a store, many pieces at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    work: Callable[[_Item], _Result], items: Sequence[_Item], at_once: int
) -> Iterator[_Result]:
    """Yield the result of each item, in their order; no more than `at_once` are in memory."""
    with ThreadPoolExecutor(at_once) as pool:
        for start in range(0, len(items), at_once):
            yield from pool.map(work, items[start : start + at_once])
