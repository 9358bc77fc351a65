"""Random ways from stored tensors to a MatMul, followed by the numbers of elements.

Each element of the stored tensors has a number; NumPy does with the numbers what the
nodes do, which tells the groups that the product sums over.
"""

import math
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import model
from numpy.typing import NDArray
from onnx import helper

from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.open import open_checkpoint
from step_cli.nm.pattern import NMPattern
from step_cli.nm.selection import Selection

Numbers = NDArray[np.int64]
GRAPHS = 400


class Way:
    """Nodes that rearrange numbered elements, and what they make of the numbers."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, NDArray[np.generic]] = {}
        self.stored: dict[str, Numbers] = {}
        self.used = 0

    def name(self) -> str:
        self.used += 1
        return f"v{self.used}"

    def constant(self, *numbers: int) -> str:
        name = self.name()
        self.arrays[name] = np.array(numbers, np.int64)
        return name

    def store(self, shape: tuple[int, ...]) -> tuple[str, Numbers]:
        name = f"w{len(self.stored)}"
        first = sum(array.size for array in self.stored.values())
        numbers = np.arange(first, first + math.prod(shape)).reshape(shape)
        self.stored[name] = numbers
        self.arrays[name] = np.ones(shape, np.float32)
        return name, numbers

    def add(self, op: str, inputs: list[str], outputs: int = 1, **attributes: object):  # type: ignore[no-untyped-def]
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def step(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        """One random operator."""
        options = [self.transpose, self.reshape, self.slice, self.split, self.concat]
        options += [self.unsqueeze, self.scale, self.transpose, self.reshape]
        return options[self.random.integers(len(options))](name, numbers)

    def transpose(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        order = [int(axis) for axis in self.random.permutation(numbers.ndim)]
        (new,) = self.add("Transpose", [name], perm=order)
        return new, numbers.transpose(order)

    def reshape(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        left, shape = numbers.size, list[int]()
        while left > 1 and len(shape) < 3:
            sizes = [size for size in (2, 3, 4, 5, 8, 16) if left % size == 0]
            shape.append(int(self.random.choice(sizes or [left])))
            left //= shape[-1]
        shape = [*shape, left] if left > 1 or not shape else shape
        shape = [shape[i] for i in self.random.permutation(len(shape))]
        (new,) = self.add("Reshape", [name, self.constant(*shape)])
        return new, numbers.reshape(shape)

    def slice(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        axis = int(self.random.integers(numbers.ndim))
        step = 4 if numbers.shape[axis] % 4 == 0 and self.random.random() < 0.7 else 1
        size = numbers.shape[axis] // step
        begin = int(self.random.integers(size)) * step
        end = begin + step * int(self.random.integers(1, size - begin // step + 1))
        inputs = [name, self.constant(begin), self.constant(end), self.constant(axis)]
        (new,) = self.add("Slice", inputs)
        return new, np.take(numbers, range(begin, end), axis)

    def split(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        axis = int(self.random.integers(numbers.ndim))
        number = 2 if numbers.shape[axis] % 2 == 0 else 1
        names = self.add("Split", [name], number, axis=axis, num_outputs=number)
        chosen = int(self.random.integers(number))
        return names[chosen], np.split(numbers, number, axis)[chosen]

    def concat(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        axis = int(self.random.integers(numbers.ndim))
        shape = list(numbers.shape)
        shape[axis] = int(self.random.choice([1, 2, 4, 8]))
        other, more = self.store(tuple(shape))
        if self.random.random() < 0.3:
            other, more = name, numbers
        (new,) = self.add("Concat", [name, other], axis=axis)
        return new, np.concatenate([numbers, more], axis)

    def unsqueeze(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        if numbers.ndim > 3:
            return name, numbers
        axis = int(self.random.integers(numbers.ndim + 1))
        (new,) = self.add("Unsqueeze", [name, self.constant(axis)])
        return new, np.expand_dims(numbers, axis)

    def scale(self, name: str, numbers: Numbers) -> tuple[str, Numbers]:
        self.arrays["scale"] = np.ones((), np.float32)
        (new,) = self.add("Mul", [name, "scale"])
        return new, numbers


def way(seed: int) -> tuple[Way, Numbers, bool]:
    """Nodes to a product, the numbers of its operand, and whether it is the left."""
    made = Way(seed)
    shapes = [(8, 16), (16, 8), (4, 8, 4), (2, 4, 8), (12, 8)]
    name, numbers = made.store(shapes[seed % len(shapes)])
    for _ in range(1 + seed % 4):
        name, numbers = made.step(name, numbers)
    while numbers.ndim < 2:
        name, numbers = made.unsqueeze(name, numbers)
    left = bool(made.random.integers(2))
    made.nodes.append(
        helper.make_node("MatMul", [name, "x"] if left else ["x", name], ["y"])
    )
    return made, numbers, left


def groups_of(numbers: Numbers, left: bool, m: int) -> set[frozenset[int]]:
    """The whole groups that the product sums over."""
    summed = numbers if left else numbers.swapaxes(-1, -2)
    summed = summed[..., : summed.shape[-1] // m * m]
    return {frozenset(map(int, group)) for group in summed.reshape(-1, m)}


def judged_groups(
    tensor: NamedTensor, numbers: Numbers, m: int
) -> list[frozenset[int]]:
    """The groups that are judged of a stored tensor, one after another."""
    found = []
    whole = ((0,) * numbers.ndim, numbers.shape)
    boxes = [(part.begin, part.end) for part in tensor.parts] or [whole]
    for begin, end in boxes:
        at = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
        assert tensor.axis is not None
        rows = np.moveaxis(numbers[at], tensor.axis, -1)
        found += [frozenset(map(int, group)) for group in rows.reshape(-1, m)]
    return found


@pytest.mark.parametrize("first", range(0, GRAPHS, 100))
def test_groups_are_those_of_the_product(first: int, tmp_path: Path) -> None:
    followed = 0
    for seed, pattern in product(range(first, first + 100), ("1:2", "2:4", "2:8")):
        made, numbers, left = way(seed)
        path = tmp_path / "m.onnx"
        path.write_bytes(model(made.nodes, made.arrays).SerializeToString())
        found = open_checkpoint(path).tensors
        n, m = int(pattern[0]), int(pattern[2:])
        chosen = Selection(pattern=NMPattern(n, m)).choose(found)
        judged: list[frozenset[int]] = []
        for layer in chosen.layers:
            name = layer.tensor.name
            own = judged_groups(layer.tensor, made.stored[name], m)
            assert len(own) == len(set(own)), seed
            judged += own
        groups = groups_of(numbers, left, m)
        used = {int(number) for number in numbers.reshape(-1)}
        missed = {tensor.name for tensor in chosen.unchecked}
        assert set(judged) <= groups, seed
        for name, own_numbers in made.stored.items():
            mine = used & set(map(int, own_numbers.reshape(-1)))
            seen = {number for group in judged for number in group}
            assert mine <= seen or name in missed, (seed, name)
        followed += len(chosen.layers) > 0
    assert followed > 100
