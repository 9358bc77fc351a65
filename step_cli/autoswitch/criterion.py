"""Switch criteria: tests of what each step did to Adam's variance.

Here is what all share, and those that AutoSwitch is compared with: Eq. (10) of STEP (Lu
et al., ICML 2023; after Agarwal et al. 2021) and Eq. (11) (after Tang et al. 2021).
Plain Python over one :class:`VarianceSample` per step, so that a recorded run replays
exactly as it was decided. Steps count from 1.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override


@dataclass(frozen=True)
class VarianceSample:
    """What one step did to Adam's variance v (raw, not bias-corrected).

    Attributes:
        step: Counted from 1.
        d: Number of coordinates of v.
        v_l1: L1 norm of v after the step.
        v_l2: L2 norm of v after the step.
        dv_l1: Sum of ``|v_t - v_(t-1)|``.
        dv_log: Mean of ``ln |v_t - v_(t-1)|`` over coordinates that changed; None if
            none did.
    """

    step: int
    d: int
    v_l1: float
    v_l2: float
    dv_l1: float
    dv_log: float | None


def window_of(beta2: float) -> int:
    """The memory of v in steps, T_w = round(1 / (1 - beta2)).

    Rounded, because in doubles 1 / (1 - 0.999) is 999.9999999999991.
    """
    return round(1 / (1 - beta2))


class WindowMean:
    """The mean of the last ``size`` values, or None before there are that many.

    The running sum is computed afresh once per window: early changes are many orders
    of magnitude larger than late ones, and their rounding errors must not stay.
    """

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self._size = size
        self._total = 0.0
        self._since_fresh = 0

    def add(self, value: float) -> float | None:
        """Take one value in; return the mean once the window is full."""
        if len(self._values) == self._size:
            self._total -= self._values[0]
        self._values.append(value)
        self._total += value
        self._since_fresh += 1
        if self._since_fresh >= self._size:
            self._total = math.fsum(self._values)
            self._since_fresh = 0
        if len(self._values) < self._size:
            return None
        return self._total / self._size

    def state(self) -> list[float]:
        """All that a resumed window needs, as plain numbers."""
        return [self._total, float(self._since_fresh), *self._values]

    def load(self, state: Sequence[float]) -> None:
        """Continue from :meth:`state`."""
        self._total, self._since_fresh = state[0], int(state[1])
        self._values = deque(state[2:], maxlen=self._size)


class Criterion(ABC):
    """One test of whether the variance is ready, without clipping.

    Attributes:
        name: What a user types.
        needs: The fields of a sample that are read.
        threshold: What the value is compared with; None where there is no value.
        above: A value above the threshold passes, not one below.
        window: How many steps the value is taken over.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    above: ClassVar[bool] = False
    threshold: float | None = None
    window: int = 1

    @abstractmethod
    def update(self, sample: VarianceSample) -> float | None:
        """Take one step in; return the tested value, None while it has no meaning."""

    def met(self, value: float) -> bool:
        """Whether ``value`` passes the test; strict, as in the paper."""
        if self.threshold is None:
            return False
        return value > self.threshold if self.above else value < self.threshold

    @property
    def first_step(self) -> int:
        """The first step at which the test has a meaning."""
        return 1

    def state(self) -> list[float]:
        """The memory of past steps, as plain numbers."""
        return []

    def load(self, state: Sequence[float]) -> None:
        """Continue from :meth:`state`."""
        assert not state, "a criterion with a memory loads it"


class RelativeNorm(Criterion):
    """Eq. (10): the L2 norm of v changed by less than half in one step.

    For constant gradients it fires at t = 3 whatever beta2 is: a weak baseline.
    """

    name = "relative-norm"
    needs = frozenset({"v_l2"})
    threshold = 0.5

    def __init__(self) -> None:
        self._previous: float | None = None

    @override
    def update(self, sample: VarianceSample) -> float | None:
        previous, self._previous = self._previous, sample.v_l2
        return abs(sample.v_l2 - previous) / previous if previous else None

    @property
    @override
    def first_step(self) -> int:
        return 2

    @override
    def state(self) -> list[float]:
        return [] if self._previous is None else [self._previous]

    @override
    def load(self, state: Sequence[float]) -> None:
        self._previous = state[0] if state else None


class Staleness(Criterion):
    """Eq. (11): the L1 norm of v is above 0.96 of what it was a window ago.

    One-sided: a growing v always passes.
    """

    name = "staleness"
    needs = frozenset({"v_l1"})
    above = True
    threshold = 0.96

    def __init__(self, beta2: float, window: int | None = None) -> None:
        self.window = window or window_of(beta2)
        self._norms: deque[float] = deque(maxlen=self.window + 1)

    @override
    def update(self, sample: VarianceSample) -> float | None:
        self._norms.append(sample.v_l1)
        if len(self._norms) <= self.window or not self._norms[0]:
            return None
        return sample.v_l1 / self._norms[0]

    @property
    @override
    def first_step(self) -> int:
        return self.window + 1

    @override
    def state(self) -> list[float]:
        return list(self._norms)

    @override
    def load(self, state: Sequence[float]) -> None:
        self._norms = deque(state, maxlen=self.window + 1)


class Fixed(Criterion):
    """The step the user chose; clipping does not apply."""

    name = "fixed"

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def update(self, sample: VarianceSample) -> float | None:
        return float(sample.step)

    @override
    def met(self, value: float) -> bool:
        return value >= self.step

    @property
    @override
    def first_step(self) -> int:
        return self.step
