"""How a stored tensor looks behind operators that only rearrange it.

Each axis of what an operand looks like is made of runs of stored axes. Nothing here
reads data, and what is not certain is None: it cannot be followed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from step_cli.formats.onnx.model import Tensor
from step_cli.formats.onnx.weights.zero_points import Meaning

MOST_AXES = 64
MOST_PIECES = 4096  # of an operand
MOST_SCALES = 64  # on the way to an operand
MIXED = -1  # the axis of a run over several stored axes, whose order is not told


class Run(NamedTuple):
    """Elements of a stored tensor at equal distances along one of its axes.

    Or places of an axis of the operand, if its own axis is `MIXED`: its stride is then
    a negative number, the same for those that may depend on each other.
    """

    axis: int
    stride: int
    size: int


Runs = tuple[Run, ...]  # the slowest first


@dataclass(frozen=True)
class Piece:
    """A stored tensor, or a part of it, as it stands in an operand.

    Attributes:
        tensor: The stored tensor.
        at: Its first index along each axis of the operand.
        axes: The runs behind each axis of the operand.
        first: Where the runs start along each axis of the stored tensor.
        hidden: Further runs: those of which a loop takes one index at a time, and those
            that the mixed ones go through in some order.
        scaled: For each scale on the way, the runs along which its numbers differ.
        meaning: Which of the numbers mean zero.
    """

    tensor: Tensor
    at: tuple[int, ...]
    axes: tuple[Runs, ...]
    first: tuple[int, ...]
    hidden: Runs = ()
    scaled: tuple[Runs, ...] = ()
    meaning: Meaning = field(default_factory=Meaning)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this piece of the operand."""
        return tuple(size_of(runs) for runs in self.axes)


@dataclass(frozen=True)
class View:
    """An operand: its shape, and the pieces that it is made of.

    Pieces overlap where a branch decides which of them it is.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def whole(tensor: Tensor) -> View:
    """A stored tensor as it is."""
    shape = tuple(tensor.shape)
    start = (0,) * len(shape)
    axes = tuple((Run(axis, 1, size),) for axis, size in enumerate(shape))
    return View(shape, (Piece(tensor, start, axes, start),))


def transposed(view: View, perm: Sequence[int] | None) -> View | None:
    """The axes in another order; without ``perm``, in reverse."""
    rank = len(view.shape)
    order = list(range(rank))[::-1] if perm is None else list(perm)
    if sorted(order) != list(range(rank)):
        return None
    return _rearranged(view, order)


def squeezed(view: View, axes: Sequence[int] | None) -> View | None:
    """Without some axes of size 1; without ``axes``, without all of them."""
    rank = len(view.shape)
    if axes is None:
        gone = {axis for axis, size in enumerate(view.shape) if size == 1}
    else:
        found = _positions(axes, rank)
        if found is None or any(view.shape[axis] != 1 for axis in found):
            return None
        gone = found
    return _rearranged(view, [axis for axis in range(rank) if axis not in gone])


def unsqueezed(view: View, axes: Sequence[int]) -> View | None:
    """With new axes of size 1, at these places of the result."""
    rank = len(view.shape) + len(axes)
    new = _positions(axes, rank)
    if new is None or rank > MOST_AXES:
        return None
    own = iter(range(len(view.shape)))
    return _rearranged(view, [-1 if axis in new else next(own) for axis in range(rank)])


def without_axis(view: View, axis: int) -> View | None:
    """One index of an axis at a time, as Scan hands it to its body."""
    found = _positions([axis], len(view.shape))
    if found is None:
        return None
    (gone,) = found
    pieces = tuple(
        replace(piece, hidden=piece.hidden + piece.axes[gone]) for piece in view.pieces
    )
    left = [axis for axis in range(len(view.shape)) if axis != gone]
    return _rearranged(View(view.shape, pieces), left)


def joined(views: Sequence[View], axis: int) -> View | None:
    """The operands one after another along an axis."""
    rank = len(views[0].shape)
    found = _positions([axis], rank)
    if found is None or any(len(view.shape) != rank for view in views):
        return None
    (along,) = found
    shape, pieces, total = list(views[0].shape), list[Piece](), 0
    for view in views:
        others = list(view.shape)
        others[along] = shape[along]
        if others != shape:
            return None
        for piece in view.pieces:
            at = (*piece.at[:along], piece.at[along] + total, *piece.at[along + 1 :])
            pieces.append(replace(piece, at=at))
        total += view.shape[along]
    shape[along] = total
    return View(tuple(shape), tuple(pieces)) if len(pieces) <= MOST_PIECES else None


def scaled(view: View, axes: Sequence[int]) -> View | None:
    """Multiplied by numbers that differ along ``axes``."""
    pieces = []
    for piece in view.pieces:
        more = tuple(run for axis in axes for run in piece.axes[axis])
        known = (
            piece.scaled if not more or more in piece.scaled else (*piece.scaled, more)
        )
        if len(known) > MOST_SCALES:
            return None
        meaning = piece.meaning.changed()
        pieces.append(replace(piece, scaled=known, meaning=meaning))
    return View(view.shape, tuple(pieces))


def overlap(one: Runs, other: Runs, hidden: Runs) -> bool:
    """Whether a step along one can be a step along the other.

    Args:
        one: Runs.
        other: Runs.
        hidden: Those that mixed ones go through.
    """
    return any(_same_way(a, b, hidden) for a in one for b in other)


def _same_way(one: Run, other: Run, hidden: Runs) -> bool:
    if one.size == 1 or other.size == 1:
        return False
    if one.axis == other.axis == MIXED:
        return one.stride == other.stride
    if MIXED in (one.axis, other.axis):
        real = other if one.axis == MIXED else one
        return any(_same_way(real, run, ()) for run in hidden if run.axis != MIXED)
    nearer = one.stride < other.stride * other.size
    return one.axis == other.axis and nearer and other.stride < one.stride * one.size


def _rearranged(view: View, order: Sequence[int]) -> View:
    """The axes in this order, some left out; -1 is a new one of size 1."""
    pieces = tuple(
        replace(
            piece,
            at=tuple(piece.at[axis] if axis >= 0 else 0 for axis in order),
            axes=tuple(piece.axes[axis] if axis >= 0 else () for axis in order),
        )
        for piece in view.pieces
    )
    shape = tuple(view.shape[axis] if axis >= 0 else 1 for axis in order)
    return View(shape, pieces)


def _positions(axes: Sequence[int], rank: int) -> set[int] | None:
    """Axes counted from the front; None if one is twice there, or beyond the rank."""
    if any(not -rank <= axis < rank for axis in axes):
        return None
    found = {axis % rank for axis in axes}
    return found if len(found) == len(axes) else None


def size_of(runs: Runs) -> int:
    """How many elements they are along an axis of an operand."""
    return math.prod(run.size for run in runs)


def merged(runs: Sequence[Run]) -> Runs:
    """Neighbours that are one run of the stored tensor as one."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else Run(0, 0, 0)
        near = last.stride == run.stride * (1 if run.axis == MIXED else run.size)
        if found and last.axis == run.axis and near:
            found[-1] = run._replace(size=last.size * run.size)
        else:
            found.append(run)
    return tuple(found)
