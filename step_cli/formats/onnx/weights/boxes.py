"""The parts of a stored tensor that products use, as boxes that do not overlap."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise, product

from step_cli.formats.onnx.weights.views import Piece, Run, Runs
from step_cli.nm.tensor_data import Part

MOST_BOXES = 4096  # of a tensor
MOST_WORK = 1 << 20  # comparisons of boxes

Span = tuple[int, int]


def boxes_of(piece: Piece, group: Run, phase: int) -> list[Part] | None:
    """What a piece covers of its tensor.

    Along the group axis a box is as long as the run of the groups, so that its size
    tells which groups are whole.

    Args:
        piece: Of the operand of a product.
        group: The run that the groups lie along.
        phase: How many of the summed elements stand before the piece.

    Returns:
        None if they are too many.
    """
    runs = [*piece.hidden, *(run for axis in piece.axes for run in axis)]
    runs.remove(group)
    spans: list[list[Span]] = []
    for axis, first in enumerate(piece.first):
        own = tuple(run for run in runs if run.axis == axis)
        width = group.size if axis == group.axis else None
        found = _spans(own, first, width)
        if found is None or math.prod(map(len, spans)) * len(found) > MOST_BOXES:
            return None
        spans.append(found)
    return [
        Part(tuple(b for b, _ in box), tuple(e for _, e in box), phase)
        for box in product(*spans)
    ]


def _spans(runs: Runs, first: int, width: int | None) -> list[Span] | None:
    """Ranges of an axis that runs cover; with ``width``, each of just that size."""
    size, starts = width or 1, [first]
    for run in sorted(runs, key=lambda run: run.stride):
        if run.stride == size and width is None and len(starts) == 1:
            size *= run.size
        elif run.size != 1:
            if run.stride < size or len(starts) * run.size > MOST_BOXES:
                return None
            starts = [s + run.stride * i for s in starts for i in range(run.size)]
    return [(start, start + size) for start in sorted(starts)]


def parts_of(
    shape: Sequence[int], axis: int, boxes: Iterable[Part]
) -> tuple[Part, ...] | None:
    """The union of boxes, cut where one begins or ends along the group axis.

    Returns:
        Nothing if it is the whole tensor, whose groups start with it; None if they are
        too many.
    """
    found = list(dict.fromkeys(boxes))
    everything = Part((0,) * len(shape), tuple(shape))
    if found == [everything]:
        return ()
    ends = sorted({end for box in found for end in (box.begin[axis], box.end[axis])})
    by_span: dict[Span, list[Part]] = {}
    phases: dict[Span, int] = {}
    count = 0
    for box in found:
        own = [box.begin[axis], *_between(ends, box.begin[axis], box.end[axis])]
        count += len(own)
        if count > MOST_BOXES:
            return None
        for begin, end in zip(own, [*own[1:], box.end[axis]], strict=True):
            phase = box.phase + begin - box.begin[axis]
            by_span.setdefault((begin, end), []).append(box)
            # A multiple of M if all of them are.
            phases[begin, end] = math.gcd(phases.get((begin, end), 0), phase)
    parts: list[Part] = []
    for span, some in sorted(by_span.items()):
        others = [other for other in range(len(shape)) if other != axis]
        united = _united(some, others, [MOST_WORK])
        if united is None or len(parts) + len(united) > MOST_BOXES:
            return None
        placed = [_spanning(box, axis, *span) for box in united]
        parts += [replace(box, phase=phases[span]) for box in placed]
    return () if parts == [everything] else tuple(parts)


def _between(ends: Sequence[int], begin: int, end: int) -> list[int]:
    return [at for at in ends if begin < at < end]


def _united(
    boxes: Sequence[Part], axes: Sequence[int], left: list[int]
) -> list[Part] | None:
    """Boxes without overlap that cover the same, as far as ``axes`` go."""
    for place, axis in enumerate(axes):
        spans = {(box.begin[axis], box.end[axis]) for box in boxes}
        if len(spans) > 1:
            return _in_slabs(boxes, axis, axes[place + 1 :], left)
    return [boxes[0]]


def _in_slabs(
    boxes: Sequence[Part], axis: int, others: Sequence[int], left: list[int]
) -> list[Part] | None:
    """The union, cut along ``axis`` and joined again where nothing changes."""
    ends = sorted({end for box in boxes for end in (box.begin[axis], box.end[axis])})
    found: list[Part] = []
    last: list[Part] = []
    for begin, end in pairwise(ends):
        left[0] -= len(boxes)
        if left[0] < 0:
            return None
        some = [box for box in boxes if box.begin[axis] <= begin < box.end[axis]]
        united = _united(some, others, left) if some else []
        if united is None:
            return None
        slab = [_spanning(box, axis, begin, end) for box in united]
        joined = [_spanning(box, axis, begin, end) for box in last]
        if slab and joined == slab and last[0].end[axis] == begin:
            last = [_spanning(b, axis, b.begin[axis], end) for b in last]
        else:
            found += last
            last = slab
        if len(found) + len(last) > MOST_BOXES:
            return None
    return found + last


def _spanning(box: Part, axis: int, begin: int, end: int) -> Part:
    return replace(
        box,
        begin=(*box.begin[:axis], begin, *box.begin[axis + 1 :]),
        end=(*box.end[:axis], end, *box.end[axis + 1 :]),
        phase=0,
    )
