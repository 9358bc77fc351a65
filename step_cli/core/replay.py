"""Replaying a recorded run: where one criterion would have switched, and what then.

The metric after the switch is that of the STEP paper's Table 1.
"""

from dataclasses import dataclass

from step_cli.core.autoswitch import Criterion, Fixed, SwitchRule, VarianceSample

STEPS_AFTER = 1001  # terms of Table 1's sum, t0 to t0 + 1000


@dataclass
class Replay:
    """One criterion, fed every step of a recording.

    Attributes:
        rule: The criterion with its clipping.
        switch_step: Where it switches, or None.
        reason: ``threshold``, ``t_max``, ``fixed`` or ``never``.
        value: The tested value at the switch point.
        raw_step: Where it would switch without clipping, or None.
        first_value: The tested value at the first step at which it could fire.
    """

    rule: SwitchRule
    switch_step: int | None = None
    reason: str = "never"
    value: float | None = None
    raw_step: int | None = None
    first_value: float | None = None
    _change_after: float = 0.0
    _terms: int = 0

    def observe(self, sample: VarianceSample) -> None:
        """Take one step in."""
        if self.switch_step is not None:
            if self._terms < STEPS_AFTER:
                self._change_after += sample.dv_l1
                self._terms += 1
            if self.raw_step is not None:
                return
        reason = self.rule.observe(sample)
        value = self.rule.value
        met = value is not None and self.rule.criterion.met(value)
        if met and self.raw_step is None:
            self.raw_step = sample.step
        if sample.step >= self.rule.first_step and self.first_value is None:
            self.first_value = value
        if reason is not None and self.switch_step is None:
            self.switch_step, self.reason, self.value = sample.step, reason, value

    @property
    def criterion(self) -> Criterion:
        """The criterion itself."""
        return self.rule.criterion

    @property
    def clipped(self) -> bool:
        """Whether t_min, the window or t_max decided, and not the threshold."""
        if self.switch_step is None or isinstance(self.criterion, Fixed):
            return False
        return self.reason == "t_max" or self.switch_step == self.rule.first_step

    @property
    def post_switch_change(self) -> float | None:
        """1e-3 times the sum of ||v_(t+1) - v_t||_1, t from t0 to t0 + 1000.

        None where fewer steps were recorded after the switch point.
        """
        return self._change_after / 1000 if self._terms == STEPS_AFTER else None
