"""The curves of a recording that people look at, thinned to what a screen can show."""

from dataclasses import dataclass

import numpy as np

from step_cli.autoswitch.criterion_values import (
    RunningMeans,
    arithmetic_changes,
    geometric_changes,
)
from step_cli.autoswitch.sample_block import Floats, SampleBlock
from step_cli.autoswitch.thinned import Thinned

POINTS = 4000


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
    """Collects :class:`Curves` from the blocks of a recording.

    Args:
        window: Steps averaged over.
    """

    def __init__(self, window: int) -> None:
        self._arithmetic, self._geometric = RunningMeans(window), RunningMeans(window)
        self._change, self._norm = RunningMeans(window), RunningMeans(window)
        self._rows = Thinned(POINTS)

    def observe(self, block: SampleBlock) -> None:
        """Take the next steps in."""
        change = arithmetic_changes(block)
        norm = self._norm.add(block.v_l1)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = self._change.add(block.dv_l1) / norm
        columns = (
            block.step,
            change,
            self._arithmetic.add(change),
            self._geometric.add(geometric_changes(block)),
            relative,
            block.v_l1,
            block.v_l2,
        )
        self._rows.add(np.stack(columns, axis=1, dtype=np.float64))

    def curves(self) -> Curves:
        """What was kept."""
        return Curves(*self._rows.rows().T)
