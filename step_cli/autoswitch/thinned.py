"""A few thousand rows of a table that is too long to keep, evenly spread."""

import numpy as np

from step_cli.autoswitch.sample_block import Floats


class Thinned:
    """Keeps each k-th row; k doubles whenever too many are kept.

    What is kept does not depend on how the rows were cut into pieces.

    Args:
        most: Rows kept at most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._every, self._seen = most, 1, 0
        self._kept: list[Floats] = []
        self._count = 0

    def add(self, rows: Floats) -> None:
        """Take the next rows in, [rows, columns]."""
        kept = rows[-self._seen % self._every :: self._every]
        self._seen += len(rows)
        self._kept.append(kept.copy())
        self._count += len(kept)
        while self._count > self._most:
            self._kept = [self.rows()[::2]]
            self._count, self._every = len(self._kept[0]), 2 * self._every

    def rows(self) -> Floats:
        """The rows kept, in order."""
        return np.concatenate(self._kept) if self._kept else np.empty((0, 0))
