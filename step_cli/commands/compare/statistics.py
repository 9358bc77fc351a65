"""Mean, spread and paired differences over seeds: pure functions of numbers.

The interval of a mean of n values is that of Student's t with n - 1 degrees of freedom:
mean +- t sd / sqrt(n). Of two recipes the differences of each seed are taken, so that
what a seed does to both is left out.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
ROUNDING = 2.0**-50  # relative: 1/360 + 2/360 and 3/360 differ by less
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds.

    Attributes:
        mean: Of the differences, first minus second.
        interval: Of their mean; None below two seeds.
        seeds: Those that both have, ascending.
    """

    mean: float
    interval: Interval | None
    seeds: tuple[int, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and not leaves_in_zero(self.interval)


def leaves_in_zero(interval: Interval) -> bool:
    """Whether 0 lies in an interval, its ends included."""
    return interval[0] <= 0 <= interval[1]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return statistics.fmean(values) if values else None


def sd(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample, over n - 1; None below two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def apart(first: float, second: float) -> float:
    """First minus second; 0 where they are equal but for rounding."""
    rounding = ROUNDING * max(abs(first), abs(second))
    return 0.0 if abs(first - second) <= rounding else first - second


def mean_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> Interval | None:
    """The interval of a mean; None below two values."""
    spread = sd(values)
    if spread is None:
        return None
    middle = statistics.fmean(values)
    reach = t_quantile(confidence, len(values) - 1) * spread / math.sqrt(len(values))
    return middle - reach, middle + reach


def paired_difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    confidence: float = CONFIDENCE,
) -> Difference | None:
    """First minus second over the seeds that both have; None where there is none.

    Args:
        first: Values by seed.
        second: The same of what it is compared with.
        confidence: Of the interval.
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        return None
    differences = [apart(first[seed], second[seed]) for seed in seeds]
    interval = mean_interval(differences, confidence)
    means = [statistics.fmean(side[seed] for seed in seeds) for side in (first, second)]
    middle = statistics.fmean(differences) if apart(*means) else 0.0
    return Difference(middle, interval, seeds)


def t_quantile(confidence: float, freedom: int) -> float:
    """How far an interval reaches to both sides, in standard errors of the mean."""
    from scipy.special import stdtrit  # takes a tenth of scipy.stats to import

    return float(stdtrit(freedom, 0.5 + confidence / 2))
