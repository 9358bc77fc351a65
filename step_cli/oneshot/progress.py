"""Which block and layer is being pruned, and about how long the rest takes."""

import logging
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from step_cli.oneshot.inputs import TargetLayer

log = logging.getLogger(__name__)

EVERY_S = 10.0  # between lines on layers of one block


class PruningProgress:
    """Says where pruning stands; time is foretold by the share of weights that is done.

    Args:
        layers: All that is to be pruned.
        now: Names what is worked on, on a terminal.
    """

    def __init__(
        self, layers: Sequence[TargetLayer], now: Callable[[str], None]
    ) -> None:
        self._now = now
        self._left = sum(map(_size, layers))
        self._done = 0
        self._place = ""
        self._start = self._said = time.monotonic()

    def skip(self, layers: Sequence[TargetLayer]) -> None:
        """These were pruned by the run that this one goes on from."""
        self._left -= sum(map(_size, layers))
        self._start = time.monotonic()

    def begin(self, place: str, layers: Sequence[TargetLayer]) -> None:
        """Say what comes next, such as ``block 2 of 32``."""
        self._place = place
        self._now(f"pruning {place}")
        self._said = time.monotonic()
        count = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
        log.info("%s: %s%s", place, count, self._rest())

    def pruned(self, layer: TargetLayer) -> None:
        """A layer is done; said if nothing was said for a while."""
        self._done += _size(layer)
        self._left -= _size(layer)
        self._now(f"pruning {self._place}: {layer.name} is done")
        now = time.monotonic()
        if now - self._said >= EVERY_S:
            self._said = now
            log.info("%s: %s is pruned%s", self._place, layer.name, self._rest())

    def _rest(self) -> str:
        if not self._done or not self._left:
            return ""
        per_weight = (time.monotonic() - self._start) / self._done
        return f", about {in_words(per_weight * self._left)} left"


def in_words(seconds: float) -> str:
    """A time in the unit that gives it few digits: ``40 s``, ``14 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _size(layer: TargetLayer) -> int:
    weight = layer.module.weight
    assert isinstance(weight, Tensor)
    return weight.numel()
