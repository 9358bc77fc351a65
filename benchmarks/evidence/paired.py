"""A paired difference with its 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences.

    Attributes:
        mean: Of first minus second.
        half: Half the width of the 95 % interval of Student's t.
        pairs: How many there were.
    """

    mean: float
    half: float
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half


def paired(pairs: Sequence[tuple[float, float]]) -> Paired:
    """Of two or more pairs."""
    differences = [first - second for first, second in pairs]
    spread = stdev(differences) / len(pairs) ** 0.5
    half = float(t.ppf(0.975, len(pairs) - 1)) * spread
    return Paired(fmean(differences), half, len(pairs))
