"""How exactly a ratio is known: the interval of a median, and measuring until it is narrow."""

import math
import time
from collections.abc import Callable, Iterable, Sequence

__all__ = ["WIDTH", "median_interval", "relative_width", "repeat_until_narrow"]

WIDTH = 0.1
"""A ratio is measured until its interval is narrower than this share of the ratio."""
_CONFIDENCE = 0.95


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the median, or None of fewer than six values.

    Its ends are two of the values (the sign test turned round): it assumes nothing about how the values are
    distributed, needs no random numbers, and holds the median with at least the stated probability.

    Args:
        values: Independent measurements, for example ratios of two times that were measured one after the other.
    """
    ordered = sorted(values)
    count = len(ordered)
    # The k-th smallest value is above the median with the probability of fewer than k heads in `count` tosses.
    outside, below = (1 - _CONFIDENCE) / 2, 0.0
    dropped = 0
    while (below := below + math.comb(count, dropped) / 2**count) <= outside:
        dropped += 1
    return (ordered[dropped - 1], ordered[count - dropped]) if dropped else None


def relative_width(values: Sequence[float]) -> float:
    """Return the width of the median's interval as a share of the median; infinity without an interval."""
    found = median_interval(values)
    if found is None:
        return math.inf
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return (found[1] - found[0]) / middle


def repeat_until_narrow(
    rounds: Iterable[Callable[[], None]], ratios: Callable[[], Iterable[Sequence[float]]], least: int, seconds: float
) -> None:
    """Run rounds of a measurement until the interval of every ratio is narrow, or the time is up.

    Args:
        rounds: Each measures everything once. They may end.
        ratios: Returns what was measured up to now, a sequence for each ratio.
        least: Number of rounds that run in any case.
        seconds: When this time is over, no further round starts.
    """
    started = time.monotonic()
    for number, measure in enumerate(rounds, 1):
        measure()
        if number >= least and (
            time.monotonic() - started >= seconds or all(relative_width(each) < WIDTH for each in ratios())
        ):
            return
