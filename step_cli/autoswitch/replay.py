"""Replaying a recorded run: where one criterion would have switched, and what then.

The metric after the switch is that of the STEP paper's Table 1. Another beta2 can be
replayed in part: v is linear in the squared gradients, so its L1 norm follows from the
recorded norms; sums of |v_t - v_(t-1)| and of squares do not.
"""

import math
from collections.abc import Iterator

from step_cli.autoswitch.autoswitch import (
    CRITERIA,
    AutoSwitch,
    Fixed,
    RelativeAutoSwitch,
    Staleness,
    SwitchRule,
)
from step_cli.autoswitch.criterion import Criterion, VarianceSample

STEPS_AFTER = 1001  # terms of Table 1's sum, t0 to t0 + 1000
# Times the frozen variance beyond which training may not recover. v grew to 18 times
# its value after the switch with which a fine-tuning failed, and at most to twice its
# value after those of three tasks that went well.
OUTGROWN = 8.0
SMALLEST_EPS = 1e-40  # below it no threshold is tried: such a change is none
ROUNDING = 2.0**-23  # relative, of the recorded norms: they are sums in fp32
# What needs no more than the L1 norm of v, which another beta2 leaves known.
ANSWERED = tuple(kind.name for kind in CRITERIA if kind in (Staleness, Fixed))


class Replay:
    """One criterion, fed every step of a recording.

    Args:
        rule: The criterion with its clipping.
        last_step: Of the training: no switch after it; None for no end.
        beta2: Adam's, by which v is corrected for its start at zero; 0: it is not.

    Attributes:
        rule: The criterion with its clipping.
        switch_step: Where it switches, or None.
        reason: ``threshold``, ``t_max``, ``fixed`` or ``never``.
        value: The tested value at the switch point.
        raw_step: Where it would switch without clipping, or None.
        first_able: The first step at which its test could make it switch.
        v_mean: Mean over coordinates of v at the switch point, in squared gradients.
        v_growth: Largest v of up to 1001 steps after the switch point over v there,
            by their bias-corrected L1 norms; None where no step follows, or v was 0.
        other_eps: At which step other thresholds would have decided; None where
            there is no threshold to choose.
    """

    def __init__(
        self, rule: SwitchRule, last_step: int | None = None, beta2: float = 0.0
    ) -> None:
        self.rule = rule
        self._last_step, self._beta2 = last_step, beta2
        self.switch_step: int | None = None
        self.reason = "never"
        self.value: float | None = None
        self.raw_step: int | None = None
        self.first_able: int | None = None
        self.v_mean: float | None = None
        self.v_growth: float | None = None
        self._v_there, self._from_zero = 0.0, False
        chosen = isinstance(rule.criterion, AutoSwitch | RelativeAutoSwitch)
        self.other_eps: dict[float, int] | None = {} if chosen else None
        self._lowest = math.inf  # value at which the test could make it switch
        self._after: list[float] = []
        self._is_complete = False

    def update(self, sample: VarianceSample) -> None:
        """Take the next step in."""
        if self._is_complete:
            return
        step, rule = sample.step, self.rule
        reason = rule.update(sample)
        if rule.value is not None:
            if self.raw_step is None and rule.criterion.met(rule.value):
                self.raw_step = step
            if step > rule.t_min:
                self._note_able(step, rule.value)
        if self.switch_step is None:
            in_time = self._last_step is None or step <= self._last_step
            if reason is not None and in_time:
                self.switch_step, self.reason, self.value = step, reason, rule.value
                self.v_mean = sample.v_l1 / sample.d
                self._v_there = self._corrected(sample)
        elif len(self._after) < STEPS_AFTER:
            self._after.append(sample.dv_l1)
            if self._v_there:
                grown = self._corrected(sample) / self._v_there
                self.v_growth = max(grown, self.v_growth or 0.0)
            self._from_zero |= not self._v_there and sample.v_l1 > 0
        else:
            self._is_complete = self._has_seen_all(step)

    def _corrected(self, sample: VarianceSample) -> float:
        return sample.v_l1 / (1 - self._beta2**sample.step)

    def _note_able(self, step: int, value: float) -> None:
        """Note the value of the test from the step on at which it may decide.

        A threshold above the first such value would decide nothing, as the first step
        at which the criterion may fire would.
        """
        if self.first_able is None:
            self.first_able, self._lowest = step, value
        in_time = self.rule.t_max is None or step <= self.rule.t_max
        if value < self._lowest and in_time and self.other_eps is not None:
            below = thresholds_between(value, self._lowest)
            self.other_eps |= dict.fromkeys(below, step)
            self._lowest = value

    def _has_seen_all(self, step: int) -> bool:
        """Whether nothing after ``step`` can change the answers."""
        t_max = self.rule.t_max
        past = self.other_eps is None or (t_max is not None and step >= t_max)
        return past and self.settled and self.raw_step is not None

    def done_by(self, step: int) -> bool:
        """Whether all is known but what clipping hides, now that ``step`` was seen."""
        too_late = self._last_step is not None and step >= self._last_step
        return self.settled if self.switch_step is not None else too_late

    @property
    def criterion(self) -> Criterion:
        """The criterion itself."""
        return self.rule.criterion

    @property
    def settled(self) -> bool:
        """Whether it has switched and the steps of Table 1's sum are there."""
        return len(self._after) == STEPS_AFTER

    @property
    def decided_by(self) -> str:
        """The reason, or ``t_min`` or ``window`` where the test passed from the start.

        They set the first step at which a criterion may fire.
        """
        if self.reason != "threshold" or self.switch_step != self.first_able:
            return self.reason
        waits = self.criterion.first_step > self.rule.t_min
        return "window" if waits else "t_min"

    @property
    def clipped(self) -> bool:
        """Whether t_min, the window or t_max decided, and not the threshold."""
        return self.decided_by in ("t_min", "window", "t_max")

    @property
    def outgrown(self) -> bool:
        """Whether v grows so far after the switch point that freezing it is unsafe."""
        return self._from_zero or (self.v_growth or 0.0) > OUTGROWN

    @property
    def margin(self) -> float | None:
        """How many times the value at the switch point passes its threshold.

        Below 1 where it does not pass; None where there is nothing to compare.
        """
        threshold, value = self.criterion.threshold, self.value
        if threshold is None or not value or not math.isfinite(value):
            return None
        return value / threshold if self.criterion.above else threshold / value

    @property
    def post_switch_change(self) -> float | None:
        """1e-3 times the sum of ||v_(t+1) - v_t||_1, t from t0 to t0 + 1000.

        None where fewer steps were recorded after the switch point.
        """
        if not self.settled or math.isnan(self._after[-1]):
            return None
        return math.fsum(self._after) / 1000


def thresholds_between(low: float, high: float) -> Iterator[float]:
    """The thresholds of one digit with low < eps <= high, the largest first.

    They are what people would type: 1e-8, 2e-8, ..., 9e-8, 1e-7.
    """
    low = max(low, SMALLEST_EPS)
    if not low < high < math.inf:
        return
    for power in range(math.floor(math.log10(high)) + 1, -41, -1):
        for digit in range(9, 0, -1):
            eps = float(f"{digit}e{power}")
            if eps <= low:
                return
            if eps <= high:
                yield eps


class OtherBeta2:
    """Turns the steps of a recording into those of a run with another beta2.

    With b the recorded one and c the other, the norm is
    (1 - c) / (1 - b) (v_t + (c - b) s_t), s_t = c s_(t-1) + v_(t-1).

    Args:
        recorded: beta2 of the recording, from its first step on.
        other: The other one.

    Attributes:
        worst: Largest relative error of a norm so far, as rounding may have left it.
    """

    def __init__(self, recorded: float, other: float) -> None:
        self._scale = (1 - other) / (1 - recorded)
        self._beta2, self._gap = other, other - recorded
        self._sum = self._previous = self.worst = 0.0

    def __call__(self, sample: VarianceSample) -> VarianceSample:
        """The step as the other beta2 would have left it; NaN where it is unknown."""
        self._sum = self._beta2 * self._sum + self._previous
        self._previous = sample.v_l1
        past = self._gap * self._sum
        norm = self._scale * (sample.v_l1 + past)
        error = self._scale * ROUNDING * (sample.v_l1 + abs(past))
        if error > 0:
            self.worst = max(self.worst, error / max(norm, 1e-300))
        return VarianceSample(
            sample.step,
            sample.d,
            v_l1=max(norm, 0.0),
            v_l2=math.nan,
            dv_l1=math.nan,
            dv_log=None,
        )
