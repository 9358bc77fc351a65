"""Zero points of an operand as those of the stored tensors behind it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError
from step_cli.formats.onnx.weights.views import MIXED, Piece, Run, View, size_of
from step_cli.formats.onnx.weights.zero_points import (
    MOST_CODES,
    ZeroInput,
    Zeros,
    along,
    one_zero,
)

Array = npt.NDArray[Any]


def dequantized(view: View, zero: ZeroInput, axis: int) -> View:
    """Codes as numbers again.

    Args:
        view: The operand.
        zero: Its zero point.
        axis: That of a list of zero points, one for each index.
    """
    pieces = []
    for piece in view.pieces:
        zeros = _zeros(view, piece, zero, axis)
        meaning = piece.meaning.dequantized(zero, zeros, piece.tensor)
        pieces.append(replace(piece, meaning=meaning))
    return View(view.shape, tuple(pieces))


def _zeros(view: View, piece: Piece, zero: ZeroInput, axis: int) -> Zeros | None:
    """The codes of zero of a stored tensor, from the zero points of an operand.

    None where they are not one for each index of one of its axes.
    """
    codes = zero.codes
    if codes is None or codes.size == 0:
        return None
    if one_zero(codes):
        return Zeros(codes.reshape(-1)[0])
    place = along(codes, len(view.shape), axis)
    if place is None:
        return None
    if codes.size != view.shape[place]:
        raise InputError(
            f"{codes.size} zero points for {view.shape[place]} slices",
            tensor=piece.tensor.name,
        )
    runs = [run for run in piece.axes[place] if run.size != 1]
    first = piece.at[place]
    own = codes.reshape(-1)[first : first + size_of(tuple(runs))]
    if one_zero(own):
        return Zeros(own[0])
    stored = {run.axis for run in runs}
    if len(stored) > 1 or MIXED in stored:
        return None
    return _along_stored(piece, place, own)


def _along_stored(piece: Piece, place: int, codes: Array) -> Zeros | None:
    """Codes for each index of an axis of the operand, as those of a stored axis.

    The other runs of that axis have the same codes again.
    """
    runs = piece.axes[place]
    axis = next(run.axis for run in runs if run.size != 1)
    others = [*piece.hidden]
    for other, some in enumerate(piece.axes):
        others += some if other != place else ()
    again = [run for run in others if run.axis == axis]
    if size_of((*runs, *again)) > MOST_CODES:
        return None
    indices = piece.first[axis] + _steps(runs)[:, None] + _steps(again)
    repeated = np.broadcast_to(codes[:, None], indices.shape)
    return Zeros(repeated.reshape(-1), axis, indices.reshape(-1))


def _steps(runs: Sequence[Run]) -> Array:
    """How far each element of some runs is from the first, the last run fastest."""
    steps = np.zeros(1, np.int64)
    for run in runs:
        own = run.stride * np.arange(run.size)
        steps = (steps[:, None] + own).reshape(-1)
    return steps
