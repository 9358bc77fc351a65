"""How much of a tensor each N of M would keep: what `allocation` chooses N by."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.nm.allocation import allowed
from step_cli.nm.tensor_data import TensorData, row_pieces, values_of
from step_cli.nm.threads import in_order

PIECE = 1 << 18  # weights sorted at a time


def kept_squares(weights: TensorData, m: int, axis: int) -> dict[int, float]:
    """The sum of squares that the N largest of each M keep, for each N allowed.

    Args:
        weights: Finite numbers, or integer codes with a zero point.
        m: M, which divides the size of the axis.
        axis: The group axis.
    """
    pieces = row_pieces(weights, m if axis == 0 else 1, PIECE)
    tasks = (partial(_sorted_squares, weights, rows, m, axis) for rows in pieces)
    squares = sum(in_order(tasks), start=np.zeros(m))
    return {n: float(squares[:n].sum()) for n in allowed(m)}


def _sorted_squares(
    weights: TensorData, rows: slice, m: int, axis: int
) -> npt.NDArray[Any]:
    """The sum over groups of the largest of each, of the next largest, and so on."""
    values = np.moveaxis(values_of(weights, rows), axis, -1)
    groups = np.square(values.reshape(-1, m), dtype=np.float64)
    groups.sort(axis=1)
    total: npt.NDArray[Any] = groups.sum(axis=0)[::-1]
    return total
