"""What recorded sums say about another beta2.

v is linear in the squared gradients, so its L1 norm under another beta2 follows from
the recorded norms. Sums of |v_t - v_(t-1)| and of squares do not.
"""

import math

from step_cli.autoswitch.autoswitch import CRITERIA, Fixed, Staleness
from step_cli.autoswitch.criterion import VarianceSample

ROUNDING = 2.0**-23  # relative, of the recorded norms: they are sums in fp32

# What needs no more than the L1 norm of v.
ANSWERED = tuple(kind.name for kind in CRITERIA if kind in (Staleness, Fixed))


class OtherBeta2:
    """Turns the steps of a recording into those of a run with another beta2.

    With b the recorded one and c the other, the norm is
    (1 - c) / (1 - b) (v_t + (c - b) s_t), s_t = c s_(t-1) + v_(t-1).

    Args:
        recorded: beta2 of the recording, from its first step on.
        asked: The other one.

    Attributes:
        worst: Largest relative error of a norm so far, as rounding may have left it.
    """

    def __init__(self, recorded: float, asked: float) -> None:
        self._scale = (1 - asked) / (1 - recorded)
        self._asked, self._gap = asked, asked - recorded
        self._sum = self._previous = self.worst = 0.0

    def __call__(self, sample: VarianceSample) -> VarianceSample:
        """The step as the other beta2 would have left it; NaN where it is unknown."""
        self._sum = self._asked * self._sum + self._previous
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
