"""Deciding the switch point t0: AutoSwitch and the criteria it is compared with.

Plain Python over one :class:`VarianceSample` per step, so that a recorded run replays
exactly as it was decided. Steps count from 1.

Sources: STEP (Lu et al., ICML 2023), Algorithm 2 for AutoSwitch, its Eq. (10) (after
Agarwal et al. 2021) and Eq. (11) (after Tang et al. 2021) for the two baselines.
``autoswitch-relative`` is our own.
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
        above: The test asks for a value above the threshold, not below.
        window: How many steps the value is taken over.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    above: ClassVar[bool] = False
    threshold: float | None = None
    window: int = 1

    @abstractmethod
    def value(self, sample: VarianceSample) -> float | None:
        """Take one step in; return the tested value, None while it has no meaning."""

    def met(self, value: float) -> bool:
        """Whether ``value`` passes the test; strict, as in the paper."""
        return self.threshold is not None and value < self.threshold

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


class AutoSwitch(Criterion):
    """Option I: the mean of ``|v_t - v_(t-1)|`` over coordinates and window < eps."""

    name = "autoswitch"
    needs = frozenset({"dv_l1"})

    def __init__(
        self, beta2: float, eps: float | None = None, window: int | None = None
    ) -> None:
        self.threshold = 1e-8 if eps is None else eps
        self.window = window or window_of(beta2)
        self._mean = WindowMean(self.window)

    def sample_change(self, sample: VarianceSample) -> float:
        """Z_t, the change of one step averaged over coordinates."""
        return sample.dv_l1 / sample.d

    @override
    def value(self, sample: VarianceSample) -> float | None:
        return self._mean.add(self.sample_change(sample))

    @property
    @override
    def first_step(self) -> int:
        return self.window

    @override
    def state(self) -> list[float]:
        return self._mean.state()

    @override
    def load(self, state: Sequence[float]) -> None:
        self._mean.load(state)


class GeometricAutoSwitch(AutoSwitch):
    """Option II with a geometric mean over coordinates.

    The paper prints exp(mean of |ln change|), which for changes below 1 is the
    reciprocal of the geometric mean and never falls below eps; exp(mean of ln|change|)
    is meant. Coordinates that did not change are left out: their logarithm is -inf.
    """

    name = "autoswitch-geometric"
    needs = frozenset({"dv_log"})

    @override
    def sample_change(self, sample: VarianceSample) -> float:
        return 0.0 if sample.dv_log is None else math.exp(sample.dv_log)


class RelativeAutoSwitch(Criterion):
    """Ours: the windowed change of v relative to v itself, below 1 - beta2.

    One step moves v by (1 - beta2) (g^2 - v), so the test says that squared gradients
    differ from v by less than v: v has caught up with them. Both sides scale with the
    square of the loss, so unlike AutoSwitch the decision does not depend on its unit.
    """

    name = "autoswitch-relative"
    needs = frozenset({"dv_l1", "v_l1"})

    def __init__(
        self, beta2: float, eps: float | None = None, window: int | None = None
    ) -> None:
        self.threshold = 1 - beta2 if eps is None else eps
        self.window = window or window_of(beta2)
        self._change, self._norm = WindowMean(self.window), WindowMean(self.window)

    @override
    def value(self, sample: VarianceSample) -> float | None:
        change, norm = self._change.add(sample.dv_l1), self._norm.add(sample.v_l1)
        return change / norm if change is not None and norm else None

    @property
    @override
    def first_step(self) -> int:
        return self.window

    @override
    def state(self) -> list[float]:
        return [*self._change.state(), *self._norm.state()]

    @override
    def load(self, state: Sequence[float]) -> None:
        half = len(state) // 2
        self._change.load(state[:half])
        self._norm.load(state[half:])


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
    def value(self, sample: VarianceSample) -> float | None:
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
    def value(self, sample: VarianceSample) -> float | None:
        self._norms.append(sample.v_l1)
        if len(self._norms) <= self.window or not self._norms[0]:
            return None
        return sample.v_l1 / self._norms[0]

    @override
    def met(self, value: float) -> bool:
        return value > self.threshold

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
    def value(self, sample: VarianceSample) -> float | None:
        return float(sample.step)

    @override
    def met(self, value: float) -> bool:
        return value >= self.step

    @property
    @override
    def first_step(self) -> int:
        return self.step


CRITERIA: tuple[type[Criterion], ...] = (
    AutoSwitch,
    GeometricAutoSwitch,
    RelativeAutoSwitch,
    RelativeNorm,
    Staleness,
    Fixed,
)
CRITERION_NAMES = tuple(kind.name for kind in CRITERIA)


def make_criterion(
    name: str,
    *,
    beta2: float,
    eps: float | None = None,
    window: int | None = None,
    step: int = 1,
) -> Criterion:
    """Make a criterion from its name.

    Args:
        name: One of ``CRITERION_NAMES``.
        beta2: Adam's beta2, which gives the window.
        eps: Threshold of the three AutoSwitch rules; None: their default.
        window: Steps averaged over; None: ``window_of(beta2)``.
        step: The step of ``fixed``.
    """
    kind = CRITERIA[CRITERION_NAMES.index(name)]
    if issubclass(kind, Fixed):
        return kind(step)
    if issubclass(kind, RelativeNorm):
        return kind()
    if issubclass(kind, Staleness):
        return kind(beta2, window)
    assert issubclass(kind, AutoSwitch | RelativeAutoSwitch)
    return kind(beta2, eps, window)


class SwitchRule:
    """A criterion with clipping: fire when t > t_max, or (met and t > t_min).

    Feed it every step of the precondition phase with :meth:`observe`. A fixed step is
    not clipped.

    Attributes:
        criterion: The test.
        t_min: No switch at this step or before.
        t_max: A switch right after this step whatever the test says; None for never.
        value: The tested value of the last step.
        lowest: The lowest value so far.
    """

    def __init__(
        self, criterion: Criterion, t_min: int = 0, t_max: int | None = None
    ) -> None:
        clipped = not isinstance(criterion, Fixed)
        self.criterion = criterion
        self.t_min = t_min if clipped else -1
        self.t_max = t_max if clipped else None
        self.value: float | None = None
        self.lowest: float | None = None

    @property
    def first_step(self) -> int:
        """The first step at which it can fire; before it, nothing need be read."""
        first = max(self.criterion.first_step, self.t_min + 1)
        return first if self.t_max is None else min(first, self.t_max + 1)

    def observe(self, sample: VarianceSample) -> str | None:
        """Take one step in; say why it is the switch point, or None if it is not.

        Returns:
            ``threshold``, ``t_max``, ``fixed``, or None.
        """
        value = self.value = self.criterion.value(sample)
        if value is not None:
            self.lowest = value if self.lowest is None else min(self.lowest, value)
        if value is not None and self.criterion.met(value) and sample.step > self.t_min:
            return "fixed" if isinstance(self.criterion, Fixed) else "threshold"
        if self.t_max is not None and sample.step > self.t_max:
            return "t_max"
        return None
