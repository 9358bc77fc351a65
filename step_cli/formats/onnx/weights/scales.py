"""What the codes of an operand are multiplied by, for the stored tensors behind it.

Only of stored codes: a stored float is judged as it is, whatever it is multiplied by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.model import Tensor
from step_cli.formats.onnx.weights.positions import positions_along
from step_cli.formats.onnx.weights.views import MIXED, Piece, View
from step_cli.formats.onnx.weights.zero_points import MOST_CODES, Meaning, PieceScale
from step_cli.nm.tensor_data import Scale

Array = npt.NDArray[Any]

# Numbers of TensorProto.DataType: integers of 8 bits and more, and the 8-bit floats.
CODES = frozenset({2, 3, 4, 5, 6, 17, 18, 19, 20})
MOST_FACTORS = 8  # on the way to an operand


@dataclass(frozen=True)
class TensorScales:
    """What all products multiply the codes of a stored tensor by.

    Attributes:
        scales: One after another; None: they are not known, or not the same for all.
        axes: The axes along which they differ, or may differ.
    """

    scales: tuple[Scale, ...] | None
    axes: frozenset[int]


def rescaled(view: View, scale: Array | None, axis: int | None, block: int = 0) -> View:
    """Codes multiplied by numbers.

    Args:
        view: The operand.
        scale: One number, a list of them for an axis, or as many axes as the operand;
            None: they are not known here.
        axis: That of a list of numbers; None: of any.
        block: How many indices of that axis have one number; 0: just one.
    """
    rank = len(view.shape)
    if axis is not None and not -rank <= axis < rank:
        scale = axis = None
    place = None if axis is None else axis % rank
    blocks = {} if place is None or block <= 0 else {place: block}
    shaped = None if scale is None else _shaped(scale, rank, place)
    # Of numbers that are not known, along which axes of the operand they may differ.
    listed = scale is None and place is not None and not blocks
    places = [place] if listed and place is not None else list(range(rank))
    pieces = [
        replace(piece, meaning=_meaning(view, piece, shaped, blocks, places))
        if piece.tensor.data_type in CODES
        else piece
        for piece in view.pieces
    ]
    return View(view.shape, tuple(pieces))


def tensor_scales(tensor: Tensor, meanings: Sequence[Meaning]) -> TensorScales:
    """What all products multiply the codes of a tensor by.

    Args:
        tensor: The stored tensor.
        meanings: What its numbers mean to each product.
    """
    axes = frozenset(axis for one in meanings for axis in one.scale_axes)
    first = meanings[0].scales
    alike = all(_alike(one.scales, first) for one in meanings[1:])
    long = any(tensor.shape[axis] > MOST_CODES for axis in axes)
    if first is None or not alike or long:
        return TensorScales(None, axes)
    return TensorScales(tuple(_of_tensor(tensor, one) for one in first), axes)


def _alike(
    one: tuple[PieceScale, ...] | None, other: tuple[PieceScale, ...] | None
) -> bool:
    if one is other:
        return True
    if one is None or other is None or len(one) != len(other):
        return False
    return all(a.same(b) for a, b in zip(one, other, strict=True))


def _of_tensor(tensor: Tensor, scale: PieceScale) -> Scale:
    """The numbers for all indices; those that no product uses get the first ones."""
    lookup: list[Array | None] = [None] * len(tensor.shape)
    for axis, indices, entries in scale.along:
        table = np.zeros(tensor.shape[axis], np.int64)
        table[indices] = entries
        lookup[axis] = table
    return Scale(scale.values, tuple(lookup))


def _shaped(scale: Array, rank: int, axis: int | None) -> Array | None:
    """Numbers with as many axes as the operand; None if they do not fit it."""
    if scale.size == 1:
        return scale.reshape((1,) * rank)
    if scale.ndim == 1 and axis is not None:
        return scale.reshape([-1 if place == axis else 1 for place in range(rank)])
    return scale if scale.ndim == rank and scale.size else None


def _meaning(
    view: View,
    piece: Piece,
    scale: Array | None,
    blocks: Mapping[int, int],
    places: Sequence[int],
) -> Meaning:
    """What the codes of a piece mean, once they are multiplied."""
    meaning = piece.meaning
    if meaning.quantizer is not None:
        return meaning  # it was divided by the same before
    known = None
    if scale is not None:
        places = [place for place, count in enumerate(scale.shape) if count > 1]
        # What is not known before stays so, and is not looked at again.
        if meaning.scales is not None and len(meaning.scales) < MOST_FACTORS:
            known = _of_piece(view, piece, scale, blocks)
    axes = _stored_axes(piece, places) if known is None else known.axes
    return meaning.scaled(known, axes)


def _stored_axes(piece: Piece, places: Sequence[int]) -> frozenset[int]:
    """The stored axes behind some axes of the operand; all, if that is not certain."""
    runs = [run for place in places for run in piece.axes[place] if run.size != 1]
    if any(run.axis == MIXED for run in runs):
        return frozenset(range(len(piece.tensor.shape)))
    return frozenset(run.axis for run in runs)


def _of_piece(
    view: View, piece: Piece, scale: Array, blocks: Mapping[int, int]
) -> PieceScale | None:
    """The numbers as those of a stored tensor; None if each has not one for itself."""
    index: list[Any] = []
    along: list[tuple[int, Array, Array]] = []
    for place, size in enumerate(piece.shape):
        count, each = scale.shape[place], blocks.get(place, 1)
        if count > 1 and count != -(-view.shape[place] // each):
            return None
        entries = (piece.at[place] + np.arange(size)) // each if count > 1 else None
        if entries is None or (entries == entries[:1]).all():
            index.append(0 if entries is None else int(entries[0]))
            continue
        found = positions_along(piece, place)
        if found is None or found[0] in {axis for axis, *_ in along}:
            return None
        index.append(slice(None))
        stored, indices = found
        repeated = np.broadcast_to(entries[:, None], indices.shape)
        along.append((stored, indices.reshape(-1), repeated.reshape(-1)))
    values = np.asarray(scale[tuple(index)]).astype(np.float32)
    order = sorted(range(len(along)), key=lambda number: along[number][0])
    sizes = dict(zip((axis for axis, *_ in along), values.shape, strict=True))
    shape = [sizes.get(axis, 1) for axis in range(len(piece.tensor.shape))]
    return PieceScale(values.transpose(order).reshape(shape), tuple(along))
