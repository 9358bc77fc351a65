"""Means, spreads and paired intervals, against numbers worked out by hand and scipy."""

import math
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_cli.commands.compare.statistics import (
    apart,
    mean,
    mean_interval,
    paired_difference,
    sd,
    t_quantile,
)

# Differences 1, 2, 3: mean 2, sd 1, and 4.302653 is t of 95 % with 2 degrees.
FIRST = {0: 11.0, 1: 22.0, 2: 33.0, 7: 1.0}
SECOND = {2: 30.0, 1: 20.0, 0: 10.0, 9: 5.0}


def test_a_difference_worked_out_by_hand() -> None:
    found = paired_difference(FIRST, SECOND)
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.mean == 2.0
    reach = 4.302652729911275 / math.sqrt(3)
    assert found.interval == pytest.approx((2 - reach, 2 + reach), rel=1e-8)
    assert not found.clear  # from -0.48 to 4.48


def test_a_difference_is_clear_where_its_interval_leaves_out_0() -> None:
    near = {seed: value + 0.5 for seed, value in FIRST.items()}
    found = paired_difference(near, SECOND)
    assert found is not None and found.interval is not None
    assert found.interval[0] == pytest.approx(0.0158624, abs=1e-6)
    assert found.clear
    turned = paired_difference(SECOND, near)
    assert turned is not None and turned.mean == -2.5 and turned.clear


def test_equal_values_are_not_clearly_different_and_equal_differences_are() -> None:
    same = paired_difference(FIRST, FIRST)
    assert same is not None and same.interval == (0.0, 0.0) and not same.clear
    more = paired_difference({s: v + 1 for s, v in FIRST.items()}, FIRST)
    assert more is not None and more.interval == (1.0, 1.0) and more.clear


def test_one_seed_has_no_spread_and_none_nothing() -> None:
    found = paired_difference({0: 2.0, 1: 9.0}, {0: 1.0})
    assert found is not None
    assert (found.mean, found.interval, found.clear) == (1.0, None, False)
    assert paired_difference({0: 2.0}, {1: 1.0}) is None
    assert mean([]) is None and sd([3.0]) is None and mean_interval([3.0]) is None
    assert sd([1.0, 2.0, 3.0]) == 1.0  # over n - 1


def test_the_quantiles_are_those_of_a_table_of_t() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 9: 2.262, 1000: 1.962}
    for freedom, value in table.items():
        assert t_quantile(0.95, freedom) == pytest.approx(value, abs=5e-4)
    assert all(t_quantile(0.99, n) > t_quantile(0.95, n) for n in table)
    assert all(t_quantile(0.95, a) > t_quantile(0.95, b) for a, b in pairwise(table))


@given(st.integers(2, 2000), st.lists(st.integers(-9, 9), min_size=1, max_size=6))
def test_accuracies_that_are_equal_differ_by_nothing(
    samples: int, gains: list[int]
) -> None:
    gains = [*gains, -sum(gains)]
    right = [samples + 9 * len(gains) + at for at, _ in enumerate(gains)]
    of = 3 * max(right)  # as many samples, and all counts are below
    first = {
        at: (n + gain) / of
        for at, (n, gain) in enumerate(zip(right, gains, strict=True))
    }
    second = {at: n / of for at, n in enumerate(right)}
    found = paired_difference(first, second)
    assert found is not None and found.interval is not None
    assert found.mean == 0 and not found.clear
    assert apart(fmean(first.values()), fmean(second.values())) == 0
    one_more = first | {0: first[0] + 1 / of}
    found = paired_difference(one_more, second)
    assert found is not None
    assert found.mean == pytest.approx(1 / of / len(gains), rel=1e-6)


NUMBERS = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_intervals_are_those_of_scipy(pairs: list[tuple[float, float]]) -> None:
    from scipy.stats import ttest_rel

    first, second = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    found = paired_difference(first, second)
    assert found is not None and found.interval is not None
    differences = [one - other for one, other in pairs]
    if max(differences) - min(differences) < 1e-6:
        return  # scipy divides by the spread
    oracle = ttest_rel(*zip(*pairs, strict=True))
    interval = oracle.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-6)
    if abs(oracle.pvalue - 0.05) > 1e-6:
        assert found.clear == (oracle.pvalue < 0.05)
