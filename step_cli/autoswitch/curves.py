"""The curves of a recording, of as many points as a screen can show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from step_cli.autoswitch.autoswitch import (
    AutoSwitch,
    GeometricAutoSwitch,
    RelativeAutoSwitch,
)
from step_cli.autoswitch.criterion import VarianceSample

Floats = NDArray[np.float64]
POINTS = 4000


class Downsampled:
    """Keeps each k-th row of a long table; k doubles whenever too many are kept.

    Args:
        most: Rows kept at most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._every, self._seen = most, 1, 0
        self._kept: list[Sequence[float]] = []

    def is_due(self) -> bool:
        """Count the next row in; whether it is to be added."""
        self._seen += 1
        return (self._seen - 1) % self._every == 0

    def add(self, row: Sequence[float]) -> None:
        """Keep a row that :meth:`is_due`."""
        self._kept.append(row)
        if len(self._kept) > self._most:
            self._kept, self._every = self._kept[::2], 2 * self._every

    def rows(self) -> Floats:
        """The rows kept, in order, [rows, columns]."""
        return np.array(self._kept, np.float64)


@dataclass(frozen=True)
class Curves:
    """Columns over the steps that were kept; NaN before the first window is full.

    Attributes:
        step: Counted from 1.
        change: Mean over coordinates of |v_t - v_(t-1)|, in squared gradients.
        arithmetic: Its mean over the window, which AutoSwitch compares with eps.
        geometric: The same of the geometric mean over coordinates (Option II).
        relative: Change over norm of v, each summed over the window.
        v_l1: L1 norm of v, in squared gradients.
        v_l2: L2 norm of v, in squared gradients.
    """

    step: Floats
    change: Floats
    arithmetic: Floats
    geometric: Floats
    relative: Floats
    v_l1: Floats
    v_l2: Floats


class CurveRecorder:
    """Collects :class:`Curves` from the steps of a recording.

    Args:
        beta2: Adam's.
        window: Steps averaged over.
    """

    def __init__(self, beta2: float, window: int) -> None:
        kinds = (AutoSwitch, GeometricAutoSwitch, RelativeAutoSwitch)
        self._criteria = [kind(beta2, window=window) for kind in kinds]
        self._rows = Downsampled(POINTS)

    def update(self, sample: VarianceSample) -> None:
        """Take the next step in."""
        means = [criterion.update(sample) for criterion in self._criteria]
        if self._rows.is_due():
            self._rows.add(
                (
                    sample.step,
                    sample.dv_l1 / sample.d,
                    *(math.nan if mean is None else mean for mean in means),
                    sample.v_l1,
                    sample.v_l2,
                )
            )

    def curves(self) -> Curves:
        """What was kept."""
        return Curves(*self._rows.rows().T)
