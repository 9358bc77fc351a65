"""Where the elements along an axis of an operand stand in the stored tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.weights.views import MIXED, Piece, Run, size_of
from step_cli.formats.onnx.weights.zero_points import MOST_CODES

Array = npt.NDArray[Any]


def positions_along(piece: Piece, place: int) -> tuple[int, Array] | None:
    """The stored axis behind an axis of the operand, and the indices of its elements.

    Args:
        piece: Of the operand.
        place: The axis of the operand, along which the piece has several elements.

    Returns:
        The stored axis, and its index for each element; a row of several where other
        runs go along the same stored axis. None if several stored axes are behind it,
        or they are too many.
    """
    runs = piece.axes[place]
    axes = {run.axis for run in runs if run.size != 1}
    if len(axes) != 1 or MIXED in axes:
        return None
    (axis,) = axes
    others = [*piece.hidden]
    for other, some in enumerate(piece.axes):
        others += some if other != place else ()
    again = [run for run in others if run.axis == axis]
    if size_of((*runs, *again)) > MOST_CODES:
        return None
    return axis, piece.first[axis] + _steps(runs)[:, None] + _steps(again)


def _steps(runs: Sequence[Run]) -> Array:
    """How far each element of some runs is from the first, the last run fastest."""
    steps = np.zeros(1, np.int64)
    for run in runs:
        own = run.stride * np.arange(run.size)
        steps = (steps[:, None] + own).reshape(-1)
    return steps
