"""Which other thresholds would have decided, and where.

Thresholds are tried that people would type, of one digit: 1e-8, 2e-8, ..., 9e-8, 1e-7.
"""

import math
from collections.abc import Iterator

from step_cli.autoswitch.sample_block import Floats, Integers

SMALLEST = 1e-40  # below it nothing is tried: such a change is none


class EpsLadder:
    """The first step at which the tested value is below each threshold.

    Of the steps between the clips: a threshold above the first value would decide
    nothing, as the first step at which it may fire would.

    Args:
        t_max: The last step that counts, or None.
    """

    def __init__(self, t_max: int | None) -> None:
        self._t_max = t_max
        self._lowest: float | None = None
        self.steps: dict[float, int] = {}  # by falling threshold

    def observe(self, steps: Integers, values: Floats) -> None:
        """Take values in, of steps at which the test may fire."""
        if self._t_max is not None and steps[-1] > self._t_max:
            within = steps <= self._t_max
            steps, values = steps[within], values[within]
        if not len(values):
            return
        if self._lowest is None:
            self._lowest = float(values[0])
        lowest = float(values.min())
        for eps in thresholds_between(lowest, self._lowest):
            self.steps[eps] = int(steps[(values < eps).argmax()])
        self._lowest = min(self._lowest, lowest)


def thresholds_between(low: float, high: float) -> Iterator[float]:
    """The thresholds of one digit with low < eps <= high, the largest first."""
    low = max(low, SMALLEST)
    if not low < high < math.inf:
        return
    for power in range(math.floor(math.log10(high)) + 1, -41, -1):
        for digit in range(9, 0, -1):
            eps = float(f"{digit}e{power}")
            if eps <= low:
                return
            if eps <= high:
                yield eps
