"""Reshape: the same numbers behind other axes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from step_cli.formats.onnx.weights.views import (
    MOST_AXES,
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
    segments = list(_segments(view.shape, new))
    pieces = []
    for piece in view.pieces:
        at: list[int] = []
        axes: list[Runs] = []
        for old, sizes in segments:
            sizes_of_old = [view.shape[axis] for axis in old]
            found = _regrouped(piece, old, sizes_of_old, sizes)
            if found is None:
                return None
            at += found[0]
            axes += found[1]
        pieces.append(replace(piece, at=tuple(at), axes=tuple(axes)))
    return View(new, tuple(pieces))


def _segments(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The axes of ``old`` and the sizes of ``new`` that hold the same elements."""
    axis = place = 0
    while axis < len(old) or place < len(new):
        axes, sizes, one, other = list[int](), list[int](), 1, 1
        while (not axes and not sizes) or one != other:
            if one <= other and axis < len(old) and (one < other or not axes):
                one *= old[axis]
                axes.append(axis)
                axis += 1
            elif place < len(new):
                other *= new[place]
                sizes.append(new[place])
                place += 1
            else:
                one *= old[axis]
                axes.append(axis)
                axis += 1
        yield axes, sizes


def _regrouped(
    piece: Piece, old: Sequence[int], full: Sequence[int], sizes: Sequence[int]
) -> tuple[list[int], list[Runs]] | None:
    """A piece behind other axes that hold the same elements.

    Args:
        piece: As it stands.
        old: Axes of the operand that are replaced.
        full: Their sizes in the operand.
        sizes: Those of the new axes.
    """
    begin = count = 1
    begin, partial = 0, False
    for axis, size in zip(old, full, strict=True):
        own = size_of(piece.axes[axis])
        if partial and own != size:
            return None  # its elements do not follow one another
        partial = partial or own != 1
        begin = begin * size + piece.at[axis]
        count *= own
    runs = tuple(run for axis in old for run in piece.axes[axis])
    for place, size in enumerate(sizes):
        inner = math.prod(sizes[place + 1 :])
        start, rest = divmod(begin, inner)
        if rest == 0 and count % inner == 0 and start % size + count // inner <= size:
            at = [begin // math.prod(sizes[i + 1 :]) % sizes[i] for i in range(place)]
            at += [start % size, *[0] * (len(sizes) - place - 1)]
            wanted = [*[1] * place, count // inner, *sizes[place + 1 :]]
            axes = _shared_out(runs, wanted)
            return None if axes is None else (at, axes)
    return ([], []) if not sizes and count == 1 else None


def _shared_out(runs: Runs, sizes: Sequence[int]) -> list[Runs] | None:
    """The runs dealt out to axes of these sizes, the innermost first."""
    left = [run for run in runs if run.size != 1]
    axes: list[Runs] = []
    for size in reversed(sizes):
        own: list[Run] = []
        while size > 1:
            if not left:
                return None
            run = left.pop()
            if size % run.size == 0:
                size //= run.size
            elif run.size % size == 0:
                outer = Run(run.axis, run.stride * size, run.size // size)
                left.append(outer)
                run, size = run._replace(size=size), 1
            else:
                return None
            own.append(run)
        axes.append(merged(own[::-1]))
    return axes[::-1]
