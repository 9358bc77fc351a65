"""Whether the variance that STEP froze still describes the gradients.

STEP divides by the variance of the switch point. Where gradients grow afterwards, as
those of a pre-trained encoder do while its new head is learned, steps become too long,
and the loss may rise without any number that is not finite.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from step_cli.autoswitch.replay import OUTGROWN

logger = logging.getLogger(__name__)

LOGGED = 3  # logged steps that are looked at together, as one batch may be an exception


class FrozenVariance:
    """Warns, once, where gradients have outgrown the frozen variance."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=LOGGED)
        self._warned = False

    def look(self, values: Mapping[str, Any], switch_step: int | None) -> None:
        """Look at what was logged of a step.

        Args:
            values: With ``step``, and ``variance_ratio``: mean square of the gradient
                over the mean of the frozen variance, None where none is frozen.
            switch_step: When it was frozen.
        """
        if self._warned or values["variance_ratio"] is None:
            return
        self._ratios.append(values["variance_ratio"])
        now = statistics.median(self._ratios)
        if len(self._ratios) == LOGGED and now > OUTGROWN:
            self._warned = True
            logger.warning(
                "step %d: squared gradients are %.0f times the variance that was "
                "frozen after step %s, so steps are about %.1f times too long, and "
                "training may not recover: switch later, by switch.t_min or another "
                "switch.criterion",
                values["step"],
                now,
                switch_step,
                math.sqrt(now),
            )
