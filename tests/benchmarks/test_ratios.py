"""The interval of a median, and measuring until it is narrow, on fixed samples."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from mlm_infer.benchmarks.ratios import median_interval, relative_width, repeat_until_narrow


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (50, 18, 33), (100, 40, 61)]
)
def test_interval_is_that_of_the_tables(count: int, low: int, high: int) -> None:
    """The ranks that tables of the sign test give, whatever the order of the values."""
    values = [float(value) for value in range(count, 0, -1)]
    assert median_interval(values) == (low, high)


@pytest.mark.parametrize("count", range(6, 13))
def test_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    """Of all ways in which values lie around their true median, at least 95 %, and with one step less fewer."""
    held = narrower = 0
    for signs in itertools.product((-1, 1), repeat=count):
        values = [sign * (place + 1.0) for place, sign in enumerate(signs)]
        found = median_interval(values)
        assert found is not None
        held += found[0] < 0 < found[1]
        ordered = sorted(values)
        inner = ordered[ordered.index(found[0]) + 1 : ordered.index(found[1])]
        narrower += inner[0] < 0 < inner[-1]
    assert narrower / 2**count < 0.95 <= held / 2**count


def test_few_values_have_no_interval() -> None:
    """All of five values lie on one side of the median once in sixteen times."""
    assert median_interval([1.0, 1.0, 1.0, 1.0, 1.0]) is None
    assert relative_width([1.0, 1.0, 1.0, 1.0, 1.0]) == math.inf
    assert median_interval([]) is None


def test_width_is_relative_to_the_median() -> None:
    """The interval from 9 to 12, of eight values with the median 10."""
    assert relative_width([9.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 12.0]) == pytest.approx(0.3)
    assert relative_width([9.0, 9.0, 9.0, 9.0, 11.0, 11.0, 11.0, 11.0]) == pytest.approx(0.2)


def rounds(samples: Sequence[float], found: list[float]) -> Iterator[partial[None]]:
    """Yield rounds, each of which measures the next of some samples."""
    return (partial(found.append, each) for each in samples)


@pytest.mark.parametrize(
    ("samples", "least", "seconds", "count"),
    [
        # An outlier on each side: both must leave the interval, which takes nine values.
        ([5.0, 20.0, *[10.0] * 50], 6, 1e9, 9),
        # No sooner than told.
        ([10.0] * 50, 20, 1e9, 20),
        # Values as wide as these never become narrow: they end.
        ([5.0, 20.0] * 10, 6, 1e9, 20),
        # The time is up.
        ([5.0, 20.0] * 10, 7, 0.0, 7),
    ],
)
def test_repeats_until_narrow(samples: list[float], least: int, seconds: float, count: int) -> None:
    """Until the interval is narrow, the time is up or there is nothing left, and a least number in any case."""
    found: list[float] = []
    repeat_until_narrow(rounds(samples, found), lambda: [found], least, seconds)
    assert found == samples[:count]


def test_every_ratio_must_be_narrow() -> None:
    """One that is wide keeps all others going."""
    found: list[float] = []
    repeat_until_narrow(rounds([10.0] * 30, found), lambda: [found, [1.0, 2.0] * 10], 6, 1e9)
    assert len(found) == 30
