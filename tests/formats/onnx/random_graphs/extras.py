"""What is done to a graph once its products are there."""

import random

from formats.onnx.random_graphs import products
from formats.onnx.random_graphs.example import Example, Placed
from formats.onnx.random_graphs.places import Place
from formats.onnx.random_graphs.products import Product
from formats.onnx.random_graphs.values import (
    Leaf,
    Made,
    Runtime,
    Value,
    ancestors,
)


def use_again(example: Example, rng: random.Random) -> None:
    """Multiply by a value once more, or by the rest of a Split, or look rows up."""
    every = example.every_value()
    leaves = [value for value in every if isinstance(value, Leaf) and _fits(value)]
    rests = [
        sibling
        for value in every
        if isinstance(value, Made)
        for sibling in value.siblings
        if _fits(sibling)
    ]
    if leaves and rng.random() < 0.25:
        _look_up(example, rng.choice(leaves))
    elif rests or leaves:
        again = rng.choice(rests or leaves)
        for value in ancestors(again):
            value.level = 0
            if isinstance(value, Leaf) and value.stored.form == "reference":
                value.stored.form = "initializer"
        multiply(example, again, rng.randrange(2))


def _fits(value: Value) -> bool:
    matrix = value.dtype == "float32" and len(value.shape) == 2
    return matrix and max(value.shape) < 2**products.BITS


def _look_up(example: Example, leaf: Leaf) -> None:
    leaf.level = 0
    leaf.stored.form = "initializer"
    example.looked_up.append(leaf.stored)


def multiply(example: Example, value: Value, axis: int) -> None:
    number = len(example.placed)
    feed = products.Feed((products.ROWS, value.shape[axis]), 1, 0)
    product = Product(
        "Gemm",
        [feed],
        [products.operand(value.shape, axis)],
        lambda scope, xs, ws: scope.node("Gemm", [xs[0], ws[0]], transB=axis),
        2,
        0,
    )
    x = Runtime(feed.shape, feed.dtype, name=f"x{number}")
    place = Place((), x, "float32")
    example.placed.append(Placed(product, [value], [x], place, f"y{number}"))


def into_functions(example: Example, rng: random.Random) -> None:
    """Have a part of the way to an operand made in a function."""
    uses: dict[int, int] = {}
    every = example.every_value()
    for value in every:
        uses[id(value)] = uses.get(id(value), 0) + 1
        if isinstance(value, Leaf) and value.stored in example.looked_up:
            uses[id(value)] += 1
    for value in every:
        if not isinstance(value, Made) or value.inside or value.bound:
            continue
        if rng.random() < 0.08:
            value.inside = _inside(value, uses, rng)


def _inside(value: Made, uses: dict[int, int], rng: random.Random) -> frozenset[int]:
    """Which of the values before this one, beside itself, its function makes."""
    inside, front = {id(value)}, list(value.sources)
    while front:
        source = front.pop()
        bound = isinstance(source, Made) and source.bound
        alone = uses[id(source)] == 1 and source.level == value.level and not bound
        if alone and rng.random() < 0.7:
            inside.add(id(source))
            front += source.sources
    return frozenset(inside)
