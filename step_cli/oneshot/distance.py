"""How far a weight is from an N:M pattern."""

from dataclasses import dataclass

from torch import Tensor

from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import count_violations, nm_mask


@dataclass(frozen=True)
class Distance:
    """What pruning a weight to a pattern would take.

    Attributes:
        removed: Sum of the magnitudes that pruning would set to zero.
        total: Sum of all magnitudes.
        violations: Groups that hold more than N non-zeros.
    """

    removed: float
    total: float
    violations: int

    @property
    def share(self) -> float:
        """Share of the magnitude that pruning would remove, from 0."""
        return self.removed / self.total if self.total else 0.0


def nm_distance(weight: Tensor, pattern: NMPattern | str, axis: int) -> Distance:
    """Measure how far ``weight`` is from ``pattern`` in L1, summed in fp64.

    The nearest N:M weight keeps the N largest of each group, so this is the distance to
    the whole set.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of M.
        NonFiniteError: A weight is NaN, which has no rank.
    """
    pattern = NMPattern.of(pattern)
    magnitude = weight.detach().abs()
    pruned = ~nm_mask(magnitude, pattern, axis)
    magnitude = magnitude.double()
    return Distance(
        removed=float((magnitude * pruned).sum()),
        total=float(magnitude.sum()),
        violations=count_violations(weight, pattern, axis),
    )
