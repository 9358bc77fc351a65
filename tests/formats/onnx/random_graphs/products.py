"""The products: what they multiply by, and how their inputs are fed.

An input has ``ROWS`` copies along its batch axis: in the first every channel counts, in
each other one only the channels whose number has, or lacks, a certain bit.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from formats.onnx.random_graphs.growth import Target
from formats.onnx.random_graphs.values import Array

BITS = 5
ROWS = 1 + 2 * BITS


@dataclass(frozen=True)
class Feed:
    """An input of a product.

    Attributes:
        shape: With ROWS times ``each`` along the batch axis.
        channels: The axis that is summed over.
        batch: The batch axis.
        dtype: float32 or uint8.
        neutral: The number that counts as zero.
        each: Rows for each choice of channels.
        size: Of the numbers, if they are floats.
    """

    shape: tuple[int, ...]
    channels: int
    batch: int
    dtype: str = "float32"
    neutral: int = 0
    each: int = 1
    size: float = 1.0

    def array(self, rng: np.random.Generator, varied: bool) -> Array:
        """Amplitudes that are the product of one for the channel and one for the rest.

        Without ``varied`` every channel counts in all copies.
        """
        axes = len(self.shape)
        channels, batch = self.channels % axes, self.batch % axes
        count = self.shape[channels]
        rest = list(self.shape)
        rest[channels], rest[batch] = 1, self.each
        if self.dtype == "float32":
            one = np.exp(rng.uniform(-1, 1, rest)) * self.size
            other = rng.uniform(1, 2, count)
        else:
            one, other = rng.integers(3, 9, rest), rng.integers(6, 14, count)
        if self.dtype == "float32" or self.neutral == 128:
            one = one * rng.choice([-1, 1], rest)
        along = [1] * axes
        along[channels] = count
        full = one * other.reshape(along)
        copies = [full]
        for bit in range(BITS):
            has = ((np.arange(count) >> bit) & 1).reshape(along)
            copies += [full * has, full * (1 - has)] if varied else [full, full]
        fed = np.concatenate(copies, batch) + self.neutral
        return fed.astype(self.dtype)


@dataclass(frozen=True)
class Operand:
    """What a product multiplies the input ``feed`` by."""

    target: Target
    taps: Array  # which of several numbers of one output and input, as of a kernel
    feed: int = 0

    def sums(self) -> Array:
        """Which sum each element takes part in."""
        return self.target.outputs * (int(self.taps.max()) + 1) + self.taps

    def lanes(self) -> Array:
        """The elements of each sum, in the order of the inputs: [sums, inputs]."""
        sums = self.sums()
        order = np.lexsort((self.target.inputs.reshape(-1), sums.reshape(-1)))
        return order.reshape(len(np.unique(sums)), -1)


@dataclass(frozen=True)
class Product:
    """One node that sums over products.

    Attributes:
        kind: Its name in the list of products.
        feeds: Its inputs.
        operands: What they are multiplied by.
        write: Writes it, given the names of the inputs and of the operands.
        rank: Of its output.
        batch: The axis of its output along which the copies lie.
        dtype: Of its output.
        linear: Whether the output is linear in the operands.
        alike: How close the directions of two responses of one sum are: a cosine.
    """

    kind: str
    feeds: list[Feed]
    operands: list[Operand]
    write: Callable[[Any, list[str], list[str]], str]
    rank: int
    batch: int
    dtype: str = "float32"
    linear: bool = True
    alike: float = 0.9999


def operand(
    shape: tuple[int, ...],
    axis: int,
    dtype: str = "float32",
    zero: Array | None = None,
    taps: tuple[int, ...] = (),
    feed: int = 0,
) -> Operand:
    """An operand that is summed along ``axis``, with a kernel of size ``taps`` last."""
    where = np.indices(shape)
    inputs = where[axis]
    outer = [a for a in range(len(shape) - len(taps)) if a != axis % len(shape)]
    outputs = np.zeros(shape, np.int64)
    for a in outer:
        outputs = outputs * shape[a] + where[a]
    kernel = np.zeros(shape, np.int64)
    for a in range(len(shape) - len(taps), len(shape)):
        kernel = kernel * shape[a] + where[a]
    if zero is not None:
        zero = np.broadcast_to(zero, shape).astype(np.int64)
    return Operand(Target(shape, dtype, inputs, outputs, zero), kernel, feed)


def inputs_count(rng: random.Random) -> int:
    """Seldom one that is no multiple of 4."""
    return rng.choice([4, 8, 8, 8, 12, 12, 16, 16, 16, rng.choice([6, 10, 8])])


def outputs_count(rng: random.Random) -> int:
    return rng.choice([3, 4, 5, 6, 8, 12])
