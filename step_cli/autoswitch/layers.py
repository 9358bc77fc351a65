"""Which layers' variance concentrates last, from the steps recorded layer by layer."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from step_cli.autoswitch.curves import Downsampled, Floats
from step_cli.autoswitch.variance_log import LayerSums

VALUES_KEPT = 2_000_000  # of all layers together


class LayerReadiness:
    """Applies to each layer the tests that AutoSwitch applies to the whole model.

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
        # Step, L1 norm of each layer's v, sum of its changes.
        self._recent: deque[tuple[int, Floats, Floats]] = deque()
        self._rows = Downsampled(max(200, VALUES_KEPT // max(1, 2 * len(sizes))))
        self.ready = np.zeros(len(sizes), np.int64)
        self.relative_ready = np.zeros(len(sizes), np.int64)

    def update(self, step: int, sums: LayerSums) -> None:
        """Take the next step that was recorded layer by layer in."""
        v_l1, dv_l1 = np.array(sums, np.float64).T
        self._recent.append((step, v_l1, dv_l1))
        while self._recent[0][0] <= step - self._window:
            self._recent.popleft()
        if step < self._window:
            return
        _, norms, changes = zip(*self._recent, strict=True)
        change, norm = np.mean(changes, axis=0), np.mean(norms, axis=0)
        relative = np.divide(change, norm, out=np.zeros_like(norm), where=norm > 0)
        per_weight = change / self._sizes
        self.ready[(self.ready == 0) & (per_weight < self._eps)] = step
        first = (self.relative_ready == 0) & (relative < self._relative_eps)
        self.relative_ready[first] = step
        if self._rows.is_due():
            self._rows.add(np.concatenate([[step], per_weight, relative]).tolist())

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
