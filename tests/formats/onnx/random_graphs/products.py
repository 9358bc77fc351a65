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

    def lanes(self) -> Array:
        """The elements of each sum, in the order of the inputs: [sums, inputs]."""
        t = self.target
        sums = t.outputs * (int(self.taps.max()) + 1) + self.taps
        order = np.lexsort((t.inputs.reshape(-1), sums.reshape(-1)))
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


def matmul(rng: random.Random) -> Product:
    batch = rng.choice([(), (), (1,), (2,), (3,)])
    k, n = inputs_count(rng), outputs_count(rng)
    if rng.random() < 0.6:
        x = (*(batch if rng.random() < 0.7 else ()), ROWS, k)
        rank = max(len(x), len(batch) + 2)
        return Product(
            "MatMul",
            [Feed(x, -1, -2)],
            [operand((*batch, k, n), -2)],
            lambda scope, xs, ws: scope.node("MatMul", [xs[0], ws[0]]),
            rank,
            -2,
        )
    x = (*(batch if rng.random() < 0.7 else ()), k, ROWS)
    return Product(
        "MatMul-left",
        [Feed(x, -2, -1)],
        [operand((*batch, n, k), -1)],
        lambda scope, xs, ws: scope.node("MatMul", [ws[0], xs[0]]),
        max(len(x), len(batch) + 2),
        -1,
    )


def fused_matmul(rng: random.Random) -> Product:
    k, n = inputs_count(rng), outputs_count(rng)
    turned, trans_x, left = (rng.random() < p for p in (0.6, 0.4, 0.3))
    batch = rng.choice([(), (), (2,)])
    turned_batch = bool(batch) and not left and rng.random() < 0.5
    rows, columns = (n, k) if turned != left else (k, n)
    shape = (rows, *batch, columns) if turned_batch else (*batch, rows, columns)
    last = len(shape) - 1
    axis = last if turned != left else (0 if turned_batch else last - 1)
    over_rows = left != trans_x  # whether the channels are the rows of x
    x = (*batch, k, ROWS) if over_rows else (*batch, ROWS, k)
    names = ("transA", "transB") if left else ("transB", "transA")
    facts: dict[str, Any] = {names[0]: int(turned), names[1]: int(trans_x)}
    facts |= {"alpha": rng.choice([1.0, 0.5])}
    if turned_batch:
        facts["transBatchB"] = 1

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        both = [ws[0], xs[0]] if left else [xs[0], ws[0]]
        return scope.node("FusedMatMul", both, domain="com.microsoft", **facts)

    return Product(
        "FusedMatMul",
        [Feed(x, -2 if over_rows else -1, -1 if over_rows else -2)],
        [operand(shape, axis)],
        write,
        len(batch) + 2,
        -1 if left else -2,
    )


def _gemm(rng: random.Random, op: str, domain: str, extra: dict[str, Any]) -> Product:
    k, n = inputs_count(rng), outputs_count(rng)
    turned, trans_x, left = (rng.random() < p for p in (0.6, 0.4, 0.3))
    shape, axis = ((n, k), 1) if turned != left else ((k, n), 0)
    over_rows = left != trans_x
    x = (k, ROWS) if over_rows else (ROWS, k)
    names = ("transA", "transB") if left else ("transB", "transA")
    facts = {names[0]: int(turned), names[1]: int(trans_x), **extra}
    facts = {
        name: value for name, value in facts.items() if value or rng.random() < 0.5
    }
    bias = bool(domain) or rng.random() < 0.5

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        more = [scope.constant([[512]], "float32")] if bias else []
        both = [ws[0], xs[0]] if left else [xs[0], ws[0]]
        return scope.node(op, [*both, *more], domain=domain, **facts)

    feed = Feed(x, 0 if over_rows else 1, 1 if over_rows else 0)
    return Product(op, [feed], [operand(shape, axis)], write, 2, 1 if left else 0)


def gemm(rng: random.Random) -> Product:
    return _gemm(rng, "Gemm", "", {"alpha": rng.choice([1.0, 0.5])})


def fused_gemm(rng: random.Random) -> Product:
    return _gemm(rng, "FusedGemm", "com.microsoft", {"activation": "Relu"})


@dataclass(frozen=True)
class ConvShape:
    """A convolution of one or two dimensions, perhaps in groups."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    facts: dict[str, Any]

    @property
    def taps(self) -> tuple[int, ...]:
        return self.w[2:]


def conv_shape(rng: random.Random) -> ConvShape:
    dims = rng.choice([1, 2])
    group = rng.choice([1, 1, 1, 2])
    inputs = rng.choice([4, 8, 8, 12, 1]) if group > 1 else inputs_count(rng)
    kernel = tuple(
        rng.choice([1, 2, 3] if dims == 1 else [1, 1, 2]) for _ in range(dims)
    )
    space = tuple(rng.choice([5, 6]) for _ in range(dims))
    outputs = group * rng.choice([2, 3, 4])
    facts: dict[str, Any] = {"group": group} if group > 1 or rng.random() < 0.3 else {}
    if rng.random() < 0.5:
        facts["kernel_shape"] = list(kernel)
    if rng.random() < 0.4:
        facts["pads"] = [1] * (2 * dims)
    elif rng.random() < 0.2:
        facts["auto_pad"] = "SAME_UPPER"
    return ConvShape((ROWS, group * inputs, *space), (outputs, inputs, *kernel), facts)


def _conv(rng: random.Random, op: str, domain: str, extra: dict[str, Any]) -> Product:
    shape = conv_shape(rng)
    bias = bool(domain) or rng.random() < 0.5  # so large that Relu changes nothing
    facts = {**shape.facts, **extra}

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        more = [scope.constant([512] * shape.w[0], "float32")] if bias else []
        return scope.node(op, [xs[0], ws[0], *more], domain=domain, **facts)

    return Product(
        op,
        [Feed(shape.x, 1, 0)],
        [operand(shape.w, 1, taps=shape.taps)],
        write,
        len(shape.x),
        0,
    )


def conv(rng: random.Random) -> Product:
    return _conv(rng, "Conv", "", {})


def fused_conv(rng: random.Random) -> Product:
    return _conv(rng, "FusedConv", "com.microsoft", {"activation": "Relu"})
