"""Slice and Split: a range of an axis of an operand."""

from dataclasses import replace
from itertools import pairwise

from step_cli.formats.onnx.weights.views import (
    MIXED,
    MOST_PIECES,
    Piece,
    Runs,
    View,
    size_of,
)


def sliced(view: View, axis: int, begin: int, end: int) -> View | None:
    """A range of an axis; both ends within it."""
    shape = list(view.shape)
    if (begin, end) == (0, shape[axis]):
        return view
    pieces: list[Piece] = []
    for piece in view.pieces:
        start, size = piece.at[axis], size_of(piece.axes[axis])
        low, high = max(begin, start), min(end, start + size)
        parts = cut(piece, axis, low - start, high - start) if low < high else []
        if parts is None or len(pieces) + len(parts) > MOST_PIECES:
            return None
        for part in parts:
            at = (*part.at[:axis], part.at[axis] - begin, *part.at[axis + 1 :])
            pieces.append(replace(part, at=at))
    shape[axis] = max(0, end - begin)
    return View(tuple(shape), tuple(pieces))


def cut(piece: Piece, axis: int, low: int, high: int) -> list[Piece] | None:
    """A range of an axis of a piece, in pieces that are whole runs each.

    Returns:
        None if the runs there are mixed, or the pieces too many.
    """
    runs = piece.axes[axis]
    if (low, high) == (0, size_of(runs)):
        return [piece]
    run, inner = runs[0], size_of(runs[1:])
    if run.axis == MIXED:
        return None
    if low % inner == 0 and high % inner == 0:
        part = run._replace(size=(high - low) // inner)
        return [_cut_to(piece, axis, (part, *runs[1:]), low, low // inner)]
    row = low // inner
    if row == (high - 1) // inner:
        one = _cut_to(piece, axis, runs[1:], row * inner, row)
        return cut(one, axis, low - row * inner, high - row * inner)
    ends = sorted({low, -(-low // inner) * inner, high // inner * inner, high})
    found: list[Piece] = []
    for begin, end in pairwise(ends):
        parts = cut(piece, axis, begin, end)
        if parts is None or len(found) + len(parts) > MOST_PIECES:
            return None
        found += parts
    return found


def _cut_to(piece: Piece, axis: int, runs: Runs, begin: int, steps: int) -> Piece:
    """A piece that has these runs left, so many steps of its first one further on."""
    run, first = piece.axes[axis][0], list(piece.first)
    first[run.axis] += run.stride * steps
    axes = (*piece.axes[:axis], runs, *piece.axes[axis + 1 :])
    at = (*piece.at[:axis], piece.at[axis] + begin, *piece.at[axis + 1 :])
    return replace(piece, at=at, axes=axes, first=tuple(first))
