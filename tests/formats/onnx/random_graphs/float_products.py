"""Products of floats: MatMul, Gemm, Conv and their kin."""

import random
from dataclasses import dataclass
from typing import Any

from formats.onnx.random_graphs.products import (
    ROWS,
    Feed,
    Product,
    inputs_count,
    operand,
    outputs_count,
)


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
