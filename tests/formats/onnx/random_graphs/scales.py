"""Steps with scales: Mul, Div, and quantization."""

import random
from typing import Any

import numpy as np
from formats.onnx.random_graphs.growth import Draft, Step, Target, draft
from formats.onnx.random_graphs.protos import element_type
from formats.onnx.random_graphs.values import (
    CODES,
    EITHER,
    LISTED,
    OPEN,
    Array,
    Runtime,
)

UNIT = 2.0**-4  # of a code


def scale_shape(rng: random.Random, target: Target) -> tuple[tuple[int, ...], str]:
    """One number for all, for each output or input; and whether it surely is one."""
    role = rng.choice(["none", "input", "output"])
    shape, kind = [1] * target.rank, LISTED
    roles = [target.role(axis) for axis in range(target.rank)]
    if role != "none" and role in roles:
        axes = [axis for axis, found in enumerate(roles) if found == role]
        for axis in axes[: 1 if rng.random() < 0.7 else None]:
            shape[axis] = target.shape[axis]
    elif rng.random() < 0.1:
        axis = rng.randrange(target.rank)
        shape[axis], kind = target.shape[axis], EITHER
        if roles[axis] in ("input", "output") or shape[axis] == 1:
            kind = LISTED
    if max(shape) == 1 and rng.random() < 0.6:
        return rng.choice([(), (1,)]), kind
    while shape[0] == 1 and len(shape) > 1 and rng.random() < 0.5:
        shape = shape[1:]
    return tuple(shape), kind


def _scales(rng: random.Random, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape))
    signs = [rng.choice([0.5, 1.0, 2.0, -1.0]) for _ in range(count)]
    return np.reshape(signs, shape)


def scale(rng: random.Random, target: Target) -> Draft | None:
    if target.dtype not in ("float32", "float64"):
        return None
    shape, kind = scale_shape(rng, target)
    scales, op = _scales(rng, shape), rng.choice(["Mul", "Mul", "Div"])
    turned = op == "Mul" and rng.random() < 0.5
    through = rng.choice(["Identity", "Cast", "Reshape"])
    if rng.random() < 0.15:
        kind = EITHER
    else:
        through = ""

    def write(scope: Any, names: list[str]) -> Any:
        both = [*names, _constant(scope, scales, target.dtype, through)]
        return scope.node(op, both[::-1] if turned else both)

    return draft(target, op, write, kind=kind)


def _constant(scope: Any, scales: Array, dtype: str, through: str) -> Any:
    """A constant, perhaps through another node."""
    if through == "Cast":
        half = scope.constant(scales, "float16")
        return scope.node("Cast", [half], to=element_type(dtype))
    name = scope.constant(scales, dtype)
    if through == "Reshape":
        return scope.node("Reshape", [name, scope.constant(list(scales.shape))])
    return scope.node(through, [name]) if through else name


def open_scale(name: str) -> Step:
    """Mul by an input of the graph."""

    def step(rng: random.Random, target: Target) -> Draft | None:
        if target.dtype != "float32":
            return None
        runtime = Runtime((), "float32", name=name)

        def write(scope: Any, names: list[str]) -> Any:
            return scope.node("Mul", [*names, scope.emit(runtime)])

        return draft(target, "Mul", write, kind=OPEN)

    return step


def weight_only(rng: random.Random, target: Target) -> Draft | None:
    """Codes, Cast, Mul by a scale."""
    if target.dtype != "float32":
        return None
    shape, kind = scale_shape(rng, target)
    scales, dtype = _scales(rng, shape) * UNIT, rng.choice(CODES)

    def write(scope: Any, names: list[str]) -> Any:
        floats = scope.node("Cast", names, to=element_type("float32"))
        return scope.node("Mul", [floats, scope.constant(scales, "float32")])

    zero = np.zeros(target.shape, np.int64)
    return draft(target, "Cast+Mul", write, dtype=dtype, zero=zero, kind=kind)


def some_zero(rng: random.Random, dtype: str) -> int:
    return rng.choice([0, 3, -7, 100] if dtype == "int8" else [128, 121, 0, 255])


def dequantize(rng: random.Random, target: Target) -> Draft | None:
    """One scale, one for each slice of an axis, or one for each block."""
    if target.dtype != "float32":
        return None
    dtype = rng.choice(["int8", "int8", "uint8", "float8_e4m3fn"])
    axis = rng.randrange(target.rank)
    way = rng.choice(["one", "one", "axis", "axis", "block"])
    shape: tuple[int, ...] = () if way == "one" else (target.shape[axis],)
    facts: dict[str, Any] = {} if way == "one" else {"axis": axis}
    if way == "block":
        if target.rank < 2 or target.shape[axis] % 4:
            return None
        facts["block_size"] = 4
        shape = tuple(
            size // 4 if at == axis else size for at, size in enumerate(target.shape)
        )
    if way == "axis" and axis == 1 and rng.random() < 0.5:
        facts = {}
    domain = "com.microsoft" if rng.random() < 0.3 else ""
    if dtype not in CODES or way == "block":
        domain = ""
    scales = np.abs(_scales(rng, shape)) * UNIT
    if dtype not in CODES:
        scales = np.ones(shape)
    zeros = np.zeros(shape, np.int64)
    if dtype in CODES and way != "block":
        same = rng.random() < 0.5
        several = [some_zero(rng, dtype) for _ in range(int(np.prod(shape)))]
        zeros = np.reshape([several[0] if same else zero for zero in several], shape)
    omitted = not zeros.any() and (dtype in CODES and rng.random() < 0.5)

    def write(scope: Any, names: list[str]) -> Any:
        points = [] if omitted else [scope.constant(zeros, dtype_of(dtype))]
        if dtype not in CODES:
            points = []
        both = [*names, scope.constant(scales, "float32"), *points]
        return scope.node("DequantizeLinear", both, domain=domain, **facts)

    zero = _spread(zeros, target.shape, axis) if dtype in CODES else None
    return draft(target, "DequantizeLinear", write, dtype=dtype, zero=zero)


def dtype_of(codes: str) -> str:
    return codes if codes in CODES else "float32"


def _spread(zeros: Array, shape: tuple[int, ...], axis: int) -> Array:
    """The code that means zero for each element."""
    if zeros.ndim == 1:
        around = [1] * len(shape)
        around[axis] = len(zeros)
        zeros = zeros.reshape(around)
    elif zeros.ndim > 1:
        zeros = zeros.repeat(4, axis)
    return np.broadcast_to(zeros, shape).astype(np.int64)


def quantize(rng: random.Random, target: Target) -> Draft | None:
    """Floats that are quantized in the graph: where codes, or such floats, are used."""
    if target.dtype in CODES and target.zero is not None:
        if (target.zero != target.zero.reshape(-1)[0]).any():
            return None
        dtype, point = target.dtype, int(target.zero.reshape(-1)[0])
    elif target.dtype == "float32":
        dtype = rng.choice(CODES)
        point = 3 if dtype == "int8" else 128
    else:
        return None
    again = target.dtype == "float32"
    step = 2.0**-5
    if abs(point - (128 if dtype == "uint8" else 0)) > 64:
        return None
    domains = [rng.choice(["", "", "com.microsoft"]) for _ in range(2)]

    def write(scope: Any, names: list[str]) -> Any:
        facts = [scope.constant(step, "float32"), scope.constant(point, dtype)]
        codes = scope.node("QuantizeLinear", [*names, *facts], domain=domains[0])
        if not again:
            return codes
        return scope.node("DequantizeLinear", [codes, *facts], domain=domains[1])

    op = "QuantizeLinear" + "+DequantizeLinear" * again
    return draft(target, op, write, dtype="float32")
