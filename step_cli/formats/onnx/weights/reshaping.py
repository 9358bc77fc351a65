"""Reshape: the same numbers behind other axes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from step_cli.formats.onnx.weights.slicing import cut
from step_cli.formats.onnx.weights.views import (
    MIXED,
    MOST_AXES,
    MOST_PIECES,
    Piece,
    Run,
    Runs,
    View,
    merged,
    size_of,
)


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """The same numbers, row by row, in another shape."""
    new = tuple(shape)
    if new == view.shape:
        return view
    if math.prod(new) != math.prod(view.shape) or 0 in new or len(new) > MOST_AXES:
        return None
    pieces, place = list(view.pieces), 0
    for old, sizes in _segments(view.shape, new):
        found: list[Piece] = []
        for piece in pieces:
            flat = _flattened(piece, place, [view.shape[axis] for axis in old])
            if flat is None:
                return None
            for one in flat:
                parts = _divided(one, place, sizes)
                if parts is None or len(found) + len(parts) > MOST_PIECES:
                    return None
                found += parts
        pieces, place = found, place + len(sizes)
    return View(new, tuple(pieces))


def _segments(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The axes of ``old`` and the sizes of ``new`` that hold the same elements."""
    axis = place = 0
    while axis < len(old) or place < len(new):
        axes, sizes, one, other = list[int](), list[int](), 1, 1
        while (not axes and not sizes) or one != other:
            if axis < len(old) and (one < other or not axes):
                one *= old[axis]
                axes.append(axis)
                axis += 1
            else:
                other *= new[place]
                sizes.append(new[place])
                place += 1
        yield axes, sizes


def _flattened(piece: Piece, place: int, sizes: Sequence[int]) -> list[Piece] | None:
    """Axes from ``place`` on, of these sizes in the operand, made one.

    A piece whose elements do not follow one another there becomes several.
    """
    if not sizes:
        return [_with_axes(piece, place, 0, [(0, ())])]
    pieces = [piece]
    for size in sizes[1:]:
        found: list[Piece] = []
        for one in pieces:
            rows = _rows(one, place, size)
            if rows is None or len(found) + len(rows) > MOST_PIECES:
                return None
            found += [_joined(row, place, size) for row in rows]
        pieces = found
    return pieces


def _rows(piece: Piece, place: int, size: int) -> list[Piece] | None:
    """A piece that fills the axis behind ``place``, or one for each index of it."""
    rows, row = size_of(piece.axes[place]), size_of(piece.axes[place + 1])
    if row == size or rows == 1:
        return [piece]
    if rows > MOST_PIECES:
        return None
    found: list[Piece] = []
    for index in range(rows):
        parts = cut(piece, place, index, index + 1)
        if parts is None:
            return None
        found += parts
    return found


def _joined(piece: Piece, place: int, size: int) -> Piece:
    at = piece.at[place] * size + piece.at[place + 1]
    runs = piece.axes[place] + piece.axes[place + 1]
    return _with_axes(piece, place, 2, [(at, runs)])


def _divided(piece: Piece, place: int, sizes: Sequence[int]) -> list[Piece] | None:
    """An axis as several of these sizes; of no sizes, it is gone."""
    if not sizes:
        return [_with_axes(piece, place, 1, [])]
    pieces = [piece]
    for size in reversed(sizes[1:]):
        found: list[Piece] = []
        for one in pieces:
            parts = _in_two(one, place, size)
            if parts is None or len(found) + len(parts) > MOST_PIECES:
                return None
            found += parts
        pieces = found
    return pieces


def _in_two(piece: Piece, place: int, size: int) -> list[Piece] | None:
    """An axis as one of any size and one of ``size`` behind it."""
    begin, runs = piece.at[place], piece.axes[place]
    end = begin + size_of(runs)
    if begin % size == 0 and end % size == 0:
        return _in_rows(piece, place, size)
    row = begin // size
    if row == (end - 1) // size:
        return [_with_axes(piece, place, 1, [(row, ()), (begin % size, runs)])]
    ends = sorted({begin, -(-begin // size) * size, end // size * size, end})
    found: list[Piece] = []
    for low, high in pairwise(ends):
        some = cut(piece, place, low - begin, high - begin)
        if some is None:
            return None
        for part in some:
            parts = _in_two(part, place, size)
            if parts is None or len(found) + len(parts) > MOST_PIECES:
                return None
            found += parts
    return found


def _in_rows(piece: Piece, place: int, size: int) -> list[Piece] | None:
    """An axis of whole rows of ``size`` as two axes."""
    row, runs = piece.at[place] // size, piece.axes[place]
    axes = _shared_out(runs, size)
    if axes is not None:
        outer, inner = axes
        return [_with_axes(piece, place, 1, [(row, outer), (0, inner)])]
    # Rows that do not divide into the runs: known is what the last run shares.
    last = [run for run in runs if run.size != 1][-1]
    if last.axis == MIXED:
        return None
    block = math.gcd(last.size, size)
    others = [run for run in runs if run is not last]
    others.append(Run(last.axis, last.stride * block, last.size // block))
    number = min([0, *_mixed_numbers(piece)]) - 1
    outer = (Run(MIXED, number, size_of(runs) // size),)
    inner = (Run(MIXED, number - 1, size // block), last._replace(size=block))
    mixed = replace(piece, hidden=(*piece.hidden, *others))
    return [_with_axes(mixed, place, 1, [(row, outer), (0, inner)])]


def _mixed_numbers(piece: Piece) -> Iterator[int]:
    for runs in (*piece.axes, *piece.scaled):
        yield from (run.stride for run in runs if run.axis == MIXED)


def _shared_out(runs: Runs, size: int) -> tuple[Runs, Runs] | None:
    """Runs dealt out to an axis of ``size``, and one before it; None if they cannot."""
    left = [run for run in runs if run.size != 1]
    own: list[Run] = []
    while size > 1:
        run = left.pop()
        if size % run.size == 0:
            size //= run.size
        elif run.size % size == 0:
            step = run.stride if run.axis == MIXED else run.stride * size
            left.append(Run(run.axis, step, run.size // size))
            run, size = run._replace(size=size), 1
        else:
            return None
        own.append(run)
    return merged(left), merged(own[::-1])


def _with_axes(
    piece: Piece, place: int, number: int, axes: Sequence[tuple[int, Runs]]
) -> Piece:
    """A number of axes from ``place`` on replaced, each by its first index and runs."""
    after = place + number
    at = (*piece.at[:place], *(first for first, _ in axes), *piece.at[after:])
    runs = (*piece.axes[:place], *(own for _, own in axes), *piece.axes[after:])
    return replace(piece, at=at, axes=runs)
