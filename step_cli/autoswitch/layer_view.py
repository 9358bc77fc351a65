"""Which layers' variance concentrates last, from the steps recorded layer by layer."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from step_cli.autoswitch.sample_block import Booleans, Floats, Integers, LayerSums
from step_cli.autoswitch.thinned import Thinned

VALUES_KEPT = 2_000_000  # of all layers together


class LayerView:
    """Asks of each layer what AutoSwitch asks of the whole model.

    A layer is ready at the first recorded step from the window on at which its mean
    change over the window, of the recorded steps in it, is below the threshold.

    Args:
        sizes: Coordinates of each layer.
        window: Steps averaged over.
        eps: Threshold of the change per coordinate (AutoSwitch).
        relative_eps: Threshold of the change relative to v (autoswitch-relative).

    Attributes:
        ready: Step at which each layer is ready by the change per coordinate, or 0.
        relative_ready: The same by the change relative to v.
    """

    def __init__(
        self, sizes: Sequence[int], *, window: int, eps: float, relative_eps: float
    ) -> None:
        self._sizes = np.array(sizes, np.float64)
        self._window, self._eps, self._relative_eps = window, eps, relative_eps
        self._recent: deque[LayerSums] = deque()
        self._rows = Thinned(max(200, VALUES_KEPT // max(1, 2 * len(sizes))))
        self.ready = np.zeros(len(sizes), np.int64)
        self.relative_ready = np.zeros(len(sizes), np.int64)

    def observe(self, sums: LayerSums) -> None:
        """Take the next recorded step in."""
        self._recent.append(sums)
        while self._recent[0].step <= sums.step - self._window:
            self._recent.popleft()
        if sums.step < self._window:
            return
        change = np.mean([each.dv_l1 for each in self._recent], axis=0)
        norm = np.mean([each.v_l1 for each in self._recent], axis=0)
        relative = np.divide(change, norm, out=np.zeros_like(norm), where=norm > 0)
        per_weight = change / self._sizes
        self._note(self.ready, per_weight < self._eps, sums.step)
        self._note(self.relative_ready, relative < self._relative_eps, sums.step)
        self._rows.add(np.concatenate([[sums.step], per_weight, relative])[None])

    @staticmethod
    def _note(ready: Integers, now: Booleans, step: int) -> None:
        ready[(ready == 0) & now] = step

    def curves(self) -> tuple[Floats, Floats, Floats]:
        """Steps [rows]; change per coordinate and relative change, [rows, layers]."""
        rows = self._rows.rows()
        if not len(rows):
            empty = np.empty((0, len(self._sizes)))
            return np.empty(0), empty, empty
        changes, relatives = np.split(rows[:, 1:], 2, axis=1)
        return rows[:, 0], changes, relatives

    def at(self, step: int | None) -> tuple[Floats, Floats] | None:
        """Both changes at ``step``, or just before; None: at the end."""
        steps, changes, relatives = self.curves()
        before = len(steps) if step is None else int((steps <= step).sum())
        return (changes[before - 1], relatives[before - 1]) if before else None
