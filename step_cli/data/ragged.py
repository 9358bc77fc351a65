"""Rows of unequal length, one after the other in memory."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class Ragged:
    """Rows of token numbers, four bytes each."""

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self._values = array("i")
        self._ends = array("q", [0])
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, row: Sequence[int]) -> None:
        """Add a row at the end."""
        self._values.extend(row)
        self._ends.append(len(self._values))

    def padded(self, index: Tensor, fill: int) -> tuple[Tensor, Tensor]:
        """Rows as a rectangle as wide as the longest of them.

        Args:
            index: Row numbers, int64 ``[n]``.
            fill: What stands after the end of a shorter row.

        Returns:
            int64 ``[n, width]``, and a mask of that shape, True where a row is.
        """
        values = np.frombuffer(self._values, np.int32)
        ends = np.frombuffer(self._ends, np.int64)
        rows = index.numpy()
        parts = [values[ends[row] : ends[row + 1]] for row in rows]
        lengths = ends[rows + 1] - ends[rows]
        mask = np.arange(max(lengths, default=0)) < lengths[:, None]
        table = np.full(mask.shape, fill, np.int64)
        table[mask] = np.concatenate(parts)
        return torch.from_numpy(table), torch.from_numpy(mask)
