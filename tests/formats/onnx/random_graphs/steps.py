"""The steps that the contract lists, each planned backwards: what was there before?"""

import functools
import random
from dataclasses import replace
from typing import Any

import numpy as np
from formats.onnx.random_graphs.cuts import placed
from formats.onnx.random_graphs.growth import Draft, Target, draft
from formats.onnx.random_graphs.protos import element_type
from formats.onnx.random_graphs.values import CODES, Array


def transpose(rng: random.Random, target: Target) -> Draft | None:
    if target.rank < 2:
        return None
    order = rng.sample(range(target.rank), target.rank)
    back = np.argsort(order)
    reverse = list(reversed(range(target.rank)))
    facts = {} if order == reverse and rng.random() < 0.7 else {"perm": order}
    return draft(
        target,
        "Transpose",
        lambda scope, names: scope.node("Transpose", names, **facts),
        lambda ids, fill: [ids.transpose(back)],
    )


def identity(rng: random.Random, target: Target) -> Draft | None:
    return draft(target, "Identity", lambda scope, names: scope.node("Identity", names))


def cast(rng: random.Random, target: Target) -> Draft | None:
    if target.dtype in CODES:
        return None
    before = rng.choice(
        [d for d in ("float32", "float64", "float16", "bfloat16") if d != target.dtype]
    )
    to = element_type(target.dtype)
    return draft(
        target,
        "Cast",
        lambda scope, names: scope.node("Cast", names, to=to),
        dtype=before,
    )


def _reshaped(target: Target, op: str, shape: tuple[int, ...], write: Any) -> Draft:
    return draft(target, op, write, lambda ids, fill: [ids.reshape(shape)])


def reshape(rng: random.Random, target: Target) -> Draft | None:
    """Join two axes, or cut one in two, or any shape of as many elements."""
    shape, way = list(target.shape), rng.random()
    if way < 0.45 and target.rank >= 2:
        at = rng.randrange(target.rank - 1)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif way < 0.9:
        at = rng.randrange(target.rank)
        parts = [p for p in range(2, shape[at]) if shape[at] % p == 0]
        if not parts:
            return None
        part = rng.choice(parts)
        shape[at : at + 1] = [part, shape[at] // part]
    else:
        rng.shuffle(shape)
    if shape == list(target.shape) or len(shape) > 5:
        return None
    wanted = list(target.shape)
    if rng.random() < 0.4:
        wanted[rng.randrange(len(wanted))] = -1
    if shape[0] == target.shape[0] and wanted[0] != -1 and rng.random() < 0.5:
        wanted[0] = 0

    def write(scope: Any, names: list[str]) -> Any:
        return scope.node("Reshape", [*names, scope.constant(wanted)])

    return _reshaped(target, "Reshape", tuple(shape), write)


def squeeze(rng: random.Random, target: Target) -> Draft | None:
    if target.rank >= 5:
        return None
    at = rng.randrange(target.rank + 1)
    shape = (*target.shape[:at], 1, *target.shape[at:])
    implied = 1 not in target.shape and rng.random() < 0.4
    axis = at - len(shape) if rng.random() < 0.4 else at

    def write(scope: Any, names: list[str]) -> Any:
        if scope.model.old and not implied:
            return scope.node("Squeeze", names, axes=[axis])
        axes = [] if implied else [scope.constant([axis])]
        return scope.node("Squeeze", [*names, *axes])

    return _reshaped(target, "Squeeze", shape, write)


def unsqueeze(rng: random.Random, target: Target) -> Draft | None:
    ones = [axis for axis, size in enumerate(target.shape) if size == 1]
    if not ones or target.rank < 2:
        return None
    gone = rng.sample(ones, rng.randint(1, len(ones)))
    shape = tuple(s for axis, s in enumerate(target.shape) if axis not in gone)
    if not shape:
        return None
    axes = [a - target.rank if rng.random() < 0.3 else a for a in gone]

    def write(scope: Any, names: list[str]) -> Any:
        if scope.model.old:
            return scope.node("Unsqueeze", names, axes=axes)
        return scope.node("Unsqueeze", [*names, scope.constant(axes)])

    return _reshaped(target, "Unsqueeze", shape, write)


def flatten(rng: random.Random, target: Target) -> Draft | None:
    if target.rank != 2:
        return None
    cut = [[p for p in range(2, size) if size % p == 0] for size in target.shape]
    shapes: list[list[int]] = []
    for size, parts in zip(target.shape, cut, strict=True):
        part = rng.choice(parts) if parts and rng.random() < 0.7 else None
        shapes.append([size] if part is None else [part, size // part])
    axis = len(shapes[0])
    if rng.random() < 0.2:
        shapes, axis = [[1], *shapes], axis + 1
    shape = tuple(size for part in shapes for size in part)
    axis = axis - len(shape) if rng.random() < 0.3 and axis < len(shape) else axis
    facts = {} if axis == 1 and rng.random() < 0.5 else {"axis": axis}
    return _reshaped(
        target,
        "Flatten",
        shape,
        lambda scope, names: scope.node("Flatten", names, **facts),
    )


def split(rng: random.Random, target: Target) -> Draft | None:
    axis = rng.randrange(target.rank)
    count, size = rng.choice([2, 2, 3]), target.shape[axis]
    equal = rng.random() < 0.5
    sizes = [size if equal else rng.choice([4, 8, 3, size]) for _ in range(count)]
    mine = rng.randrange(count)
    sizes[mine] = size
    ends, named = np.cumsum(sizes), rng.random() < 0.5
    shape = list(target.shape)
    shape[axis] = sum(sizes)
    spelled = axis - target.rank if rng.random() < 0.3 else axis

    def write(scope: Any, names: list[str], part: int = mine) -> Any:
        if id(ends) not in scope.known:
            facts: dict[str, Any] = {"axis": spelled} if spelled or named else {}
            if equal and not scope.model.old:
                facts["num_outputs"] = count
            elif not equal and scope.model.old:
                facts["split"] = sizes
            more = [] if equal or scope.model.old else [scope.constant(sizes)]
            made = scope.node("Split", [*names, *more], count, **facts)
            scope.known[id(ends)] = made
        return scope.known[id(ends)][part]

    def pull(ids: Array, fill: int, part: int = mine) -> list[Array]:
        at = [slice(None)] * target.rank
        at[axis] = slice(int(ends[part]) - sizes[part], int(ends[part]))
        return [placed(ids, fill, tuple(shape), tuple(at))]

    siblings: Any = [
        (
            tuple(sizes[part] if a == axis else s for a, s in enumerate(target.shape)),
            functools.partial(write, part=part),
            functools.partial(pull, part=part),
        )
        for part in range(count)
        if part != mine
    ]
    return replace(draft(target, "Split", write, pull), siblings=siblings)


def alone(rng: random.Random, target: Target) -> Draft | None:
    """Concat of a single input."""
    axis = rng.randrange(target.rank)
    return draft(
        target,
        "Concat",
        lambda scope, names: scope.node("Concat", names, axis=axis),
    )


def concat(rng: random.Random, target: Target) -> Draft | None:
    axis = rng.randrange(target.rank)
    size = target.shape[axis]
    if size < 2 or int(np.prod(target.shape)) < 32:
        return None
    whole = [cut for cut in range(4, size, 4)]
    cut = rng.choice(whole) if whole and rng.random() < 0.8 else rng.randrange(1, size)
    spelled = axis - target.rank if rng.random() < 0.3 else axis
    return draft(
        target,
        "Concat",
        lambda scope, names: scope.node("Concat", names, axis=spelled),
        lambda ids, fill: list(np.split(ids, [cut], axis)),
    )
