"""Slice, planned backwards: the whole that a part was cut out of."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from formats.onnx.random_graphs.growth import Draft, Target, draft
from formats.onnx.random_graphs.values import EITHER, LISTED, Array

END = 2**63 - 1


def placed(
    ids: Array, fill: int, shape: tuple[int, ...], at: tuple[slice, ...]
) -> Array:
    whole = np.full(shape, fill, ids.dtype)
    whole[at] = ids
    return whole


@dataclass(frozen=True)
class Cut:
    """A part of an axis: as it is spelled, and in Python."""

    axis: int
    size: int  # of the whole axis
    start: int
    end: int
    step: int
    at: slice


def _cut(rng: random.Random, axis: int, size: int) -> Cut:
    """A part of so many elements."""
    step = rng.choice([1, 1, 1, 1, 1, 1, 2, -1])
    span = (size - 1) * abs(step) + 1
    first, after = rng.choice([0, 1, 2, 4, 8]), rng.choice([0, 0, 1, 4, 5])
    whole = first + span + after
    if step < 0:
        start, end = first + span - 1, first - 1
        at = slice(start, end if end >= 0 else None, step)
        return Cut(axis, whole, start, end if end >= 0 else -END, step, at)
    start, end = first, first + span
    at = slice(start, end, step)
    if after and rng.random() < 0.5:
        start, end = start - whole, end - whole
    elif not after and rng.random() < 0.5:
        end = END
    return Cut(axis, whole, start, end, step, at)


def slice_(rng: random.Random, target: Target) -> Draft | None:
    """A part of one axis or two; seldom with steps, also backwards."""
    axes = rng.sample(range(target.rank), min(target.rank, rng.choice([1, 1, 2])))
    cuts = [_cut(rng, axis, target.shape[axis]) for axis in axes]
    shape, at = list(target.shape), [slice(None)] * target.rank
    for cut in cuts:
        shape[cut.axis], at[cut.axis] = cut.size, cut.at
    kinds = rng.choice(["int64", "int64", "int32"])
    limit = np.iinfo(kinds).max
    count = 4 if any(cut.step != 1 for cut in cuts) else rng.choice([2, 3, 4])
    if count == 2 and axes != list(range(len(axes))):
        count = 3

    def write(scope: Any, names: list[str]) -> Any:
        rows = [(cut.start, cut.end, cut.axis, cut.step) for cut in cuts]
        columns = list(zip(*rows, strict=True))[:count]
        made = [scope.constant(np.clip(c, -limit, limit), kinds) for c in columns]
        return scope.node("Slice", [*names, *made])

    return draft(
        target,
        "Slice",
        write,
        lambda ids, fill: [placed(ids, fill, tuple(shape), tuple(at))],
        kind=EITHER if any(cut.step != 1 for cut in cuts) else LISTED,
    )
