"""Deciding the switch point t0: AutoSwitch, clipping, and what the theory gives.

Sources: STEP (Lu et al., ICML 2023), Algorithm 2. ``autoswitch-relative`` is our own.
"""

import math
from collections.abc import Sequence

from typing_extensions import override

from step_cli.autoswitch.criterion import (
    Criterion,
    Fixed,
    RelativeNorm,
    Staleness,
    VarianceSample,
    WindowMean,
    window_of,
)

__all__ = [
    "CRITERIA",
    "CRITERION_NAMES",
    "AutoSwitch",
    "Criterion",
    "Fixed",
    "GeometricAutoSwitch",
    "RelativeAutoSwitch",
    "RelativeNorm",
    "Staleness",
    "SwitchRule",
    "VarianceSample",
    "WindowMean",
    "make_criterion",
    "window_of",
]


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
    def update(self, sample: VarianceSample) -> float | None:
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

    One step moves v by (1 - beta2) (g^2 - v), so the test means that squared gradients
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
    def update(self, sample: VarianceSample) -> float | None:
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

    Feed it every step of the precondition phase with :meth:`update`. A fixed step is
    not clipped.

    Attributes:
        criterion: The test.
        t_min: No switch at this step or before.
        t_max: A switch right after this step whatever the value is; None for never.
        value: The tested value of the last step.
    """

    def __init__(
        self, criterion: Criterion, t_min: int = 0, t_max: int | None = None
    ) -> None:
        clipped = not isinstance(criterion, Fixed)
        self.criterion = criterion
        self.t_min = t_min if clipped else -1
        self.t_max = t_max if clipped else None
        self.value: float | None = None

    @property
    def first_step(self) -> int:
        """The first step at which it can fire; before it, nothing need be read."""
        first = max(self.criterion.first_step, self.t_min + 1)
        return first if self.t_max is None else min(first, self.t_max + 1)

    @property
    def last_step(self) -> int | None:
        """The step at which it fires at the latest; None: no step is certain."""
        if isinstance(self.criterion, Fixed):
            return self.first_step
        return None if self.t_max is None else self.t_max + 1

    def update(self, sample: VarianceSample) -> str | None:
        """Take one step in; return why it is the switch point, or None if it is not.

        Returns:
            ``threshold``, ``t_max``, ``fixed``, or None.
        """
        value = self.value = self.criterion.update(sample)
        if value is not None and self.criterion.met(value) and sample.step > self.t_min:
            return "fixed" if isinstance(self.criterion, Fixed) else "threshold"
        if self.t_max is not None and sample.step > self.t_max:
            return "t_max"
        return None


# Adam's v of steady noise of standard deviation sigma changes by (1 - beta2) times
# E|g^2 - sigma^2| = 4 phi(1) sigma^2 a step, phi the standard normal density.
STEADY_CHANGE = 4 * math.exp(-0.5) / math.sqrt(2 * math.pi)


def theorem_1_minimum(beta2: float) -> int:
    """The smallest t0 for which Theorem 1 of STEP holds: t0 > log_beta2(1 - 1/sqrt 2).

    Before it the bias correction of v still exceeds sqrt 2. 1228 at beta2 = 0.999.
    """
    return math.floor(math.log(1 - math.sqrt(0.5)) / math.log(beta2)) + 1


def noise_below(eps: float, beta2: float) -> float:
    """The standard deviation below which steady noise alone changes v by less than eps.

    Where gradients are smaller than that, AutoSwitch fires as soon as it may: eps
    cannot decide.
    """
    return math.sqrt(eps / (STEADY_CHANGE * (1 - beta2)))
