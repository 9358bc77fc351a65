"""What recorded sums say about another beta2.

v is linear in the squared gradients, so its L1 norm under another beta2 follows from
the recorded norms. Sums of |v_t - v_(t-1)| and of squares do not.
"""

from dataclasses import replace

import numpy as np

from step_cli.autoswitch.autoswitch import CRITERIA, Fixed, Staleness
from step_cli.autoswitch.sample_block import SampleBlock

ROUNDING = 2.0**-23  # relative, of the recorded norms: they are sums in fp32

# What needs no more than the L1 norm of v.
ANSWERED = tuple(kind.name for kind in CRITERIA if kind in (Staleness, Fixed))


class OtherBeta2:
    """Turns the blocks of a recording into those of a run with another beta2.

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

    def __call__(self, block: SampleBlock) -> SampleBlock:
        """The block as the other beta2 would have left it; NaN where nobody knows."""
        sums = []
        for norm in block.v_l1.tolist():
            self._sum = self._asked * self._sum + self._previous
            self._previous = norm
            sums.append(self._sum)
        past = self._gap * np.array(sums)
        norms = self._scale * (block.v_l1 + past)
        error = self._scale * ROUNDING * (block.v_l1 + np.abs(past))
        known = error[error > 0] / np.maximum(norms[error > 0], 1e-300)
        self.worst = max(self.worst, *known.tolist()) if len(known) else self.worst
        unknown = np.full(len(block), np.nan)
        return replace(
            block,
            v_l1=np.maximum(norms, 0.0),
            v_l2=unknown,
            dv_l1=unknown,
            dv_log=unknown,
            layers=(),
        )
