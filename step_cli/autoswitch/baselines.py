"""The criteria that AutoSwitch is compared with.

Sources: STEP (Lu et al., ICML 2023), its Eq. (10) (after Agarwal et al. 2021) and
Eq. (11) (after Tang et al. 2021).
"""

from collections import deque
from collections.abc import Sequence

from typing_extensions import override

from step_cli.autoswitch.criterion import Criterion, VarianceSample, window_of


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
