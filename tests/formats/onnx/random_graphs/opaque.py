"""Steps that the contract does not list: what is behind them cannot be judged."""

import random
from typing import Any

import numpy as np
from formats.onnx.random_graphs.growth import Draft, Step, Target, draft
from formats.onnx.random_graphs.values import OPAQUE


def _simple(op: str, **facts: Any) -> Step:
    def step(rng: random.Random, target: Target) -> Draft | None:
        if target.dtype != "float32":
            return None
        return draft(
            target,
            op,
            lambda scope, names: scope.node(op, names, **facts),
            kind=OPAQUE,
        )

    return step


def _with_constant(op: str, own_shape: bool, turned: bool = False) -> Step:
    """An operator and a constant, of the shape of the weight or a single number."""

    def step(rng: random.Random, target: Target) -> Draft | None:
        roles = {target.role(axis) for axis in range(target.rank)}
        mixed = "both" in roles or roles >= {"input", "output"}
        if target.dtype != "float32" or (own_shape and not mixed):
            return None
        shape = target.shape if own_shape else ()
        numbers = [rng.choice([0.5, 1.0, 2.0]) for _ in range(int(np.prod(shape)))]
        values = np.reshape(numbers, shape)

        def write(scope: Any, names: list[str]) -> Any:
            both = [*names, scope.constant(values, "float32")]
            return scope.node(op, both[::-1] if turned else both)

        return draft(target, op, write, kind=OPAQUE)

    return step


def where(rng: random.Random, target: Target) -> Draft | None:
    if target.dtype != "float32":
        return None
    keep = np.array([rng.random() < 0.7 for _ in range(int(np.prod(target.shape)))])
    keep[0] = True

    def write(scope: Any, names: list[str]) -> Any:
        mask = scope.constant(keep.reshape(target.shape), "bool")
        return scope.node("Where", [mask, *names, scope.constant(0.5, "float32")])

    return draft(target, "Where", write, kind=OPAQUE)


def scatter(rng: random.Random, target: Target) -> Draft | None:
    if target.dtype != "float32":
        return None
    index = [rng.randrange(size) for size in target.shape]

    def write(scope: Any, names: list[str]) -> Any:
        at, to = scope.constant([index]), scope.constant([0.75], "float32")
        return scope.node("ScatterND", [*names, at, to])

    return draft(target, "ScatterND", write, kind=OPAQUE)


def tile(rng: random.Random, target: Target) -> Draft | None:
    even = [axis for axis, size in enumerate(target.shape) if size % 2 == 0]
    if target.dtype != "float32" or not even:
        return None
    axis = rng.choice(even)
    repeats = [2 if at == axis else 1 for at in range(target.rank)]

    def write(scope: Any, names: list[str]) -> Any:
        return scope.node("Tile", [*names, scope.constant(repeats)])

    return draft(
        target,
        "Tile",
        write,
        lambda ids, fill: [np.split(ids, 2, axis)[0]],
        kind=OPAQUE,
    )


def gather(rng: random.Random, target: Target) -> Draft | None:
    """The elements along an axis in another order."""
    axis = rng.randrange(target.rank)
    order = rng.sample(range(target.shape[axis]), target.shape[axis])

    def write(scope: Any, names: list[str]) -> Any:
        return scope.node("Gather", [*names, scope.constant(order)], axis=axis)

    return draft(
        target,
        "Gather",
        write,
        lambda ids, fill: [ids.take(np.argsort(order), axis)],
        kind=OPAQUE,
    )


def dynamic(rng: random.Random, target: Target) -> Draft | None:
    """Codes that are made of floats with a scale that depends on them."""
    if target.dtype != "uint8":
        return None

    def write(scope: Any, names: list[str]) -> Any:
        return scope.node("DynamicQuantizeLinear", names, 3)[0]

    return draft(target, "DynamicQuantizeLinear", write, dtype="float32", kind=OPAQUE)


def pad(rng: random.Random, target: Target) -> Draft | None:
    big = [axis for axis, size in enumerate(target.shape) if size > 4]
    if target.dtype != "float32" or not big:
        return None
    axis = rng.choice(big)
    ends = [0] * (2 * target.rank)
    ends[axis] = 1
    at = tuple(slice(1 if a == axis else 0, None) for a in range(target.rank))

    def write(scope: Any, names: list[str]) -> Any:
        return scope.node("Pad", [*names, scope.constant(ends)])

    return draft(target, "Pad", write, lambda ids, fill: [ids[at].copy()], kind=OPAQUE)


OPAQUE_STEPS: dict[str, Step] = {
    "Neg": _simple("Neg"),
    "Relu": _simple("Relu"),
    "Sum": _simple("Sum"),
    "Dropout": _simple("Dropout"),
    "Tanh": _simple("Tanh"),
    "mask": _with_constant("Mul", own_shape=True),
    "mask-div": _with_constant("Div", own_shape=True),
    "Add": _with_constant("Add", own_shape=False),
    "Sub": _with_constant("Sub", own_shape=True),
    "Max": _with_constant("Max", own_shape=True),
    "turned-sub": _with_constant("Sub", own_shape=False, turned=True),
    "Where": where,
    "ScatterND": scatter,
    "Tile": tile,
    "Gather": gather,
    "Pad": pad,
    "DynamicQuantizeLinear": dynamic,
}


def some_step(rng: random.Random, dtype: str) -> Step:
    """One of a few of them that fits."""
    several = rng.sample(list(OPAQUE_STEPS.values()), 6)
    if dtype == "uint8" and rng.random() < 0.3:
        several.insert(0, dynamic)

    def step(rng: random.Random, target: Target) -> Draft | None:
        return next((made for one in several if (made := one(rng, target))), None)

    return step
