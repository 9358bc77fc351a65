"""What pruning did to a tensor, or to a part of it: counts and sums."""

from dataclasses import dataclass


@dataclass
class Pruned:
    """What pruning did.

    Attributes:
        elements: Weights looked at.
        changed: Weights set to zero that were not.
        nonzeros: Non-zero weights left.
        before: Sum of magnitudes before.
        after: Sum of magnitudes after.
    """

    elements: int = 0
    changed: int = 0
    nonzeros: int = 0
    before: float = 0.0
    after: float = 0.0

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.nonzeros / self.elements if self.elements else 0.0

    @property
    def retained(self) -> float:
        """Share of magnitude kept; all of nothing is all."""
        return self.after / self.before if self.before else 1.0

    def add(self, other: "Pruned") -> None:
        """Count another part in."""
        self.elements += other.elements
        self.changed += other.changed
        self.nonzeros += other.nonzeros
        self.before += other.before
        self.after += other.after
