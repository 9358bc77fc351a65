"""Zero points of an operand as those of the stored tensors behind it."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError
from step_cli.formats.onnx.weights.positions import positions_along
from step_cli.formats.onnx.weights.scales import rescaled
from step_cli.formats.onnx.weights.views import Piece, View, size_of
from step_cli.formats.onnx.weights.zero_points import ZeroInput, Zeros, along, one_zero

Array = npt.NDArray[Any]


def dequantized(
    view: View, zero: ZeroInput, scale: Array | None, axis: int, block: int = 0
) -> View:
    """Codes as numbers again.

    Args:
        view: The operand.
        zero: Its zero point.
        scale: What it is multiplied by; None: that is not known here.
        axis: That of a list of zero points or scales, one for each index.
        block: How many indices of the axis have one of them; 0: just one.
    """
    pieces = []
    for piece in rescaled(view, scale, axis, block).pieces:
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
    first = piece.at[place]
    own = codes.reshape(-1)[first : first + size_of(piece.axes[place])]
    if one_zero(own):
        return Zeros(own[0])
    found = positions_along(piece, place)
    if found is None:
        return None
    stored, indices = found
    repeated = np.broadcast_to(own[:, None], indices.shape)
    return Zeros(repeated.reshape(-1), stored, indices.reshape(-1))
