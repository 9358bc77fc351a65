"""Many steps of a recording at once, as columns, so that millions replay fast."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from step_cli.autoswitch.autoswitch import VarianceSample

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class LayerSums:
    """What one step did to the variance of each layer.

    Attributes:
        step: Counted from 1.
        v_l1: L1 norm of each layer's v after the step, [layers].
        dv_l1: Sum of its ``|v_t - v_(t-1)|``, [layers].
    """

    step: int
    v_l1: Floats
    dv_l1: Floats


@dataclass(frozen=True)
class SampleBlock:
    """Consecutive samples, the fields of :class:`VarianceSample` as arrays [steps].

    Attributes:
        dv_log: NaN where the sample has None.
        layers: Of those steps that were recorded layer by layer.
    """

    step: Integers
    d: Integers
    v_l1: Floats
    v_l2: Floats
    dv_l1: Floats
    dv_log: Floats
    layers: tuple[LayerSums, ...] = ()

    @classmethod
    def of(
        cls, samples: Sequence[VarianceSample], layers: Sequence[LayerSums] = ()
    ) -> "SampleBlock":
        """The columns of ``samples``."""
        logs = [np.nan if s.dv_log is None else s.dv_log for s in samples]
        return cls(
            step=np.array([s.step for s in samples], np.int64),
            d=np.array([s.d for s in samples], np.int64),
            v_l1=np.array([s.v_l1 for s in samples], np.float64),
            v_l2=np.array([s.v_l2 for s in samples], np.float64),
            dv_l1=np.array([s.dv_l1 for s in samples], np.float64),
            dv_log=np.array(logs, np.float64),
            layers=tuple(layers),
        )

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, part: slice) -> "SampleBlock":
        """The samples of ``part``, consecutive ones."""
        step = self.step[part]
        last = int(step[-1]) if len(step) else 0
        first = int(step[0]) if len(step) else 1
        return SampleBlock(
            step,
            self.d[part],
            self.v_l1[part],
            self.v_l2[part],
            self.dv_l1[part],
            self.dv_log[part],
            tuple(sums for sums in self.layers if first <= sums.step <= last),
        )
