"""Replaying a recorded run: where one criterion would have switched, and what then.

The metric after the switch is that of the STEP paper's Table 1.
"""

import math

import numpy as np

from step_cli.autoswitch.autoswitch import (
    AutoSwitch,
    Criterion,
    Fixed,
    RelativeAutoSwitch,
    SwitchRule,
)
from step_cli.autoswitch.criterion_values import passes, values_of
from step_cli.autoswitch.eps_ladder import EpsLadder
from step_cli.autoswitch.sample_block import Booleans, Floats, SampleBlock

STEPS_AFTER = 1001  # terms of Table 1's sum, t0 to t0 + 1000


class Replay:
    """One criterion, fed every step of a recording.

    Args:
        rule: The criterion with its clipping.
        last_step: Of the training: no switch after it; None for no end.

    Attributes:
        rule: The criterion with its clipping.
        switch_step: Where it switches, or None.
        reason: ``threshold``, ``t_max``, ``fixed`` or ``never``.
        value: The tested value at the switch point.
        raw_step: Where it would switch without clipping, or None.
        first_able: The first step at which its test could make it switch.
        v_mean: Mean over coordinates of v at the switch point, in squared gradients.
        ladder: Where other thresholds would have decided; None where there is no
            threshold to choose.
    """

    def __init__(self, rule: SwitchRule, last_step: int | None = None) -> None:
        self.rule = rule
        self._last_step = last_step
        self.switch_step: int | None = None
        self.reason = "never"
        self.value: float | None = None
        self.raw_step: int | None = None
        self.first_able: int | None = None
        self.v_mean: float | None = None
        chosen = isinstance(rule.criterion, AutoSwitch | RelativeAutoSwitch)
        self.ladder = EpsLadder(rule.t_max) if chosen else None
        self._values = values_of(rule.criterion)
        self._after: list[float] = []

    def observe(self, block: SampleBlock) -> None:
        """Take the next steps in."""
        if not len(block) or self._has_seen_all(int(block.step[0])):
            return
        values = self._values(block)
        met = passes(self.criterion, values)
        if self.raw_step is None and met.any():
            self.raw_step = int(block.step[met.argmax()])
        self._look_at_range(block, values)
        if self.switch_step is None:
            after = self._look_for_switch(block, values, met)
        else:
            after = block.dv_l1
        self._after += after[: STEPS_AFTER - len(self._after)].tolist()

    def _look_for_switch(
        self, block: SampleBlock, values: Floats, met: Booleans
    ) -> Floats:
        """Find the switch point; return the changes after it."""
        by_test = met & (block.step > self.rule.t_min)
        fires = by_test
        if self.rule.t_max is not None:
            fires = by_test | (block.step > self.rule.t_max)
        if self._last_step is not None:
            fires = fires & (block.step <= self._last_step)
        if not fires.any():
            return block.dv_l1[:0]
        at = int(fires.argmax())
        self.switch_step = int(block.step[at])
        self.value = None if np.isnan(values[at]) else float(values[at])
        self.v_mean = float(block.v_l1[at] / block.d[at])
        self.reason = "t_max"
        if by_test[at]:
            fixed = isinstance(self.criterion, Fixed)
            self.reason = "fixed" if fixed else "threshold"
        return block.dv_l1[at + 1 :]

    def _look_at_range(self, block: SampleBlock, values: Floats) -> None:
        """Note what the test says from the step on at which it may decide."""
        able = (block.step > self.rule.t_min) & ~np.isnan(values)
        if not able.any():
            return
        if self.first_able is None:
            self.first_able = int(block.step[able.argmax()])
        if self.ladder is not None:
            self.ladder.observe(block.step[able], values[able])

    def _has_seen_all(self, step: int) -> bool:
        """Whether nothing from ``step`` on can change the answers."""
        t_max = self.rule.t_max
        climbed = self.ladder is None or (t_max is not None and step > t_max)
        return self.settled and self.raw_step is not None and climbed

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
