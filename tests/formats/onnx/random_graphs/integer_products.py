"""Products of integer codes."""

import random
from typing import Any

import numpy as np
from formats.onnx.random_graphs.float_products import conv_shape
from formats.onnx.random_graphs.products import (
    ROWS,
    Feed,
    Product,
    inputs_count,
    operand,
    outputs_count,
)
from formats.onnx.random_graphs.scales import some_zero
from formats.onnx.random_graphs.values import Array

MICROSOFT = "com.microsoft"
EACH = 3
COARSE = 0.99  # of what is rounded to 8 bits on its way


def _input(
    rng: random.Random, shape: tuple[int, ...], channels: int, batch: int, each: int = 1
) -> tuple[Feed, str]:
    """An input: codes with a zero point, or floats that are quantized in the graph."""
    way = rng.choice(["codes", "codes", "plain", "dynamic"])
    if way == "dynamic":
        return Feed(shape, channels, batch, each=each), way
    neutral = 128 if way == "codes" else 0
    return Feed(shape, channels, batch, "uint8", neutral, each), way


def _more(x: tuple[int, ...]) -> tuple[int, ...]:
    """More rows, which tell the numbers of a kernel apart."""
    return (x[0] * EACH, *x[1:])


def _codes(scope: Any, x: str, way: str) -> tuple[str, str, str]:
    """The names of the codes of an input, their scale and their zero point."""
    if way == "dynamic":
        made: tuple[str, str, str] = scope.node("DynamicQuantizeLinear", [x], 3)
        return made
    point = scope.constant(128 if way == "codes" else 0, "uint8")
    return x, scope.constant(2.0**-5, "float32"), point


def _zero(rng: random.Random, dtype: str, count: int | None) -> Array:
    """One code that means zero, or one for each output."""
    if count is None or rng.random() < 0.6:
        return np.array(some_zero(rng, dtype))
    return np.array([some_zero(rng, dtype) for _ in range(count)])


def matmul_integer(rng: random.Random) -> Product:
    k, n, dtype = inputs_count(rng), outputs_count(rng), rng.choice(["int8", "uint8"])
    feed, way = _input(rng, (ROWS, k), 1, 0)
    zero = _zero(rng, dtype, n)
    omitted = not zero.any() and rng.random() < 0.5

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        x, _, point = _codes(scope, xs[0], way)
        points = [point] if omitted else [point, scope.constant(zero, dtype)]
        return scope.node("MatMulInteger", [x, ws[0], *points])

    return Product(
        "MatMulInteger",
        [feed],
        [operand((k, n), 0, dtype, zero)],
        write,
        2,
        0,
        "int32",
        alike=COARSE,
    )


def matmul_integer_left(rng: random.Random) -> Product:
    """The weight is the first input, which has one zero point."""
    k, n, dtype = inputs_count(rng), outputs_count(rng), rng.choice(["int8", "uint8"])
    feed, way = _input(rng, (k, ROWS), 0, 1)
    zero = _zero(rng, dtype, None)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        x, _, point = _codes(scope, xs[0], way)
        points = [scope.constant(zero, dtype), point]
        return scope.node("MatMulInteger", [ws[0], x, *points])

    return Product(
        "MatMulInteger-left",
        [feed],
        [operand((n, k), 1, dtype, zero)],
        write,
        2,
        1,
        "int32",
        alike=COARSE,
    )


def conv_integer(rng: random.Random) -> Product:
    shape, dtype = conv_shape(rng), rng.choice(["int8", "uint8"])
    feed, way = _input(rng, _more(shape.x), 1, 0, EACH)
    zero = _zero(rng, dtype, None)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        x, _, point = _codes(scope, xs[0], way)
        points = [point, scope.constant(zero, dtype)]
        return scope.node("ConvInteger", [x, ws[0], *points], **shape.facts)

    return Product(
        "ConvInteger",
        [feed],
        [operand(shape.w, 1, dtype, zero, taps=shape.taps)],
        write,
        len(shape.x),
        0,
        "int32",
        alike=COARSE,
    )


def _ends(scope: Any, zero: Array, dtype: str) -> tuple[list[str], list[str]]:
    """Scale and zero point of the weight, and of the output."""
    scale = scope.constant(np.full(zero.shape, 2.0**-6), "float32")
    output = [scope.constant(2.0**-5, "float32"), scope.constant(128, "uint8")]
    return [scale, scope.constant(zero, dtype)], output


def qlinear_conv(rng: random.Random) -> Product:
    shape, dtype = conv_shape(rng), rng.choice(["int8", "uint8"])
    zero = _zero(rng, dtype, None)
    bias = rng.random() < 0.5

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        weight, output = _ends(scope, zero, dtype)
        more = [scope.constant(np.ones(shape.w[0]), "int32")] if bias else []
        inputs = [*_codes(scope, xs[0], "codes"), ws[0], *weight, *output, *more]
        return scope.node("QLinearConv", inputs, **shape.facts)

    return Product(
        "QLinearConv",
        [Feed(_more(shape.x), 1, 0, "uint8", 128, EACH)],
        [operand(shape.w, 1, dtype, zero, taps=shape.taps)],
        write,
        len(shape.x),
        0,
        "uint8",
        alike=COARSE,
    )


def qlinear_matmul(rng: random.Random) -> Product:
    k, n, dtype = inputs_count(rng), outputs_count(rng), rng.choice(["int8", "uint8"])
    zero = _zero(rng, dtype, None)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        weight, output = _ends(scope, zero, dtype)
        inputs = [*_codes(scope, xs[0], "codes"), ws[0], *weight, *output]
        return scope.node("QLinearMatMul", inputs)

    return Product(
        "QLinearMatMul",
        [Feed((ROWS, k), 1, 0, "uint8", 128)],
        [operand((k, n), 0, dtype, zero)],
        write,
        2,
        0,
        "uint8",
        alike=COARSE,
    )


def qgemm(rng: random.Random) -> Product:
    k, n, dtype = inputs_count(rng), outputs_count(rng), rng.choice(["int8", "uint8"])
    zero, turned = _zero(rng, dtype, None), rng.random() < 0.5
    shape = (n, k) if turned else (k, n)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        weight, _ = _ends(scope, zero, dtype)
        inputs = [*_codes(scope, xs[0], "codes"), ws[0], *weight]
        return scope.node("QGemm", inputs, domain=MICROSOFT, transB=int(turned))

    return Product(
        "QGemm",
        [Feed((ROWS, k), 1, 0, "uint8", 128)],
        [operand(shape, int(turned), dtype, zero)],
        write,
        2,
        0,
        alike=COARSE,
    )


def dynamic_matmul(rng: random.Random) -> Product:
    k, n, dtype = inputs_count(rng), outputs_count(rng), rng.choice(["int8", "uint8"])
    zero = _zero(rng, dtype, n)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        weight, _ = _ends(scope, zero, dtype)
        inputs = [xs[0], ws[0], *weight]
        return scope.node("DynamicQuantizeMatMul", inputs, domain=MICROSOFT)

    return Product(
        "DynamicQuantizeMatMul",
        [Feed((ROWS, k), 1, 0)],
        [operand((k, n), 0, dtype, zero)],
        write,
        2,
        0,
        alike=COARSE,
    )


def integer_to_float(rng: random.Random) -> Product:
    k, n, dtype = inputs_count(rng), outputs_count(rng), rng.choice(["int8", "uint8"])
    feed, way = _input(rng, (ROWS, k), 1, 0)
    zero = _zero(rng, dtype, n)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        x, x_scale, x_point = _codes(scope, xs[0], way)
        (scale, point), _ = _ends(scope, zero, dtype)
        inputs = [x, ws[0], x_scale, scale, x_point, point]
        return scope.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)

    return Product(
        "MatMulIntegerToFloat",
        [feed],
        [operand((k, n), 0, dtype, zero)],
        write,
        2,
        0,
        alike=COARSE,
    )
